// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Configuration text: KEY=VALUE lines that a shell and systemd read the same way.

#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <qvmremote/amounts.hpp>
#include <qvmremote/bytes.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/limits.hpp>

namespace qvmremote {

/// The settings of one configuration file, which the environment may override. A line has this
/// form:
///
///     blanks KEY blanks = blanks VALUE blanks [# comment]
///
/// - KEY is `[A-Za-z_][A-Za-z0-9_]*`. `export KEY=...` sets the key `export KEY`, which no program
///   reads: systemd does not know such a line, and the Python programs ignored it.
/// - VALUE is bare, or in single quotes (every byte as it is), or in double quotes (`\` escapes
///   `"`, `\`, `$` and backquote, and is itself before any other byte). In a bare value `\`
///   escapes any byte; it may hold blanks, but not a quote. Nothing is expanded: `$` is a dollar
///   sign.
/// - A value ends on its line. Where shell and systemd would go on to the next line (an open quote,
///   or `\` at the end), this is an error, so that half a value is never used.
/// - `#` begins a comment at the beginning of a line and after a blank. A line may end in CR LF;
///   the last one needs no line end. Of two lines with the same key the last wins.
class config {
  public:
    /// Fails with errc::bad_config at a NUL, or if a line does not have this form: at an open
    /// quote, at a control byte, at the first byte of a line without `=`. Fails with
    /// errc::bad_value if the text exceeds limits::config_file.
    [[nodiscard]] static result<config> parse(std::string_view text);

    /// The value of a key; nothing if it is missing or empty, which means the same here.
    [[nodiscard]] std::optional<std::string_view> get(std::string_view key) const;

    /// One entry for each key, in the order of first appearance, with the empty ones.
    [[nodiscard]] const std::vector<std::pair<std::string, std::string>> &entries() const noexcept {
        return entries_;
    }

    /// Overrides the file's value, for instance with one of the environment. An empty value changes
    /// nothing: an empty variable counts as unset, and the file's value stays.
    void set(std::string_view key, std::string_view value);

    /// The keys that are not in `known`, so that a program can warn of a misspelt one.
    [[nodiscard]] std::vector<std::string_view>
    unknown_keys(std::span<const std::string_view> known) const;

    /// The number of the line, from 1, that holds byte `offset` of `text`.
    [[nodiscard]] static std::uint32_t line_of(std::string_view text, std::uint32_t offset);

  private:
    void assign(std::string_view key, std::string &&value);

