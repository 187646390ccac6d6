// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Numbers, durations, sizes and dates as people write them. Each function accepts one spelling of
/// a value and refuses the rest: a value out of range, a date that does not exist, signs, blanks,
/// leading zeros, other bases, and text after the value.

#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <system_error>
#include <type_traits>

#include <qvmremote/bytes.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/limits.hpp>

namespace qvmremote {

/// Parses 1 to 2^31-1 in decimal digits, without sign, blank or leading zero, since some programs
/// read `010` as 8. Fails with errc::bad_value at the first bad byte.
[[nodiscard]] inline result<std::uint32_t> parse_positive(std::string_view untrusted_text) {
    constexpr std::uint32_t most = 0x7fffffff;
    if (untrusted_text.empty() || untrusted_text[0] == '0')
        return fail(errc::bad_value);
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < untrusted_text.size(); ++i) {
        const char c = untrusted_text[i];
        if (!is_digit(c))
            return fail(errc::bad_value, i);
        const auto digit = static_cast<std::uint32_t>(c - '0');
        if (value > (most - digit) / 10)
            return fail(errc::bad_value, i);
        value = value * 10 + digit;
    }
    return value;
}

/// Parses a whole number as programs print it: decimal digits, with `-` before a negative number if T
/// is a signed type. No plus sign, no blank, no leading zero, no `-0`, so each number has one
/// spelling. Returns nothing for any other text, and for a number that T cannot hold.
template <class T>
[[nodiscard]] std::optional<T> parse_decimal(std::string_view untrusted_text) noexcept {
    std::string_view digits = untrusted_text;
    if (std::is_signed_v<T> && digits.size() > 1 && digits[0] == '-') {
        digits.remove_prefix(1);
        if (digits[0] == '0')
            return std::nullopt;
    }
    if (digits.empty() || !is_digit(digits[0]) || (digits[0] == '0' && digits.size() > 1))
        return std::nullopt;
    T value{};
    const char *const end = untrusted_text.data() + untrusted_text.size();
    const auto [stop, code] = std::from_chars(untrusted_text.data(), end, value);
    if (code != std::errc() || stop != end)
        return std::nullopt;
    return value;
}

namespace detail {

// Parses a positive number that one letter of `units` may follow. The letter multiplies by the
// factor at the same place in `factors`. The product is at most `most`.
[[nodiscard]] inline std::optional<std::uint64_t>
parse_with_unit(std::string_view text, std::string_view units,
                std::span<const std::uint64_t> factors, std::uint64_t most) {
    std::uint64_t factor = 1;
    if (!text.empty())
        if (const std::size_t unit = units.find(text.back()); unit != std::string_view::npos) {
            factor = factors[unit];
            text.remove_suffix(1);
        }
    const auto number = parse_positive(text);
    if (!number || *number > most / factor)
        return std::nullopt;
    return *number * factor;
}

} // namespace detail

/// Parses a duration such as "90", "90s", "30m", "8h" or "7d". Returns seconds, at most
/// limits::policy_seconds; nothing for any other text.
[[nodiscard]] inline std::optional<std::uint32_t> parse_duration(std::string_view untrusted_text) {
    static constexpr std::uint64_t factors[] = {1, 60, 3600, 86400};
    const auto out =
        detail::parse_with_unit(untrusted_text, "smhd", factors, limits::policy_seconds);
    return out ? std::optional(static_cast<std::uint32_t>(*out)) : std::nullopt;
}

/// Parses a size such as "1000", "64K", "256M" or "2G". Returns bytes, at most 1 PiB; nothing for
/// any other text.
[[nodiscard]] inline std::optional<std::uint64_t> parse_size(std::string_view untrusted_text) {
    static constexpr std::uint64_t factors[] = {std::uint64_t{1} << 10, std::uint64_t{1} << 20,
                                                std::uint64_t{1} << 30};
    return detail::parse_with_unit(untrusted_text, "KMG", factors, std::uint64_t{1} << 50);
}

/// Parses a number of processes, or a percentage of one processor without its `%`: 1 to 1000000.
/// Returns nothing for any other text.
[[nodiscard]] inline std::optional<std::uint32_t> parse_count(std::string_view untrusted_text) {
    const auto number = parse_positive(untrusted_text);
    return number && *number <= 1'000'000 ? std::optional(*number) : std::nullopt;
}

/// A day of the Gregorian calendar and a time of that day, without a time zone.
struct calendar_time {
    int year = 0, month = 0, day = 0, hour = 0, minute = 0, second = 0;

    /// Whether the calendar has this day (29 February only in a leap year) and a day has this time.
    /// The second may be 60, since clocks show leap seconds.
    [[nodiscard]] constexpr bool exists() const noexcept {
        constexpr int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
        if (month < 1 || month > 12)
            return false;
        const bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        return year >= 0 && day >= 1 && day <= days[month - 1] + (month == 2 && leap ? 1 : 0) &&
               hour >= 0 && hour <= 23 && minute >= 0 && minute <= 59 && second >= 0 &&
               second <= 60;
    }
    /// Seconds since 1970 as if the time were UTC. The time must exist.
    [[nodiscard]] constexpr std::int64_t utc_seconds() const noexcept {
        // Days since 1970-01-01 in the proleptic Gregorian calendar, with March as first month.
        const std::int64_t y = month <= 2 ? year - 1 : year;
        const std::int64_t era = (y >= 0 ? y : y - 399) / 400;
        const std::int64_t of_era = y - era * 400;
        const std::int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
        const std::int64_t days =
            era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
        return days * 86400 + hour * 3600 + minute * 60 + second;
    }

    friend bool operator==(const calendar_time &, const calendar_time &) = default;
};

/// Reads a time in the given form, such as "YYYY-MM-DDThh:mm". Each Y, M, D, h, m and s of the form
/// stands for one digit, and every other byte for itself. Returns nothing if the text does not have
/// this form or the time does not exist.
[[nodiscard]] constexpr std::optional<calendar_time>
parse_calendar_time(std::string_view untrusted_text, std::string_view form) noexcept {
    if (untrusted_text.size() != form.size())
        return std::nullopt;
    calendar_time out{0, 1, 1, 0, 0, 0};
    const struct {
        char letter;
        int &value;
    } fields[] = {{'Y', out.year}, {'M', out.month},  {'D', out.day},
                  {'h', out.hour}, {'m', out.minute}, {'s', out.second}};
    char last = '\0';
    for (std::size_t i = 0; i < form.size(); ++i) {
        int *value = nullptr;
        for (const auto &field : fields)
            if (field.letter == form[i])
                value = &field.value;
        if (value ? !is_digit(untrusted_text[i]) : untrusted_text[i] != form[i])
            return std::nullopt;
        if (value)
            *value = (form[i] == last ? *value * 10 : 0) + (untrusted_text[i] - '0');
        last = form[i];
    }
    return out.exists() ? std::optional(out) : std::nullopt;
}

} // namespace qvmremote
