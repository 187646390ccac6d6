// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Command lines from a table: getopt_long reads by it and --help prints it, so they cannot differ.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <getopt.h>

#include <qvmremote/config.hpp>

namespace qvmremote::cli {

/// One option. `key` is its short letter, or a number above 255 when it has only a long name.
struct option {
    int key;
    const char *name;
    const char *argument; ///< what the help calls it; nullptr for an option without one
    const char *help;
};

/// One subcommand, for the help and for the table that dispatches.
template <class Handler>
struct subcommand {
    const char *name;
    const char *arguments;
    const char *help;
    Handler run;
};

/// An option of the bash programs before 1.0 that is a subcommand now.
struct old_option {
    const char *name;
    const char *words[2]; ///< what is written now; the second may be null
};

/// The command line with such an option, as its first word, put the way it is now, and a hint on stderr;
/// else as it is. What comes back ends in a null pointer, as argv does.
[[nodiscard]] inline std::vector<char *> modernized(std::span<const old_option> table, int argc,
                                                    char **argv, const char *program) {
    std::vector<char *> out(argv, argv + argc);
    for (const old_option &o : table) {
        if (argc < 2 || o.name != std::string_view(argv[1]))
            continue;
        std::string now = o.words[0];
        out[1] = const_cast<char *>(o.words[0]); // nobody writes to the words of a command line
        if (o.words[1]) {
            now += std::string(" ") + o.words[1];
            out.insert(out.begin() + 2, const_cast<char *>(o.words[1]));
        }
        std::fprintf(stderr, "%s: %s is written `%s %s` now\n", program, o.name, program,
                     now.c_str());
        break;
    }
    out.push_back(nullptr);
    return out;
}

/// Reads options up to the first word that is none, or "--". Calls `take(key, value)` for each, which
/// returns false to stop. Returns the index of the first word left, or -1 when an option is unknown,
/// lacks its argument, has an empty one, or was refused; getopt or parse has then printed what was wrong, after `program`.
/// `more_letters`: options that the help does not show, without an argument.
template <class Take>
[[nodiscard]] int parse(std::span<const option> table, int argc, char **argv, Take take,
                        const char *more_letters = "") {
    std::string letters =
        std::string("+") + more_letters; // stop at the command: its options are its own
    std::vector<::option> longs;
    for (const option &o : table) {
        if (o.key < 256) {
            letters.push_back(static_cast<char>(o.key));
            if (o.argument)
                letters.push_back(':');
        }
        longs.push_back({o.name, o.argument ? required_argument : no_argument, nullptr, o.key});
    }
    longs.push_back({});
    ::optind = 0;
    for (int key;
         (key = ::getopt_long(argc, argv, letters.c_str(), longs.data(), nullptr)) != -1;) {
        const auto of_key = [key](const option &o) { return o.key == key; };
        const auto found = std::find_if(table.begin(), table.end(), of_key);
        if (found != table.end() && found->argument && *::optarg == '\0') {
            std::fprintf(stderr,
                         "%s: option '--%s' has an empty value: leave it out, or give a %s\n",
                         argv[0], found->name, found->argument);
            return -1;
        }
        if (key == '?' || !take(key, ::optarg ? ::optarg : ""))
            return -1;
    }
    return ::optind;
}

/// How many lines are asked for: `otherwise` without a word, else the number of `N`, or of `-n N` and
/// `-nN` as tail(1) and the programs before 1.0 have it. Nothing when the words are anything else.
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

/// The options as lines for --help, in the table's order.
inline void print_options(std::FILE *to, std::span<const option> table) {
    for (const option &o : table) {
        std::string left = "  ";
        if (o.key < 256)
            left += std::string("-") + static_cast<char>(o.key) + ", ";
        else
            left += "    ";
        left += std::string("--") + o.name;
        if (o.argument)
            left += std::string(" ") + o.argument;
        std::fprintf(to, "%-28s %s\n", left.c_str(), o.help);
    }
}

template <class Handler>
void print_subcommands(std::FILE *to, std::span<const subcommand<Handler>> table) {
    for (const auto &c : table) {
        const std::string left =
            std::string("  ") + c.name + (*c.arguments ? " " : "") + c.arguments;
        if (left.size() > 28)
            std::fprintf(to, "%s\n%-28s %s\n", left.c_str(), "", c.help);
        else
            std::fprintf(to, "%-28s %s\n", left.c_str(), c.help);
    }
}

} // namespace qvmremote::cli
