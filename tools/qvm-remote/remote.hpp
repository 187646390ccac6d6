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

namespace qvmremote::qube {

/// Which protocol may be used: QVM_REMOTE_PROTOCOL.
enum class protocol : std::uint8_t { any, one, two };

/// What the command line and the configuration say.
struct settings {
    config values;         ///< files, then environment
    std::string transport; ///< name
    protocol version = protocol::any;
    std::string plugin_directory;
    bool verbose = false;
    bool quiet = false;
};

/// A way to dom0 and the key that opens it. Destroyed after the stream that came from it.
struct access {
    /// The mock transport without a socket brings a daemon of its own, which ends with this.
    std::shared_ptr<void> private_daemon;
    std::optional<host::transport> transport;
    std::optional<secret> key;
};

/// Why there is none, and the exit code that goes with it.
struct no_access {
    std::string what;
    int exit_code = 255;
};

/// Opens the transport, with the key of `where`.
[[nodiscard]] tl::expected<access, no_access> open_access(const settings &how, const home &where);

/// Runs a command as the shell's user sees it and returns the exit code.
struct run_request {
    host::command what;
    bool stdin_live = false;
    std::string shown; ///< the command as records show it
};
[[nodiscard]] int run_remote(const settings &how, const home &where, run_request request);

/// Asks dom0 for a sign of life, and what it says of itself: 0, or 1 with the reason on stderr.
[[nodiscard]] int ping(const settings &how, const home &where);
[[nodiscard]] int status(const settings &how, const home &where);

/// Prints "qvm-remote: " and one clean line.
void complain(const std::string &what);

} // namespace qvmremote::qube
