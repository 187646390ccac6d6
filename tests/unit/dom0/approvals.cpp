// SPDX-License-Identifier: GPL-2.0-or-later
#include "decide/approvals.hpp"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

using namespace qvmremote;
using namespace qvmremote::dom0;

namespace {

question of(const char *qube, std::uint8_t digest = 1, bool may_last = true) {
    question out{.from = {qube_name::parse(qube).value(), "mock", {}, std::nullopt},
                 .id = "id",
                 .kind = "exec",
                 .untrusted_text = "qvm-ls",
                 .how = {},
                 .input_size = {},
                 .digest = {}};
    out.how.argv = {"qvm-ls"};
    out.how.may_last = may_last;
    out.digest.fill(digest);
    return out;
}

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

TEST_CASE("a yes is told once, with what was shown and who said it") {
    approvals all(1000);
    told got;
    const auto serial = all.ask(of("work", 7), 100, got.note());
    REQUIRE(serial == 1001);
    REQUIRE(all.open().size() == 1);
    CHECK(all.open()[0]->serial == 1001);
    CHECK(all.find(1001));
    REQUIRE(all.allow(1001, {}, "root", 200));
    CHECK(got.times == 1);
    REQUIRE(got.yes);
    CHECK(got.yes->serial == 1001);
    CHECK(got.yes->digest == of("work", 7).digest);
    CHECK(got.yes->who == "root");
    CHECK(all.open().empty());
    CHECK_FALSE(all.allow(1001, {}, "root", 200)); // it was for once
    CHECK(got.times == 1);
    CHECK_FALSE(all.granted().hold(of("work").from.name, of("work", 7).digest, 200));
}

TEST_CASE("no, silence, and a session that went") {
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
    // A yes that comes late is none.
    CHECK_FALSE(all.allow(*b, {}, "root", 200 + approvals::patience_ms));
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

TEST_CASE("a grant lasts as long as was said, for this request, and never for an interpreter") {
    approvals all(0);
    told got;
    const qube_name work = of("work").from.name;
    auto serial = all.ask(of("work", 7), 0, got.note());
    CHECK_FALSE(all.allow(*serial, approvals::longest_grant_s + 1, "root", 0));
    CHECK(got.times == 0); // it still waits
    REQUIRE(all.allow(*serial, 60, "root", 0));
    CHECK(all.granted().hold(work, of("work", 7).digest, 59'999));
    CHECK_FALSE(all.granted().hold(work, of("work", 7).digest, 60'000));
    CHECK_FALSE(all.granted().hold(work, of("work", 8).digest, 0));
    CHECK_FALSE(all.granted().hold(of("dev").from.name, of("work", 7).digest, 0));

    question limited = of("work", 9);
    limited.how.ttl_s = 600;
    serial = all.ask(limited, 0, got.note());
    CHECK_FALSE(all.allow(*serial, 601, "root", 0));
    REQUIRE(all.allow(*serial, 600, "root", 0));

    serial = all.ask(of("work", 10, false), 0, got.note());
    CHECK_FALSE(all.allow(*serial, 60, "root", 0));
    REQUIRE(all.allow(*serial, {}, "root", 0));
}

TEST_CASE("a key that goes, and panic, take questions and grants away") {
    approvals all(0);
    told work, dev;
    const qube_name name = of("work").from.name;
    REQUIRE(all.allow(*all.ask(of("work", 7), 0, work.note()), 60, "root", 0));
    REQUIRE(all.allow(*all.ask(of("dev", 7), 0, dev.note()), 60, "root", 0));
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

TEST_CASE("I6: what front-ends are given is one line of JSON, whatever the qube sent") {
    question hostile = of("work");
    hostile.untrusted_text = std::string("a\n\x1b[2J\xff\"\\\0b", 11) + std::string(100'000, 'x');
    hostile.how.environment = {{"LANG", "\x1b]0;title\x07"}};
    approvals all(0);
    told got;
    const auto serial = all.ask(hostile, 0, got.note());
    const std::string line = to_json(*all.find(*serial), 10'000);
    for (const char c : line)
        CHECK((c >= 0x20 && c < 0x7f));
    const auto read = nlohmann::json::parse(line);
    CHECK(read["serial"] == *serial);
    CHECK(read["qube"] == "work");
    CHECK(read["left_ms"] == approvals::patience_ms - 10'000);
    CHECK(read["bytes"] == hostile.untrusted_text.size());
    CHECK(read["text"].get<std::string>().size() < 20'000);
    CHECK(read["digest"].get<std::string>().size() == 64);
}
