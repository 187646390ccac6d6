// SPDX-License-Identifier: GPL-2.0-or-later
// What an operator does: answers questions, stops everything, lets it go on.
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <optional>
#include <set>
#include <string>
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
#include "decide/panic.hpp"
#include "serve/control.hpp"

namespace qvmremote::dom0 {

namespace {

using nlohmann::ordered_json;

constexpr int poll_seconds = 70; // the daemon answers a `wait` after less
constexpr std::size_t shown_lines = 60;
constexpr const char *usage = "usage: qvm-remote-dom0 approvals list [--json] | watch | "
                              "allow SERIAL [--for MIN] | deny SERIAL";

// What the daemon answers in lines of JSON.
std::vector<ordered_json> parse_lines(std::string_view text) {
    std::vector<ordered_json> out;
    for (const std::string_view line : tail_lines(text, SIZE_MAX)) {
        auto one = ordered_json::parse(line, nullptr, false);
        if (one.is_object())
            out.push_back(std::move(one));
    }
    return out;
}

void print(const ordered_json &q) {
    const std::string untrusted_text = q.value("text", "");
    std::printf("%llu  %s  %s  %llu s left%s\n", q.value("serial", 0ull),
                for_terminal(q.value("qube", "")).c_str(),
                q.value("shell", true) ? "in a shell" : "no shell", q.value("left_ms", 0ull) / 1000,
                q.value("may_last", false) ? "" : ", once");
    std::size_t lines = 0;
    std::string_view left = untrusted_text;
    while (!left.empty() && lines < shown_lines) {
        const std::size_t end = left.find('\n');
        std::printf("    %s\n", for_terminal(left.substr(0, end)).c_str());
        left.remove_prefix(end == left.npos ? left.size() : end + 1);
        ++lines;
    }
    const std::size_t all = q.value("bytes", std::size_t{0});
    if (!left.empty() || all > untrusted_text.size())
        std::printf("    ... the first %zu of %zu bytes; approvals list --json shows more\n",
                    untrusted_text.size() - left.size(), all);
    std::string how = "runs as " + for_terminal(q.value("user", "")) + ", stdin " +
                      for_terminal(q.value("stdin", ""));
    if (q.contains("stdin_bytes"))
        how += " (" + std::to_string(q.value("stdin_bytes", std::size_t{0})) + " bytes)";
    if (q.value("tty", false))
        how += ", with a terminal";
    if (const auto timeout = q.value("timeout_s", 0u); timeout != 0)
        how += ", " + std::to_string(timeout) + " s at most";
    for (const auto &variable : q.value("environment", ordered_json::array()))
        how += ", " + for_terminal(variable.get<std::string>());
    std::printf("  %s\n  sha256 %s\n", how.c_str(), for_terminal(q.value("digest", "")).c_str());
}

// The daemon's answer to a command; 0 when it is "ok".
int tell(const invocation &in, const std::string &request) {
    const auto answer = ask_daemon(in.where, request);
    if (!answer)
        return fail_with(answer.error().what);
    return *answer == "ok\n" ? 0 : fail_with(for_terminal(answer->substr(0, answer->find('\n'))));
}

int list(const invocation &in, bool json) {
    const auto answer = ask_daemon(in.where, "approvals");
    if (!answer)
        return fail_with(answer.error().what);
    if (json) {
        std::fputs(answer->c_str(), stdout);
        return 0;
    }
    for (const ordered_json &q : parse_lines(*answer))
        print(q);
    return 0;
}

std::optional<std::string> read_line() {
    std::string out;
    char c = 0;
    ssize_t n;
    while ((n = ::read(STDIN_FILENO, &c, 1)) == 1 && c != '\n')
        if (out.size() < 64)
            out.push_back(c);
    return n == 1 ? std::optional(out) : std::nullopt;
}

// One question at a terminal. What runs in a shell, or runs what it is told, takes the qube's name.
bool answer_at_terminal(const invocation &in, const ordered_json &q) {
    const std::string wanted = q.value("may_last", false) ? "yes" : q.value("qube", "");
    std::printf("  To let it run once, type %s; anything else is a no: ", wanted.c_str());
    std::fflush(stdout);
    const auto typed = read_line();
    if (!typed)
        return false;
    const std::string serial = std::to_string(q.value("serial", 0ull));
    if (tell(in, *typed == wanted ? "allow " + serial + " -" : "deny " + serial) == 0)
        std::printf("  %s\n", *typed == wanted ? "allowed" : "denied");
    return true;
}

// Until it is ended, or the daemon is gone.
int watch(const invocation &in) {
    const bool asks = ::isatty(STDIN_FILENO) && ::isatty(STDOUT_FILENO);
    std::string version = "-";
    std::set<std::uint64_t> seen;
    for (;;) {
        const auto answer = ask_daemon(in.where, "wait " + version, poll_seconds);
        if (!answer)
            return fail_with(answer.error().what);
        const std::size_t end = answer->find('\n');
        if (end == std::string::npos)
            return fail_with("the daemon has ended");
        version = for_terminal(answer->substr(0, end), 32);
        for (const ordered_json &q : parse_lines(std::string_view(*answer).substr(end + 1))) {
            if (!seen.insert(q.value("serial", 0ull)).second)
                continue;
            print(q);
            std::fflush(stdout);
            if (asks && !answer_at_terminal(in, q))
                return 0;
        }
    }
}

std::optional<std::uint64_t> serial_of(const char *text) {
    return qvmremote::detail::parse_decimal<std::uint64_t>(text);
}

} // namespace

int approvals_command(const invocation &in) {
    const auto &words = in.arguments;
    const std::string_view verb = words.empty() ? std::string_view("list") : words[0];
    if (verb == "list" && words.size() <= 2)
        if (words.size() < 2 || words[1] == std::string_view("--json"))
            return list(in, words.size() == 2);
    if (verb == "watch" && words.size() == 1)
        return watch(in);
    const auto serial = words.size() > 1 ? serial_of(words[1]) : std::nullopt;
    if (serial && verb == "deny" && words.size() == 2)
        return tell(in, "deny " + std::to_string(*serial));
    if (serial && verb == "allow" && words.size() == 2)
        return tell(in, "allow " + std::to_string(*serial) + " -");
    if (serial && verb == "allow" && words.size() == 4 && words[2] == std::string_view("--for")) {
        const auto minutes = parse_positive(words[3]);
        if (!minutes || *minutes > UINT32_MAX / 60)
            return fail_with("--for takes a number of minutes");
        return tell(in, "allow " + std::to_string(*serial) + " " + std::to_string(*minutes * 60));
    }
    return fail_with(usage);
}

int panic(const invocation &in) {
    if (!in.arguments.empty())
        return fail_with("usage: qvm-remote-dom0 panic");
    // The mark first: it holds whatever becomes of the daemon, and through the next boot. An operator
    // who may not write it asks the daemon to.
    const auto marked = set_panic(in.where, host::local_time::now().timestamp() + " by uid " +
                                                std::to_string(::geteuid()));
    const auto answer = ask_daemon(in.where, "panic", 1);
    const bool obeyed = answer && *answer == "ok\n";
    // One that hangs is killed, and all that it runs with it.
    if (!obeyed)
        if (const auto pid = daemon_pid(in.where); pid && ::kill(*pid, SIGKILL) == 0)
            std::fprintf(stderr, "qvm-remote-dom0: the daemon did not answer and was killed\n");
    if (!marked && !obeyed)
        return fail_with(marked.error());
    if (const auto recorded = record_admin(in.where, "panic", {}, {}); !recorded)
        std::fprintf(stderr, "qvm-remote-dom0: %s\n", recorded.error().what.c_str());
    std::printf("stopped; nothing runs before qvm-remote-dom0 resume\n");
    return 0;
}

int resume(const invocation &in) {
    if (!in.arguments.empty())
        return fail_with("usage: qvm-remote-dom0 resume");
    if (!is_panic(in.where))
        return fail_with("nothing was stopped: there is nothing to resume");
    if (const auto recorded = record_admin(in.where, "resume", {}, {}); !recorded)
        return fail_with("nothing was changed: " + recorded.error().what);
    if (const auto cleared = clear_panic(in.where); !cleared)
        return fail_with(cleared.error());
    tell_daemon(in.where);
    return 0;
}

} // namespace qvmremote::dom0
