// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Tells systemd the state of the service: sd_notify(3), whose datagram is a stable interface.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string_view>

#include <sys/socket.h>
#include <unistd.h>

#include <qvmremote/config.hpp>
#include <qvmremote/host/unix_socket.hpp>

namespace qvmremote::dom0 {

/// Sends one state ("READY=1") to $NOTIFY_SOCKET; does nothing when it is not set.
inline void notify_supervisor(std::string_view state) noexcept {
    const char *const path = ::secure_getenv("NOTIFY_SOCKET");
    if (!path || (path[0] != '/' && path[0] != '@'))
        return;
    const auto supervisor = (path[0] == '@' ? host::unix_address::of_abstract(path + 1)
                                            : host::unix_address::of_path(path))
                                .and_then([](const host::unix_address &to) {
                                    return host::connect_unix(to, SOCK_DGRAM);
                                });
    if (supervisor) [[maybe_unused]]
        const ssize_t sent = ::send(supervisor->get(), state.data(), state.size(), MSG_NOSIGNAL);
}

/// How often WATCHDOG=1 is due, in microseconds; nothing without a watchdog.
[[nodiscard]] inline std::optional<std::uint64_t> watchdog_interval_us() {
    const char *const pid = std::getenv("WATCHDOG_PID");
    const char *const interval = std::getenv("WATCHDOG_USEC");
    if (!interval || (pid && std::to_string(::getpid()) != pid))
        return std::nullopt;
    const auto us = qvmremote::parse_decimal<std::uint64_t>(interval);
    if (!us || *us < 2)
        return std::nullopt;
    return *us / 2;
}

} // namespace qvmremote::dom0
