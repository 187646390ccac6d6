// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Runs another program and takes its output, for commands that a person waits for.

#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include <qvmremote/host/failure.hpp>

namespace qvmremote {

struct helper_result {
    int exit_code = 0; ///< 128 + N after a signal
    std::string untrusted_output;
};

/// Where the program's messages go.
enum class helper_messages { shown, dropped };

/// Runs a program found in PATH, with /dev/null as its stdin, and returns its output. Its stderr is
/// ours, or /dev/null. It has no other descriptor of ours, clean signals, and our environment and
/// directory (host/child.hpp).
/// Fails when it cannot be run, when it prints more than `limit` bytes (EFBIG), or when it does not
/// end in time (ETIMEDOUT). In the last two cases it is killed.
[[nodiscard]] host::outcome<helper_result>
run_helper(std::vector<std::string> argv, std::size_t limit, std::chrono::milliseconds time,
           helper_messages messages = helper_messages::shown);

} // namespace qvmremote
