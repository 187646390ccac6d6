// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/operators_desk.hpp"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <set>

#include <pwd.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

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

using nlohmann::ordered_json;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds watch_limit{50};

// The same for people.
std::string status_text(const ordered_json &now) {
    std::string out;
    const auto line = [&](const char *key) {
        const ordered_json &value = now[key];
        out += std::string(key) + ": " +
               (value.is_string() ? value.get<std::string>() : value.dump()) + "\n";
    };
    for (const char *const key :
         {"version", "pid", "transport", "streams", "running", "jobs", "containment"})
        line(key);
    if (now["dry_run"].get<bool>())
        out += "dry-run: nothing is run\n";
    if (now["draining"].get<bool>())
        out += "draining: ends when what runs has ended\n";
    if (now["panic"].get<bool>())
        out += "panic: nothing runs before qvm-remote-dom0 resume\n";
    if (now["trouble"] != "")
        line("trouble");
    for (const ordered_json &sentence : now["policy"])
        out += "policy: " + sentence.get<std::string>() + "\n";
    for (const ordered_json &q : now["qubes"])
        out += "qube " + q["qube"].get<std::string>() + ": " +
               (q["connected"].get<bool>()
                    ? "running=" + q["running"].dump() + " waiting=" + q["waiting"].dump()
                    : "not connected") +
               "\n";
    for (const ordered_json &sentence : now["unserved"])
        out += sentence.get<std::string>() + "\n";
    return out;
}

} // namespace

host::outcome<void> operators_desk::open() {
    auto control =
        control_server::open(context_.loop, options_.where,
                             [this](std::string_view request, const requester &who, reply respond) {
                                 answer(request, who, std::move(respond));
                             });
    if (!control)
        return tl::unexpected(control.error());
    control_ = std::move(*control);
    return {};
}

std::optional<std::uint64_t> operators_desk::ask(question what, approvals::answer on_decision) {
    const auto serial =
        context_.approvals.ask(std::move(what), host::boottime_ms(), std::move(on_decision));
    if (!serial)
        return serial;
    const open_question &shown = *context_.approvals.find(*serial);
    context_.log.write_for(shown.from.name.text(), log_category::info,
                           "vm=" + shown.from.name.text() + " id=" + shown.id +
                               " waits for an operator, serial " + std::to_string(*serial));
    notifier_.show(shown);
    questions_changed();
    return serial;
}

void operators_desk::questions_changed() {
    if (told_version_ != context_.approvals.version()) {
        told_version_ = context_.approvals.version();
        for (const auto &respond : std::exchange(watchers_, {}))
            respond(questions());
    }
    const std::uint64_t due = context_.approvals.due_ms();
    if (due == UINT64_MAX)
        return void(silence_timer_.cancel());
    const std::uint64_t now = host::boottime_ms();
    silence_timer_.expires_after(milliseconds(due > now ? due - now : 0));
    silence_timer_.async_wait([this](boost::system::error_code ec) {
        if (ec)
            return;
        context_.approvals.expire(host::boottime_ms());
        questions_changed();
    });
}

std::string operators_desk::questions() const {
    std::string out = std::to_string(context_.approvals.version()) + "\n";
    for (const open_question *const q : context_.approvals.open())
        out += to_json(*q, host::boottime_ms(), extent::beginning) + "\n";
    return out;
}

// Answers a request of the control socket. The table has all of them; any other is refused.
void operators_desk::answer(std::string_view request, const requester &who,
                            control_server::reply respond) {
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
        {"jobs", true, &operators_desk::on_jobs},
        {"job-cancel", true, &operators_desk::on_job_cancel},
    };
    const std::string_view name = request.substr(0, request.find_first_of(" \t"));
    const auto at = std::find_if(std::begin(verbs), std::end(verbs),
                                 [&](const verb &v) { return v.name == name; });
    if (at == std::end(verbs))
        return respond("unknown request\n");
    if (!who.is_root() && !at->is_for_operators)
        return respond("only root may " + std::string(name) + "\n");
    (this->*at->run)(request, who, std::move(respond));
}

