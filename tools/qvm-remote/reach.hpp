// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The way to dom0: which transport, which protocol, and how long to wait for it.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <qvmremote/config.hpp>
#include <qvmremote/host/client.hpp>
#include <qvmremote/host/transport.hpp>

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

/// How a command can travel.
struct route {
    access way;
    std::optional<host::stream> stream; ///< without it protocol 1 is left
};

/// Whether a stream is a call of its own: it may have to wait for others of this user to end, and for
/// the answer of somebody whom qrexec's policy asks.
[[nodiscard]] bool is_call(const settings &how);

/// A stream to dom0, or the knowledge that protocol 1 may do. Whether nobody is there now is known
/// of the file queue's transport, and of one that makes calls, for `patience_ms`; another one fails
/// for good. What protocol 1 cannot carry waits a little for an agent that dom0 may be starting.
/// A signal whose number comes out of `signal_fd` ends the waiting.
[[nodiscard]] tl::expected<route, no_access> find_route(const settings &how, const home &where,
                                                        std::uint64_t patience_ms,
                                                        bool by_protocol_1, int signal_fd);

} // namespace qvmremote::qube
