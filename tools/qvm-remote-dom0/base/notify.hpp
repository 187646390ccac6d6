// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Tells systemd the state of the service: sd_notify(3), whose datagram is a stable interface.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <qvmremote/config.hpp>
#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote::dom0 {

/// Sends one state ("READY=1") to $NOTIFY_SOCKET; does nothing when it is not set.
inline void notify_supervisor(std::string_view state) noexcept {
    const char *const path = ::secure_getenv("NOTIFY_SOCKET");
    sockaddr_un address{};
    if (!path || (path[0] != '/' && path[0] != '@') || std::strlen(path) >= sizeof address.sun_path)
        return;
    const std::size_t length = std::strlen(path);
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path, length);
    if (address.sun_path[0] == '@')
        address.sun_path[0] = '\0'; // the abstract namespace
    const host::unique_fd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    [[maybe_unused]] const ssize_t sent =
        ::sendto(fd.get(), state.data(), state.size(), MSG_NOSIGNAL,
                 reinterpret_cast<const sockaddr *>(&address),
                 static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length));
}

/// How often WATCHDOG=1 is due, in microseconds; nothing without a watchdog.
[[nodiscard]] inline std::optional<std::uint64_t> watchdog_interval_us() {
    const char *const pid = std::getenv("WATCHDOG_PID");
    const char *const interval = std::getenv("WATCHDOG_USEC");
    if (!interval || (pid && std::to_string(::getpid()) != pid))
        return std::nullopt;
    const auto us = qvmremote::detail::parse_decimal<std::uint64_t>(interval);
    if (!us || *us < 2)
        return std::nullopt;
    return *us / 2;
}

} // namespace qvmremote::dom0
