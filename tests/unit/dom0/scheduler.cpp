// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/scheduler.hpp"

#include <string>
#include <vector>

#include <doctest/doctest.h>

using namespace qvmremote;
using dom0::scheduler;

namespace {
constexpr std::size_t any = limits::running; // new ones of a qube

// Submits n requests of a qube; each writes the qube's name when it starts.
void submit(scheduler &s, const std::string &qube, int n, std::vector<std::string> &started) {
    for (int i = 0; i < n; ++i)
        REQUIRE(s.submit(qube, 100, [&started, qube] {
            started.push_back(qube);
            return true;
        }));
}
} // namespace

TEST_CASE("eight of one qube run at once, the rest wait for a slot") {
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

TEST_CASE("64 run in all") {
    scheduler s(any);
    std::vector<std::string> started;
    for (int qube = 0; qube < 10; ++qube)
        submit(s, "q" + std::to_string(qube), 8, started);
    static_cast<void>(s.run(0));
    CHECK(started.size() == limits::running);
    CHECK(s.running() == limits::running);
}

TEST_CASE("I4: what waits is bounded by number and by bytes") {
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

TEST_CASE("starts are rationed: a burst, then so many a second") {
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
    // Another qube has a ration of its own.
    submit(s, "dev", 1, started);
    static_cast<void>(s.run(now));
    CHECK(started.back() == "dev");
}

TEST_CASE("what is withdrawn takes no place of others and does not start") {
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
        s.withdraw("dev", ticket); // another qube's is not touched
        s.withdraw("work", ticket);
        s.withdraw("work", ticket);
    }
    CHECK(s.waiting("work") == 0);
    CHECK(s.waiting("dev") == 1);
    CHECK(s.submit("work", limits::waiting_headers_per_qube,
                   [] { return false; })); // no byte is held
    static_cast<void>(s.run(1'000'000));
    CHECK(started == std::vector<std::string>{"dev"});
}

TEST_CASE("a slot that nobody wants any more goes to the next, and costs no start") {
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

TEST_CASE("of one qube few are new at a time; they make room by ending, and by age") {
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
    // Another qube does not wait for them.
    submit(s, "dev", 1, started);
    static_cast<void>(s.run(now));
    CHECK(started.back() == "dev");
    // Those that go on running are new no more.
    now += limits::beginning_ms - 1;
    CHECK(s.run(now) == 1);
    CHECK(started.size() == 4);
    static_cast<void>(s.run(++now));
    CHECK(started.size() == 6);
    for (int i = 0; i < 9; ++i)
        static_cast<void>(s.run(now += limits::beginning_ms));
    CHECK(s.running("work") == limits::running_per_qube);
    // One that nobody wants was never new.
    REQUIRE(s.submit("other", 1, [] { return false; }));
    submit(s, "other", 2, started);
    static_cast<void>(s.run(now));
    CHECK(s.running("other") == 2);
}