// status [json]
void operators_desk::on_status(std::string_view request, const requester &,
                               control_server::reply respond) {
    const ordered_json now = status();
    respond(request == "status json"
                ? now.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n"
                : status_text(now));
}

void operators_desk::on_reload(std::string_view, const requester &, control_server::reply respond) {
    const std::string problem = reload_();
    respond(problem.empty() ? "ok\n" : for_terminal(problem) + "\n");
}

void operators_desk::on_audit(std::string_view request, const requester &,
                              control_server::reply respond) {
    respond(answer_audit(request, context_.records).value_or("unknown request\n"));
}

void operators_desk::on_approvals(std::string_view, const requester &,
                                  control_server::reply respond) {
    const std::string all = questions();
    respond(all.substr(all.find('\n') + 1));
}

// Answered when the questions are newer than the version that the client has, or after a while.
void operators_desk::on_wait(std::string_view request, const requester &,
                             control_server::reply respond) {
    if (request != "wait " + std::to_string(context_.approvals.version()))
        return respond(questions());
    watchers_.push_back(std::move(respond));
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

// Answers with the whole question, so that the operator can read all of it.
void operators_desk::on_question(std::string_view request, const requester &,
                                 control_server::reply respond) {
    const auto words = split_words(request);
    const auto serial =
        words.size() == 2 ? qvmremote::parse_decimal<std::uint64_t>(words[1]) : std::nullopt;
    const open_question *const asked = serial ? context_.approvals.find(*serial) : nullptr;
    respond(asked ? to_json(*asked, host::boottime_ms(), extent::whole) + "\n"
                  : "nothing waits under that serial; see qvm-remote-dom0 approvals list\n");
}

// allow SERIAL SECONDS|- DIGEST
void operators_desk::on_allow(std::string_view request, const requester &who,
                              control_server::reply respond) {
    const auto words = split_words(request);
    const auto serial =
        words.size() == 4 ? qvmremote::parse_decimal<std::uint64_t>(words[1]) : std::nullopt;
    if (!serial)
        return respond("unknown request\n");
    std::optional<std::uint32_t> lasts_s;
    if (const auto number = parse_positive(words[2]))
        lasts_s = *number;
    else if (words[2] != "-")
        return respond("unknown request\n");
    if (const char *const why = why_no_operator(who))
        return respond(std::string(why) + "\n");
    const passwd *const account = ::getpwuid(who.uid);
    const std::string name =
        (account ? std::string(account->pw_name) + " " : "") + "uid " + std::to_string(who.uid);
    const auto done =
        context_.approvals.allow(*serial, words[3], lasts_s, name, host::boottime_ms());
    context_.log.write(log_category::info, "serial " + std::to_string(*serial) +
                                               (done ? " allowed by " : " not allowed to ") + name);
    questions_changed();
    respond(done ? "ok\n" : done.error() + "\n");
}

void operators_desk::on_deny(std::string_view request, const requester &who,
                             control_server::reply respond) {
    const auto words = split_words(request);
    const auto serial =
        words.size() == 2 ? qvmremote::parse_decimal<std::uint64_t>(words[1]) : std::nullopt;
    if (!serial)
        return respond("unknown request\n");
    if (const char *const why = why_no_operator(who))
        return respond(std::string(why) + "\n");
    const auto done = context_.approvals.deny(*serial);
    questions_changed();
    respond(done ? "ok\n" : done.error() + "\n");
}

// A line for each job: its qube, a tab, and its row.
void operators_desk::on_jobs(std::string_view, const requester &, control_server::reply respond) {
    std::string out;
    for (const job *one : jobs_.list(nullptr))
        out += one->qube.text() + "\t" + jobs_.row_of(*one).line() + "\n";
    respond(std::move(out));
}

// job-cancel QUBE ID
void operators_desk::on_job_cancel(std::string_view request, const requester &who,
                                   control_server::reply respond) {
    const auto words = split_words(request);
    const auto qube = qube_name::parse(words.size() == 3 ? words[1] : "");
    const auto id = command_id::parse(words.size() == 3 ? words[2] : "");
    if (!qube || !id)
        return respond("unknown request\n");
    if (const char *const why = why_no_operator(who))
        return respond(std::string(why) + "\n");
    job *const found = jobs_.find(*qube, *id);
    if (!found)
        return respond("there is no such job; see qvm-remote-dom0 jobs\n");
    context_.log.write(log_category::info, "vm=" + qube->text() + " id=" + id->text() +
                                               " job cancelled by uid " + std::to_string(who.uid));
    jobs_.cancel(*found);
    respond("ok\n");
}

// A process that a qube started here must not decide what a qube may do (DESIGN.md §6).
const char *operators_desk::why_no_operator(const requester &who) const {
    std::vector<pid_t> roots = jobs_.keepers();
    roots.push_back(children_.pid());
    if (is_inside_our_command(who.pid, home_, jobs_.groups(), roots))
        return "a qube's command may not decide about requests";
    if (!home_ && !has_terminal_of_its_own(who.pid, roots))
        return "commands have no cgroups of their own here, so an operator needs a terminal";
    if (!who.lives())
        return "the process that asked has ended, so dom0 cannot tell whether a qube's command "
               "asked";
    return nullptr;
}

// Set the mark first. Then end everything at once: nothing gets time to end by itself.
void operators_desk::on_panic(std::string_view, const requester &who,
                              control_server::reply respond) {
    const auto marked = set_panic(options_.where, host::local_time::now().timestamp() + " by uid " +
                                                      std::to_string(who.uid));
    context_.log.write(log_category::error, "panic, by uid " + std::to_string(who.uid) +
                                                ": everything ends, nothing new is let in");
    context_.approvals.withdraw_all(nullptr, errc::panicked);
    questions_changed();
    const auto executions = context_.execution.running;
    for (const auto &e : executions)
        e->cancel(errc::panicked);
    jobs_.kill_all(errc::panicked);
    const auto connections = context_.connections;
    for (const auto &c : connections)
        c->refuse_waiting(errc::panicked);
    respond(marked ? "ok\n" : for_terminal(marked.error().what) + "\n");
}

ordered_json operators_desk::status() const {
    jobs_.look_for_group();
    auto qubes = ordered_json::array();
    std::set<std::string> connected;
    for (const auto &c : context_.connections)
        connected.insert(c->from().name.text());
    for (const std::string &qube : connected)
        qubes.push_back({{"qube", qube},
                         {"connected", true},
                         {"running", context_.scheduler.running(qube)},
                         {"waiting", context_.scheduler.waiting(qube)}});
    std::set<std::string> missing;
    for (const auto &way : ways_.all())
        if (way->transport.takes_peers())
            for (const std::string &qube : way->peers)
                if (!connected.contains(qube))
                    missing.insert(qube);
    for (const std::string &qube : missing)
        qubes.push_back({{"qube", qube}, {"connected", false}, {"running", 0}, {"waiting", 0}});
    return {{"version", QVMREMOTE_VERSION},
            {"pid", ::getpid()},
            {"transport", ways_.text()},
            {"streams", context_.connections.size()},
            {"running", context_.execution.running.size()},
            {"jobs", std::to_string(jobs_.running()) + " running; " +
                         (jobs_.groups() ? std::string("they outlive this daemon")
                                         : "they end with this daemon: " +
                                               for_terminal(jobs_.groups().why_none))},
            {"jobs_running", jobs_.running()},
            {"jobs_outlive", static_cast<bool>(jobs_.groups())},
            {"containment", for_terminal(home_.describe())},
            {"cgroups", static_cast<bool>(home_)},
            {"dry_run", options_.dry_run},
            {"draining", context_.draining},
            {"panic", is_panic(options_.where)},
            {"trouble", for_terminal(context_.records.trouble())},
            {"policy", policy_trouble(context_.admission)},
            {"qubes", std::move(qubes)},
            {"unserved", unserved_()}};
}

} // namespace qvmremote::dom0
