// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Enlarges a pipe that carries much data.

#pragma once

#include <cstddef>
#include <utility>

#include <fcntl.h>

namespace qvmremote::host {

/// Enlarges a pipe, once, when a large piece goes through it. Each piece wakes up the process at
/// the other end, so larger pieces cost less. A descriptor that is not a pipe stays as it is, and
/// so does a pipe that the kernel does not enlarge (F_SETPIPE_SZ in fcntl(2)).
class bulk_pipe {
  public:
    /// Nearly all of an ordinary pipe of 64 KiB.
    static constexpr std::size_t large_piece = 60 * 1024;
    static constexpr int enlarged = 256 * 1024;

    /// Call this for a piece of `n` bytes that was read from `fd` or is about to be written to it.
    /// Returns whether it was a large piece.
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
