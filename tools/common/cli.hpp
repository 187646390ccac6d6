// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Command lines from a table: getopt_long reads it and --help prints it, so the two cannot differ.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <getopt.h>

#include <qvmremote/config.hpp>
#include <qvmremote/sanitize.hpp>

#include "common/installed.hpp"

namespace qvmremote::cli {

/// One option. `key` is its short letter, or a number above 255 if it has only a long name.
struct option {
    int key;
    const char *name;
    const char *argument; ///< the name of its value in the help; nullptr if it takes none, and
                          ///< "[=WORD]" if WORD may follow
    const char *help;
};

/// A program as its help presents it.
struct program {
    const char *name;
    const char *about; ///< the lines of the help before the options
    std::span<const option> options;
};

/// One subcommand, for the help and for the table that dispatches.
///
/// `arguments` is what may follow its name. Capital letters are kinds of values; all else is typed as it
/// stands. "[x]" may be left out, "X..." may be repeated, "a|b" is one word or another, and " | " stands
/// between two ways to call it. packaging/completion/make.py reads it too.
template <class Handler>
struct subcommand {
    const char *name;
    const char *arguments;
    const char *help;
    Handler run;
};

/// What a subcommand says when its arguments are wrong.
template <class Handler>
[[nodiscard]] std::string usage_of(const char *program, const subcommand<Handler> &c) {
    return std::string("usage: ") + program + " " + c.name + (*c.arguments ? " " : "") +
           c.arguments;
}

/// The keys of options without a short letter: that of --version, and where a program's own begin.
enum : int { opt_version = 256, own_options };

/// Which of -h and --version were typed. Every program has both.
struct standard_options {
    bool help = false;
    bool version = false;

