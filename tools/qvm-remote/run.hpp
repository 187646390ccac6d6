// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The main job: one command in dom0, its streams, its signals, its exit code.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <qvmremote/config.hpp>
#include <qvmremote/host/client.hpp>

#include "home.hpp"
#include "reach.hpp"

namespace qvmremote::qube {

/// Runs a command as the shell's user sees it and returns the exit code.
struct run_request {
    host::command what;
    bool stdin_live = false;
    std::string shown;                        ///< the command as records show it
    std::optional<std::uint8_t> escape = '~'; ///< in a terminal; absent: no escapes
};
[[nodiscard]] int run_remote(const settings &how, const home &where, run_request request);

/// Asks dom0 for a sign of life, and what it says of itself: 0, or 1 with the reason on stderr.
[[nodiscard]] int ping(const settings &how, const home &where);
[[nodiscard]] int status(const settings &how, const home &where);

/// Prints "qvm-remote: " and one clean line.
void complain(const std::string &what);

} // namespace qvmremote::qube
