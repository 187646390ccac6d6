// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// One program of the platform that was started here, in a session of its own.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

namespace plugins {

using qvmremote::host::outcome;
using qvmremote::host::unique_fd;

/// How a child ended.
struct child_end {
    bool by_signal = false;
    int number = 0; ///< exit code, or the signal
};

/// Owns a process until it is waited for; one that still runs when its owner goes is killed.
/// Nothing but this very process is ever waited for.
class child {
  public:
    /// Starts argv[0], a path. `in`, `out` and `err` are lent; -1 is /dev/null. Nothing else is
    /// open in it, its directory is /, its environment ours, and each signal is as a shell would
    /// have it.
    [[nodiscard]] static outcome<child> start(const std::vector<std::string> &argv, int in, int out,
                                              int err);

    child(child &&other) noexcept;
    child &operator=(child &&other) = delete;
    child(const child &) = delete;
    child &operator=(const child &) = delete;
    ~child();

    /// Readable when the process has ended.
    [[nodiscard]] int descriptor() const noexcept { return pidfd_.get(); }

    /// To the process and all of its group.
    void signal(int number) const noexcept;

    /// How it ended, once it has; what is left of its group is killed then. Does not wait.
    [[nodiscard]] std::optional<child_end> take_end() noexcept;

  private:
    child(pid_t pid, unique_fd pidfd) noexcept : pid_(pid), pidfd_(std::move(pidfd)) {}
    void wait() noexcept;

    pid_t pid_; // 0 when there is nothing to wait for
    unique_fd pidfd_;
};

} // namespace plugins
