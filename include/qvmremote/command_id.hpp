// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Names that become path components: the ID of a command and the name of a qube.

#pragma once

#include <algorithm>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <qvmremote/bytes.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/limits.hpp>

namespace qvmremote {

/// The ID of one command of one qube. The type guarantees the form, so a path may be built from it:
/// 1 to 128 of [A-Za-z0-9._-], not beginning with '.' or '-', not ending in ".auth" or ".cmd"
/// (COMPAT-V1.md).
class command_id {
  public:
    /// Fails with errc::bad_command_id at the first bad byte.
    [[nodiscard]] static result<command_id> parse(std::string_view untrusted) {
        if (untrusted.empty() || untrusted.size() > limits::command_id)
            return fail(errc::bad_command_id, untrusted.empty() ? 0 : limits::command_id);
        for (std::size_t i = 0; i < untrusted.size(); ++i) {
            const char c = untrusted[i];
            const bool ok = is_alnum(c) || c == '_' || (i > 0 && (c == '.' || c == '-'));
            if (!ok)
                return fail(errc::bad_command_id, i);
        }
        for (const std::string_view suffix : {".auth", ".cmd"})
            if (untrusted.ends_with(suffix))
                return fail(errc::bad_command_id, untrusted.size() - suffix.size());
        return command_id(std::string(untrusted));
    }

    [[nodiscard]] const std::string &text() const noexcept { return text_; }

    /// The time that an ID of the form YYYYmmdd-HHMMSS-… claims, in seconds since 1970 as if the
    /// qube's local time were UTC; nothing for an ID of another form. A caller that compares it
    /// with a clock allows for the time zone (limits::id_clock_skew_s).
    [[nodiscard]] std::optional<std::int64_t> claimed_time() const noexcept {
        if (text_.size() < 16 || text_[8] != '-' || text_[15] != '-')
            return std::nullopt;
        for (std::size_t i = 0; i < 15; ++i)
            if (i != 8 && !is_digit(text_[i]))
                return std::nullopt;
        const int year = number(0, 4), month = number(4, 2), day = number(6, 2);
        const int hour = number(9, 2), minute = number(11, 2), second = number(13, 2);
        if (month < 1 || month > 12 || day < 1 || day > 31 || hour > 23 || minute > 59 ||
            second > 60)
            return std::nullopt;
        // Days since 1970-01-01 in the proleptic Gregorian calendar, with March as first month.
        const std::int64_t y = month <= 2 ? year - 1 : year;
        const std::int64_t era = (y >= 0 ? y : y - 399) / 400;
        const std::int64_t of_era = y - era * 400;
        const std::int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
        const std::int64_t days =
            era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
        return days * 86400 + hour * 3600 + minute * 60 + second;
    }

    friend bool operator==(const command_id &, const command_id &) = default;

  private:
    explicit command_id(std::string text) noexcept : text_(std::move(text)) {}
    [[nodiscard]] int number(std::size_t at, std::size_t length) const noexcept {
        int value = 0;
        for (std::size_t i = at; i < at + length; ++i)
            value = value * 10 + (text_[i] - '0');
        return value;
    }

    std::string text_;
};

/// The name of a qube, safe as a path component: a letter, then letters, digits, '_' and '-', at
/// most 31 (qubes.vm.validate_name). It is never dom0: dom0 and Domain-0, the names of Qubes and
/// Xen, are refused in upper and lower case, and a number, a UUID and @adminvm do not have this
/// form. none, default and a stub domain (*-dm) are refused too, since they cannot be peers.
class qube_name {
  public:
    /// Fails with errc::bad_qube_name at the first bad byte.
    [[nodiscard]] static result<qube_name> parse(std::string_view untrusted) {
        if (untrusted.empty() || !is_alpha(untrusted[0]))
            return fail(errc::bad_qube_name);
        for (std::size_t i = 0; i < untrusted.size(); ++i) {
            const char c = untrusted[i];
            if (i == limits::qube_name || !(is_alnum(c) || c == '_' || c == '-'))
                return fail(errc::bad_qube_name, i);
        }
        const auto is_in_any_case = [&](std::string_view name) {
            return untrusted.size() == name.size() &&
                   std::equal(name.begin(), name.end(), untrusted.begin(), [](char a, char b) {
                       return a == (b >= 'A' && b <= 'Z' ? static_cast<char>(b - 'A' + 'a') : b);
                   });
        };
        if (is_in_any_case("dom0") || is_in_any_case("domain-0") || untrusted == "none" ||
            untrusted == "default")
            return fail(errc::bad_qube_name);
        if (untrusted.ends_with("-dm"))
            return fail(errc::bad_qube_name, untrusted.size() - 3);
        return qube_name(std::string(untrusted));
    }

    [[nodiscard]] const std::string &text() const noexcept { return text_; }

    friend bool operator==(const qube_name &, const qube_name &) = default;
    friend auto operator<=>(const qube_name &, const qube_name &) = default;

  private:
    explicit qube_name(std::string text) noexcept : text_(std::move(text)) {}

    std::string text_;
};

} // namespace qvmremote
