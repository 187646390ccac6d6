// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The one owner of a file descriptor.

#pragma once

#include <utility>

#include <unistd.h>

namespace qvmremote::host {

/// Owns a descriptor, or none (-1), and closes it when destroyed. Moved, never copied. get() lends it.
class unique_fd {
  public:
    unique_fd() noexcept = default;
    explicit unique_fd(int fd) noexcept : fd_(fd) {}
    unique_fd(unique_fd &&other) noexcept : fd_(other.release()) {}
    unique_fd &operator=(unique_fd &&other) noexcept {
        if (this != &other)
            reset(other.release());
        return *this;
    }
    unique_fd(const unique_fd &) = delete;
    unique_fd &operator=(const unique_fd &) = delete;
    ~unique_fd() { reset(); }

    [[nodiscard]] int get() const noexcept { return fd_; }
    [[nodiscard]] explicit operator bool() const noexcept { return fd_ >= 0; }

    /// Hands the descriptor to the caller, who closes it.
    [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }

    /// Closes the owned descriptor and owns `fd` from now on. The result of close is ignored: on
    /// Linux the descriptor is gone even after EINTR, and data that must be on disk is synced before.
    void reset(int fd = -1) noexcept {
        const int old = std::exchange(fd_, fd);
        if (old >= 0)
            ::close(old);
    }

  private:
    int fd_ = -1;
};

} // namespace qvmremote::host
