// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/operators_desk.hpp"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <set>

#include <pwd.h>
#include <unistd.h>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/sanitize.hpp>

#include "base/log.hpp"
#include "common/installed.hpp"
#include "decide/panic.hpp"
#include "execute/execution.hpp"
#include "record/admin_records.hpp"
#include "serve/connection.hpp"
#include "serve/reload.hpp"

namespace qvmremote::dom0 {

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds watch_limit{50};

} // namespace

host::outcome<void> operators_desk::open() {
    auto control =
        control_server::open(parts_.loop, options_.where,
                             [this](std::string_view request, const requester &who, reply tell) {
                                 answer(request, who, std::move(tell));
                             });
    if (!control)
        return tl::unexpected(control.error());
    control_ = std::move(*control);
    return {};
}

std::optional<std::uint64_t> operators_desk::ask(question what, approvals::answer tell) {
    const auto serial = parts_.approvals.ask(std::move(what), host::boottime_ms(), std::move(tell));
    if (!serial)
        return serial;
    const open_question &shown = *parts_.approvals.find(*serial);
    parts_.log.write_for(shown.from.name.text(), log_category::info,
                         "vm=" + shown.from.name.text() + " id=" + shown.id +
                             " waits for an operator, serial " + std::to_string(*serial));
    notifier_.show(shown);
    questions_changed();
    return serial;
}

void operators_desk::questions_changed() {
    if (told_version_ != parts_.approvals.version()) {
        told_version_ = parts_.approvals.version();
        for (const auto &tell : std::exchange(watchers_, {}))
            tell(questions());
    }
    const std::uint64_t due = parts_.approvals.due_ms();
    if (due == UINT64_MAX)
        return void(silence_timer_.cancel());
    const std::uint64_t now = host::boottime_ms();
    silence_timer_.expires_after(milliseconds(due > now ? due - now : 0));
    silence_timer_.async_wait([this](boost::system::error_code ec) {
        if (ec)
            return;
        parts_.approvals.expire(host::boottime_ms());
        questions_changed();
    });
}

std::string operators_desk::questions() const {
    std::string out = std::to_string(parts_.approvals.version()) + "\n";
    for (const open_question *const q : parts_.approvals.open())
        out += to_json(*q, host::boottime_ms(), extent::beginning) + "\n";
    return out;
}

// All requests of the control socket; any other is refused.
void operators_desk::answer(std::string_view request, const requester &who,
                            control_server::reply tell) {
    struct verb {
        std::string_view name;
        bool is_for_operators; // not only for root
        void (operators_desk::*run)(std::string_view request, const requester &,
                                    control_server::reply);
    };
    static constexpr verb verbs[] = {
        {"status", true, &operators_desk::on_status},
        {"reload", false, &operators_desk::on_reload},
        {"panic", true, &operators_desk::on_panic},
        {"audit", false, &operators_desk::on_audit},
        {"admin", false, &operators_desk::on_audit},
        {"approvals", true, &operators_desk::on_approvals},
        {"wait", true, &operators_desk::on_wait},
        {"question", true, &operators_desk::on_question},
        {"allow", true, &operators_desk::on_allow},
        {"deny", true, &operators_desk::on_deny},
    };
    const std::string_view name = request.substr(0, request.find_first_of(" \t"));
    const auto at = std::find_if(std::begin(verbs), std::end(verbs),
                                 [&](const verb &v) { return v.name == name; });
    if (at == std::end(verbs))
        return tell("unknown request\n");
    if (!who.is_root() && !at->is_for_operators)
        return tell("only root may " + std::string(name) + "\n");
    (this->*at->run)(request, who, std::move(tell));
}

void operators_desk::on_status(std::string_view, const requester &, control_server::reply tell) {
    tell(status());
}

void operators_desk::on_reload(std::string_view, const requester &, control_server::reply tell) {
    const std::string problem = reload_();
    tell(problem.empty() ? "ok\n" : for_terminal(problem) + "\n");
}

void operators_desk::on_audit(std::string_view request, const requester &,
                              control_server::reply tell) {
    tell(answer_audit(request, parts_.records).value_or("unknown request\n"));
}

void operators_desk::on_approvals(std::string_view, const requester &, control_server::reply tell) {
    const std::string all = questions();
    tell(all.substr(all.find('\n') + 1));
}

// Answered when the questions are newer than the version that the client has, or after a while.
void operators_desk::on_wait(std::string_view request, const requester &,
                             control_server::reply tell) {
    if (request != "wait " + std::to_string(parts_.approvals.version()))
        return tell(questions());
    watchers_.push_back(std::move(tell));
    if (watchers_.size() > 1)
        return;
    watch_timer_.expires_after(watch_limit);
    watch_timer_.async_wait([this](boost::system::error_code ec) {
        if (ec)
            return;
        for (const auto &waiting : std::exchange(watchers_, {}))
            waiting(questions());
    });
}

