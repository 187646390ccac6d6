// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The administrator's commands: keys, queues, state, log, and switching the daemon on and off.

#pragma once

#include <span>
#include <string>
#include <string_view>

#include <qvmremote/command_id.hpp>
#include <qvmremote/fault.hpp>
#include <qvmremote/host/failure.hpp>

#include "base/settings.hpp"
#include "serve/daemon_options.hpp"

namespace qvmremote::dom0 {

/// What a subcommand is called with. Each one prints what is wrong and returns its exit code.
struct invocation {
    paths where;
    std::span<char *> arguments; ///< after the subcommand's name
    std::string usage;           ///< what to say when they are wrong
    const daemon_options &how;   ///< the options before the subcommand
};

int authorize(const invocation &);
int revoke(const invocation &);
int rotate_key(const invocation &);
int connect(const invocation &);
int disconnect(const invocation &);
int queue(const invocation &);
int keys(const invocation &);
int status(const invocation &);
int log(const invocation &);
int enable(const invocation &);
int disable(const invocation &);

// policy_admin.cpp
int policy_command(const invocation &);
int migrate(const invocation &);

// doctor/command.cpp
int doctor(const invocation &);

// operator_commands.cpp
int approvals_command(const invocation &);
int panic(const invocation &);
int resume(const invocation &);

// job_commands.cpp
int jobs_command(const invocation &);

// For all of them.

/// Print what went wrong; return 1. Without a name it is a wrong call for a text that begins with
/// "usage: " or an error number EINVAL, and else a failure of this machine.
int fail_with(error_name name, const std::string &what);
int fail_with(const std::string &what);
int fail_with(const host::failure &why);
/// For a failure of ask_daemon.
int no_answer(const host::failure &why);
/// Returns 0 if the daemon's answer says that it has done what it was asked for. Otherwise prints why it
/// has not, and returns 1.
int done_by_daemon(std::string_view answer);
/// The name of a qube as people type it.
[[nodiscard]] host::outcome<qube_name> named_qube(std::string_view typed);
/// Makes a running daemon read its files again. It is not an error when no daemon runs.
void tell_daemon(const paths &where);
/// An answer of the daemon that is not "ok", as a message.
[[nodiscard]] std::string daemon_says(std::string_view answer);

} // namespace qvmremote::dom0
