// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The messages between the daemon and a keeper.

#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>

#include <sys/socket.h>
#include <sys/types.h>

namespace qvmremote::dom0 {

/// From keeper to daemon. Both ends are the same program, so structs are sent as they are.
struct report {
    std::int32_t kind;
    std::int32_t number;
    std::int32_t flag;
};
/// Flags of `exited`.
inline constexpr std::int32_t flag_empty = 1, flag_out_of_memory = 2;

/// From daemon to keeper: a signal's number, or order_terminate. The order to kill is the end of the
/// socket, which cannot fail when the socket is full.
using order = std::int32_t;
inline constexpr order order_terminate = 0;

/// Returns the size, -1 with errno, or 0 when the peer has closed. When the peer closed before it
/// read everything, ECONNRESET comes once, before the messages that it had sent; read on after it.
[[nodiscard]] inline ssize_t receive(int fd, void *to, std::size_t size) noexcept {
    for (;;) {
        const ssize_t n = ::recv(fd, to, size, MSG_DONTWAIT);
        if (n >= 0 || (errno != EINTR && errno != ECONNRESET))
            return n;
    }
}

/// Whether it was sent. Does not wait.
template <class T>
bool send_one(int fd, const T &what) noexcept {
    ssize_t n;
    do
        n = ::send(fd, &what, sizeof what, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n == static_cast<ssize_t>(sizeof what);
}

} // namespace qvmremote::dom0