    /// Notes the option with this key. False when it is another one.
    [[nodiscard]] bool take(int key) noexcept {
        help = help || key == 'h';
        version = version || key == opt_version;
        return key == 'h' || key == opt_version;
    }
    [[nodiscard]] bool any() const noexcept { return help || version; }
};

/// A program may set what prints the errors of a command line.
inline void (*report_wrong_call)(const std::string &what) = nullptr;

/// Prints what is wrong with the command line, and where to read more. Returns 1.
inline int wrong_call(const char *program, const std::string &what) {
    const std::string line = what + "; see " + program + " --help";
    if (report_wrong_call)
        report_wrong_call(line);
    else
        std::fprintf(stderr, "%s: %s\n", program, line.c_str());
    return 1;
}

/// Whether an option's value may be left out.
[[nodiscard]] inline bool has_optional_value(const option &o) {
    return o.argument && *o.argument == '[';
}

/// An option of the bash programs before 1.0 that a subcommand has replaced.
struct old_option {
    const char *name;
    const char *words[2]; ///< the subcommand; the second word may be null
};

/// The words of the command line. If the first one is an old option, its subcommand takes its place,
/// and a hint goes to stderr. The result ends in a null pointer, as argv does.
[[nodiscard]] inline std::vector<char *> modernized(std::span<const old_option> table, int argc,
                                                    char **argv, const char *program) {
    std::vector<char *> out(argv, argv + argc);
    for (const old_option &o : table) {
        if (argc < 2 || o.name != std::string_view(argv[1]))
            continue;
        std::string now = o.words[0];
        out[1] = const_cast<char *>(o.words[0]); // parse() does not change the words
        if (o.words[1]) {
            now += std::string(" ") + o.words[1];
            out.insert(out.begin() + 2, const_cast<char *>(o.words[1]));
        }
        std::fprintf(stderr, "%s: %s is an old option: use `%s %s`\n", program, o.name, program,
                     now.c_str());
        break;
    }
    out.push_back(nullptr);
    return out;
}

namespace detail {

// Says what is wrong with an option: `key` is what getopt_long returned for it, ':' or '?', or the
// key of an option in the table whose value was refused.
[[nodiscard]] inline std::string wrong_option(std::span<const option> table, char *const *argv,
                                              int key, std::string_view value) {
    const auto of_key = [&](int wanted) {
        return std::find_if(table.begin(), table.end(),
                            [&](const option &o) { return o.key == wanted; });
    };
    const bool from_getopt = key == ':' || key == '?';
    if (const auto found = of_key(from_getopt ? ::optopt : key); found != table.end()) {
        const std::string name = std::string("option '--") + found->name + "'";
        if (key == '?')
            return name + " takes no value";
        if (key == ':')
            return name + " needs a value: give a " + found->argument;
        if (has_optional_value(*found))
            return name + " may have the value " +
                   std::string(found->argument + 2, std::strlen(found->argument) - 3);
        if (found->argument && value.empty())
            return name + " has an empty value: leave it out, or give a " + found->argument;
        return name + " does not belong here";
    }
    if (::optopt != 0)
        return "there is no option '-" + for_terminal(std::string(1, static_cast<char>(::optopt))) +
               "'";
    const std::string_view typed = argv[::optind - 1];
    const std::string_view name = typed.substr(2, typed.find('=') - 2);
    std::string candidates;
    for (const option &o : table)
        if (std::string_view(o.name).starts_with(name))
            candidates += (candidates.empty() ? "--" : ", --") + std::string(o.name);
    const std::string shown = "'--" + for_terminal(name, 64) + "'";
    return candidates.empty() ? "there is no option " + shown
                              : "option " + shown + " is ambiguous: " + candidates;
}

// Two blanks or a new line stand between the sides, so that a program can tell them apart.
inline void print_row(std::FILE *to, const std::string &left, const char *right) {
    constexpr std::size_t widest = 27;
    if (left.size() > widest)
        std::fprintf(to, "%s\n%29s%s\n", left.c_str(), "", right);
    else
        std::fprintf(to, "%-29s%s\n", left.c_str(), right);
}

} // namespace detail

/// Reads options up to the first other word, or "--". Calls `take(key, value)` for each, which
/// returns false when the option does not belong here. Returns the index of the first word left, or
/// -1 after a line on stderr that says which option is wrong and why. `more_letters`: options that the
/// help does not show, without an argument.
template <class Take>
[[nodiscard]] int parse(std::span<const option> table, int argc, char **argv, Take take,
                        const char *more_letters = "") {
    // "+" stops at the command, whose options are not ours. ":" lets us print the errors ourselves.
    std::string letters = std::string("+:") + more_letters;
    std::vector<::option> longs;
    for (const option &o : table) {
        if (o.key < 256) {
            letters.push_back(static_cast<char>(o.key));
            if (o.argument)
                letters.push_back(':');
        }
        longs.push_back({o.name,
                         has_optional_value(o) ? optional_argument
                         : o.argument          ? required_argument
                                               : no_argument,
                         nullptr, o.key});
    }
    longs.push_back({});
    ::optind = 0;
    for (int key;
         (key = ::getopt_long(argc, argv, letters.c_str(), longs.data(), nullptr)) != -1;) {
        const std::string_view value = ::optarg ? ::optarg : "";
        const bool is_wrong = key == '?' || key == ':' || (::optarg && value.empty());
        if (!is_wrong && take(key, value.data()))
            continue;
        const std::string_view path = argv[0];
        const std::string program(path.substr(path.rfind('/') + 1)); // npos + 1 is 0: all of it
        wrong_call(program.c_str(), detail::wrong_option(table, argv, key, value));
        return -1;
    }
    return ::optind;
}

/// Returns how many lines the user asks for: `otherwise` without a word, else the number in `N`,
/// `-n N` or `-nN`, as in tail(1) and the programs before 1.0. Returns nothing for any other words.
[[nodiscard]] inline std::optional<std::uint32_t> count_of(std::span<const std::string_view> words,
                                                           std::uint32_t otherwise) {
    if (words.empty())
        return otherwise;
    std::string_view number = words.back();
    if (words.size() == 1 && number.starts_with("-n"))
        number.remove_prefix(2);
    else if (words.size() > 2 || (words.size() == 2 && words[0] != "-n"))
        return std::nullopt;
    const auto n = parse_positive(number);
    return n ? std::optional<std::uint32_t>(*n) : std::nullopt;
}

/// The help of a program without subcommands.
inline void print_help(std::FILE *to, const program &p) {
    std::fprintf(to, "%s\nOptions:\n", p.about);
    for (const option &o : p.options) {
        std::string left = "  ";
        if (o.key < 256)
            left += std::string("-") + static_cast<char>(o.key) + ", ";
        else
            left += "    ";
        left += std::string("--") + o.name;
        if (o.argument)
            left += (has_optional_value(o) ? "" : " ") + std::string(o.argument);
        detail::print_row(to, left, o.help);
    }
}

template <class Handler>
void print_help(std::FILE *to, const program &p, std::span<const subcommand<Handler>> subcommands) {
    print_help(to, p);
    std::fprintf(to, "\nSubcommands:\n");
    for (const auto &c : subcommands)
        detail::print_row(to, std::string("  ") + c.name + (*c.arguments ? " " : "") + c.arguments,
                          c.help);
}

inline void print_version(const program &p) { std::printf("%s " QVMREMOTE_VERSION "\n", p.name); }

} // namespace qvmremote::cli
