// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The daemon's command line.

#pragma once

#include <string>

#include "base/settings.hpp"

namespace qvmremote::dom0 {

struct daemon_options {
    paths where;
    std::string plugin_directory;
    std::string vm;            ///< --vm; empty: from the configuration
    std::string transport;     ///< --transport; empty: from the configuration
    bool once = false;         ///< end when the first clients have been served
    unsigned once_wait_s = 60; ///< and fail if none came within this time
    bool dry_run = false;      ///< run nothing
    bool verbose = false;      ///< the log on stderr as well
};

} // namespace qvmremote::dom0