    std::vector<std::pair<std::string, std::string>> entries_;
};

/// `text` with `key` set to `value`, and every other byte as it was: comments, order, line ends.
/// The last line with the key is changed, since that one counts; if there is none, a line is
/// added at the end. The value is put in double quotes if a shell would otherwise not read it as
/// one word. Lines that do not parse are skipped, so parse first. `key` must have the form of a key
/// and `value` must hold no control byte: both come from us, and an assertion checks them.
[[nodiscard]] inline std::string with_value(std::string_view text, std::string_view key,
                                            std::string_view value);

/// The words of a value, between blanks, tabs or line ends; views into `text`.
[[nodiscard]] inline std::vector<std::string_view> split_words(std::string_view text);

/// Which word of a value like `auto work=both dev=2` is for this qube: what follows `=` in the word
/// that names the qube, else the word without `=`, else nothing. If there are several, the last one
/// wins. `work=` is ignored.
[[nodiscard]] inline std::optional<std::string_view> choose_for(std::string_view spec,
                                                                std::string_view qube);

/// The qubes that dom0 is to serve: the words of the first variable that is not empty among
/// QVM_REMOTE_VMS, QUBES_REMOTE_VMS, QVM_REMOTE_VM, QUBES_REMOTE_VM; each once. The names are not
/// checked here.
[[nodiscard]] inline std::vector<std::string_view> listed_qubes(const config &settings);

namespace detail {

[[nodiscard]] constexpr bool is_blank(char c) noexcept { return c == ' ' || c == '\t'; }
[[nodiscard]] constexpr bool is_control(char c) noexcept {
    const auto byte = static_cast<std::uint8_t>(c);
    return byte < 0x20 || byte == 0x7f;
}
[[nodiscard]] constexpr std::size_t skip_blanks(std::string_view line, std::size_t at) noexcept {
    while (at < line.size() && is_blank(line[at]))
        ++at;
    return at;
}

// A line of configuration. Without a key it was blank or a comment.
struct config_line {
    std::string_view key;
    std::string value;
    std::size_t value_begin = 0; // what with_value replaces, as offsets into the line
    std::size_t value_end = 0;
};

// A quoted value; `at` is the opening quote. Sets value_end to after the closing one.
[[nodiscard]] inline result<config_line> parse_quoted(std::string_view line, std::size_t at,
                                                      config_line parsed) {
    const char quote = line[at];
    parsed.value_begin = at;
    std::size_t i = at + 1;
    for (; i < line.size() && line[i] != quote; ++i) {
        if (is_control(line[i]) && line[i] != '\t')
            return fail(errc::bad_config, i);
        const bool escape = quote == '"' && line[i] == '\\' && i + 1 < line.size() &&
                            std::string_view("\"\\$`").find(line[i + 1]) != std::string_view::npos;
        if (escape)
            ++i;
        parsed.value.push_back(line[i]);
    }
    if (i == line.size())
        return fail(errc::bad_config, at);
    parsed.value_end = i + 1;
    const std::size_t rest = skip_blanks(line, parsed.value_end);
    const bool comment = rest < line.size() && line[rest] == '#' && rest > parsed.value_end;
    if (rest != line.size() && !comment)
        return fail(errc::bad_config, rest);
    return parsed;
}

// A bare value; `at` is its first byte, or the end of the line.
[[nodiscard]] inline result<config_line> parse_bare(std::string_view line, std::size_t at,
                                                    config_line parsed) {
    parsed.value_begin = parsed.value_end = at;
    for (std::size_t i = at; i < line.size(); ++i) {
        if (is_blank(line[i])) {
            const std::size_t next = skip_blanks(line, i);
            if (next == line.size() || line[next] == '#')
                break;
            parsed.value.append(line.substr(i, next - i));
            i = next;
        }
        if (line[i] == '"' || line[i] == '\'')
            return fail(errc::bad_config, i);
        if (line[i] == '\\' && ++i == line.size())
            return fail(errc::bad_config, i - 1);
        if (is_control(line[i]) && line[i] != '\t')
            return fail(errc::bad_config, i);
        parsed.value.push_back(line[i]);
        parsed.value_end = i + 1;
    }
    return parsed;
}

// Offsets in errors count from the line's first byte.
[[nodiscard]] inline result<config_line> parse_config_line(std::string_view line) {
    const std::size_t begin = skip_blanks(line, 0);
    if (begin == line.size() || line[begin] == '#')
        return config_line{};
    if (line.find('=', begin) == std::string_view::npos || is_digit(line[begin]))
        return fail(errc::bad_config, begin);
    std::size_t at = begin;
    while (is_alnum(line[at]) || line[at] == '_') // ends at the '=' at the latest
        ++at;
    config_line parsed;
    if (const std::size_t name = skip_blanks(line, at);
        line.substr(begin, at - begin) == "export" && name > at && line[name] != '=') {
        if (is_digit(line[name]))
            return fail(errc::bad_config, name);
        for (at = name; is_alnum(line[at]) || line[at] == '_';)
            ++at;
        if (at == name)
            return fail(errc::bad_config, name);
    }
    parsed.key = line.substr(begin, at - begin);
    at = skip_blanks(line, at);
    if (parsed.key.empty() || line[at] != '=')
        return fail(errc::bad_config, at);

    const std::size_t after_equals = at + 1;
    at = skip_blanks(line, after_equals);
    const bool comment = at < line.size() && line[at] == '#' && at > after_equals;
    if (at == line.size() || comment) {
        // A value that is set later goes before the blanks, since after them it would join the comment.
        parsed.value_begin = parsed.value_end = after_equals;
        return parsed;
    }
    if (line[at] == '"' || line[at] == '\'')
        return parse_quoted(line, at, std::move(parsed));
    return parse_bare(line, at, std::move(parsed));
}

// The line that begins at `at`, without its line end; `at` moves to the next one.
[[nodiscard]] inline std::string_view next_line(std::string_view text, std::size_t &at) noexcept {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    if (line.ends_with('\r'))
        line.remove_suffix(1);
    at = std::min(end + 1, text.size());
    return line;
}

[[nodiscard]] inline std::string quote_value(std::string_view value) {
    const bool plain = std::all_of(value.begin(), value.end(), [](char c) {
        return is_alnum(c) || std::string_view("_@%+:,./=-").find(c) != std::string_view::npos;
    });
    if (plain)
        return std::string(value);
    std::string out = "\"";
    for (const char c : value) {
        if (c == '"' || c == '\\' || c == '$' || c == '`')
            out.push_back('\\');
        out.push_back(c);
    }
    out.push_back('"');
    return out;
}

} // namespace detail

inline result<config> config::parse(std::string_view text) {
    if (text.size() > limits::config_file)
        return fail(errc::bad_value, limits::config_file);
    if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos)
        return fail(errc::bad_config, nul);
    config out;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t begin = at;
        auto line = detail::parse_config_line(detail::next_line(text, at));
        if (!line)
            return fail(line.error().code, begin + line.error().offset);
        if (!line->key.empty())
            out.assign(line->key, std::move(line->value));
    }
    return out;
}

