// SPDX-License-Identifier: GPL-2.0-or-later
#include "decide/approvals.hpp"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include <qvmremote/bytes.hpp>
#include <qvmremote/sanitize.hpp>

using namespace qvmremote;
using namespace qvmremote::dom0;

namespace {

question of(const char *qube, std::uint8_t digest = 1, bool may_last = true) {
    question out{.from = {qube_name::parse(qube).value(), "mock", {}, std::nullopt},
                 .id = "id",
                 .kind = "exec",
                 .terms = {},
                 .untrusted_script = {},
                 .untrusted_arguments = {}};
    out.terms.argv = {"qvm-ls"};
    out.terms.may_last = may_last;
    out.digest.fill(digest);
    return out;
}

// The digest of a question, as an operator types it.
std::string shown(std::uint8_t digest = 1) { return to_hex(of("work", digest).digest); }

struct told {
    std::size_t times = 0;
    std::optional<approval> yes;
    errc no{};

    approvals::answer note() {
        return [this](tl::expected<approval, errc> answer) {
            ++times;
            answer ? void(yes = *answer) : void(no = answer.error());
        };
    }
};

} // namespace

TEST_CASE("a yes is reported once, with the digest that was shown and the operator") {
    approvals all(1000);
    told got;
    const auto serial = all.ask(of("work", 7), 100, got.note());
    REQUIRE(serial == 1001);
    REQUIRE(all.open().size() == 1);
    CHECK(all.open()[0]->serial == 1001);
    CHECK(all.find(1001));
    REQUIRE(all.allow(1001, shown(7), {}, "root", 200));
    CHECK(got.times == 1);
    REQUIRE(got.yes);
    CHECK(got.yes->serial == 1001);
    CHECK(got.yes->digest == of("work", 7).digest);
    CHECK(got.yes->who == "root");
    CHECK(all.open().empty());
    CHECK_FALSE(all.allow(1001, shown(7), {}, "root", 200)); // it was for one run
    CHECK(got.times == 1);
    CHECK_FALSE(all.granted().hold(of("work").from.name, of("work", 7).digest, 200));
}

TEST_CASE("a no, no answer in time, and a session that ended") {
    approvals all(0);
    told no, silence, gone;
    CHECK(all.due_ms() == UINT64_MAX);
    const auto a = all.ask(of("work"), 100, no.note());
    const auto b = all.ask(of("work"), 200, silence.note());
    const auto c = all.ask(of("work"), 300, gone.note());
    REQUIRE(a);
    REQUIRE(all.deny(*a));
    CHECK(no.no == errc::approval_denied);
    CHECK_FALSE(all.deny(*a));
    all.withdraw(*c);
    CHECK(gone.times == 0);
    CHECK(all.due_ms() == 200 + approvals::patience_ms);
    all.expire(200 + approvals::patience_ms - 1);
    CHECK(silence.times == 0);
    // A yes that comes too late does not count.
    CHECK_FALSE(all.allow(*b, shown(), {}, "root", 200 + approvals::patience_ms));
    all.expire(200 + approvals::patience_ms);
    CHECK(silence.times == 1);
    CHECK(silence.no == errc::approval_timeout);
    CHECK(all.open().empty());
}

TEST_CASE("one qube cannot ask without end, and leaves room for others") {
    approvals all(0);
    told got;
    for (std::size_t i = 0; i < approvals::most_of_a_qube; ++i)
        CHECK(all.ask(of("work"), 0, got.note()));
    CHECK_FALSE(all.ask(of("work"), 0, got.note()));
    CHECK(all.ask(of("dev"), 0, got.note()));
    for (std::size_t i = 0; i < approvals::most_in_all; ++i)
        static_cast<void>(all.ask(of(("q" + std::to_string(i)).c_str()), 0, got.note()));
    CHECK(all.open().size() == approvals::most_in_all);
    CHECK_FALSE(all.ask(of("last"), 0, got.note()));
}

