// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What the client does without dom0: keys, queue, log and history of this user.

#pragma once

#include <span>

#include "home.hpp"
#include "remote.hpp"

namespace qvmremote::qube {

/// Each takes the words behind its name and returns the exit code, having said what was wrong.
int key_command(const settings &how, const home &where, std::span<char *> words);
int queue_command(const settings &how, const home &where, std::span<char *> words);
int log_command(const settings &how, const home &where, std::span<char *> words);
int history_command(const settings &how, const home &where, std::span<char *> words);

} // namespace qvmremote::qube
