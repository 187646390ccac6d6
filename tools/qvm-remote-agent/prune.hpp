// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Removes old entries of a user's history, if the user has set a limit.

#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <qvmremote/config.hpp>
#include <qvmremote/host/failure.hpp>

namespace qvmremote::agent {

/// The limits of the history. Without a value there is no limit.
struct history_limits {
    std::optional<std::uint64_t> days;
    std::optional<std::uint64_t> mebibytes;
};

/// Takes QVM_REMOTE_HISTORY_DAYS and QVM_REMOTE_HISTORY_MIB from the settings. A value that is not a
/// whole number in its range is a failure that names the setting.
[[nodiscard]] host::outcome<history_limits> history_limits_of(const config &settings);

/// Removes entries from BASE/history that are beyond the limits, at most once a day. It does this in a
/// process of its own, which prints the number of removed entries on stderr. Returns when to call it
/// again.
[[nodiscard]] std::uint64_t prune_history(const std::string &base, std::uint64_t now_ms,
                                          const history_limits &most);

} // namespace qvmremote::agent
