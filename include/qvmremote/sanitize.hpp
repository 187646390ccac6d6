// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Makes untrusted bytes safe for a terminal, a log, JSON or markup, and checks names of files.
///
/// Each place where a text is shown or written has a function of its own.
///
/// A hostile byte is shown, not dropped: whoever reads `\x1b[2J` sees that somebody sent it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <qvmremote/bytes.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/limits.hpp>

namespace qvmremote {

/// The default limit of the functions below: the most bytes of a result.
inline constexpr std::size_t sanitized_text = 4096;

/// Text for a terminal. The result holds only bytes 0x20 to 0x7e, so it cannot control the terminal.
/// These bytes stay as they are, except that the backslash becomes `\\`. Newline, tab and carriage
/// return become `\n`, `\t` and `\r`; any other byte becomes `\xNN`, with two lower-case digits.
/// from_terminal() turns a result that was not cut back into the bytes.
///
/// Every function with a `limit` returns at most `limit` bytes. A longer text is cut and ends in `...`
/// (in as many dots as fit if `limit` is below 3). No escape and no UTF-8 character is cut in two.
[[nodiscard]] inline std::string for_terminal(std::string_view untrusted_text,
                                              std::size_t limit = sanitized_text);

/// The bytes for which for_terminal() returns this text. Fails with errc::bad_value at the first byte, or
/// at the backslash of the first escape, that for_terminal() never writes. `...` at the end is taken as
/// three dots, since it cannot be told from a cut.
[[nodiscard]] inline result<std::string> from_terminal(std::string_view untrusted_text);

/// Text for one line of a log: the same as for_terminal(). It holds no newline, so a peer cannot forge a
/// line.
[[nodiscard]] inline std::string for_log(std::string_view untrusted_text,
                                         std::size_t limit = sanitized_text);

/// A command as the records of protocol 1 show it (PREVIEW): its first `max_bytes` bytes, with a blank
/// for each newline. Other bytes outside 0x20 to 0x7e are escaped as in for_log(), so the result has at
/// most 4 * `max_bytes` bytes. No `...` marks a cut. A backslash is not escaped, as in the Python
/// programs: `\x1b` in the result may also be four characters of the command.
[[nodiscard]] inline std::string preview(std::string_view untrusted_text, std::size_t max_bytes);

/// Text for the inside of a JSON string (RFC 8259); the caller writes the quotes. Valid UTF-8 passes (no
/// overlong form, no surrogate, nothing above U+10FFFF), except `"`, `\`, the controls (C0, DEL, C1),
/// U+2028, U+2029 and the marks that change the direction of text. These become `\"`, `\\`, `\n`, `\t`,
/// `\r` or `\uNNNN`.
///
/// A byte NN that is not part of valid UTF-8 becomes `\u00NN`, since JSON cannot carry a byte. After
/// parsing, it looks like the character U+00NN. If the exact bytes matter, write them in base64
/// (json_writer::content), or add their digest.
[[nodiscard]] inline std::string for_json(std::string_view untrusted_text,
                                          std::size_t limit = std::string_view::npos);

/// Text between tags, or in a quoted attribute, of HTML or Pango markup: as for_terminal(), and `&`, `<`,
/// `>`, `"`, `'` become `&amp;`, `&lt;`, `&gt;`, `&quot;`, `&#39;`.
///
/// A control or a byte outside ASCII does not become a numeric reference, because Pango refuses a whole
/// text for one `&#x1b;`. It does not become `?`, because two different commands would then look alike
/// to an operator.
[[nodiscard]] inline std::string for_markup(std::string_view untrusted_text,
                                            std::size_t limit = sanitized_text);

/// Checks a name that becomes one component of a path, and returns it unchanged: 1 to
/// limits::command_id characters of `[A-Za-z0-9._-]`, not beginning with `.` or `-`. Fails with
/// errc::bad_value at the first bad byte: at 0 if the name is empty, at limits::command_id if it is too
/// long. A bad name is not repaired, because two different names could become the same one.
[[nodiscard]] inline result<std::string> for_file_name(std::string_view untrusted_name);

namespace detail {

// Appends pieces to a string, `limit` bytes in all. A piece that does not fit is left out: the text is
// cut after the last piece that leaves room for "...", and "..." is added.
class bounded_text {
  public:
    bounded_text(std::string &out, std::size_t limit) noexcept
        : out_(out), start_(out.size()), keep_(out.size()), limit_(limit) {}

