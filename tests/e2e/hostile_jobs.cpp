// SPDX-License-Identifier: GPL-2.0-or-later
// Attacks of a qube on jobs: on those of another qube, by offsets, and by their number.

#include "hostile.hpp"

namespace e2e {

namespace {

host::command about(job_request::verb what, const std::string &id, job_offsets from = {}) {
    host::command out;
    out.timeout_s = 0;
    out.about = job_request{what, command_id::parse(id).value(), from};
    return out;
}
host::command detached(const std::string &text) {
    host::command out;
    out.body = text;
    out.timeout_s = 0;
    out.detach = true;
    return out;
}

} // namespace

void suite::jobs() {
    using verb = job_request::verb;
    constexpr verb verbs[] = {verb::logs, verb::follow, verb::attach, verb::wait, verb::cancel};
    dom0_.register_key("other", key_digits('e'));
    require(control("reload") == "ok\n", "reload");
    host::client mine = honest(dom0_, "work", 'a');
    const auto began = mine.collect(detached("printf 0123456789; exec sleep 1000"));
    require(began.result.how == host::run_result::kind::ended &&
                began.result.end.cause == end_cause::detached,
            "a job");
    const std::string id = began.result.id;
    require(eventually([&] { return mine.collect(about(verb::logs, id)).out == "0123456789"; }),
            "output of a job");

    std::mt19937 random(seed);
    auto begin = std::chrono::steady_clock::now();
    host::client theirs = honest(dom0_, "other", 'e');
    for (int i = 0; i < few; ++i) {
        const auto got = theirs.collect(about(verbs[random() % std::size(verbs)], id));
        require(got.result.how == host::run_result::kind::refused &&
                    got.result.reason == errc::no_job && got.out.empty(),
                "a job of another qube is not refused");
    }
    host::command list;
    list.about.emplace();
    require(theirs.collect(list).out.empty(), "another qube's job is listed");
    finish_row("jobs of another qube", few, begin);

    begin = std::chrono::steady_clock::now();
    for (int i = 0; i < few; ++i) {
        const std::uint64_t beyond[] = {11, 4096, std::uint64_t{1} << 40, job_request::most_offset,
                                        11 + random() % 1000};
        const std::uint64_t far = beyond[random() % std::size(beyond)];
        const job_offsets from = random() % 2 ? job_offsets{far, 0} : job_offsets{10, far};
        const auto got = mine.collect(about(verbs[random() % 3], id, from));
        require(got.result.how == host::run_result::kind::refused &&
                    got.result.reason == errc::bad_value,
                "an offset beyond the end is not refused");
        const std::uint64_t within = random() % 11;
        require(mine.collect(about(verb::logs, id, {within, 0})).out ==
                    std::string("0123456789").substr(within),
                "an offset within the output");
    }
    finish_row("offsets beyond the output", few, begin);

    // More readers than dom0 allows, all at once, and more jobs.
    begin = std::chrono::steady_clock::now();
    attacker a(dom0_, "work");
    int busy = 0;
    for (int i = 0; i < 80; ++i) {
        envelope e;
        e.kind = request_kind::job;
        e.features = feature::jobs;
        e.id = host::client::make_id();
        e.arguments = job_request{verb::wait, command_id::parse(id).value(), {}}.words();
        a.send(signed_request(a, a.open_session(), std::move(e)));
        const auto event = a.answer();
        require(event.has_value(), "no answer");
        busy += event->what == client_event::kind::refused && event->reason == errc::busy;
    }
    require(busy == 80 - 64, std::to_string(busy) + " readers were refused");
    std::vector<std::string> made;
    for (bool refused = false; !refused;) {
        const auto got = mine.collect(detached("exec sleep 1000"));
        refused = got.result.how == host::run_result::kind::refused;
        if (!refused)
            made.push_back(got.result.id);
        require(made.size() <= 100, "more jobs than dom0 allows");
    }
    require(made.size() >= 90, "fewer jobs than dom0 allows");
    finish_row("more readers and jobs than dom0 allows", 80 + static_cast<int>(made.size()), begin);
    made.push_back(id);
    for (const std::string &one : made)
        require(mine.collect(about(verb::cancel, one)).result.exit_code() == 0, "cancel");
    require(eventually([&] { return processes_with("QVM_REMOTE_ID=" + id).empty(); }),
            "processes of a job are left");
}

} // namespace e2e
