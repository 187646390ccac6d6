// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Protocol 1 from the client's side: an entry of the file queue (COMPAT-V1.md), for a dom0 that has
/// started no agent in this qube.

#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include <qvmremote/command_id.hpp>
#include <qvmremote/host/client.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/secret.hpp>

#include "home.hpp"

namespace qvmremote::qube {

struct queued_command {
    command_id id;
    std::string text;            ///< one that envelope::check_entry accepts
    std::uint32_t timeout_s = 0; ///< 0: none. It is ours: dom0 does not hear of it
    bool keep_copy = true;       ///< leave ID.cmd too, as the Python client does
};

/// Leaves the entry, waits for its result, hands that to `io` and removes it. Nothing is forwarded:
/// of `io`, the stdin is not used, and a signal withdraws the entry or, when dom0 has taken it,
/// removes it from running/, which ends the command if that dom0 is ours.
///
/// `agent_is_there` (may be empty) is asked once an agent's socket has appeared. When it says yes and
/// dom0 has not taken the entry, the entry is withdrawn and there is no result: use the agent.
/// A failure means that nothing was left in the queue.
[[nodiscard]] host::outcome<std::optional<host::run_result>>
run_queued(const home &where, const secret &key, const queued_command &what,
           const host::run_streams &io, const std::function<bool()> &agent_is_there);

} // namespace qvmremote::qube
