// SPDX-License-Identifier: GPL-2.0-or-later
// Tests what qvm-run learns about qubes from qubesd, or from qvm-check if there is no qubesd.
#include "qvm_run_fixture.hpp"

using namespace qvmremote_test;

TEST_CASE("events: those that say whether a qube runs, in chunks of any size") {
    const std::string text =
        connected + event_text("work", "domain-start", "start_guid\0True\0"sv) +
        event_text("work", "domain-tag-add:x", "tag\0x\0"sv) + event_text("dom0", "domain-start") +
        event_text("../x", "domain-start") + event_text(std::string(32, 'a'), "domain-start") +
        event_text("", "domain-start") + event_text("dev-1", "domain-paused") +
        event_text("dev-1", "domain-unpaused", "k\0\0"sv) + event_text("work", "domain-shutdown") +
        event_text("", "domain-delete", "vm\0old\0"sv) +
        event_text("work", "domain-start" + std::string(100, 'x')) +
        event_text("work", "domain-start", "key\0"s + std::string(60'000, 'v') + '\0');
    const std::vector<event> want = {
        {news::connected, ""}, {news::runs, "work"},   {news::stands, "dev-1"},
        {news::runs, "dev-1"}, {news::stands, "work"}, {news::stands, "old"},
        {news::runs, "work"},
    };
    for (const std::size_t chunk : {std::size_t{1}, std::size_t{7}, text.size()}) {
        CAPTURE(chunk);
        event_reader reader;
        std::vector<event> got;
        for (std::size_t at = 0; at < text.size(); at += chunk) {
            std::string_view part = std::string_view(text).substr(at, chunk);
            while (!part.empty()) {
                const auto one = reader.next(part);
                REQUIRE(one);
                if (*one)
                    got.push_back(**one);
            }
        }
        CHECK(got == want);
    }
}

TEST_CASE("events: bytes that are not an event break the connection for good") {
    const std::string rows[] = {
        "2\0QubesException\0\0no\0"s,
        "0\0"s,
        "\0"s,
        "11\0"s,
        "garbage",
        event_text("work", "domain-start"),           // before connection-established
        event_text("work", "connection-established"), // with a subject
        connected + "2\0"s,
        connected + "1\0work\0x\0k\0"s + std::string(largest_event, 'v'),
    };
    for (const std::string &text : rows) {
        CAPTURE(text.substr(0, 80));
        event_reader reader;
        std::string_view part = text;
        bool failed = false;
        while (!part.empty() && !failed)
            failed = !reader.next(part);
        CHECK(failed);
        part = connected;
        CHECK_FALSE(reader.next(part));
    }
}

TEST_CASE("listings") {
    CHECK(running_qubes("0\0"sv).value().empty());
    const std::string good = "0\0"
                             "work class=AppVM state=Running\n"
                             "dom0 class=AdminVM state=Running\n"
                             "off state=Halted class=AppVM uuid=1\n"
                             "booting class=AppVM state=Transient\n"
                             "paused class=AppVM state=Paused\n"
                             "sys-net class=AppVM state=Running\n"
                             "a/../b class=AppVM state=Running\n"s;
    CHECK(running_qubes(good).value() == std::vector<std::string>{"sys-net", "work"});
    // A listing that is cut is refused, except after a whole line.
    for (std::size_t n = 0; n < good.size(); ++n)
        CHECK(running_qubes(good.substr(0, n)).has_value() ==
              (n >= 2 && (n == 2 || good[n - 1] == '\n')));
    const std::string bad[] = {
        "2\0x\0"s,
        "1\0"s,
        "0\0work class=AppVM\n"s,
        "0\0work state=Running state=Halted\n"s,
        "0\0work state=Running \n"s,
        "0\0 state=Running\n"s,
        "0\0work Running\n"s,
        "0\0work =Running\n"s,
        "0\0\n"s,
        "0\0work state=Running\nwork state=Running\n"s,
        "0\0"s + std::string(largest_listing, '\n'),
    };
    for (const std::string &text : bad) {
        CAPTURE(text.substr(0, 60));
        CHECK_FALSE(running_qubes(text));
    }
}

TEST_CASE("an event that comes before the listing counts") {
    machine m;
    m.does("work", echoes);
    m.does("off", echoes);
    fake_qubesd qubesd(m.how.qubesd);
    m.start({"work", "off"});
    const unique_fd events = qubesd.take(ask_events);
    send(events, connected);
    m.until([&] { return qubesd.is_asked(); });
    unique_fd asked = qubesd.take(ask_listing);
    send(events, event_text("off", "domain-shutdown"));
    m.step(guard_ms);
    send(asked, listing({{"off", "Running"}, {"work", "Running"}}));
    asked.reset();
    CHECK(m.next_stream().qube == "work");
    send(events, event_text("work", "domain-paused") + event_text("off", "domain-unpaused"));
    CHECK(m.next_stream().qube == "off");
    CHECK(m.count("calls", "off") == 1);
}

TEST_CASE("without a qubesd qvm-check is asked, but not while there is a call") {
    machine m;
    for (const char *name : {"work", "late"})
        m.does(name, echoes);
    m.is("work", "exit 0\n");
    m.is("late", "exit 1\n");
    SUBCASE("a path without a file") {}
    SUBCASE("`none`") { m.how.qubesd.clear(); }
    m.start({"work", "late"});
    {
        const taken_stream work = m.next_stream();
        CHECK(work.qube == "work");
        m.until([&] { return m.count("checks", "late") == 1 && m.left() > 0; });
        CHECK(m.left() <= check_interval);
        m.is("late", "exit 0\n");
        m.pass(check_interval);
        const taken_stream late = m.next_stream();
        CHECK(late.qube == "late");
        // The socket of qubesd is not tried again either.
        m.until([&] { return m.c->next_due() == never; });
        m.pass(1'000'000);
        CHECK(m.c->next_due() == never);
        CHECK(m.count("checks", "work") == 1);
        CHECK(m.count("checks", "late") == 2);
        CHECK(m.count("calls", "late") == 1);
        // The end of a call does not show whether the qube runs, so it is checked before the next
        // call.
        m.is("work", "exit 1\n");
        ::kill(m.last("calls", "work"), SIGKILL);
        m.until([&] { return m.left() != never; });
        CHECK(receive(work.socket) == "hello\n");
        m.pass(first_pause * 2);
        m.until([&] { return m.count("checks", "work") == 2; });
    }
    m.step();
    CHECK(m.count("calls", "work") == 1);
}

TEST_CASE("a check that hangs is killed, and delays no other") {
    machine m;
    m.how.qubesd.clear();
    m.does("work", echoes);
    m.is("work", "exit 0\n");
    m.is("hung", "trap '' TERM\nwhile :; do sleep 1000; done\n");
    m.start({"hung", "work"});
    const taken_stream work = m.next_stream();
    CHECK(work.qube == "work");
    m.until([&] { return m.count("checks", "hung") == 1; });
    const pid_t hung = m.last("checks", "hung");
    CHECK(is_there(hung));
    m.pass(answer_limit);
    m.until([&] { return !is_there(hung); });
    CHECK(contains(m.next_problem(), "hung: qvm-check does not end"));
    CHECK(m.count("calls", "hung") == 0);
}

TEST_CASE("at most eight checks run at a time") {
    machine m;
    m.how.qubesd.clear();
    std::vector<std::string> names;
    for (int i = 0; i < 12; ++i) {
        names.push_back("q" + std::to_string(i));
        m.is(names.back().c_str(), "exec sleep 1000\n");
    }
    m.start(names);
    m.until([&] { return m.noted("checks").size() == 8; });
    m.step(100);
    CHECK(m.noted("checks").size() == 8);
    for (const auto &[name, pid] : m.noted("checks"))
        ::kill(pid, SIGKILL);
    m.until([&] { return m.noted("checks").size() == 12; });
}

TEST_CASE("after strange bytes from qubesd the connection is made again, after growing pauses") {
    machine m;
    m.does("work", echoes);
    fake_qubesd qubesd(m.how.qubesd);
    m.start({"work"});
    ms base = first_pause;
    const std::string strange[] = {"garbage", "2\0QubesException\0\0\0"s, connected, ""};
    for (const std::string &text : strange) {
        CAPTURE(text);
        unique_fd events = qubesd.take(ask_events);
        send(events, text);
        if (text == connected) {
            m.until([&] { return qubesd.is_asked(); });
            send(qubesd.take(ask_listing), "0\0work\n");
        } else if (text.empty()) {
            events.reset();
        }
        m.until([&] { return m.left() <= base * 12 / 10; });
        CHECK(m.left() > base / 2);
        CHECK_FALSE(qubesd.is_asked());
        m.pass(base * 12 / 10);
        base *= 2;
    }
    REQUIRE(m.problems.size() == 1);
    CHECK(contains(m.problems[0], "sends something that is not an event; trying again"));
    CHECK(m.noted("calls").empty());

    // qubesd answers well again, and then does not answer at all.
    unique_fd events = qubesd.take(ask_events);
    send(events, connected);
    m.answer_listing(qubesd, listing({{"work", "Running"}}));
    const taken_stream work = m.next_stream();
    CHECK(m.c->next_due() == never);
    m.c->set_peers({"dev", "work"});
    const unique_fd silent = qubesd.take(ask_listing);
    m.pass(answer_limit);
    CHECK(receive(events).empty());
    m.pass(longest_pause * 2);
    m.until([&] { return qubesd.is_asked(); });
}

TEST_CASE("a restart of qubesd ends no call; states are asked for again when they are needed") {
    machine m;
    m.does("work", echoes);
    std::optional<fake_qubesd> qubesd(std::in_place, m.how.qubesd);
    unique_fd events = m.start_with(*qubesd, {"work"}, listing({{"work", "Running"}}));
    taken_stream work = m.next_stream();
    qubesd.reset();
    events.reset();
    m.step(guard_ms);
    CHECK(m.c->next_due() == never); // every named qube has its call
    CHECK(is_there(m.last("calls", "work")));
    qubesd.emplace(m.how.qubesd);
    work.socket.reset();
    m.until([&] {
        if (!qubesd->is_asked())
            m.pass(first_pause);
        return qubesd->is_asked();
    });
    CHECK(m.count("calls", "work") == 1); // no call before the qube is known to run
    events = qubesd->take(ask_events);
    send(events, connected);
    m.answer_listing(*qubesd, listing({{"work", "Running"}}));
    ahead += longest_pause * 2;
    CHECK(m.next_stream().qube == "work");
}
