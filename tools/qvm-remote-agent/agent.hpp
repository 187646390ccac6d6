// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The agent's loop: it serves one stream to dom0, the clients at a socket, and the queue's files.

#pragma once

#include <csignal>
#include <cstdint>
#include <string>

#include <qvmremote/host/failure.hpp>

#include "prune.hpp"

namespace qvmremote::agent {

/// What the stream carries, which depends on who opened it. Each kind has its own socket for clients,
/// so that a qube can have both.
enum class carrying : std::uint8_t {
    all,      ///< dom0 opened it: clients and the files of protocol 1; the socket is agent.sock
    sessions, ///< we opened it: only clients; the socket is agent-qrexec.sock
};

/// How serve() ended.
enum class ending : std::uint8_t {
    stream,        ///< the stream has ended
    silent_stream, ///< the same, and dom0 never sent a byte
    signal,        ///< a signal came
};

/// Serves until the stream ends or a signal comes. `base` is ~/.qvm-remote; the two descriptors are
/// the stream to dom0, and may be one socket. Fails when it cannot begin.
[[nodiscard]] host::outcome<ending> serve(const std::string &base, int from_dom0, int to_dom0,
                                          carrying kind, const history_limits &history);

/// The signals that end serve(). The first call of serve() blocks them, and they stay blocked.
[[nodiscard]] sigset_t signals_of_ours();

} // namespace qvmremote::agent
