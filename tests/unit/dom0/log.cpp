// SPDX-License-Identifier: GPL-2.0-or-later
#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include <unistd.h>

#include "support/scratch.hpp"

#include "base/line_gate.hpp"
#include "base/log.hpp"

using namespace qvmremote;
using namespace qvmremote::dom0;
using namespace qvmremote_test;

namespace {
std::size_t lines_with(const std::string &text, std::string_view what) {
    std::size_t n = 0;
    for (std::size_t at = 0; (at = text.find(what, at)) != text.npos; at += what.size())
        ++n;
    return n;
}
} // namespace

TEST_CASE("line_gate: lets through 100 lines at once and 10 a second, and counts the others each "
          "minute") {
    line_gate g(100, 10);
    CHECK_FALSE(g.due_ms());
    int written = 0;
    for (int i = 0; i < 1000; ++i)
        written += g.take("work", "denied", true, 1'000'000);
    CHECK(written == 100);
    CHECK(g.take("dev", "denied", true, 1'000'000)); // another qube has its own budget
    CHECK(g.take("work", "bad_token", true, 1'000'100));
    CHECK_FALSE(g.take("work", "bad_token", true, 1'000'100));
    REQUIRE(g.due_ms());
    auto sum = g.next_sum(1'000'100, false);
    REQUIRE(sum);
    CHECK(sum->first == "work");
    CHECK(sum->second.count == 901);
    CHECK(sum->second.reason == "bad_token");
    CHECK_FALSE(g.next_sum(1'000'100, false));
    CHECK_FALSE(g.due_ms());
    CHECK_FALSE(g.take("work", "busy", true, 1'000'100));
    CHECK(g.due_ms() == 1'060'100);
    CHECK_FALSE(g.next_sum(1'060'099, false));
    CHECK(g.next_sum(1'060'100, false)->second.count == 1);
    CHECK_FALSE(g.take("work", "busy", false, 2'000'000)); // no line without room
    CHECK(g.next_sum(2'000'000, true));
}

TEST_CASE("line_gate: peers beyond the limit share one account, and memory stays bounded") {
    line_gate g(2, 1);
    for (int n = 0; n < 100'000; ++n)
        static_cast<void>(g.take("qube" + std::to_string(n), "denied", true, 1'000'000));
    CHECK(g.accounts() == line_gate::most_peers + 1);
    CHECK_FALSE(g.take("late", "denied", true, 1'000'000));
    CHECK(g.take("qube0", "denied", true, 1'000'000)); // it has its own account
    CHECK(g.take("late", "denied", true, 1'010'000));  // unused accounts are dropped
    CHECK(g.accounts() <= 3);
}

TEST_CASE("event_log: a peer that fails without end does not take the lines of others") {
    const scratch dir;
    const std::string path = dir / "log";
    auto log = event_log::open(path, false);
    REQUIRE(log);
    int told = 0;
    log->when_counting([&] { ++told; });
    for (int n = 0; n < 5000; ++n)
        log->write_for("bad", log_category::auth_fail, "vm=bad id=?");
    log->write_for("good", log_category::auth_fail, "vm=good id=?");
    CHECK(told == 1);
    CHECK_FALSE(log->write_counts(true));
    const std::string text = text_of(path);
    CHECK(lines_with(text, "vm=bad id=?") >= event_log::lines_burst);
    CHECK(lines_with(text, "vm=bad id=?") < event_log::lines_burst + 100); // some seconds at most
    CHECK(lines_with(text, "vm=good id=?") == 1);
    CHECK(lines_with(text, " more lines about refusals and failures were left out") == 1);
}
