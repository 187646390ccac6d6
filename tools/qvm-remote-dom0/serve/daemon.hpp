// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The daemon: one loop that serves all qubes.

#pragma once

#include "execute/warden.hpp"
#include "serve/daemon_options.hpp"

namespace qvmremote::dom0 {

/// Runs until it is told to end; returns the exit code. `children` was started before any thread.
[[nodiscard]] int run_daemon(const daemon_options &options, const cgroup_home &home,
                             cgroup_home jobs, warden children);

} // namespace qvmremote::dom0