// All of one question, so that the operator can read all of it.
void operators_desk::on_question(std::string_view request, const requester &,
                                 control_server::reply tell) {
    const auto words = split_words(request);
    const auto serial =
        words.size() == 2 ? qvmremote::parse_decimal<std::uint64_t>(words[1]) : std::nullopt;
    const open_question *const asked = serial ? parts_.approvals.find(*serial) : nullptr;
    tell(asked ? to_json(*asked, host::boottime_ms(), extent::whole) + "\n"
               : "nothing waits under that serial; see qvm-remote-dom0 approvals list\n");
}

// allow SERIAL SECONDS|- DIGEST
void operators_desk::on_allow(std::string_view request, const requester &who,
                              control_server::reply tell) {
    const auto words = split_words(request);
    const auto serial =
        words.size() == 4 ? qvmremote::parse_decimal<std::uint64_t>(words[1]) : std::nullopt;
    if (!serial)
        return tell("unknown request\n");
    std::optional<std::uint32_t> lasts_s;
    if (const auto number = parse_positive(words[2]))
        lasts_s = *number;
    else if (words[2] != "-")
        return tell("unknown request\n");
    if (const char *const why = why_no_operator(who))
        return tell(std::string(why) + "\n");
    const passwd *const account = ::getpwuid(who.uid);
    const std::string name =
        (account ? std::string(account->pw_name) + " " : "") + "uid " + std::to_string(who.uid);
    const auto done = parts_.approvals.allow(*serial, words[3], lasts_s, name, host::boottime_ms());
    parts_.log.write(log_category::info, "serial " + std::to_string(*serial) +
                                             (done ? " allowed by " : " not allowed to ") + name);
    questions_changed();
    tell(done ? "ok\n" : done.error() + "\n");
}

void operators_desk::on_deny(std::string_view request, const requester &who,
                             control_server::reply tell) {
    const auto words = split_words(request);
    const auto serial =
        words.size() == 2 ? qvmremote::parse_decimal<std::uint64_t>(words[1]) : std::nullopt;
    if (!serial)
        return tell("unknown request\n");
    if (const char *const why = why_no_operator(who))
        return tell(std::string(why) + "\n");
    const auto done = parts_.approvals.deny(*serial);
    questions_changed();
    tell(done ? "ok\n" : done.error() + "\n");
}

// A process that a qube started here must not decide what a qube may do (DESIGN.md §6).
const char *operators_desk::why_no_operator(const requester &who) const {
    if (is_inside_our_command(who.pid, home_, children_.pid()))
        return "a command of a qube's does not decide about one";
    if (!home_ && !has_terminal_of_its_own(who.pid, children_.pid()))
        return "commands have no cgroups of their own here, so who decides needs a terminal";
    if (!who.lives())
        return "who asked has ended, so it cannot be told whether a command of a qube's did";
    return nullptr;
}

// The mark first. Then everything is ended at once, without time to end by itself.
void operators_desk::on_panic(std::string_view, const requester &who, control_server::reply tell) {
    const auto marked = set_panic(options_.where, host::local_time::now().timestamp() + " by uid " +
                                                      std::to_string(who.uid));
    parts_.log.write(log_category::error, "panic, by uid " + std::to_string(who.uid) +
                                              ": everything ends, nothing new is let in");
    parts_.approvals.withdraw_all(nullptr, errc::panicked);
    questions_changed();
    const auto executions = parts_.execution.running;
    for (const auto &e : executions)
        e->cancel(errc::panicked);
    const auto connections = parts_.connections;
    for (const auto &c : connections)
        c->refuse_waiting(errc::panicked);
    tell(marked ? "ok\n" : for_terminal(marked.error().what) + "\n");
}

std::string operators_desk::status() const {
    std::string out = "version: " QVMREMOTE_VERSION "\npid: " + std::to_string(::getpid()) +
                      "\ntransport: " + ways_.text() +
                      "\nstreams: " + std::to_string(parts_.connections.size()) +
                      "\nrunning: " + std::to_string(parts_.execution.running.size()) +
                      "\ncontainment: " + for_terminal(home_.describe()) + "\n";
    if (options_.dry_run)
        out += "dry-run: nothing is run\n";
    if (parts_.draining)
        out += "draining: ends when what runs has ended\n";
    if (is_panic(options_.where))
        out += "panic: nothing runs before qvm-remote-dom0 resume\n";
    if (const std::string trouble = parts_.records.trouble(); !trouble.empty())
        out += "trouble: " + for_terminal(trouble) + "\n";
    out += policy_trouble(parts_.admission);
    std::set<std::string> qubes;
    for (const auto &c : parts_.connections)
        qubes.insert(c->from().name.text());
    for (const std::string &qube : qubes)
        out += "qube " + qube + ": running=" + std::to_string(parts_.scheduler.running(qube)) +
               " waiting=" + std::to_string(parts_.scheduler.waiting(qube)) + "\n";
    std::set<std::string> missing;
    for (const auto &way : ways_.all())
        if (way->transport.takes_peers())
            for (const std::string &qube : way->peers)
                if (!qubes.contains(qube))
                    missing.insert(qube);
    for (const std::string &qube : missing)
        out += "qube " + qube + ": not connected\n";
    for (const std::string &sentence : unserved_())
        out += sentence + "\n";
    return out;
}

} // namespace qvmremote::dom0