TEST_CASE(
    "a grant lasts as long as the operator said, for this request, and never for an interpreter") {
    approvals all(0);
    told got;
    const qube_name work = of("work").from.name;
    auto serial = all.ask(of("work", 7), 0, got.note());
    CHECK_FALSE(all.allow(*serial, shown(7), approvals::longest_grant_s + 1, "root", 0));
    CHECK(got.times == 0); // the question still waits
    REQUIRE(all.allow(*serial, shown(7), 60, "root", 0));
    CHECK(all.granted().hold(work, of("work", 7).digest, 59'999));
    CHECK_FALSE(all.granted().hold(work, of("work", 7).digest, 60'000));
    CHECK_FALSE(all.granted().hold(work, of("work", 8).digest, 0));
    CHECK_FALSE(all.granted().hold(of("dev").from.name, of("work", 7).digest, 0));

    question limited = of("work", 9);
    limited.terms.ttl_s = 600;
    serial = all.ask(limited, 0, got.note());
    CHECK_FALSE(all.allow(*serial, shown(9), 601, "root", 0));
    REQUIRE(all.allow(*serial, shown(9), 600, "root", 0));

    serial = all.ask(of("work", 10, false), 0, got.note());
    CHECK_FALSE(all.allow(*serial, shown(10), 60, "root", 0));
    REQUIRE(all.allow(*serial, shown(10), {}, "root", 0));
}

TEST_CASE("a removed key and panic remove questions and grants") {
    approvals all(0);
    told work, dev;
    const qube_name name = of("work").from.name;
    REQUIRE(all.allow(*all.ask(of("work", 7), 0, work.note()), shown(7), 60, "root", 0));
    REQUIRE(all.allow(*all.ask(of("dev", 7), 0, dev.note()), shown(7), 60, "root", 0));
    REQUIRE(all.ask(of("work"), 0, work.note()));
    REQUIRE(all.ask(of("dev"), 0, dev.note()));
    all.withdraw_all(&name, errc::key_revoked);
    CHECK(work.no == errc::key_revoked);
    CHECK_FALSE(all.granted().hold(name, of("work", 7).digest, 0));
    CHECK(all.granted().hold(of("dev").from.name, of("work", 7).digest, 0));
    CHECK(all.open().size() == 1);
    all.withdraw_all(nullptr, errc::denied);
    CHECK(dev.no == errc::denied);
    CHECK(all.open().empty());
    CHECK(all.granted().empty());
}

TEST_CASE("a yes must name the digest that the operator has read") {
    approvals all(0);
    told got;
    const auto serial = all.ask(of("work", 7), 0, got.note());
    const std::string digest = shown(7);
    for (const std::string &other :
         {std::string(), std::string("-"), shown(8), digest.substr(1), digest + "0", "0" + digest})
        CHECK_FALSE(all.allow(*serial, other, {}, "root", 0));
    CHECK(got.times == 0);
    CHECK(all.allow(*serial, digest, {}, "root", 0));
}

TEST_CASE("I6: front-ends receive one line of JSON, whatever the qube sent") {
    question hostile = of("work");
    hostile.terms.argv.clear();
    hostile.untrusted_script = std::string("a\n\x1b[2J\xff\"\\\0b", 11) + std::string(100'000, 'x');
    hostile.untrusted_arguments = {"#!/bin/sh\nexit 0\n", "", std::string(5000, '\n')};
    hostile.untrusted_stdin = std::string(5000, '\xff');
    hostile.terms.environment = {{"LANG", "\x1b]0;title\x07"}};
    hostile.terms.memory = 1024;
    approvals all(0);
    told got;
    const auto serial = all.ask(hostile, 0, got.note());
    for (const extent much : {extent::beginning, extent::whole}) {
        const std::string line = to_json(*all.find(*serial), 10'000, much);
        for (const char c : line)
            CHECK((c >= 0x20 && c < 0x7f));
        const auto read = nlohmann::json::parse(line);
        CHECK(read["serial"] == *serial);
        CHECK(read["qube"] == "work");
        CHECK(read["left_ms"] == approvals::patience_ms - 10'000);
        CHECK(read["script_bytes"] == hostile.untrusted_script.size());
        CHECK(read["arguments_count"] == 3);
        CHECK(read["stdin_bytes"] == 5000);
        CHECK(read["limits"]["memory"] == 1024);
        CHECK(read["digest"].get<std::string>().size() == 64);
        CHECK(read["complete"] == (much == extent::whole));
        if (much == extent::beginning) {
            CHECK(line.size() < 16 * 1024); // 64 of them fit into an answer
            continue;
        }
        const auto bytes = [](const nlohmann::json &text) {
            return from_terminal(text.get<std::string>()).value();
        };
        CHECK(bytes(read["script"]) == hostile.untrusted_script);
        CHECK(bytes(read["stdin_text"]) == hostile.untrusted_stdin);
        for (std::size_t i = 0; i < 3; ++i)
            CHECK(bytes(read["arguments"].at(i)) == hostile.untrusted_arguments[i]);
        CHECK(bytes(read["environment"].at(0)) == "LANG=\x1b]0;title\x07");
    }
}

TEST_CASE("many short words cannot make a list long, and the list says what it leaves out") {
    question many = of("work");
    many.terms.argv.assign(60'000, "");
    approvals all(0);
    told got;
    const auto serial = all.ask(many, 0, got.note());
    const std::string line = to_json(*all.find(*serial), 0, extent::beginning);
    CHECK(line.size() < 16 * 1024);
    const auto read = nlohmann::json::parse(line);
    CHECK(read["argv_count"] == 60'000);
    CHECK(read["argv"].size() < 60'000);
    CHECK(read["complete"] == false);
    CHECK(nlohmann::json::parse(to_json(*all.find(*serial), 0, extent::whole))["argv"].size() ==
          60'000);
}
