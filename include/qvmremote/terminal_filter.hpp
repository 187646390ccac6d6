// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Makes the output of a command safe for the terminal of whoever runs it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <qvmremote/sanitize.hpp>
#include <qvmremote/utf8.hpp>

namespace qvmremote {

/// Passes text, newlines (also after a carriage return) and tabs. Every other byte becomes `\xNN`, as
/// in for_terminal(): the other controls, what is not UTF-8, and the marks that change the direction
/// of text. So output cannot move the cursor, change colours or modes, or overwrite what stands there.
///
/// Unlike for_terminal(), it keeps a backslash and all other text as it is, because the text is what
/// the user asked for, and it works on a stream that comes in pieces.
class terminal_filter {
  public:
    /// If the terminal does not show UTF-8, bytes outside ASCII could be controls in its character
    /// set, so they are not passed.
    explicit terminal_filter(bool shows_utf8) noexcept : shows_utf8_(shows_utf8) {}

    /// Appends what to show for the next piece. The last bytes of a piece may wait for the next one.
    void push(std::string &out, std::string_view untrusted_output) {
        held_ += untrusted_output;
        const std::string_view all = held_;
        std::size_t done = 0;
        while (done < all.size()) {
            const std::size_t n = show(out, all.substr(done));
            if (n == 0)
                break;
            done += n;
        }
        held_.erase(0, done);
    }

    /// The stream has ended: appends what to show for the bytes that waited.
    void end(std::string &out) {
        for (const char c : held_)
            escape(out, c);
        held_.clear();
    }

  private:
    // Shows what `text`, which is not empty, begins with. Returns its length, or 0 if only the next
    // piece can tell what it is.
    [[nodiscard]] std::size_t show(std::string &out, std::string_view text) const {
        std::size_t run = 0;
        while (run < text.size() && is_plain(text[run]))
            ++run;
        if (run != 0) {
            out += text.substr(0, run);
            return run;
        }
        if (text[0] == '\r') {
            if (text.size() == 1)
                return 0;
            if (text[1] == '\n') {
                out += "\r\n";
                return 2;
            }
        }
        if (shows_utf8_) {
            if (text.size() < 4 && whole_characters(text) == 0)
                return 0;
            const detail::utf8_character next = detail::decode_utf8(text);
            if (next.length > 1 && !detail::is_json_escaped(next.code)) {
                out += text.substr(0, next.length);
                return next.length;
            }
        }
        escape(out, text[0]);
        return 1;
    }

    [[nodiscard]] static bool is_plain(char c) noexcept {
        return detail::is_printable(c) || c == '\n' || c == '\t';
    }
    static void escape(std::string &out, char c) {
        const auto byte = static_cast<std::uint8_t>(c);
        out += "\\x";
        out += detail::hex_digits[byte >> 4];
        out += detail::hex_digits[byte & 15];
    }

    bool shows_utf8_;
    std::string held_; // the beginning of a character, or a carriage return
};

} // namespace qvmremote
