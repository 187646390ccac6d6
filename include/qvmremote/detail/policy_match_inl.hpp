// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of policy.hpp: matches words and patterns, and splits simple command lines.

#pragma once

#include <qvmremote/policy.hpp>

namespace qvmremote {

namespace detail {

// The characters that no shell changes in a word.
[[nodiscard]] constexpr bool is_plain(char c) noexcept {
    return is_alnum(c) || std::string_view("_@%+:,./=-").find(c) != std::string_view::npos;
}

// `*` stands for any run of characters, also an empty one. The loop goes back only to the last `*`, so the time is at
// most proportional to the product of both lengths.
[[nodiscard]] constexpr bool glob_matches(std::string_view glob, std::string_view text) noexcept {
    std::size_t g = 0, t = 0;
    std::size_t star = std::string_view::npos, resume = 0;
    while (t < text.size()) {
        if (g < glob.size() && glob[g] == '*') {
            star = g++;
            resume = t;
        } else if (g < glob.size() && glob[g] == text[t]) {
            ++g;
            ++t;
        } else if (star != std::string_view::npos) {
            g = star + 1;
            t = ++resume;
        } else {
            return false;
        }
    }
    while (g < glob.size() && glob[g] == '*')
        ++g;
    return g == glob.size();
}

// Whether a pattern stands for this word. The pattern is neither a literal nor `**`.
[[nodiscard]] inline bool is_of_kind(const word_pattern &pattern, const std::string &word) {
    switch (pattern.what) {
    case word_pattern::kind::word:
        return !word.empty() && word[0] != '-' &&
               std::none_of(word.begin(), word.end(), [](char c) { return is_control(c); });
    case word_pattern::kind::qube:
        return glob_matches(pattern.text, word) && qube_name::parse(word).has_value();
    case word_pattern::kind::number:
        return !word.empty() && word.size() <= 18 &&
               std::all_of(word.begin(), word.end(), [](char c) { return is_digit(c); });
    case word_pattern::kind::name:
        return !word.empty() && is_alnum(word[0]) &&
               std::all_of(word.begin(), word.end(),
                           [](char c) { return is_plain(c) && c != '/' && c != '%' && c != '='; });
    case word_pattern::kind::literal:
    case word_pattern::kind::rest:
        break;
    }
    return false;
}

// Whether a pattern other than `**` stands for this word. Nearly all are literals, so only that
// comparison is here, and the function is small enough to be inlined.
[[nodiscard]] inline bool word_matches(const word_pattern &pattern, const std::string &word) {
    return pattern.what == word_pattern::kind::literal ? word == pattern.text
                                                       : is_of_kind(pattern, word);
}

// Whether every word that fits `narrow` is known to fit `wide`. Neither is `**`.
[[nodiscard]] inline bool takes_all_of(const word_pattern &wide, const word_pattern &narrow) {
    using kind = word_pattern::kind;
    if (narrow.what == kind::literal)
        return word_matches(wide, narrow.text);
    switch (wide.what) {
    case kind::word:
        return true;
    case kind::qube: // only a `*` of the wide glob takes a `*` of the narrow one
        return narrow.what == kind::qube && glob_matches(wide.text, narrow.text);
    case kind::name:
        return narrow.what == kind::name || narrow.what == kind::number ||
               narrow.what == kind::qube;
    case kind::number:
        return narrow.what == kind::number;
    case kind::literal: // without a `*`, a {qube:GLOB} stands for one name
        return narrow.what == kind::qube && narrow.text == wide.text;
    case kind::rest:
        break;
    }
    return false;
}
// The same for whole patterns, which may end in `**`.
[[nodiscard]] inline bool takes_all_of(std::span<const word_pattern> wide,
                                       std::span<const word_pattern> narrow) {
    for (std::size_t i = 0; i < wide.size(); ++i) {
        if (wide[i].what == word_pattern::kind::rest)
            return true;
        if (i == narrow.size() || narrow[i].what == word_pattern::kind::rest ||
            !takes_all_of(wide[i], narrow[i]))
            return false;
    }
    return wide.size() == narrow.size();
}

} // namespace detail

inline bool matches(std::span<const word_pattern> pattern, std::span<const std::string> argv) {
    for (std::size_t i = 0; i < pattern.size(); ++i) {
        if (pattern[i].what == word_pattern::kind::rest)
            return i + 1 == pattern.size();
        if (i == argv.size() || !detail::word_matches(pattern[i], argv[i]))
            return false;
    }
    return !pattern.empty() && pattern.size() == argv.size();
}

inline std::optional<std::vector<std::string>> simple_command(std::string_view text) {
    // Words that bash does not take as the name of a program. The builtins echo, false, kill, printf,
    // pwd, test and true are not here: there are programs with these names that do nearly the same.
    static constexpr std::string_view of_bash[] = {
        ".",         ":",        "alias",   "bg",      "bind",     "break",   "builtin",  "caller",
        "case",      "cd",       "command", "compgen", "complete", "compopt", "continue", "coproc",
        "declare",   "dirs",     "disown",  "do",      "done",     "elif",    "else",     "enable",
        "esac",      "eval",     "exec",    "exit",    "export",   "fc",      "fg",       "fi",
        "for",       "function", "getopts", "hash",    "help",     "history", "if",       "in",
        "jobs",      "let",      "local",   "logout",  "mapfile",  "popd",    "pushd",    "read",
        "readarray", "readonly", "return",  "select",  "set",      "shift",   "shopt",    "source",
        "suspend",   "then",     "time",    "times",   "trap",     "type",    "typeset",  "ulimit",
        "umask",     "unalias",  "unset",   "until",   "wait",     "while",
    };
    if (text.size() > limits::inline_body)
        return std::nullopt;
    if (text.ends_with('\n'))
        text.remove_suffix(1);
    std::vector<std::string> words;
    bool inside = false;
    for (const char c : text) {
        if (detail::is_blank(c)) {
            inside = false;
            continue;
        }
        if (!detail::is_plain(c))
            return std::nullopt;
        if (!std::exchange(inside, true)) {
            if (words.size() == limits::arguments)
                return std::nullopt;
            words.emplace_back();
        }
        words.back().push_back(c);
    }
    if (words.empty() || words[0].find_first_of("=/") != std::string::npos ||
        std::find(std::begin(of_bash), std::end(of_bash), words[0]) != std::end(of_bash))
        return std::nullopt;
    return words;
}

} // namespace qvmremote
