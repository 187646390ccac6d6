// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A program of the platform, started in a session of its own.

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

/// Owns a process until it has been waited for. The destructor kills it if it still runs. It never
/// waits for another process.
class child {
  public:
    /// Starts argv[0], a path. `in`, `out` and `err` are borrowed; -1 is /dev/null. No other descriptor
    /// is open in it, its directory is /, it has our environment, and each signal has its default.
    [[nodiscard]] static outcome<child> start(const std::vector<std::string> &argv, int in, int out,
                                              int err);

    child(child &&other) noexcept;
    child &operator=(child &&other) = delete;
    child(const child &) = delete;
    child &operator=(const child &) = delete;
    ~child();

    /// Readable when the process has ended.
    [[nodiscard]] int descriptor() const noexcept { return pidfd_.get(); }

    /// Sends a signal to the process and its group.
    void signal(int number) const noexcept;

    /// How it ended; nothing while it runs. Kills the rest of its group. Does not wait.
    [[nodiscard]] std::optional<child_end> take_end() noexcept;

  private:
    child(pid_t pid, unique_fd pidfd) noexcept : pid_(pid), pidfd_(std::move(pidfd)) {}
    void wait() noexcept;

    pid_t pid_; // 0 when there is nothing to wait for
    unique_fd pidfd_;
};

} // namespace plugins
