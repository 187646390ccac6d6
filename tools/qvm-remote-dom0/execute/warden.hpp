// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// How the daemon starts commands and ends them: through a warden, with a keeper for each.
///
///     daemon ── warden ─┬─ keeper ── first process ── …      one command, its whole tree
///                       └─ keeper ── …
///
/// The *warden* is forked while the daemon is still small, so that a start costs the same whatever
/// the daemon holds later. It forks one *keeper* per command. A keeper is a subreaper: whatever
/// happens below it (double forks, new sessions, parents that die), a process of the command stays
/// below it until it is gone. Each lives by a socket of its own to the daemon and takes its end for
/// an order: a daemon that is killed leaves no process (invariant I9).
///
/// Where the unit was given a cgroup to divide (cgroups.hpp), each command is in one of its own as
/// well, which bounds it and is ended by one write.
///
/// What is not held: a process that another service starts on the command's behalf (systemd-run,
/// at, a qube's own processes) never was below the keeper. And root can leave the cgroup and kill
/// keeper and warden with one stroke; what remains then is the unit's cgroup.

#pragma once

#include <optional>
#include <utility>

#include <sys/types.h>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "execute/launch.hpp"

namespace qvmremote::dom0 {

struct cgroup_home;

/// What a keeper reports, in this order: started, exited, empty; or failed alone. `lost` may stand
/// in place of any of them. After failed, empty or lost nothing comes.
struct child_event {
    enum event_kind {
        started, ///< exec succeeded: `pid`, `directory_missing`
        failed,  ///< nothing ran: `error_number`, ENOENT when there is no such program
        exited,  ///< the first process ended: `wait_status`, `tree_empty`, `out_of_memory`
        empty,   ///< no process of the command is left
        lost,    ///< somebody killed the keeper; the warden kills what it kept
    } kind;
    pid_t pid = 0;
    int error_number = 0;
    int wait_status = 0;            ///< as waitpid has it
    bool tree_empty = false;        ///< `empty` follows at once, nothing needs to be terminated
    bool out_of_memory = false;     ///< the kernel killed it for what its cgroup held
    bool directory_missing = false; ///< runs in "/"
};

/// The daemon's hold on one command. Letting go of it kills the command's whole tree at once.
/// Asking for something after the end is harmless.
class child {
  public:
    /// Borrowed; readable when next() has something.
    [[nodiscard]] int descriptor() const noexcept { return control_.get(); }

    /// The next event, none when there is none now. Never blocks.
    [[nodiscard]] std::optional<child_event> next();

    /// To the command's process group; once the first process has ended, to all that remain. It is
    /// dropped when the keeper does not come round to reading (hundreds of signals behind).
    void signal(int number) noexcept;

    /// TERM to the whole tree now, KILL 2 s later until nothing is left.
    void terminate() noexcept;

    /// KILL to the whole tree now, until nothing is left.
    void kill() noexcept;

  private:
    friend class warden;
    explicit child(host::unique_fd control) noexcept : control_(std::move(control)) {}

    host::unique_fd control_; // SOCK_SEQPACKET, the keeper has the other end
    bool over_ = false;
};

/// The daemon's hold on the warden. Letting go of it asks the warden to end when its keepers have.
/// One thread uses it at a time.
class warden {
  public:
    /// Forks. To be called at the beginning of main: one thread, little memory, and no descriptor
    /// or secret that is not yet there can get into a command later.
    /// `home` says where commands get cgroups.
    [[nodiscard]] static host::outcome<warden> start();
    [[nodiscard]] static host::outcome<warden> start(const cgroup_home &home);

    /// Has the command started. Whether that worked is the child's first event; a failure here
    /// means that the machine or the caller (EINVAL: a NUL in a string, no argv, a number taken
    /// twice) is at fault, and that nothing runs. It waits only when a hundred starts are pending,
    /// 1 s at most.
    [[nodiscard]] host::outcome<child> launch(const dom0::launch &what);

    /// Borrowed; becomes readable when the warden is gone, and only then. Commands live on, launch
    /// fails from then on, and a new warden needs a new daemon, since this one has grown.
    [[nodiscard]] int descriptor() const noexcept { return socket_.get(); }
    [[nodiscard]] bool alive() const noexcept;
    [[nodiscard]] pid_t pid() const noexcept { return pid_; }

    /// Returns when the warden has ended, which is when every command has: let go of all children
    /// before, or end them.
    void stop() noexcept;

    warden(warden &&other) noexcept
        : socket_(std::move(other.socket_)), pid_(std::exchange(other.pid_, 0)) {}
    warden &operator=(warden &&) = delete;
    ~warden();

  private:
    warden(host::unique_fd socket, pid_t pid) noexcept : socket_(std::move(socket)), pid_(pid) {}

    host::unique_fd socket_; // SOCK_SEQPACKET
    pid_t pid_;
};

} // namespace qvmremote::dom0
