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
    std::string text;            ///< must pass envelope::check_entry
    std::uint32_t timeout_s = 0; ///< 0: none. Only we count it: dom0 does not know it
    bool keep_copy = true;       ///< write ID.cmd too, as the Python client does
};

/// Writes the entry, waits for its result, passes that to `io` and removes it. The stdin of `io` is not
/// used. A signal withdraws the entry. If dom0 has taken the entry, a signal removes it from running/,
/// which ends the command, unless the Python program runs in dom0.
///
/// `agent_is_there` (may be empty) is called after an agent's socket has appeared. When it returns true
/// and dom0 has not taken the entry, the entry is withdrawn and there is no result: use the agent.
/// A failure means that nothing was left in the queue.
[[nodiscard]] host::outcome<std::optional<host::run_result>>
run_queued(const home &where, const secret &key, const queued_command &what,
           const host::run_streams &io, const std::function<bool()> &agent_is_there);

} // namespace qvmremote::qube
