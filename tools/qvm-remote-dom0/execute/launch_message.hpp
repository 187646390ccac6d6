// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The message by which the daemon gives a command to a keeper: descriptors, and a block of bytes. A
/// large block is in a file in memory.

#pragma once

#include <array>
#include <optional>
#include <vector>

#include <qvmremote/bytes.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "execute/become.hpp"
#include "execute/launch.hpp"

namespace qvmremote::dom0 {

/// Why a launch cannot be sent; null when it can. Above all, a string must not hold NUL: the kernel
/// would cut it there, and another command than the approved one would run.
[[nodiscard]] const char *why_not(const launch &command);

/// Sends the launch, with `control`, the keeper's end of the command's socket. Waits 1 s at most.
[[nodiscard]] host::outcome<void> send_launch(int socket, int control, const launch &command);

/// A received launch: control, stdin, stdout, stderr, the extra descriptors, those of a job and, when
/// there is no block, the file with it. Without descriptors, nothing was received.
struct launch_message {
    std::vector<host::unique_fd> received;
    bytes_view block;
};

/// Makes a job of a command that runs in a terminal: sends `control`'s keeper what it needs, and these
/// descriptors, in this order: both ends of the terminal, the job's out, err and end, and its
/// listener. Does not wait.
[[nodiscard]] host::outcome<void> send_job(int control, const job_launch &job,
                                           const std::array<int, 6> &descriptors);

/// Reads such a block.
[[nodiscard]] std::optional<job_launch> take_job(bytes_view block);

/// Receives a launch; nothing when the daemon is gone. The next call overwrites the block.
[[nodiscard]] std::optional<launch_message> take_message(int socket, int flags);

/// Maps the file with a large block. It stays mapped, since argv points into it.
[[nodiscard]] bytes_view map_block(int fd) noexcept;

/// Reads the block; `p` points into it afterwards. Of the descriptors, `p` has only the target numbers.
/// The block comes from the daemon, so the checks only find our own mistakes.
[[nodiscard]] bool take_launch(bytes_view block, preparation &p);

} // namespace qvmremote::dom0
