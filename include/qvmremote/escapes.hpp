// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The escapes that a person types to control the client itself, such as `~.`, as in ssh. All other
/// typed text goes to the terminal in dom0.

#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include <qvmremote/bytes.hpp>

namespace qvmremote {

/// Finds the escapes in typed text. An escape is the escape character at the beginning of a line,
/// followed by `.` (leave), `d` (detach), Ctrl-Z (suspend), `?` (help), or the escape character
/// again, which sends it once. If another character follows, both are sent as typed.
class escape_scanner {
  public:
    enum class action : std::uint8_t { none, leave, suspend, help, detach };
    struct step {
        std::size_t used;    ///< bytes of `typed` that were read
        std::size_t written; ///< bytes in `to`, to be sent
        action what;         ///< to be done after sending; then push the rest
    };

    /// Recognizes the escapes that begin with `character`; with none, every byte goes to dom0.
    explicit escape_scanner(std::optional<std::uint8_t> character = '~') noexcept
        : character_(character) {}

    /// Takes the typed bytes up to the first action, and copies to `to` what is to be sent. `to`
    /// must not overlap `typed`, and must be at least one byte longer, because the last call may
    /// have kept an escape character back.
    [[nodiscard]] step push(bytes_view typed, std::span<std::uint8_t> to) noexcept {
        assert(to.size() > typed.size());
        step out{0, 0, action::none};
        while (out.used < typed.size()) {
            const std::uint8_t c = typed[out.used++];
            if (kept_) {
                kept_ = false;
                if (const action what = meant_by(c); what != action::none) {
                    out.what = what;
                    return out;
                }
                to[out.written++] = *character_;
                at_line_start_ = false;
                if (c == *character_)
                    continue;
            } else if (at_line_start_ && character_ == c) {
                kept_ = true;
                continue;
            }
            to[out.written++] = c;
            at_line_start_ = c == '\r' || c == '\n';
        }
        return out;
    }

  private:
    [[nodiscard]] static action meant_by(std::uint8_t c) noexcept {
        constexpr std::uint8_t ctrl_z = 26;
        return c == '.'      ? action::leave
               : c == ctrl_z ? action::suspend
               : c == '?'    ? action::help
               : c == 'd'    ? action::detach
                             : action::none;
    }

    std::optional<std::uint8_t> character_;
    bool at_line_start_ = true;
    bool kept_ = false; // an escape character was read and not yet sent
};

/// What the user chose with `-e`: one ASCII character, `^X` for a control character, or "none".
/// parse_escape returns nothing for any other word.
struct escape_choice {
    std::optional<std::uint8_t> character; ///< absent: "none"
};
[[nodiscard]] constexpr std::optional<escape_choice> parse_escape(std::string_view word) noexcept {
    if (word == "none")
        return escape_choice{};
    if (word.size() == 1 && static_cast<std::uint8_t>(word[0]) < 0x80)
        return escape_choice{static_cast<std::uint8_t>(word[0])};
    if (word.size() == 2 && word[0] == '^' && word[1] >= '@' && word[1] < 0x7f)
        return escape_choice{static_cast<std::uint8_t>(word[1] & 0x1f)};
    return std::nullopt;
}

} // namespace qvmremote
