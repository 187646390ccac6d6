// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A cgroup for each command, if systemd has delegated the daemon's cgroup (cgroup v2).
///
///     qvm-remote-dom0.service
///     ├─ daemon        the daemon, the warden, the keepers
///     ├─ command-1     one command, its whole tree
///     └─ command-2     ...
///
/// A cgroup limits a command, and one write ends all of it, whatever it forks. The keepers are needed
/// too: root can leave its cgroup, but cannot change its ancestors.

#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include <sys/types.h>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "base/containment.hpp"

namespace qvmremote::dom0 {

/// The group that we may divide, or none.
struct cgroup_home {
    std::string directory;                          ///< empty: none
    std::string name;                               ///< as in /proc/PID/cgroup
    std::string why_none;                           ///< for `status`
    bool memory = false, pids = false, cpu = false; ///< what can be limited there

    [[nodiscard]] explicit operator bool() const noexcept { return !directory.empty(); }
    /// One line for people: how a command is ended, and what cannot be limited.
    [[nodiscard]] std::string describe() const;
};

/// Finds the group that this process is in. If it was delegated (systemd's Delegate=yes, or a group
/// that this user owns) and holds no other process, this process moves to a group below it, and
/// commands that an earlier daemon left there are ended. Otherwise nothing changes. Call it before
/// there is a warden or a thread.
[[nodiscard]] cgroup_home claim_cgroup();

/// The group in which jobs live, outside of the daemon's unit: that of qvm-remote-jobs.service, which
/// systemd delegates too. `name` is as in /proc/PID/cgroup, from QVM_REMOTE_JOBS_CGROUP; empty: none.
/// Nothing that runs there is ended. Its own processes move to a group below it:
///
///     qvm-remote-jobs.service
///     ├─ holder        keeps the unit, and so the group
///     ├─ keepers       the keepers of jobs
///     └─ job-NAME      one job
[[nodiscard]] cgroup_home claim_jobs_cgroup(const std::string &name);

/// The same after a while: that unit may have been stopped or started meanwhile, and its group is
/// another then.
void claim_jobs_cgroup_again(cgroup_home &jobs);

/// Moves this process to the keepers of jobs.
[[nodiscard]] host::outcome<void> join_keepers(const cgroup_home &jobs);

/// Whether a process is one of the keepers of jobs. Without a group for jobs there are none.
[[nodiscard]] bool is_keeper_of_jobs(pid_t pid, const cgroup_home &jobs);

/// Ends what is in the groups of jobs whose name (job_record::name) `is_known` does not accept, and
/// removes these groups.
void end_other_jobs(const cgroup_home &jobs, const std::function<bool(std::string_view)> &is_known);

/// The group of one command.
class command_cgroup {
  public:
    command_cgroup() = default; ///< no group: each function does nothing and succeeds
    command_cgroup(const cgroup_home &home, std::uint64_t number);
    /// That of a job.
    command_cgroup(const cgroup_home &jobs, const std::string &name);

    [[nodiscard]] host::outcome<void> make() const;
    /// Sets the limits that have a controller. The limit of memory allows no swap.
    [[nodiscard]] host::outcome<void> limit(const resources &most, const cgroup_home &home) const;
    /// An open descriptor for clone3; an invalid one without a group.
    [[nodiscard]] host::outcome<host::unique_fd> open() const;
    /// Whether the kernel killed the command because it reached its memory limit.
    [[nodiscard]] bool out_of_memory() const;
    /// Sends KILL to everything in it and below, at once, so that no fork can escape.
    void kill() const noexcept;
    /// Moves the processes of another group here, and those that they start meanwhile. False when some
    /// stay there.
    [[nodiscard]] bool take_all_from(const command_cgroup &other) const;
    /// Moves one process here.
    [[nodiscard]] bool take(pid_t pid) const noexcept;
    /// Removes it, with groups that the command made below it, when no process is left in it. Returns
    /// whether it is gone.
    [[nodiscard]] bool remove() const;

    [[nodiscard]] explicit operator bool() const noexcept { return !path_.empty(); }

  private:
    std::string path_;
};

/// Whether a process is part of one of our commands or jobs: in its group, or below one of `roots`,
/// which are the warden and the keepers of jobs. True when that is unknown, and for a process that has
/// ended. It does not stop a command that runs as root: such a command can ask another service to start
/// a process.
[[nodiscard]] bool is_inside_our_command(pid_t pid, const cgroup_home &home,
                                         const cgroup_home &jobs, std::span<const pid_t> roots);

/// Whether a process has a controlling terminal, and no command of ours has the same.
[[nodiscard]] bool has_terminal_of_its_own(pid_t pid, std::span<const pid_t> roots);

} // namespace qvmremote::dom0