inline std::optional<std::string_view> config::get(std::string_view key) const {
    for (const auto &[name, value] : entries_)
        if (name == key && !value.empty())
            return value;
    return std::nullopt;
}

inline void config::set(std::string_view key, std::string_view value) {
    if (!value.empty())
        assign(key, std::string(value));
}

inline void config::assign(std::string_view key, std::string &&value) {
    for (auto &[name, old] : entries_) {
        if (name == key) {
            old = std::move(value);
            return;
        }
    }
    entries_.emplace_back(key, std::move(value));
}

inline std::vector<std::string_view>
config::unknown_keys(std::span<const std::string_view> known) const {
    std::vector<std::string_view> out;
    for (const auto &entry : entries_)
        if (std::find(known.begin(), known.end(), entry.first) == known.end())
            out.push_back(entry.first);
    return out;
}

inline std::uint32_t config::line_of(std::string_view text, std::uint32_t offset) {
    const std::string_view before = text.substr(0, offset);
    return static_cast<std::uint32_t>(1 + std::count(before.begin(), before.end(), '\n'));
}

inline std::string with_value(std::string_view text, std::string_view key, std::string_view value) {
    assert(detail::parse_config_line(std::string(key) + "=") && !key.empty());
    assert(std::none_of(value.begin(), value.end(),
                        [](char c) { return detail::is_control(c) && c != '\t'; }));
    const std::string quoted = detail::quote_value(value);
    std::optional<std::pair<std::size_t, std::size_t>> last;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t begin = at;
        const auto line = detail::parse_config_line(detail::next_line(text, at));
        if (line && line->key == key)
            last.emplace(begin + line->value_begin, begin + line->value_end);
    }
    std::string out;
    if (last) {
        out.append(text.substr(0, last->first)).append(quoted).append(text.substr(last->second));
        return out;
    }
    out.append(text);
    if (!out.empty() && out.back() != '\n')
        out.push_back('\n');
    return out.append(key).append("=").append(quoted).append("\n");
}

inline std::vector<std::string_view> split_words(std::string_view text) {
    constexpr std::string_view blanks = " \t\r\n";
    std::vector<std::string_view> out;
    std::size_t begin = text.find_first_not_of(blanks);
    while (begin != std::string_view::npos) {
        const std::size_t end = std::min(text.find_first_of(blanks, begin), text.size());
        out.push_back(text.substr(begin, end - begin));
        begin = text.find_first_not_of(blanks, end);
    }
    return out;
}

inline std::optional<std::string_view> choose_for(std::string_view spec, std::string_view qube) {
    std::optional<std::string_view> common, own;
    for (const std::string_view word : split_words(spec)) {
        const std::size_t equals = word.find('=');
        if (equals == std::string_view::npos)
            common = word;
        else if (word.substr(0, equals) == qube && equals + 1 < word.size())
            own = word.substr(equals + 1);
    }
    return own ? own : common;
}

inline std::vector<std::string_view> listed_qubes(const config &settings) {
    std::vector<std::string_view> out;
    for (const std::string_view key :
         {"QVM_REMOTE_VMS", "QUBES_REMOTE_VMS", "QVM_REMOTE_VM", "QUBES_REMOTE_VM"}) {
        for (const std::string_view name : split_words(settings.get(key).value_or("")))
            if (std::find(out.begin(), out.end(), name) == out.end())
                out.push_back(name);
        if (!out.empty())
            break;
    }
    return out;
}

} // namespace qvmremote
