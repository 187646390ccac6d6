// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Starts another program and owns its process until it has been waited for.

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

/// The process group that a child is in, and so whom a signal reaches.
enum class child_group {
    ours,    ///< ours: a Ctrl-C at the terminal reaches the child too. Our signals go to it alone
    own,     ///< its own, in our session: a Ctrl-C does not reach it. Our signals go to it alone
    session, ///< that of a new session without a terminal. Our signals go to the whole group
};

/// What child::start takes. The three descriptors are borrowed for the call; -1 is /dev/null, and so is
/// one of our own standard descriptors that is closed.
struct child_plan {
    std::vector<std::string> argv; ///< argv[0] is a path, or a name that is looked up in our PATH
    int in = -1, out = -1, err = -1;
    child_group group = child_group::session;
    /// "NAME=VALUE" each; nothing: our own environment.
    std::optional<std::vector<std::string>> environment = std::nullopt;
    std::string directory = {}; ///< empty: our own
};

/// Owns a process until it has been waited for, and never waits for another one. The destructor kills
/// it if it still runs, and waits. Move-only. The caller must neither ignore SIGCHLD nor wait for
/// children that it does not know, or the end of the child is lost.
class child {
  public:
    /// Starts the program. No descriptor but the three is open in it, no signal is blocked, and each
    /// has its default disposition, whatever we ignore. Fails with "cannot start NAME" and errno:
    /// ENOENT when there is no such program, EACCES when it may not be run. It uses posix_spawn, so
    /// nothing of our memory is copied and no code of ours runs in the child.
    [[nodiscard]] static outcome<child> start(const child_plan &plan);

    child(child &&other) noexcept;
    child &operator=(child &&other) = delete;
    child(const child &) = delete;
    child &operator=(const child &) = delete;
    ~child();

    /// A pidfd: poll finds it readable when the process has ended. Owned by the child.
    [[nodiscard]] int descriptor() const noexcept { return pidfd_.get(); }

    /// Sends a signal; child_group says to whom. Does nothing after the end was taken.
    void signal(int number) const noexcept;

    /// How it ended; nothing while it runs, and after the end was taken. Does not wait. With
    /// child_group::session it kills the rest of the group.
    [[nodiscard]] std::optional<child_end> take_end() noexcept;

    /// Waits until the process has ended, without a limit, and takes its end. Nothing only if it was
    /// taken before.
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