    // Returns false if the piece did not fit. Then add nothing more.
    [[nodiscard]] bool add(std::string_view piece) {
        if (piece.size() > limit_ - used()) {
            out_.resize(keep_);
            out_.append(dots.substr(0, limit_));
            return false;
        }
        out_.append(piece);
        if (used() + dots.size() <= limit_)
            keep_ = out_.size();
        return true;
    }

    // Adds a text that may be cut after any byte.
    [[nodiscard]] bool add_run(std::string_view run) {
        if (used() + run.size() + dots.size() <= limit_)
            return add(run);
        for (std::size_t i = 0; i < run.size(); ++i)
            if (!add(run.substr(i, 1)))
                return false;
        return true;
    }

  private:
    static constexpr std::string_view dots = "...";

    [[nodiscard]] std::size_t used() const noexcept { return out_.size() - start_; }

    std::string &out_;
    std::size_t start_;
    std::size_t keep_;
    std::size_t limit_;
};

[[nodiscard]] constexpr bool is_printable(char c) noexcept { return c >= 0x20 && c <= 0x7e; }

inline constexpr char hex_digits[] = "0123456789abcdef";

// Escapes untrusted bytes as printable ASCII. `replacement(c)` returns the text for a byte, or an empty
// text for the usual form: printable ASCII as it is, `\n`, `\t`, `\r`, and `\xNN` for any other byte.
template <class Replacement>
[[nodiscard]] std::string escape_bytes(std::string_view untrusted_text, std::size_t limit,
                                       Replacement replacement) {
    std::string out;
    out.reserve(untrusted_text.size() < limit ? untrusted_text.size() : limit);
    bounded_text text(out, limit);
    std::size_t run = 0;
    for (std::size_t i = 0; i < untrusted_text.size(); ++i) {
        const char c = untrusted_text[i];
        std::string_view piece = replacement(c);
        if (piece.empty() && is_printable(c))
            continue;
        const auto byte = static_cast<std::uint8_t>(c);
        const char escaped[] = {'\\', 'x', hex_digits[byte >> 4], hex_digits[byte & 15]};
        if (piece.empty())
            piece = c == '\n'   ? std::string_view("\\n")
                    : c == '\t' ? std::string_view("\\t")
                    : c == '\r' ? std::string_view("\\r")
                                : std::string_view(escaped, sizeof escaped);
        if (!text.add_run(untrusted_text.substr(run, i - run)) || !text.add(piece))
            return out;
        run = i + 1;
    }
    // Nothing follows, so it does not matter whether this was cut.
    static_cast<void>(text.add_run(untrusted_text.substr(run)));
    return out;
}

struct utf8_character {
    std::uint32_t code;
    std::size_t length; // 0: the text does not begin with a valid sequence
};

// The first character, by table 3-7 of the Unicode standard (well-formed UTF-8). `text` must not be empty.
[[nodiscard]] constexpr utf8_character decode_utf8(std::string_view text) noexcept {
    const auto lead = static_cast<std::uint8_t>(text[0]);
    if (lead < 0x80)
        return {lead, 1};
    const std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || text.size() < length)
        return {0, 0};
    std::uint32_t code = lead & (0x7fu >> length);
    for (std::size_t i = 1; i < length; ++i) {
        const auto next = static_cast<std::uint8_t>(text[i]);
        if ((next & 0xc0) != 0x80)
            return {0, 0};
        code = code << 6 | (next & 0x3fu);
    }
    const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
    if (overlong || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff))
        return {0, 0};
    return {code, length};
}

