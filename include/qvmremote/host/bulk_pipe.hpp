// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A pipe that turns out to carry much.

#pragma once

#include <cstddef>
#include <utility>

#include <fcntl.h>

namespace qvmremote::host {

/// Enlarges a pipe, once, when a large piece has gone through it: every piece is a wake-up for who
/// is at the other end. A descriptor that is no pipe stays as it is, and so does one that the kernel
/// gives no more room (F_SETPIPE_SZ in fcntl(2)).
class bulk_pipe {
  public:
    /// Of an ordinary pipe of 64 KiB this is nearly all.
    static constexpr std::size_t large_piece = 60 * 1024;
    static constexpr int enlarged = 256 * 1024;

    /// Says that a piece of `n` bytes was read from `fd` or is about to be written there; returns
    /// whether that was a large one.
    bool saw(int fd, std::size_t n) noexcept {
        if (n < large_piece)
            return false;
        if (!std::exchange(is_large_, true))
            ::fcntl(fd, F_SETPIPE_SZ, enlarged);
        return true;
    }

  private:
    bool is_large_ = false;
};

} // namespace qvmremote::host
