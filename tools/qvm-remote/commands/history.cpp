// SPDX-License-Identifier: GPL-2.0-or-later
#include "commands/commands.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include <unistd.h>

#include <qvmremote/config.hpp>
#include <qvmremote/history.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/sanitize.hpp>

#include "common/cli.hpp"

namespace qvmremote::qube {

namespace {

// Returns how many lines or entries the user asks for. Prints a message and returns 0 when the
// words are not a number.
std::uint32_t count_of(std::span<char *> words, std::uint32_t otherwise) {
    const std::vector<std::string_view> all(words.begin(), words.end());
    const auto n = cli::count_of(all, otherwise);
    if (!n)
        complain("'" + for_terminal(all.back(), 64) + "' is not a number of lines: use 1 or more");
    return n.value_or(0);
}

} // namespace

int log_command(const invocation &in) {
    const std::uint32_t n = count_of(in.words, 20);
    if (n == 0)
        return 1;
    auto text = host::read_tail(in.where.audit_log(), std::size_t{n} * 512 + 4096);
    if (!text)
        return fail_with(text.error().error_number == ENOENT ? "no command has been run yet"
                                                             : text.error().what);
    // Not for_terminal, here and in history: it would double the backslashes of what preview() has
    // escaped already.
    for (const std::string_view line : tail_lines(*text, n))
        std::printf("%s\n", preview(line, sanitized_text).c_str());
    return 0;
}

namespace {

// Prints recorded output: unchanged to a pipe or a file, escaped on a terminal.
void print_recorded(const std::string &path) {
    auto text = host::read_text(path, 2 * limits::recorded_output);
    if (!text)
        return;
    if (!::isatty(STDOUT_FILENO)) {
        std::fwrite(text->data(), 1, text->size(), stdout);
        return;
    }
    for (std::string_view left = *text; !left.empty();) {
        const std::size_t end = left.find('\n');
        std::printf("%s\n", for_terminal(left.substr(0, end)).c_str());
        left.remove_prefix(end == left.npos ? left.size() : end + 1);
    }
}

int history_show(const home &where, const char *word) {
    const auto id = command_id::parse(word);
    if (!id)
        return fail_with("'" + for_terminal(word, 64) +
                         "' is not the ID of a command: "
                         "qvm-remote history lists them");
    auto days = host::names_in(where.history()).value_or(std::vector<std::string>{});
    std::reverse(days.begin(), days.end());
    for (const std::string &day : days) {
        const std::string entry = where.history() + "/" + day + "/" + id->text();
        if (::access((entry + "/exit").c_str(), F_OK) != 0)
            continue;
        for (const char *part : {"meta", "command", "out", "err"}) {
            std::printf("--- %s\n", part);
            std::fflush(stdout);
            print_recorded(entry + "/" + part);
        }
        return 0;
    }
    return fail_with("there is no record of " + id->text() + " in " + where.history() +
                     ": qvm-remote history lists the commands");
}

} // namespace

int history_command(const invocation &in) {
    const auto words = in.words;
    if (!words.empty() && words[0] == std::string_view("show")) {
        if (words.size() != 2)
            return fail_with(in.usage);
        return history_show(in.where, words[1]);
    }
    const std::uint32_t n = count_of(words, 20);
    if (n == 0)
        return 1;
    // A command has two or three lines of a few hundred bytes.
    auto text = host::read_tail(in.where.audit_log(), std::size_t{n} * 1024 + 16384);
    if (!text)
        return fail_with(text.error().error_number == ENOENT ? "no command has been run yet"
                                                             : text.error().what);
    std::map<std::string, std::string, std::less<>> commands;
    std::vector<std::string> lines;
    for (const std::string_view line : tail_lines(*text, SIZE_MAX)) {
        const auto entry = parse_audit_line(line);
        if (!entry)
            continue; // part of a line, or a line of another program
        if (entry->kind == history_kind::submit) {
            commands[std::string(entry->id)] = preview(entry->untrusted_command, client_preview);
        } else if (entry->kind == history_kind::done || entry->kind == history_kind::timeout) {
            const auto at = commands.find(entry->id);
            lines.push_back(
                std::string(entry->timestamp) + "  " + std::string(entry->id) + "  exit=" +
                std::to_string(entry->kind == history_kind::done ? entry->exit_code : 124) + "  " +
                (at == commands.end() ? "" : at->second));
        }
    }
    const std::size_t skip = lines.size() > n ? lines.size() - n : 0;
    for (std::size_t i = skip; i < lines.size(); ++i)
        std::printf("%s\n", lines[i].c_str());
    return 0;
}

} // namespace qvmremote::qube
