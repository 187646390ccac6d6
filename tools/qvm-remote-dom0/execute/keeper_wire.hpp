// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What goes over the socket between the daemon and a keeper.

#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>

#include <sys/socket.h>
#include <sys/types.h>

namespace qvmremote::dom0 {

/// From keeper to daemon. Both ends are this very program, so structs go as they are.
struct report {
    std::int32_t kind;
    std::int32_t number;
    std::int32_t flag;
};
/// Flags of `exited`.
inline constexpr std::int32_t flag_empty = 1, flag_out_of_memory = 2;

/// From daemon to keeper: a signal's number, or order_terminate. There is no order to kill: that is
/// the end of the socket, which never fails for lack of room.
using order = std::int32_t;
inline constexpr order order_terminate = 0;

/// -1 with errno, 0 at the other end's end. A peer that closed with something of ours unread shows
/// as ECONNRESET, once and ahead of what it had sent before: that is still to be read.
[[nodiscard]] inline ssize_t receive(int fd, void *to, std::size_t size) noexcept {
    for (;;) {
        const ssize_t n = ::recv(fd, to, size, MSG_DONTWAIT);
        if (n >= 0 || (errno != EINTR && errno != ECONNRESET))
            return n;
    }
}

/// Whether it was sent. Waits for nobody.
template <class T>
bool send_one(int fd, const T &what) noexcept {
    ssize_t n;
    do
        n = ::send(fd, &what, sizeof what, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n == static_cast<ssize_t>(sizeof what);
}

} // namespace qvmremote::dom0