// The characters that for_json() escapes although they are valid: `"`, `\`, the controls (C0, DEL, C1),
// U+2028, U+2029, and the marks that change the direction of text ("Trojan Source", CVE-2021-42574).
// Other invisible characters, such as U+200B, pass.
[[nodiscard]] constexpr bool is_json_escaped(std::uint32_t code) noexcept {
    return code < 0x20 || code == '"' || code == '\\' || (code >= 0x7f && code <= 0x9f) ||
           code == 0x61c || code == 0x200e || code == 0x200f ||
           (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
}

// Appends what for_json() returns; `limit` counts only that. Returns false if the text was cut.
[[nodiscard]] inline bool append_json(std::string &out, std::string_view untrusted_text,
                                      std::size_t limit) {
    bounded_text text(out, limit);
    std::size_t i = 0;
    while (i < untrusted_text.size()) {
        std::size_t end = i;
        while (end < untrusted_text.size() && is_printable(untrusted_text[end]) &&
               untrusted_text[end] != '"' && untrusted_text[end] != '\\')
            ++end;
        if (end != i) {
            if (!text.add_run(untrusted_text.substr(i, end - i)))
                return false;
            i = end;
            continue;
        }
        utf8_character next = decode_utf8(untrusted_text.substr(i));
        const bool valid = next.length != 0;
        if (!valid)
            next = {static_cast<std::uint8_t>(untrusted_text[i]), 1};
        std::string_view piece = untrusted_text.substr(i, next.length);
        const char escaped[] = {'\\',
                                'u',
                                hex_digits[next.code >> 12 & 15],
                                hex_digits[next.code >> 8 & 15],
                                hex_digits[next.code >> 4 & 15],
                                hex_digits[next.code & 15]};
        if (!valid || is_json_escaped(next.code))
            piece = next.code == '"'    ? std::string_view("\\\"")
                    : next.code == '\\' ? std::string_view("\\\\")
                    : next.code == '\n' ? std::string_view("\\n")
                    : next.code == '\t' ? std::string_view("\\t")
                    : next.code == '\r' ? std::string_view("\\r")
                                        : std::string_view(escaped, sizeof escaped);
        if (!text.add(piece))
            return false;
        i += next.length;
    }
    return true;
}

} // namespace detail

inline std::string for_terminal(std::string_view untrusted_text, std::size_t limit) {
    return detail::escape_bytes(untrusted_text, limit, [](char c) -> std::string_view {
        return c == '\\' ? std::string_view("\\\\") : std::string_view();
    });
}

inline result<std::string> from_terminal(std::string_view untrusted_text) {
    std::string out;
    for (std::size_t i = 0; i < untrusted_text.size(); ++i) {
        if (!detail::is_printable(untrusted_text[i]))
            return fail(errc::bad_value, i);
        if (untrusted_text[i] != '\\') {
            out.push_back(untrusted_text[i]);
            continue;
        }
        const std::string_view escape = untrusted_text.substr(i, 4);
        const char kind = escape.size() > 1 ? escape[1] : '\0';
        if (kind == 'n' || kind == 't' || kind == 'r' || kind == '\\') {
            out.push_back(kind == 'n' ? '\n' : kind == 't' ? '\t' : kind == 'r' ? '\r' : '\\');
            ++i;
            continue;
        }
        const auto digit = [](char c) { return c >= 'A' && c <= 'F' ? -1 : hex_value(c); };
        const int high = escape.size() == 4 && kind == 'x' ? digit(escape[2]) : -1;
        const int low = high < 0 ? -1 : digit(escape[3]);
        const char byte = static_cast<char>(high * 16 + low);
        if (low < 0 || detail::is_printable(byte) || byte == '\n' || byte == '\t' || byte == '\r')
            return fail(errc::bad_value, i);
        out.push_back(byte);
        i += 3;
    }
    return out;
}

inline std::string for_log(std::string_view untrusted_text, std::size_t limit) {
    return for_terminal(untrusted_text, limit);
}

inline std::string preview(std::string_view untrusted_text, std::size_t max_bytes) {
    return detail::escape_bytes(
        untrusted_text.substr(0, max_bytes), std::string_view::npos,
        [](char c) { return c == '\n' ? std::string_view(" ") : std::string_view(); });
}

inline std::string for_json(std::string_view untrusted_text, std::size_t limit) {
    std::string out;
    static_cast<void>(detail::append_json(out, untrusted_text, limit));
    return out;
}

inline std::string for_markup(std::string_view untrusted_text, std::size_t limit) {
    return detail::escape_bytes(untrusted_text, limit, [](char c) -> std::string_view {
        switch (c) {
        case '&':
            return "&amp;";
        case '<':
            return "&lt;";
        case '>':
            return "&gt;";
        case '"':
            return "&quot;";
        case '\'':
            return "&#39;";
        case '\\':
            return "\\\\";
        default:
            return {};
        }
    });
}

inline result<std::string> for_file_name(std::string_view untrusted_name) {
    if (untrusted_name.empty() || untrusted_name[0] == '.' || untrusted_name[0] == '-')
        return fail(errc::bad_value);
    for (std::size_t i = 0; i < untrusted_name.size(); ++i) {
        const char c = untrusted_name[i];
        const bool allowed = is_alnum(c) || c == '.' || c == '_' || c == '-';
        if (i == limits::command_id || !allowed)
            return fail(errc::bad_value, i);
    }
    return std::string(untrusted_name);
}

} // namespace qvmremote
