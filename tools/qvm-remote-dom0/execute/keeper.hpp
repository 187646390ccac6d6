// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The process that starts one command and watches it to its end, and its messages to the warden.

#pragma once

#include <cstddef>
#include <cstdint>

#include <sys/types.h>

#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote::dom0 {

struct cgroup_home;

/// What a keeper tells the warden over their link: it has taken a message, or its command has ended and
/// it asks for the socket to wait again. When the warden closes the link, the keeper ends.
enum class keeper_word : std::uint8_t { taken, done };

/// Sends a message with a descriptor. Returns whether it was sent. Does not wait.
bool send_with_descriptor(int link, void *message_bytes, std::size_t size, int fd) noexcept;

/// The warden's answer to `done`: sends the socket over the link.
void lend(int link, int socket) noexcept;

/// The loop of a keeper: it waits for a message, runs a command to its end, and waits again if the
/// warden needs it. It ends when it is out of memory (noexcept). Then, and when it cannot remove its
/// group, the warden cleans up.
[[noreturn]] void be_keeper(host::unique_fd socket, host::unique_fd link, pid_t warden,
                            const cgroup_home &home, std::uint64_t number) noexcept;

} // namespace qvmremote::dom0
