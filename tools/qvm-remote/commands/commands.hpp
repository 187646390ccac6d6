// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The subcommands with files of their own: keys, jobs, queue, log and history of this user, and the
/// doctor.

#pragma once

#include <span>
#include <string>

#include "home.hpp"
#include "report.hpp"
#include "run.hpp"

namespace qvmremote::qube {

/// What a subcommand is called with. Each one prints what is wrong and returns its exit code.
struct invocation {
    const settings &how;
    const home &where;
    std::span<char *> words; ///< after the subcommand's name
    std::string usage;       ///< what to say when they are wrong
};

int ping_command(const invocation &);
int status_command(const invocation &);
int key_command(const invocation &);
int job_command(const invocation &);
int queue_command(const invocation &);
int log_command(const invocation &);
int history_command(const invocation &);
/// It reads the settings itself, since it says what is wrong with them.
int doctor_command(const invocation &);

/// Reports the error and returns 1.
[[nodiscard]] int fail_with(error_name name, const std::string &what);

} // namespace qvmremote::qube
