// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The administrator's commands: keys, queues, state, log, and switching the daemon on and off.

#pragma once

#include <span>
#include <string>

#include "settings.hpp"

namespace qvmremote::dom0 {

/// What a subcommand is called with; each returns its exit code and has said what was wrong.
struct invocation {
    paths where;
    std::span<char *> arguments; ///< behind the subcommand's name
};

int authorize(const invocation &);
int revoke(const invocation &);
int connect(const invocation &);
int disconnect(const invocation &);
int queue(const invocation &);
int keys(const invocation &);
int status(const invocation &);
int log(const invocation &);
int enable(const invocation &);
int disable(const invocation &);

} // namespace qvmremote::dom0
