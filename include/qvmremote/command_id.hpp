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

#include <qvmremote/amounts.hpp>
#include <qvmremote/bytes.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/limits.hpp>

namespace qvmremote {

/// The ID of one command of one qube. The type guarantees the form, so a path may be built from it:
/// 1 to 128 characters of [A-Za-z0-9._-], not beginning with '.' or '-', and not ending in ".auth"
/// or ".cmd" (COMPAT-V1.md).
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

    /// The time at the beginning of an ID of the form YYYYmmdd-HHMMSS-…, in seconds since 1970 as
    /// if the qube's local time were UTC; nothing if the ID has another form or the time does not
    /// exist. The qube may lie about it. A caller that compares it with a clock allows for the time
    /// zone (limits::id_clock_skew_s).
    [[nodiscard]] std::optional<std::int64_t> claimed_time() const noexcept {
        if (text_.size() < 16)
            return std::nullopt;
        const auto time =
            parse_calendar_time(std::string_view(text_).substr(0, 16), "YYYYMMDD-hhmmss-");
        return time ? std::optional(time->utc_seconds()) : std::nullopt;
    }

    friend bool operator==(const command_id &, const command_id &) = default;

  private:
    explicit command_id(std::string text) noexcept : text_(std::move(text)) {}
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
