// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Parses the time that follows --until.

#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace qvmremote::dom0 {

/// Reads "30m", "8h" or "7d" as a duration from `now`, and "YYYY-MM-DD" (when that day begins) or
/// "YYYY-MM-DDTHH:MM" as local time. Returns seconds since 1970. Nothing if the text has another
/// form, the calendar has no such day, the day does not have that time (clocks are set forward over
/// an hour each year), or the year has five digits.
[[nodiscard]] std::optional<std::int64_t> parse_moment(std::string_view text, std::int64_t now);

} // namespace qvmremote::dom0
