// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Starts another program and owns its process until its end was waited for.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote::host {

/// How a child ended.
struct child_end {
    bool by_signal = false;
    int number = 0; ///< exit code, or the signal
};

/// The process group of a child, which decides which processes a signal reaches.
enum class child_group {
    ours, ///< ours: Ctrl-C at the terminal reaches the child too; signal() reaches only the child
    own,  ///< its own, in our session: Ctrl-C does not reach it; signal() reaches only the child
    session, ///< that of a new session without a terminal; signal() reaches the whole group
};

/// What child::start takes. The call borrows the three descriptors. -1 means /dev/null, and so does
/// a closed standard descriptor of ours.
struct child_plan {
    std::vector<std::string> argv; ///< argv[0] is a path, or a name that is looked up in our PATH
    int in = -1, out = -1, err = -1;
    child_group group = child_group::session;
    /// One "NAME=VALUE" for each variable; nothing: our own environment.
    std::optional<std::vector<std::string>> environment = std::nullopt;
    std::string directory = {}; ///< empty: our own
};

/// Owns a process until its end was waited for, and never waits for another process. The destructor
/// kills the process if it still runs, and waits. Move-only. The program must not ignore SIGCHLD
/// and must not wait for children that it does not know; otherwise the end of the child is lost.
class child {
  public:
    /// Starts the program. It has only the three descriptors, no signal is blocked in it, and each
    /// signal has its default disposition, even one that we ignore. Fails with "cannot start NAME"
    /// and errno: ENOENT when there is no such program, EACCES when it may not be run. It uses
    /// posix_spawn, so nothing of our memory is copied and no code of ours runs in the child.
    [[nodiscard]] static outcome<child> start(const child_plan &plan);

    child(child &&other) noexcept;
    child &operator=(child &&other) = delete;
    child(const child &) = delete;
    child &operator=(const child &) = delete;
    ~child();

    /// A pidfd: poll finds it readable when the process has ended. Owned by the child.
    [[nodiscard]] int descriptor() const noexcept { return pidfd_.get(); }

    /// Sends a signal; child_group says which processes it reaches. Does nothing after the end was
    /// taken.
    void signal(int number) const noexcept;

    /// Returns how the process ended; nothing while it runs, and after the end was taken. Does not
    /// wait for a process that runs. With child_group::session it kills the rest of the group.
    [[nodiscard]] std::optional<child_end> take_end() noexcept;

    /// Waits without a limit until the process has ended, and takes its end. Returns nothing only
    /// if the end was taken before.
    std::optional<child_end> wait() noexcept;

  private:
    child(pid_t pid, child_group group, unique_fd pidfd) noexcept
        : pid_(pid), group_(group), pidfd_(std::move(pidfd)) {}

    pid_t pid_; // 0 when there is nothing to wait for
    child_group group_;
    unique_fd pidfd_;
};

} // namespace qvmremote::host

#include <qvmremote/host/detail/child_inl.hpp>
