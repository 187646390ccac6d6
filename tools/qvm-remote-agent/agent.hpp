// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The agent's loop: one stream to dom0, clients at a socket, the queue's files.

#pragma once

#include <string>

#include <qvmremote/host/failure.hpp>

namespace qvmremote::agent {

/// Serves until dom0 is gone or a signal comes. `base` is ~/.qvm-remote; the two descriptors are the
/// stream to dom0, and may be one socket. The failure is that it could not begin.
[[nodiscard]] host::outcome<void> serve(const std::string &base, int from_dom0, int to_dom0);

} // namespace qvmremote::agent
