// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Starts and ends the daemon's commands: through a warden, with a keeper for each.
///
///     daemon ── warden ─┬─ keeper ── first process ── …      one command, its whole tree
///                       └─ keeper ── …
///
/// The *warden* is forked while the daemon is still small, so that the cost of a start does not grow
/// with the daemon. It forks one *keeper* per command. A keeper is a subreaper: whatever the processes
/// of the command do (double forks, new sessions, parents that die), they stay below the keeper until
/// they end. Each keeper has a socket to the daemon. When that closes, the keeper kills the command, so
/// a daemon that is killed leaves no process (invariant I9).
///
/// If the daemon's cgroup was delegated (cgroups.hpp), each command also has a cgroup, which limits it
/// and which one write ends.
///
/// This does not hold a process that another service starts for the command (systemd-run, at, processes
/// of a qube): it never was below the keeper. And root can leave the cgroup and kill the keeper and the
/// warden at the same time; then only the unit's cgroup remains.

#pragma once

#include <array>
#include <optional>
#include <utility>

#include <sys/types.h>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "execute/launch.hpp"

namespace qvmremote::dom0 {

struct cgroup_home;

/// What a keeper reports: started, exited, empty, in this order; or only failed. `lost` may come
/// instead of any of them. failed, empty and lost are the last report.
struct child_event {
    enum event_kind {
        started, ///< exec succeeded: `pid`, `directory_missing`
        failed,  ///< nothing ran: `error_number`, ENOENT when there is no such program
        exited,  ///< the first process ended: `wait_status`, `tree_empty`, `out_of_memory`
        empty,   ///< no process of the command is left
        lost,    ///< the keeper was killed; the warden kills the command
    } kind;
    pid_t pid = 0;
    int error_number = 0;
    int wait_status = 0;            ///< from waitpid
    bool tree_empty = false;        ///< `empty` follows at once: nothing needs to be ended
    bool out_of_memory = false;     ///< the kernel killed it at its cgroup's memory limit
    bool directory_missing = false; ///< runs in "/"
};

/// One command of the daemon. The destructor kills the command's whole tree at once. Calls after the
/// end do nothing.
class child {
  public:
    /// Borrowed; readable when next() has something.
    [[nodiscard]] int descriptor() const noexcept { return control_.get(); }

    /// The next event, or nothing. Never blocks.
    [[nodiscard]] std::optional<child_event> next();

    /// Sends a signal to the command's process group or, after the first process has ended, to all
    /// processes that are left. The signal is dropped when hundreds of others wait for the keeper.
    void signal(int number) noexcept;

    /// Sends TERM to the whole tree now, and KILL from 2 s later until nothing is left.
    void terminate() noexcept;

    /// Sends KILL to the whole tree until nothing is left.
    void kill() noexcept;

    /// Lets a command in a terminal go on as a job (launch_message.hpp, send_job). After that this may be
    /// destroyed: the command goes on.
    [[nodiscard]] host::outcome<void> go_on_as(const job_launch &job,
                                               const std::array<int, 6> &descriptors) noexcept;

  private:
    friend class warden;
    explicit child(host::unique_fd control) noexcept : control_(std::move(control)) {}

    host::unique_fd control_; // SOCK_SEQPACKET, the keeper has the other end
    bool over_ = false;
};

/// The daemon's side of the warden. The destructor asks the warden to end after its keepers. One thread
/// uses it at a time.
class warden {
  public:
    /// Forks the warden. Call it at the beginning of main, with one thread and little memory: a
    /// descriptor or a secret that does not exist yet cannot get into a command.
    /// `home` says where commands get cgroups.
    [[nodiscard]] static host::outcome<warden> start();
    [[nodiscard]] static host::outcome<warden> start(const cgroup_home &home);

    /// Starts a command. The child's first event says whether that worked. A failure here is a fault of
    /// the machine or of the caller (EINVAL: a NUL in a string, no argv, a number used twice), and
    /// nothing runs. It waits only when a hundred starts are pending, 1 s at most.
    [[nodiscard]] host::outcome<child> launch(const dom0::launch &what);

    /// Borrowed; becomes readable only when the warden has ended. Then commands go on, launch() fails,
    /// and a new warden needs a new daemon, since this one has grown.
    [[nodiscard]] int descriptor() const noexcept { return socket_.get(); }
    [[nodiscard]] bool alive() const noexcept;
    [[nodiscard]] pid_t pid() const noexcept { return pid_; }

    /// Waits until the warden has ended, which is after every command: end all children before.
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
