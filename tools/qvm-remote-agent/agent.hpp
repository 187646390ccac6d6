// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The agent's loop: one stream to dom0, clients at a socket, the queue's files.

#pragma once

#include <csignal>
#include <cstdint>
#include <string>

#include <qvmremote/host/failure.hpp>

#include "prune.hpp"

namespace qvmremote::agent {

/// Whose stream it is. Each kind has a socket of its own for clients, so that a qube can have both.
enum class carrying : std::uint8_t {
    all,      ///< dom0's: the files of protocol 1 as well; the socket is agent.sock
    sessions, ///< a call of ours, kept: clients alone; the socket is agent-qrexec.sock
};

/// How it ended.
enum class ending : std::uint8_t {
    stream,        ///< dom0 is gone
    silent_stream, ///< and has never said a word
    signal,        ///< we were told to
};

/// Serves until dom0 is gone or a signal comes. `base` is ~/.qvm-remote; the two descriptors are the
/// stream to dom0, and may be one socket. The failure is that it could not begin.
[[nodiscard]] host::outcome<ending> serve(const std::string &base, int from_dom0, int to_dom0,
                                          carrying what, const history_limits &history);

/// The signals that end it are blocked from its first call on.
[[nodiscard]] sigset_t signals_of_ours();

} // namespace qvmremote::agent
