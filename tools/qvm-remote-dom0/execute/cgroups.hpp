// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A cgroup for each command, where the daemon's unit was given one to divide (cgroup v2).
///
///     qvm-remote-dom0.service
///     ├─ daemon        the daemon, the warden, the keepers
///     ├─ command-1     one command, its whole tree
///     └─ command-2     …
///
/// It bounds what a command takes, and ends it with one write, whatever it forks. It is beside the
/// keepers and not in their place: root can leave its group, but not its ancestors.

#pragma once

#include <cstdint>
#include <string>

#include <sys/types.h>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "base/containment.hpp"

namespace qvmremote::dom0 {

/// The group that is ours to divide, or none.
struct cgroup_home {
    std::string directory;                          ///< empty: there is none
    std::string name;                               ///< as in /proc/PID/cgroup
    std::string why_none;                           ///< for `status`
    bool memory = false, pids = false, cpu = false; ///< what can be bounded there

    [[nodiscard]] explicit operator bool() const noexcept { return !directory.empty(); }
    /// One line for people: what ends a command, and what cannot be bounded.
    [[nodiscard]] std::string describe() const;
};

/// Finds the group that this process is in. If it was delegated (systemd's Delegate=yes; a group
/// that this user owns) and holds nobody else, this process moves to a group below it, and what a
/// daemon before us left there is ended. Otherwise nothing is changed. To be called before there is
/// a warden or a thread.
[[nodiscard]] cgroup_home claim_cgroup();

/// The group of one command.
class command_cgroup {
  public:
    command_cgroup() = default; ///< none: all below does nothing and succeeds
    command_cgroup(const cgroup_home &home, std::uint64_t number);

    [[nodiscard]] host::outcome<void> make() const;
    /// Sets what there are controllers for; swap goes with memory.
    [[nodiscard]] host::outcome<void> limit(const resources &most, const cgroup_home &home) const;
    /// For clone3, open; an invalid one where there is no group.
    [[nodiscard]] host::outcome<host::unique_fd> open() const;
    /// Whether the kernel killed it, since it needed more memory than it may have.
    [[nodiscard]] bool out_of_memory() const;
    /// KILL to all in it and below, without a gap to fork through.
    void kill() const noexcept;
    /// Whether it is gone: it goes when no process is left in it. Groups that the command made
    /// below it go too.
    [[nodiscard]] bool remove() const;

    [[nodiscard]] explicit operator bool() const noexcept { return !path_.empty(); }

  private:
    std::string path_;
};

/// Whether a process is part of a command of ours: in its group, or below a keeper of this warden.
/// True when that cannot be told, and for a process that is gone. A trip-wire where commands are
/// root: what root asks another service to start is neither.
[[nodiscard]] bool is_inside_our_command(pid_t pid, const cgroup_home &home, pid_t warden);

/// Whether a process has a controlling terminal that no command of ours has.
[[nodiscard]] bool has_terminal_of_its_own(pid_t pid, pid_t warden);

} // namespace qvmremote::dom0
