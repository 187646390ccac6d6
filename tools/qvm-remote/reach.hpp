// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Finds the way to dom0: the transport, the protocol, and how long to wait.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <qvmremote/config.hpp>
#include <qvmremote/fault.hpp>
#include <qvmremote/host/client.hpp>
#include <qvmremote/host/transport.hpp>
#include <qvmremote/transport_choice.hpp>

#include "home.hpp"

namespace qvmremote::qube {

/// Settings from the command line and the configuration.
struct settings {
    config values;         ///< files, then environment
    std::string transport; ///< name
    allowed_protocol version = allowed_protocol::any;
    std::string plugin_directory;
    bool verbose = false;
    bool quiet = false;
};

/// The build directory, if this program runs from there, or "": the other programs are below it.
[[nodiscard]] std::string build_directory();

/// Where the transports are. A program that runs from its build directory takes the plug-ins that
/// were built with it.
[[nodiscard]] std::string plugin_directory(const settings &how);

/// Whether the transport is the one that is compiled in, so that no plug-in is loaded.
[[nodiscard]] bool has_compiled_in_transport(const settings &how);

/// A transport and the key. Destroy it after the streams that came from it.
struct access {
    /// The daemon of the mock transport, if no socket is set. It ends with this object.
    std::shared_ptr<void> private_daemon;
    std::optional<host::transport> transport;
    std::optional<secret> key;
};

/// Why there is no way to dom0, and the exit code for that.
struct no_access {
    error_name name;
    std::string what;
    int exit_code;
};

/// Whether the mock transport has the socket of a daemon, so that it starts none.
[[nodiscard]] bool has_daemon(const settings &how);

/// Opens the transport, with the key of `where`.
[[nodiscard]] tl::expected<access, no_access> open_access(const settings &how, const home &where);

/// How a command can travel.
struct route {
    access way;
    std::optional<host::stream> stream; ///< empty: use protocol 1
};

/// Returns a stream to dom0, or a route without one, for protocol 1. When nobody answers, qvm-run and
/// qrexec are tried again for `patience_ms`; any other transport fails at once. A command that protocol
/// 1 cannot carry waits a little for an agent that dom0 may be starting. A signal whose number comes
/// from `signal_fd` ends the waiting.
[[nodiscard]] tl::expected<route, no_access> find_route(const settings &how, const home &where,
                                                        std::uint64_t patience_ms,
                                                        bool by_protocol_1, int signal_fd);

} // namespace qvmremote::qube
