// SPDX-License-Identifier: GPL-2.0-or-later
#include "administer/moment.hpp"

#include <ctime>

#include <qvmremote/amounts.hpp>

namespace qvmremote::dom0 {

namespace {

// The year of a later moment has more than four digits.
constexpr std::int64_t last_moment = calendar_time{9999, 12, 31, 23, 59, 59}.utc_seconds();

// Converts a time of the local clock. mktime changes a time that does not exist into one that does,
// so its result is compared with `wanted`.
std::optional<std::int64_t> local_seconds(const calendar_time &wanted) {
    std::tm at{};
    at.tm_year = wanted.year - 1900;
    at.tm_mon = wanted.month - 1;
    at.tm_mday = wanted.day;
    at.tm_hour = wanted.hour;
    at.tm_min = wanted.minute;
    at.tm_isdst = -1;
    const std::time_t since_epoch = std::mktime(&at);
    const calendar_time made{at.tm_year + 1900, at.tm_mon + 1, at.tm_mday, at.tm_hour, at.tm_min};
    return since_epoch >= 0 && made == wanted ? std::optional<std::int64_t>(since_epoch)
                                              : std::nullopt;
}

} // namespace

std::optional<std::int64_t> parse_moment(std::string_view text, std::int64_t now) {
    if (text.empty())
        return std::nullopt;
    if (const std::size_t unit = std::string_view("mhd").find(text.back());
        unit != std::string_view::npos) {
        constexpr std::int64_t factors[] = {60, 3600, 86400};
        const auto number = parse_positive(text.substr(0, text.size() - 1));
        if (!number || *number > (last_moment - now) / factors[unit])
            return std::nullopt;
        return now + *number * factors[unit];
    }
    if (const auto time = parse_calendar_time(text, "YYYY-MM-DDThh:mm"))
        return local_seconds(*time);
    auto day = parse_calendar_time(text, "YYYY-MM-DD");
    if (!day)
        return std::nullopt;
    // Where clocks are set forward at midnight, that day begins at one.
    for (; day->hour < 2; ++day->hour)
        if (const auto begin = local_seconds(*day))
            return begin;
    return std::nullopt;
}

} // namespace qvmremote::dom0
