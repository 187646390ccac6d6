// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A launch on its way from the daemon to a keeper: one message with the descriptors, and a block of
/// bytes, which is in a file in memory when it is large.

#pragma once

#include <optional>
#include <vector>

#include <qvmremote/bytes.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "execute/become.hpp"
#include "execute/launch.hpp"

namespace qvmremote::dom0 {

/// Why a launch cannot be carried out as it is written; null when it can. It may hold no NUL above
/// all: the kernel would cut there, and what runs would not be what was approved.
[[nodiscard]] const char *why_not(const launch &what);

/// Sends it, with `control`, the keeper's end of the command's socket. Waits 1 s at most.
[[nodiscard]] host::outcome<void> send_launch(int socket, int control, const launch &what);

/// A launch as it has arrived: control, stdin, stdout, stderr, the extra ones and, when there is no
/// block, the file that it is in. No descriptors: nothing has arrived.
struct launch_message {
    std::vector<host::unique_fd> received;
    bytes_view block;
};

/// None when the daemon is gone. The block lies in memory that the next call overwrites.
[[nodiscard]] std::optional<launch_message> take_message(int socket, int flags);

/// Maps what did not fit into the message; it stays for as long as argv points into it.
[[nodiscard]] bytes_view map_block(int fd) noexcept;

/// Reads the block; `p` points into it afterwards. Of the descriptors, `p` holds the target numbers
/// alone. The block is the daemon's own, so the checks are against our faults.
[[nodiscard]] bool take_launch(bytes_view block, preparation &p);

} // namespace qvmremote::dom0
