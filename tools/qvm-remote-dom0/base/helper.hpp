// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Programs of dom0's that the administrator's commands call.

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

/// Runs a program found in PATH, with /dev/null as its stdin and our stderr, and takes what it
/// prints. The failure is that it cannot be run, printed more than `limit` bytes (EFBIG) or did not
/// end in time (ETIMEDOUT); then it has been killed.
[[nodiscard]] host::outcome<helper_result>
run_helper(std::vector<std::string> argv, std::size_t limit, std::chrono::milliseconds time);

} // namespace qvmremote::dom0
