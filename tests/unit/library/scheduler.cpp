// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/scheduler.hpp>

#include <string>
#include <vector>

#include <doctest/doctest.h>

using namespace qvmremote;

namespace {
constexpr std::size_t any = limits::running; // so many new commands of a qube

// Submits n requests of a qube. Each adds the qube's name to `started` when it starts.
void submit(scheduler &s, const std::string &qube, int n, std::vector<std::string> &started) {
    for (int i = 0; i < n; ++i)
        REQUIRE(s.submit(qube, 100, [&started, qube] {
            started.push_back(qube);
            return true;
        }));
}
} // namespace

TEST_CASE("eight commands of one qube run at once, and the others wait for a slot") {
    scheduler s(any);
    std::vector<std::string> started;
    submit(s, "work", 20, started);
    CHECK_FALSE(s.run(0));
    CHECK(started.size() == limits::running_per_qube);
    CHECK(s.waiting("work") == 12);
    s.release("work");
    CHECK_FALSE(s.run(0));
    CHECK(started.size() == 9);
    CHECK(s.running("work") == limits::running_per_qube);
}

TEST_CASE("qubes take turns, and a greedy one does not starve another") {
    scheduler s(any);
    std::vector<std::string> started;
    submit(s, "greedy", 8, started);
    submit(s, "modest", 2, started);
    static_cast<void>(s.run(0));
    REQUIRE(started.size() == 10);
    CHECK(std::vector<std::string>(started.begin(), started.begin() + 4) ==
          std::vector<std::string>{"greedy", "modest", "greedy", "modest"});
}

TEST_CASE("64 commands run in all") {
    scheduler s(any);
    std::vector<std::string> started;
    for (int qube = 0; qube < 10; ++qube)
        submit(s, "q" + std::to_string(qube), 8, started);
    static_cast<void>(s.run(0));
    CHECK(started.size() == limits::running);
    CHECK(s.running() == limits::running);
}

TEST_CASE("I4: waiting requests are bounded by number and by bytes") {
    scheduler s(any);
    const auto never = [] { return true; };
    for (std::size_t i = 0; i < limits::waiting_per_qube; ++i)
        REQUIRE(s.submit("many", 1, never));
    CHECK_FALSE(s.submit("many", 1, never));
    CHECK(s.submit("other", 1, never));

    for (std::size_t held = 0; held + limits::request_header <= limits::waiting_headers_per_qube;
         held += limits::request_header)
        REQUIRE(s.submit("large", limits::request_header, never));
    CHECK_FALSE(s.submit("large", limits::request_header, never));

    std::size_t qubes = 0;
    while (s.submit("q" + std::to_string(qubes), limits::waiting_headers_per_qube, never))
        ++qubes;
    CHECK(qubes == limits::waiting_headers / limits::waiting_headers_per_qube - 2);
}

TEST_CASE("starts are limited to a burst, and then to a number a second") {
    scheduler s(any);
    std::vector<std::string> started;
    std::uint64_t now = 1'000'000;
    for (std::size_t i = 0; i < limits::starts_burst; ++i) {
        submit(s, "work", 1, started);
        REQUIRE_FALSE(s.run(now));
        s.release("work");
    }
    REQUIRE(started.size() == limits::starts_burst);
    submit(s, "work", 1, started);
    const auto wait = s.run(now);
    REQUIRE(wait);
    CHECK(*wait <= 1000 / limits::starts_per_second + 1);
    CHECK(started.size() == limits::starts_burst);
    now += *wait;
    CHECK_FALSE(s.run(now));
    CHECK(started.size() == limits::starts_burst + 1);
    // Another qube has its own limit.
    submit(s, "dev", 1, started);
    static_cast<void>(s.run(now));
    CHECK(started.back() == "dev");
}

TEST_CASE("a withdrawn request does not start, and gives its place up") {
    scheduler s(any);
    std::vector<std::string> started;
    const auto never = [] {
        FAIL("started");
        return false;
    };
    std::vector<scheduler::ticket> tickets;
    while (const auto ticket = s.submit("work", 1, never))
        tickets.push_back(*ticket);
    CHECK(tickets.size() == limits::waiting_per_qube);
    submit(s, "dev", 1, started);
    for (const auto ticket : tickets) {
        s.withdraw("dev", ticket); // does nothing, as the ticket is another qube's
        s.withdraw("work", ticket);
        s.withdraw("work", ticket);
    }
    CHECK(s.waiting("work") == 0);
    CHECK(s.waiting("dev") == 1);
    // Its bytes do not count any more.
    CHECK(s.submit("work", limits::waiting_headers_per_qube, [] { return false; }));
    static_cast<void>(s.run(1'000'000));
    CHECK(started == std::vector<std::string>{"dev"});
}

TEST_CASE(
    "a slot that its request no longer wants goes to the next, and does not count as a start") {
    scheduler s(any);
    std::vector<std::string> started;
    for (int i = 0; i < 8; ++i)
        REQUIRE(s.submit("work", 1, [] { return false; }));
    submit(s, "work", 8, started);
    static_cast<void>(s.run(0));
    CHECK(started.size() == 8);
    CHECK(s.running() == 8);
    CHECK(s.waiting("work") == 0);
}

TEST_CASE(
    "only some commands of a qube are new at a time; they make room by their end or their age") {
    scheduler s(2);
    std::vector<std::string> started;
    std::uint64_t now = 1'000'000;
    submit(s, "work", 10, started);
    const auto wait = s.run(now);
    REQUIRE(wait);
    CHECK(*wait == limits::beginning_ms);
    CHECK(started.size() == 2);
    s.release("work");
    CHECK(s.run(now) == limits::beginning_ms);
    CHECK(started.size() == 3);
    // They do not delay another qube.
    submit(s, "dev", 1, started);
    static_cast<void>(s.run(now));
    CHECK(started.back() == "dev");
    // Commands that still run after this time are not new any more.
    now += limits::beginning_ms - 1;
    CHECK(s.run(now) == 1);
    CHECK(started.size() == 4);
    static_cast<void>(s.run(++now));
    CHECK(started.size() == 6);
    for (int i = 0; i < 9; ++i)
        static_cast<void>(s.run(now += limits::beginning_ms));
    CHECK(s.running("work") == limits::running_per_qube);
    // A request that does not want its slot does not count as new.
    REQUIRE(s.submit("other", 1, [] { return false; }));
    submit(s, "other", 2, started);
    static_cast<void>(s.run(now));
    CHECK(s.running("other") == 2);
}
