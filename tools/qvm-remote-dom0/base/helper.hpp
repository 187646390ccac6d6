// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Runs other programs of dom0 for the administrator's commands.

#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include <qvmremote/host/failure.hpp>

namespace qvmremote::dom0 {

struct helper_result {
    int exit_code = 0; ///< 128 + N after a signal
    std::string untrusted_output;
};

/// Runs a program found in PATH, with /dev/null as its stdin and our stderr, and returns its output. It
/// has no other descriptor of ours, clean signals, and our environment and directory (host/child.hpp).
/// Fails when it cannot be run, when it prints more than `limit` bytes (EFBIG), or when it does not
/// end in time (ETIMEDOUT). In the last two cases it is killed.
[[nodiscard]] host::outcome<helper_result>
run_helper(std::vector<std::string> argv, std::size_t limit, std::chrono::milliseconds time);

} // namespace qvmremote::dom0
