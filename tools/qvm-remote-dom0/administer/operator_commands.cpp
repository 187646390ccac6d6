// SPDX-License-Identifier: GPL-2.0-or-later
// The commands of an operator: answer questions, stop everything, resume.
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <unistd.h>

#include <nlohmann/json.hpp>

#include <qvmremote/config.hpp>
#include <qvmremote/history.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/sanitize.hpp>

#include "administer/admin.hpp"
#include "administer/audit_commands.hpp"
#include "administer/question_screen.hpp"
#include "administer/report.hpp"
#include "administer/typed_answer.hpp"
#include "decide/panic.hpp"
#include "execute/job_link.hpp"
#include "serve/control.hpp"

namespace qvmremote::dom0 {

namespace {

using nlohmann::ordered_json;

constexpr int answer_seconds = 10;
constexpr int poll_seconds = 70;                           // the daemon answers a `wait` sooner
constexpr std::size_t longest_question = 32 * 1024 * 1024; // a script and its input, escaped

// The lines of JSON in an answer of the daemon.
std::vector<ordered_json> parse_lines(std::string_view text) {
    std::vector<ordered_json> out;
    for (const std::string_view line : tail_lines(text, SIZE_MAX)) {
        auto one = ordered_json::parse(line, nullptr, false);
        if (one.is_object())
            out.push_back(std::move(one));
    }
    return out;
}

void print(const std::vector<std::string> &rows) {
    for (const std::string &row : rows)
        std::printf("%s\n", row.c_str());
    std::printf("\n");
}

// Sends a command to the daemon. Returns the exit code: 0 when the answer is "ok".
int send_command(const invocation &in, const std::string &request) {
    const auto answer = ask_daemon(in.where, request);
    if (!answer)
        return no_answer(answer.error());
    return done_by_daemon(*answer);
}

int list(const invocation &in) {
    const auto answer = ask_daemon(in.where, "approvals");
    if (!answer)
        return no_answer(answer.error());
    if (report::instance().is_json()) {
        report::instance().has_own_form();
        std::fputs(answer->c_str(), stdout);
        return 0;
    }
    for (const ordered_json &q : parse_lines(*answer))
        print(rows_of(q, terminal_width()));
    return 0;
}

// The whole question with a serial, and its line of JSON.
struct whole_question {
    ordered_json fields;
    std::string line;
};
host::outcome<whole_question> read_question(const invocation &in, std::uint64_t serial) {
    auto answer = ask_daemon(in.where, "question " + std::to_string(serial), answer_seconds,
                             longest_question);
    if (!answer)
        return tl::unexpected(answer.error());
    auto found = parse_lines(*answer);
    if (found.empty())
        return host::failed(for_terminal(answer->substr(0, answer->find('\n'))));
    return whole_question{std::move(found[0]), std::move(*answer)};
}

int show_question(const invocation &in, std::uint64_t serial) {
    const auto q = read_question(in, serial);
    if (!q)
        return fail_with(q.error());
    if (report::instance().is_json()) {
        report::instance().has_own_form();
        std::fputs(q->line.c_str(), stdout);
    } else if (const auto rows = rows_of(q->fields, terminal_width()); !is_interactive()) {
        print(rows);
    } else {
        static_cast<void>(show_by_pages(rows));
    }
    return 0;
}

enum class reply { yes, no, end_of_input };
// Asks one question at a terminal, and says what another answer than the wanted one does. All of the
// question is shown before a yes is possible; an operator who leaves the pages says no. The wanted answer
// holds the serial, so that a line that was typed for another question does not count. If a grant may not
// last (a shell, or a program that runs other programs), it begins with the qube's name, not with "yes".
reply ask_at_terminal(const ordered_json &q, const std::string &otherwise) {
    if (!show_by_pages(rows_of(q, terminal_width())))
        return reply::no;
    const std::string wanted = (q.value("may_last", false) ? "yes" : q.value("qube", "")) + " " +
                               std::to_string(q.value("serial", 0ull));
    const auto typed =
        typed_line(stdout, "  To let it run, type '" + wanted + "'; " + otherwise + ": ");
    return !typed ? reply::end_of_input : *typed == wanted ? reply::yes : reply::no;
}

// `duration`: for how many seconds the same request is allowed too, or "-".
std::string allow_request(const ordered_json &q, const std::string &duration) {
    return "allow " + std::to_string(q.value("serial", 0ull)) + " " + duration + " " +
           q.value("digest", "");
}

// False at the end of input.
bool answer_at_terminal(const invocation &in, std::uint64_t serial) {
    const auto q = read_question(in, serial);
    if (!q) { // the question was answered or withdrawn meanwhile
        fail_with(q.error());
        return true;
    }
    const reply answer = ask_at_terminal(q->fields, "anything else denies it");
    if (answer == reply::end_of_input)
        return false;
    const bool yes = answer == reply::yes;
    if (send_command(in, yes ? allow_request(q->fields, "-") : "deny " + std::to_string(serial)) ==
        0)
        std::printf("  %s\n", yes ? "allowed" : "denied");
    return true;
}

// Shows each new question, until the input or the daemon ends.
int watch(const invocation &in) {
    const bool json = report::instance().is_json();
    const bool asks = is_interactive() && !json;
    report::instance().has_own_form();
    std::string version = "-";
    std::set<std::uint64_t> seen;
    for (;;) {
        const auto answer = ask_daemon(in.where, "wait " + version, poll_seconds);
        if (!answer)
            return no_answer(answer.error());
        const std::size_t end = answer->find('\n');
        if (end == std::string::npos)
            return fail_with("the daemon has ended: systemctl start qvm-remote-dom0");
        version = for_terminal(answer->substr(0, end), 32);
        for (const ordered_json &q : parse_lines(std::string_view(*answer).substr(end + 1))) {
            const auto serial = q.value("serial", 0ull);
            if (!seen.insert(serial).second)
                continue;
            if (asks && !answer_at_terminal(in, serial))
                return 0;
            if (json)
                std::printf("%s\n", dumped(q).c_str());
            else if (!asks)
                print(rows_of(q, terminal_width()));
            std::fflush(stdout);
        }
    }
}

// The words after the serial: [DIGEST] [--for MIN].
int allow(const invocation &in, std::uint64_t serial, std::span<char *const> words) {
    std::optional<std::string_view> digest;
    std::string lasts = "-";
    if (!words.empty() && words[0] != std::string_view("--for")) {
        digest = words[0];
        words = words.subspan(1);
    }
    if (!words.empty()) {
        if (words[0] != std::string_view("--for") || words.size() > 2)
            return fail_with(in.usage);
        const auto minutes = parse_positive(words.size() == 2 ? words[1] : "");
        constexpr std::uint64_t most = limits::policy_seconds / 60;
        if (!minutes || *minutes > most)
            return fail_with(fault::usage,
                             "--for takes a number of minutes from 1 to " + std::to_string(most));
        lasts = std::to_string(*minutes * 60);
    }
    const std::string number = std::to_string(serial);
    if (!digest && !is_interactive())
        return fail_with(
            "without a terminal, allow needs the digest of the request that you read: call "
            "qvm-remote-dom0 approvals show " +
            number + ", then qvm-remote-dom0 approvals allow " + number + " DIGEST");
    if (digest && digest->size() != 64)
        return fail_with(fault::usage,
                         "'" + for_terminal(*digest, 80) +
                             "' is not a digest: give the 64 digits that follow sha256 in "
                             "qvm-remote-dom0 approvals show " +
                             number);
    if (!is_interactive())
        return send_command(in, "allow " + number + " " + lasts + " " + for_terminal(*digest));
    const auto q = read_question(in, serial);
    if (!q)
        return fail_with(q.error());
    if (digest && *digest != q->fields.value("digest", ""))
        return fail_with(fault::no_record, "this is not the digest of request " + number +
                                               ": read it again with "
                                               "qvm-remote-dom0 approvals show " +
                                               number);
    if (ask_at_terminal(q->fields, "after anything else it still waits") != reply::yes)
        return fail_with("request " + number +
                         " still waits; to refuse it: qvm-remote-dom0 approvals "
                         "deny " +
                         number);
    return send_command(in, allow_request(q->fields, lasts));
}

} // namespace

int approvals_command(const invocation &in) {
    const auto &words = in.arguments;
    const std::string_view verb = words.empty() ? std::string_view("list") : words[0];
    if (verb == "list" && words.size() <= 1)
        return list(in);
    if (verb == "watch" && words.size() == 1)
        return watch(in);
    const auto serial =
        words.size() > 1 ? qvmremote::parse_decimal<std::uint64_t>(words[1]) : std::nullopt;
    if (serial && verb == "show" && words.size() == 2)
        return show_question(in, *serial);
    if (serial && report::instance().is_json())
        report::instance().result()["serial"] = *serial;
    if (serial && verb == "deny" && words.size() == 2)
        return send_command(in, "deny " + std::to_string(*serial));
    if (serial && verb == "allow")
        return allow(in, *serial, words.subspan(2));
    return fail_with(in.usage);
}

int panic(const invocation &in) {
    if (!in.arguments.empty())
        return fail_with(in.usage);
    // This writes the mark first: it counts even when the daemon does not answer, and after the next boot.
    // When the operator has no right to write it, the daemon does.
    const auto marked = set_panic(in.where, host::local_time::now().timestamp() + " by uid " +
                                                std::to_string(::geteuid()));
    const auto answer = ask_daemon(in.where, "panic", 1);
    const bool obeyed = answer && *answer == "ok\n";
    // This kills a daemon that does not obey, with everything that it runs.
    if (!obeyed)
        if (const auto pid = daemon_pid(in.where); pid && ::kill(*pid, SIGKILL) == 0)
            fail_with("the daemon did not obey and was killed");
    // Jobs outlive it.
    if (!obeyed)
        kill_jobs(in.where.job_sockets(), errc::panicked);
    if (!marked && !obeyed)
        return fail_with(marked.error());
    if (const auto recorded = record_admin(in.where, "panic", {}, {}); !recorded)
        fail_with(recorded.error().what);
    if (report::instance().is_json())
        report::instance().result()["panic"] = true;
    else
        std::printf("stopped; no command runs until qvm-remote-dom0 resume\n");
    return 0;
}

int resume(const invocation &in) {
    if (!in.arguments.empty())
        return fail_with(in.usage);
    if (!is_panic(in.where))
        return fail_with("there is nothing to resume: no panic is in force");
    if (const auto recorded = record_admin(in.where, "resume", {}, {}); !recorded)
        return fail_with("nothing was changed, since the audit log cannot record it: " +
                         recorded.error().what);
    if (const auto cleared = clear_panic(in.where); !cleared)
        return fail_with(cleared.error());
    tell_daemon(in.where);
    if (report::instance().is_json())
        report::instance().result()["panic"] = false;
    return 0;
}

} // namespace qvmremote::dom0
