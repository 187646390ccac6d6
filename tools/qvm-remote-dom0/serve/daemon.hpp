// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The daemon: one loop that serves all qubes.

#pragma once

#include <cstdint>
#include <string>

#include "base/settings.hpp"
#include "execute/warden.hpp"

namespace qvmremote::dom0 {

struct daemon_options {
    paths where;
    std::string plugin_directory;
    std::string vm;            ///< --vm; empty: as configured
    std::string transport;     ///< --transport; empty: as configured
    bool once = false;         ///< end when the first clients have been served
    unsigned once_wait_s = 60; ///< and fail when none came within this time
    bool dry_run = false;      ///< run nothing
    bool verbose = false;      ///< the log on stderr as well
};

/// Runs until it is told to end; returns the exit code. `children` was started before any thread.
[[nodiscard]] int run_daemon(const daemon_options &options, const cgroup_home &home,
                             warden children);

} // namespace qvmremote::dom0
