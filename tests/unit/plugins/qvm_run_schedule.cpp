// SPDX-License-Identifier: GPL-2.0-or-later
// Tests when a call is made, ended and given up, with a clock of the test.
#include "qvm_run_fixture.hpp"

using namespace qvmremote_test;

TEST_CASE("pauses double from 1 s to 60 s, a fifth shorter or longer") {
    for (const std::uint32_t random : {0u, 0x80000000u, 0xffffffffu}) {
        CAPTURE(random);
        back_off pause;
        for (const ms base : {1u, 2u, 4u, 8u, 16u, 32u, 60u, 60u}) {
            const ms got = pause.next(random);
            if (random == 0)
                CHECK(got == base * 800);
            else if (random == 0x80000000u)
                CHECK(got == base * 1000);
            else
                CHECK(got == base * 1200 - 1);
        }
        pause.reset();
        CHECK(pause.next(0x80000000u) == 1000);
    }
}

TEST_CASE("an end has two steps") {
    ending end;
    CHECK(end.step(0) == 0);
    CHECK(end.due() == never);
    end.begin(100);
    end.begin(1000); // has begun already
    CHECK(end.due() == 2100);
    CHECK(end.step(2099) == 0);
    CHECK(end.step(2100) == SIGTERM);
    CHECK(end.due() == 4100);
    CHECK(end.step(4099) == 0);
    CHECK(end.step(5000) == SIGKILL);
    CHECK(end.due() == never);
    CHECK(end.step(9000) == 0);
}

TEST_CASE("a failure is reported when it is new") {
    telling told;
    CHECK(told.is_new(1, 5));
    CHECK_FALSE(told.is_new(1, 10));
    CHECK_FALSE(told.is_new(2, 60'004)); // another failure, but too soon
    CHECK(told.is_new(2, 60'005));
    CHECK_FALSE(told.is_new(2, 200'000));
    CHECK(told.is_new(1, 200'001));
    CHECK(told.is_new(1, 200'001 + words_fade_after));
    told.forget();
    CHECK_FALSE(told.is_new(1, 200'002 + words_fade_after));
    CHECK(told.is_new(1, 300'002 + words_fade_after));
}

TEST_CASE("the last line of stderr is bounded and printable") {
    last_line line;
    line.feed("first\nsec");
    line.feed("ond \x1b[2J\xff\r\n\n");
    CHECK(line.text() == "second ?[2J?");
    line.feed(std::string(1000, 'x'));
    CHECK(line.text() == std::string(last_line::most, 'x'));
}

TEST_CASE(
    "pauses grow with each failure, which is reported once; a good call or a start resets them") {
    machine m;
    m.does("work", "echo \"cannot\t$$\" >&2\nexit 9\n");
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events = m.start_with(qubesd, {"work"}, listing({{"work", "Running"}}));
    ms base = first_pause;
    for (std::size_t calls = 1; calls <= 8; ++calls) {
        CAPTURE(calls);
        m.until([&] {
            return m.count("calls", "work") == calls && m.left() != 0 && m.left() != never &&
                   !is_there(m.last("calls", "work"));
        });
        const ms left = m.left();
        CHECK(left <= base * 12 / 10);
        if (calls >= 6) // shorter pauses may pass before this check
            CHECK(left > base / 2);
        base = std::min(2 * base, longest_pause);
        m.pass(left);
    }
    m.until([&] { return m.count("calls", "work") == 9 && !is_there(m.last("calls", "work")); });
    REQUIRE(m.problems.size() == 1);
    CHECK(m.problems[0].starts_with(
        "work: qvm-run ended with 9 before the qube sent a byte: cannot?"));
    CHECK(m.streams.empty()); // the host got no stream

    // When the qube starts again, it is called at once, and the pauses start again.
    m.does("work", echoes);
    send(events, event_text("work", "domain-start"));
    taken_stream work = m.next_stream();
    CHECK(m.count("calls", "work") == 10);
    m.pass(proven_after);
    m.does("work", "exit 9\n");
    ::kill(m.last("calls", "work"), SIGKILL);
    m.until([&] { return m.left() != never; });
    CHECK(m.left() <= first_pause * 12 / 10);
    CHECK(m.problems.size() == 1); // the call was good before, so its end is not a failure
    // After a long time the same failure is reported again.
    m.pass(least_between_words);
    m.until([&] { return m.problems.size() == 2; });
    CHECK(m.problems[1] == "work: qvm-run ended with 9 before the qube sent a byte");
}

TEST_CASE("a call to a qube that sends nothing is given up after 15 s") {
    machine m;
    m.does("work", "echo starting >&2\nexec sleep 1000\n");
    m.does("dev", echoes);
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events =
        m.start_with(qubesd, {"dev", "work"}, listing({{"work", "Running"}, {"dev", "Running"}}));
    CHECK(m.next_stream().qube == "dev"); // and closes it
    m.until([&] { return m.count("calls", "work") == 1; });
    const pid_t pid = m.last("calls", "work");
    m.until([&] { return m.left() > stderr_rest; }); // its stderr is read
    CHECK(is_there(pid));
    m.pass(answer_limit);
    CHECK(m.next_problem() == "work: no answer within 15 s: starting");
    m.pass(grace);
    m.until([&] { return !is_there(pid); });
}

TEST_CASE("after the host closes, the child reads the end, then gets SIGTERM, then SIGKILL") {
    machine m;
    m.does("work", "echo hello\nexec cat\n");
    m.does("slow", "echo hello\nexec sleep 1000\n");
    m.does("deaf", "trap '' TERM\necho hello\nwhile :; do sleep 1000; done\n");
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events =
        m.start_with(qubesd, {"work", "slow", "deaf"},
                     listing({{"work", "Running"}, {"slow", "Running"}, {"deaf", "Running"}}));
    m.until([&] { return m.streams.size() == 3; });
    const pid_t work = m.last("calls", "work");
    const pid_t slow = m.last("calls", "slow");
    const pid_t deaf = m.last("calls", "deaf");
    // If only one direction is closed, nothing ends.
    for (const taken_stream &s : m.streams)
        if (s.qube == "slow")
            ::shutdown(s.socket.get(), SHUT_WR);
    m.step();
    CHECK(m.c->next_due() == never);

    m.streams.clear();
    send(events, event_text("work", "domain-shutdown") + event_text("slow", "domain-shutdown") +
                     event_text("deaf", "domain-shutdown"));
    m.until([&] { return !is_there(work); });
    CHECK(is_there(slow));
    CHECK_FALSE(is_readable(m.event_fd, 0)); // nothing to do until something ends or is due
    CHECK(m.left() <= grace);
    m.pass(grace);
    m.until([&] { return !is_there(slow); });
    CHECK(is_there(deaf));
    m.pass(grace);
    m.until([&] { return !is_there(deaf); });
    CHECK(m.c->next_due() == never);
    CHECK(m.noted("calls").size() == 3); // no qube runs any more, so none was called again
    CHECK(m.problems.empty());
}
