// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Runs one command in dom0, with its streams, signals and exit code.

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

struct run_request {
    host::command what;
    bool stdin_live = false;
    std::string shown;                        ///< the command as records show it
    std::optional<std::uint8_t> escape = '~'; ///< in a terminal; absent: no escapes
};
/// Runs a command and returns its exit code.
[[nodiscard]] int run_remote(const settings &how, const home &where, run_request request);

/// Asks whether dom0 answers, and for its status. Returns 0, or 1 with the reason on stderr.
[[nodiscard]] int ping(const settings &how, const home &where);
[[nodiscard]] int status(const settings &how, const home &where);

/// Prints "qvm-remote: " and one line on stderr.
void complain(const std::string &what);

} // namespace qvmremote::qube
