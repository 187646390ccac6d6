// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/policy.hpp>

#include <doctest/doctest.h>

using namespace qvmremote;

TEST_CASE("until there are policy files: a qube with a key may do everything, any other nothing") {
    struct row {
        const char *name;
        const char *qube;
        bool tty, detach;
        bool allowed;
        errc reason;
    };
    static constexpr row rows[] = {
        {"registered", "work", false, false, true, errc::denied},
        {"not registered", "dev", false, false, false, errc::denied},
        {"a name that begins alike", "work2", false, false, false, errc::denied},
        {"another case", "Work", false, false, false, errc::denied},
        {"a terminal", "work", true, false, false, errc::unsupported},
        {"detached", "work", false, true, false, errc::unsupported},
    };
    policy rules;
    rules.full.insert("work");
    for (const row &r : rows) {
        INFO(std::string(r.name));
        const peer who{qube_name::parse(r.qube).value(), "mock", {}, std::nullopt};
        envelope what;
        what.kind = request_kind::shell;
        what.tty = r.tty;
        what.detach = r.detach;
        const verdict said = decide(who, what, rules, grants{}, 0);
        CHECK(said.allowed() == r.allowed);
        CHECK(!said.rule.empty());
        if (!r.allowed)
            CHECK(said.reason == r.reason);
    }
}

TEST_CASE("nothing is allowed by default") {
    const peer who{qube_name::parse("work").value(), "mock", {}, std::nullopt};
    CHECK_FALSE(decide(who, envelope{}, policy{}, grants{}, 0).allowed());
    CHECK_FALSE(verdict{}.allowed());
    CHECK(name(verdict{}.what) == "deny");
}
