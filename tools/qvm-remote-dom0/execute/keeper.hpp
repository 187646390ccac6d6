// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The process that sees one command through, and its talk with the warden.

#pragma once

#include <cstdint>

#include <sys/types.h>

#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote::dom0 {

struct cgroup_home;

/// What a keeper tells the warden over their link: it has taken a message, or it is done and asks for
/// the socket to wait at again. When the warden closes the link, the keeper ends.
enum class keeper_word : std::uint8_t { taken, done };

/// The warden's answer to `done`: the socket.
void lend(int link, int socket) noexcept;

/// The life of a keeper: it waits for a message, sees a command through, and waits again if the warden
/// has use for it. Out of memory ends it (noexcept), and the warden clears up; it also clears up after
/// a keeper that cannot remove its group.
[[noreturn]] void be_keeper(host::unique_fd socket, host::unique_fd link, pid_t warden,
                            const cgroup_home &home, std::uint64_t number) noexcept;

} // namespace qvmremote::dom0
