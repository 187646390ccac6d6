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
#include <qvmremote/queue.hpp>
#include <qvmremote/sanitize.hpp>
#include <qvmremote/terminal_filter.hpp>

#include "common/cli.hpp"
#include "terminal.hpp"

namespace qvmremote::qube {

namespace {

// Returns how many lines or entries the user asks for. Prints a message and returns 0 when the
// words are not a number.
std::uint32_t count_of(std::span<char *> words, std::uint32_t otherwise) {
    const std::vector<std::string_view> all(words.begin(), words.end());
    const auto n = cli::count_of(all, otherwise);
    if (!n)
        complain(fault::usage,
                 "'" + for_terminal(all.back(), 64) + "' is not a number of lines: use 1 or more");
    return n.value_or(0);
}

int no_log(const host::failure &why) {
    if (why.error_number == ENOENT)
        return fail_with(fault::no_record, "no command has been run yet");
    return fail_with(fault::local_failure, why.what);
}

// A line of audit.log: its parts, or its text if it is of another program.
void write_line(json_writer &to, std::string_view line) {
    to.begin();
    const auto entry = parse_audit_line(line);
    if (!entry) {
        to.text("text", line);
        return to.end();
    }
    to.text("time", entry->timestamp);
    using kind = history_kind;
    const kind k = entry->kind;
    to.text("event", k == kind::submit    ? "submit"
                     : k == kind::done    ? "done"
                     : k == kind::timeout ? "timeout"
                     : k == kind::started ? "served"
                                          : "queue_clean");
    if (k != kind::queue_clean)
        to.text("id", entry->id);
    if (k == kind::submit)
        to.number("size", static_cast<std::int64_t>(entry->size));
    if (k == kind::done || k == kind::started)
        to.number("exit_code", entry->exit_code);
    if (k == kind::started)
        to.number("took_ms", static_cast<std::int64_t>(entry->duration_ms));
    if (k == kind::timeout)
        to.number("after_s", static_cast<std::int64_t>(entry->after_s));
    if (k == kind::queue_clean)
        to.number("removed", static_cast<std::int64_t>(entry->removed));
    if (k == kind::submit || k == kind::started)
        to.text("command", entry->untrusted_command);
    to.end();
}

} // namespace

int log_command(const invocation &in) {
    const std::uint32_t n = count_of(in.words, 20);
    if (n == 0)
        return 1;
    auto text = host::read_tail(in.where.audit_log(), std::size_t{n} * 512 + 4096);
    if (!text)
        return no_log(text.error());
    if (report::instance().is_json()) {
        json_writer &to = report::instance().result();
        to.begin_array("lines");
        for (const std::string_view line : tail_lines(*text, n))
            write_line(to, line);
        to.end();
        return 0;
    }
    // Not for_terminal, here and in history: it would double the backslashes of what preview() has
    // escaped already.
    for (const std::string_view line : tail_lines(*text, n))
        std::printf("%s\n", preview(line, sanitized_text).c_str());
    return 0;
}

namespace {

// Prints recorded output: unchanged to a pipe or a file, filtered on a terminal.
void print_recorded(const std::string &path) {
    auto text = host::read_text(path, 2 * limits::recorded_output);
    if (!text)
        return;
    if (::isatty(STDOUT_FILENO)) {
        terminal_filter filter(shows_utf8());
        std::string shown;
        filter.push(shown, *text);
        filter.end(shown);
        *text = std::move(shown);
    }
    std::fwrite(text->data(), 1, text->size(), stdout);
}

// All that is recorded of a command. The recorder marks output that it has cut.
void write_entry(json_writer &to, const std::string &entry, std::string_view id) {
    to.text("id", id);
    if (const auto text = host::read_text(entry + "/meta", limits::queue_text))
        if (const auto meta = parse_meta(*text)) {
            to.text("started", meta->started);
            to.number("took_ms", static_cast<std::int64_t>(meta->duration_ms));
            to.number("exit_code", meta->exit_code);
        }
    for (const auto &[part, name] :
         {std::pair{"command", "command"}, {"out", "stdout"}, {"err", "stderr"}}) {
        auto text = host::read_text(entry + "/" + part, 2 * limits::recorded_output);
        if (!text)
            continue;
        const bool is_cut =
            text->size() > limits::recorded_output && text->ends_with(queue_cut_mark);
        if (is_cut)
            text->resize(text->size() - queue_cut_mark.size());
        to.begin(name);
        to.content(*text);
        to.flag("truncated", is_cut);
        to.end();
    }
}

int history_show(const home &where, const char *word) {
    const auto id = command_id::parse(word);
    if (!id)
        return fail_with(errc::bad_command_id, "'" + for_terminal(word, 64) +
                                                   "' is not the ID of a command: "
                                                   "qvm-remote history lists them");
    auto days = host::names_in(where.history()).value_or(std::vector<std::string>{});
    std::reverse(days.begin(), days.end());
    for (const std::string &day : days) {
        const std::string entry = where.history() + "/" + day + "/" + id->text();
        if (::access((entry + "/exit").c_str(), F_OK) != 0)
            continue;
        if (report::instance().is_json()) {
            write_entry(report::instance().result(), entry, id->text());
            return 0;
        }
        for (const char *part : {"meta", "command", "out", "err"}) {
            std::printf("--- %s\n", part);
            std::fflush(stdout);
            print_recorded(entry + "/" + part);
        }
        return 0;
    }
    return fail_with(fault::no_record, "there is no record of " + id->text() + " in " +
                                           where.history() +
                                           ": qvm-remote history lists the commands");
}

} // namespace

int history_command(const invocation &in) {
    const auto words = in.words;
    if (!words.empty() && words[0] == std::string_view("show")) {
        if (words.size() != 2)
            return fail_with(fault::usage, in.usage);
        return history_show(in.where, words[1]);
    }
    const std::uint32_t n = count_of(words, 20);
    if (n == 0)
        return 1;
    // A command has two or three lines of a few hundred bytes.
    auto text = host::read_tail(in.where.audit_log(), std::size_t{n} * 1024 + 16384);
    if (!text)
        return no_log(text.error());
    struct row {
        std::string_view time, id;
        std::int32_t exit_code;
        std::string_view untrusted_command;
    };
    std::map<std::string_view, std::string_view> commands;
    std::vector<row> rows;
    for (const std::string_view line : tail_lines(*text, SIZE_MAX)) {
        const auto entry = parse_audit_line(line);
        if (!entry)
            continue; // part of a line, or a line of another program
        if (entry->kind == history_kind::submit) {
            commands[entry->id] = entry->untrusted_command;
        } else if (entry->kind == history_kind::done || entry->kind == history_kind::timeout) {
            const auto at = commands.find(entry->id);
            rows.push_back({entry->timestamp, entry->id,
                            entry->kind == history_kind::done ? entry->exit_code : 124,
                            at == commands.end() ? std::string_view() : at->second});
        }
    }
    if (rows.size() > n)
        rows.erase(rows.begin(), rows.end() - static_cast<std::ptrdiff_t>(n));
    if (report::instance().is_json()) {
        json_writer &to = report::instance().result();
        to.begin_array("commands");
        for (const row &r : rows) {
            to.begin();
            to.text("time", r.time);
            to.text("id", r.id);
            to.number("exit_code", r.exit_code);
            to.text("command", r.untrusted_command);
            to.end();
        }
        to.end();
        return 0;
    }
    for (const row &r : rows)
        std::printf("%s  %s  exit=%d  %s\n", std::string(r.time).c_str(), std::string(r.id).c_str(),
                    r.exit_code, preview(r.untrusted_command, client_preview).c_str());
    return 0;
}

} // namespace qvmremote::qube
