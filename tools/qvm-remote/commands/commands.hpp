// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The subcommands that work without dom0: keys, queue, log and history of this user.

#pragma once

#include <span>
#include <string>
#include <vector>

#include "home.hpp"
#include "run.hpp"

namespace qvmremote::qube {

/// Each takes the words after its name, prints what is wrong, and returns the exit code.
int key_command(const settings &how, const home &where, std::span<char *> words);
int queue_command(const settings &how, const home &where, std::span<char *> words);
int log_command(const settings &how, const home &where, std::span<char *> words);
int history_command(const settings &how, const home &where, std::span<char *> words);

/// Prints the message and returns 1.
[[nodiscard]] int fail_with(const std::string &what);
/// The names in a directory, sorted, without those that begin with a dot.
[[nodiscard]] std::vector<std::string> names_in(const std::string &directory);

} // namespace qvmremote::qube
