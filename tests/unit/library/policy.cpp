// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/policy.hpp>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "support/policies.hpp"

using namespace qvmremote;
using namespace qvmremote::test;

TEST_CASE("nothing is allowed by default") {
    CHECK_FALSE(ask(policy{}, shell("qvm-ls")).allowed());
    CHECK(ask(policy{}, shell("qvm-ls")).rule == "no rule matches");
    CHECK_FALSE(verdict{}.allowed());
    CHECK(name(verdict{}.what) == "deny");
    CHECK_FALSE(level_rules{}.allow(access_level::manage, std::vector<std::string>{"qvm-ls"}));
    CHECK_FALSE(
        ask(policy::parse({{"a", "work level:monitor allow\n"}}, {}).value(), shell("qvm-ls"))
            .allowed());
}

TEST_CASE("which qubes a rule is about") {
    struct row {
        const char *name, *rule, *qube, *tag; // null: unknown tags
        action want;
    };
    static constexpr row rows[] = {
        {"its name", "work level:full allow", "work", "", action::allow},
        {"another", "work level:full allow", "dev", "", action::deny},
        {"begins alike", "work level:full allow", "work2", "", action::deny},
        {"another case", "work level:full allow", "Work", "", action::deny},
        {"any", "@anyvm level:full allow", "dev", nullptr, action::allow},
        {"has the tag", "@tag:t level:full allow", "dev", "t", action::allow},
        {"has another tag", "@tag:t level:full allow", "dev", "tt", action::deny},
        {"tags unknown", "@tag:t level:full allow", "dev", nullptr, action::deny},
        {"with unknown tags, the first rule that could match by tag denies",
         "@tag:t level:full ask\ndev level:full allow", "dev", nullptr, action::deny},
        {"a rule whose request does not match does not deny",
         "@tag:t exec:ls deny\ndev level:full allow", "dev", nullptr, action::allow},
        {"a rule before it decides", "dev level:full allow\n@tag:t * deny", "dev", nullptr,
         action::allow},
    };
    for (const row &r : rows) {
        INFO(std::string(r.name));
        std::optional<std::vector<std::string>> tags;
        if (r.tag)
            tags = std::vector<std::string>{r.tag};
        CHECK(said(r.rule, shell("id; id"), from(r.qube, tags)) == r.want);
    }
}

TEST_CASE("the order is by file, then by line, and the verdict names the rule") {
    const auto rules =
        policy::parse({{"70-b.policy", "work level:full allow\n"},
                       {"30-a.policy", "# a\nwork exec:ls deny # no\nwork exec:id ask ttl=10m\n"}},
                      levels())
            .value();
    CHECK(ask(rules, exec({"ls"})).rule == "30-a.policy:2 work exec:ls deny");
    CHECK(ask(rules, exec({"id"})).rule == "30-a.policy:3 work exec:id ask ttl=600");
    CHECK(ask(rules, exec({"id"})).what == action::ask);
    CHECK(ask(rules, exec({"id"})).why == "needs approval");
    CHECK(ask(rules, exec({"ls", "-l"})).rule == "70-b.policy:1 work level:full allow");
}

TEST_CASE("how a request is matched") {
    struct row {
        const char *name, *rule;
        envelope what;
        action want;
        bool as_argv;
    };
    const std::string digest = to_hex(sha256(as_bytes("echo $HOME\n")));
    const std::string by_digest = "work script:sha256:" + digest + " allow";
    envelope followed = script(std::string(limits::inline_body + 1, '#'));
    const std::string of_followed = "work script:sha256:" + to_hex(followed.body_digest) + " allow";
    followed.body.clear(); // the body has not come yet
    envelope long_line = shell("qvm-ls " + std::string(limits::inline_body, 'x'));
    const row rows[] = {
        {"argv", "work exec:ls -l * allow", exec({"ls", "-l", "/a b"}), action::allow, true},
        {"line", "work exec:ls -l * allow", shell(" ls\t-l  /a \n"), action::allow, true},
        {"two lines", "work exec:ls -l * allow", shell("ls -l\n/a"), action::deny, false},
        {"a quote", "work exec:ls -l * allow", shell("ls -l '/a'"), action::deny, false},
        {"too many", "work exec:ls -l * allow", exec({"ls", "-l", "a", "b"}), action::deny, false},
        {"too few", "work exec:ls -l * allow", exec({"ls", "-l"}), action::deny, false},
        {"a dash", "work exec:ls -l * allow", exec({"ls", "-l", "-R"}), action::deny, false},
        {"empty", "work exec:ls -l * allow", exec({"ls", "-l", ""}), action::deny, false},
        {"control", "work exec:ls -l * allow", exec({"ls", "-l", "a\x1b"}), action::deny, false},
        {"rest", "work exec:ls ** allow", exec({"ls", "-l", ""}), action::allow, true},
        {"no rest", "work exec:ls ** allow", exec({"ls"}), action::allow, true},
        {"a path", "work exec:ls ** allow", exec({"/bin/ls"}), action::deny, false},
        {"a qube", "work exec:x {qube:dev-*} allow", exec({"x", "dev-1"}), action::allow, true},
        {"another", "work exec:x {qube:dev-*} allow", exec({"x", "adev-1"}), action::deny, false},
        {"no qube", "work exec:x {qube:dev-*} allow", exec({"x", "dev-*"}), action::deny, false},
        {"dom0", "work exec:x {qube:*} allow", exec({"x", "dom0"}), action::deny, false},
        {"Xen's dom0", "work exec:x {qube:*} allow", exec({"x", "Domain-0"}), action::deny, false},
        {"a number", "work exec:x {number} allow", exec({"x", "0123"}), action::allow, true},
        {"a sign", "work exec:x {number} allow", exec({"x", "-1"}), action::deny, false},
        {"no number", "work exec:x {number} allow", exec({"x", "1k"}), action::deny, false},
        {"empty number", "work exec:x {number} allow", exec({"x", ""}), action::deny, false},
        {"endless", "work exec:x {number} allow", exec({"x", std::string(19, '1')}), action::deny,
         false},
        {"a name", "work exec:x {name} allow", exec({"x", "a@b.c:d,e+f_g-h"}), action::allow, true},
        {"a path", "work exec:x {name} allow", exec({"x", "a/b"}), action::deny, false},
        {"an option", "work exec:x {name} allow", exec({"x", "--all"}), action::deny, false},
        {"a dot", "work exec:x {name} allow", exec({"x", "."}), action::deny, false},
        {"two words", "work exec:x {name} allow", exec({"x", "a b"}), action::deny, false},
        {"script", by_digest.c_str(), script("echo $HOME\n"), action::allow, false},
        {"its text", by_digest.c_str(), shell("echo $HOME\n"), action::deny, false},
        {"its words", by_digest.c_str(), exec({"echo $HOME\n"}), action::deny, false},
        {"a byte less", by_digest.c_str(), script("echo $HOME"), action::deny, false},
        {"arguments", by_digest.c_str(), script("echo $HOME\n", {"a"}), action::deny, false},
        {"by the header", of_followed.c_str(), followed, action::allow, false},
        {"long", "work exec:qvm-ls ** allow", long_line, action::deny, false},
        {"full, in a shell", "work level:full allow", shell("ls"), action::allow, false},
        {"full, as an argv", "work level:full allow", exec({"ls"}), action::allow, true},
        {"asked, in a shell", "work * ask", shell("ls; id"), action::ask, false},
        {"asked, as an argv", "work * ask", shell("ls"), action::ask, true},
        {"level", "work level:monitor allow", shell("qvm-ls --raw-list"), action::allow, true},
        {"a script is not an argv", "work level:monitor allow", script("qvm-ls"), action::deny,
         false},
        {"above", "work level:monitor allow", shell("qvm-start dev"), action::deny, false},
        {"holds below", "work level:manage allow", shell("qvm-ls"), action::allow, true},
        {"deny of a level", "work level:monitor deny\nwork level:full allow", shell("qvm-ls"),
         action::deny, false},
    };
    for (const row &r : rows) {
        INFO(std::string(r.name));
        const verdict v = ask(parsed(r.rule), r.what);
        CHECK(v.what == r.want);
        CHECK(!v.how.argv.empty() == r.as_argv);
    }
}

TEST_CASE("command lines that need no shell, and those that need one") {
    struct row {
        const char *text;
        std::size_t words; // 0: needs a shell
    };
    // clang-format off
    static constexpr row rows[] = {
        {"qvm-ls", 1}, {" a\tb \n", 2}, {"echo a=b /c", 3}, {"true", 1}, {"a %+:,./=-@", 2},
        {"", 0}, {" ", 0}, {"\n", 0}, {"a\n\n", 0}, {"a\nb", 0}, {"a\r", 0}, {"a;b", 0}, {"a&", 0},
        {"a|b", 0}, {"a>b", 0}, {"a<b", 0}, {"a $b", 0}, {"a `b`", 0}, {"a 'b'", 0}, {"a \"b\"", 0},
        {"a \\b", 0}, {"a (b)", 0}, {"a {b,c}", 0}, {"a *", 0}, {"a ?", 0}, {"a [b]", 0}, {"a ~", 0},
        {"a #b", 0}, {"! a", 0}, {"a !b", 0}, {"a ^b", 0}, {"X=1 a", 0}, {"/bin/a", 0}, {"./a", 0},
        {"cd x", 0}, {"eval a", 0}, {"exec a", 0}, {"if a", 0}, {"time a", 0}, {". a", 0}, {": a", 0},
        {"source a", 0}, {"command a", 0}, {"type a", 0}, {"kill 1", 2}, {"a \x01", 0},
        {"a \xc2\xa0" "b", 0}, {"a \xe2\x80\x8b", 0}, {"a\vb", 0}, {"a\fb", 0}, {"coproc a", 0},
    };
    // clang-format on
    for (const row &r : rows) {
        INFO(std::string(r.text));
        const auto words = simple_command(r.text);
        CHECK((words ? words->size() : 0) == r.words);
    }
    CHECK_FALSE(simple_command(std::string_view("a\0b", 3)));
    std::string most = "a";
    for (std::size_t i = 1; i < limits::arguments; ++i)
        most += " a";
    CHECK(simple_command(most).value().size() == limits::arguments);
    CHECK_FALSE(simple_command(most + " a"));
}

TEST_CASE("below full, nothing of the client's passes unless the rule says so") {
    envelope what = exec({"x"});
    what.stdin_live = true;
    what.timeout_s = 300;
    what.environment = {{"A", "1"}, {"LANG", "2"}, {"LD_PRELOAD", "x"}};
    const auto how = [&](const std::string &rule) {
        const verdict v = ask(parsed(rule), what);
        REQUIRE(v.what != action::deny);
        return v.how;
    };
    CHECK(how("work exec:x allow").input == stdin_mode::closed);
    CHECK(how("work exec:x allow").environment.empty());
    CHECK(how("work exec:x allow").timeout_s == 300);
    CHECK(how("work exec:x allow timeout=60").timeout_s == 60);
    CHECK(how("work exec:x allow timeout=10m").timeout_s == 300);
    CHECK(how("work exec:x allow stdin=live").input == stdin_mode::live);
    CHECK(how("work exec:x allow env=LANG").environment ==
          std::vector<std::pair<std::string, std::string>>{{"LANG", "2"}});
    CHECK(how("work exec:x ask").input == stdin_mode::collected);
    CHECK(how("work exec:x ask stdin=closed").input == stdin_mode::closed);
    CHECK(how("work level:full ask").input == stdin_mode::collected);
    const run_terms full = how("work level:full allow");
    CHECK(full.full);
    CHECK(full.input == stdin_mode::live);
    CHECK(full.environment == what.environment);
    CHECK(how("work level:full allow stdin=closed env=A").input == stdin_mode::closed);
    CHECK(how("work level:full allow stdin=closed env=A").environment.size() == 1);
    const run_terms all = how("work exec:x allow user=bot memory=1G pids=9 cpu=50% output=3K");
    CHECK(all.user == "bot");
    CHECK(all.memory == std::uint64_t{1} << 30);
    CHECK(all.pids == 9);
    CHECK(all.cpu == 50);
    CHECK(all.output == 3072);
    what.timeout_s = 0;
    CHECK(how("work exec:x allow").timeout_s == 0);
    CHECK(how("work exec:x allow timeout=60").timeout_s == 60);
    what.stdin_live = false;
    CHECK(how("work exec:x allow stdin=live").input == stdin_mode::closed);
    what.tty = true;
    CHECK(ask(parsed("work exec:x allow"), what).reason == errc::denied);
    CHECK(ask(parsed("work exec:x ask"), what).reason == errc::denied);
    CHECK(ask(parsed("work level:full allow tty=no"), what).reason == errc::denied);
    CHECK(ask(parsed("work level:full allow stdin=closed"), what).reason == errc::denied);
    CHECK(ask(parsed("work level:full ask"), what).reason == errc::denied);
    CHECK(how("work level:full allow").tty);
    what.stdin_live = true;
    CHECK(how("work exec:x allow tty=yes").input == stdin_mode::live);
    const verdict asked = ask(parsed("work exec:x ask tty=yes"), what);
    CHECK(asked.what == policy_action::ask);
    CHECK(asked.how.tty);
    CHECK(asked.how.input == stdin_mode::live); // nobody can see beforehand what will be typed
    CHECK_FALSE(asked.how.may_last);
    what.environment = {{"TERM", "xterm"}, {"COLORTERM", "a/b"}, {"LANG", "C"}};
    CHECK(how("work exec:x allow tty=yes").environment ==
          std::vector<std::pair<std::string, std::string>>{{"TERM", "xterm"}});
    what.environment.clear();
    what.stdin_live = false;
    what.tty = false;
    what.detach = true;
    CHECK(ask(parsed("work level:full allow"), what).what == policy_action::allow);
    // Nobody can see beforehand what a job will read.
    what.stdin_live = true;
    CHECK(ask(parsed("work exec:x ask"), what).what == policy_action::deny);
    CHECK(ask(parsed("work exec:x ask stdin=live"), what).what == policy_action::ask);
}

TEST_CASE("which variables pass") {
    struct row {
        const char *rule, *name, *value;
        bool want;
    };
    static constexpr row rows[] = {
        {"work exec:x allow env=LANG", "LANG", "de_DE.UTF-8", true},
        {"work exec:x allow env=LANGUAGE", "LANGUAGE", "de:en", true},
        {"work exec:x allow env=LC_ALL", "LC_ALL", "C", true},
        {"work exec:x allow env=TERM", "TERM", "xterm-256color", true},
        {"work exec:x allow env=TZ", "TZ", "Europe/Berlin", true},
        {"work exec:x allow env=LS_COLORS", "LS_COLORS", "di=01;34:*.tar=01;31", true},
        {"work exec:x allow env=COLUMNS", "COLUMNS", "80", true},
        {"work exec:x allow env=NO_COLOR", "NO_COLOR", "", true},
        {"work exec:x allow", "LANG", "C", false},
        {"work exec:x allow env=LANGUAGE", "LANG", "C", false},
        // with these values a library would read a file
        {"work exec:x allow env=LANGUAGE", "LANGUAGE", "../../tmp/x", false},
        {"work exec:x allow env=LANG", "LANG", "/tmp/x", false},
        {"work exec:x allow env=TERM", "TERM", "/tmp/x", false},
        {"work exec:x allow env=TZ", "TZ", "/etc/shadow", false},
        {"work exec:x allow env=TZ", "TZ", ":/etc/shadow", false},
        {"work exec:x allow env=TZ", "TZ", "Europe/../../x", false},
        {"work exec:x allow env=LANG", "LANG", "C\x1b[2J", false},
        // not on the list
        {"work exec:x allow env=LC_mine", "LC_mine", "C", false},
        {"work exec:x allow env=LC_", "LC_", "C", false},
        {"work exec:x allow env=A", "A", "1", false},
        {"work exec:x allow env=LD_PRELOAD", "LD_PRELOAD", "x", false},
        {"work exec:x allow env=DBUS_SYSTEM_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS",
         "unixexec:path=/bin/sh", false},
        {"work exec:x allow env=TERMINFO", "TERMINFO", "x", false},
        {"work exec:x allow env=LOCPATH", "LOCPATH", "x", false},
        {"work exec:x allow env=lang", "lang", "C", false},
        {"work level:manage allow env=PATH", "PATH", "x", false},
        {"work * ask env=LD_PRELOAD", "LD_PRELOAD", "x", false},
        // with env!=, or under full
        {"work exec:x allow env!=A", "A", "/x", true},
        {"work exec:x allow env!=LANG", "LANG", "/x", true},
        {"work * ask env!=LD_PRELOAD", "LD_PRELOAD", "x", true},
        {"work level:full allow env=LD_PRELOAD", "LD_PRELOAD", "x", true},
        {"work level:full allow", "LD_PRELOAD", "x", true},
        {"work level:full allow env=A", "LD_PRELOAD", "x", false},
    };
    for (const row &r : rows) {
        INFO(std::string(r.rule), " ", r.name, "=", r.value);
        envelope what =
            exec({std::string(r.rule).find("manage") != std::string::npos ? "qvm-ls" : "x"});
        what.environment = {{r.name, r.value}};
        const verdict v = ask(parsed(r.rule), what);
        REQUIRE(v.what != action::deny);
        CHECK(v.how.environment.size() == (r.want ? 1 : 0));
    }
}

TEST_CASE("narrower: what two policies allow together") {
    struct row {
        const char *one, *other;
        action want;
    };
    static constexpr row rows[] = {
        {"work exec:x allow", "work exec:x allow", action::allow},
        {"work exec:x allow", "work exec:x deny", action::deny},
        {"work exec:x allow", "", action::deny},
        {"work exec:x allow", "work exec:x ask", action::ask},
        {"work exec:x ask", "work level:full allow", action::ask},
        {"work exec:x ask", "work * deny", action::deny},
        {"work exec:x allow user=a", "work exec:x allow user=a", action::allow},
        {"work exec:x allow user=a", "work exec:x allow", action::allow},
        {"work exec:x allow user=a", "work exec:x allow user=b", action::deny},
    };
    envelope what = exec({"x"});
    for (const row &r : rows) {
        INFO(std::string(r.one), " | ", r.other);
        const verdict one = ask(parsed(r.one), what), other = ask(parsed(r.other), what);
        CHECK(narrower(one, other).what == r.want);
        CHECK(narrower(other, one).what == r.want);
    }
    what.stdin_live = true;
    what.timeout_s = 300;
    what.environment = {{"A", "1"}, {"LANG", "C"}};
    const verdict one = ask(parsed("work level:full allow memory=1G"), what);
    const verdict other =
        ask(parsed("work exec:x allow timeout=9 env=LANG user=u memory=2G pids=3"), what);
    for (const verdict &v : {narrower(one, other), narrower(other, one)}) {
        CHECK(v.allowed());
        CHECK_FALSE(v.how.full);
        CHECK(v.how.input == stdin_mode::closed);
        CHECK(v.how.timeout_s == 9);
        CHECK(v.how.user == "u");
        CHECK(v.how.memory == std::uint64_t{1} << 30);
        CHECK(v.how.pids == 3);
        CHECK(v.how.environment.size() == 1);
    }
    // A line that runs in bash under full runs without a shell if the other policy says so.
    const verdict line = narrower(ask(parsed("work level:full allow"), shell("x")),
                                  ask(parsed("work exec:x allow"), shell("x")));
    CHECK(line.how.argv == std::vector<std::string>{"x"});
    // A grant is valid only for the terms that the operator saw.
    grants given;
    what.arguments = {"ls"};
    const policy asks = parsed("work exec:ls ask"), narrow = parsed("work exec:ls ask timeout=5");
    what.stdin_live = false;
    given.add(from("work").name, request_digest(from("work"), what, ask(asks, what).how, {}), 9);
    const verdict granted = ask(asks, what, from("work"), given);
    REQUIRE(granted.granted);
    CHECK(narrower(granted, ask(asks, what, from("work"), given)).allowed());
    CHECK(narrower(granted, ask(narrow, what, from("work"), given)).what == action::ask);
    CHECK(narrower(granted, ask(parsed("work exec:ls allow timeout=5"), what)).what == action::ask);
}

TEST_CASE("the argument of a call only takes away") {
    struct row {
        const char *rule, *argument, *line;
        action want;
    };
    static constexpr row rows[] = {
        {"work level:full allow", "full", "id; id", action::allow},
        {"work level:full allow", "manage", "id; id", action::deny},
        {"work level:full allow", "manage", "qvm-start dev", action::allow},
        {"work level:full allow", "monitor", "qvm-start dev", action::deny},
        {"work level:full allow", "read-only", "qvm-ls", action::allow},
        {"work level:full allow", "deny", "qvm-ls", action::deny},
        {"work level:full allow", "Monitor", "qvm-ls", action::deny},
        {"work level:full ask", "monitor", "qvm-start dev", action::deny},
        {"work level:full ask", "monitor", "qvm-ls", action::ask},
        {"work level:monitor allow", "full", "qvm-start dev", action::deny},
        {"work level:monitor allow", "manage", "qvm-start dev", action::deny},
    };
    for (const row &r : rows) {
        INFO(std::string(r.rule), " +", r.argument, " ", r.line);
        const peer asking = from("work", std::nullopt, r.argument);
        const verdict v = ask(parsed(r.rule), shell(r.line), asking);
        CHECK(v.what == r.want);
        if (v.what != action::deny && std::string_view(r.argument) != "full") {
            CHECK_FALSE(v.how.argv.empty());
            CHECK_FALSE(v.how.full);
        }
    }
}

TEST_CASE("a grant is for one digest, one qube and a while") {
    const policy rules = parsed("work * ask\ndev * ask");
    const envelope what = exec({"qvm-start", "dev"});
    const verdict first = ask(rules, what);
    REQUIRE(first.what == action::ask);
    CHECK(first.how.may_last);
    const digest256 digest = request_digest(from("work"), what, first.how, {});
    grants given;
    given.add(from("work").name, digest, 1000);
    CHECK(ask(rules, what, from("work"), given, 999).allowed());
    CHECK(ask(rules, what, from("work"), given, 999).granted);
    CHECK(ask(rules, what, from("work"), given, 1000).what == action::ask);
    CHECK(ask(rules, what, from("dev"), given, 999).what == action::ask);
    CHECK(ask(rules, exec({"qvm-start", "dev2"}), from("work"), given, 0).what == action::ask);
    CHECK(ask(rules, exec({"qvm-start", "de", "v"}), from("work"), given, 0).what == action::ask);
    // A command line with the same words has another kind, so it is another request.
    CHECK(ask(rules, shell("qvm-start dev"), from("work"), given, 0).what == action::ask);
    CHECK(ask(parsed("work * deny"), what, from("work"), given, 0).what == action::deny);
    envelope other = what;
    other.timeout_s = 7;
    CHECK(ask(rules, other, from("work"), given, 0).what == action::ask);
    other = what;
    other.environment = {{"A", "1"}}; // this variable does not pass, so the request is the same
    CHECK(ask(rules, other, from("work"), given, 0).allowed());

    SUBCASE("collected input is part of the digest") {
        envelope with = what;
        with.stdin_live = true;
        const verdict asked = ask(rules, with);
        CHECK(asked.how.input == stdin_mode::collected);
        given.add(from("work").name, request_digest(from("work"), with, asked.how, "yes\n"), 1000);
        CHECK(ask(rules, with, from("work"), given, 0).what == action::ask);
        CHECK(ask(rules, with, from("work"), given, 0, "no\n").what == action::ask);
        CHECK(ask(rules, with, from("work"), given, 0, "yes\n").allowed());
    }
    SUBCASE("there is no grant for a program that interprets its arguments") {
        // clang-format off
        for (const auto &argv : std::vector<std::vector<std::string>>{
                 {"bash", "x"}, {"sh"}, {"python3"}, {"python3.11"}, {"perl"}, {"awk"}, {"env"}, {"xargs"},
                 {"find", "/", "-exec", "id"}, {"find", "/", "-okdir"}, {"sudo"}, {"ssh"},
                 {"systemd-run"}, {"qvm-run"}, {"/usr/bin/env"}, {"busybox"}, {"git"}, {"frobnicate"},
                 {"/tmp/ls"}, {"LS"}, {"systemctl"}, {"systemctl", "edit"}, {"systemctl", "-H", "x"},
                 {"systemctl", "status", "-Hx"}, {"systemctl", "status", "x", "--host=y"},
                 {"systemctl", "stop", "-M", "x"}, {"uniq", "x", "y"}, {"qvm-volume", "import", "x:root", "y"},
                 {"xl", "create", "x"}, {"find", "/", "-delete"}, {"sort", "--compress-program=x"}}) {
            // clang-format on
            INFO(argv[0]);
            CHECK(interprets(argv));
            const verdict v = ask(rules, exec(argv));
            CHECK_FALSE(v.how.may_last);
            given.add(from("work").name, request_digest(from("work"), exec(argv), v.how, {}), 1000);
            CHECK(ask(rules, exec(argv), from("work"), given, 0).what == action::ask);
        }
        for (const auto &argv :
             std::vector<std::vector<std::string>>{{"find", "/", "-name", "exec"},
                                                   {"ls", "/x"},
                                                   {"qvm-ls", "--raw-list"},
                                                   {"systemctl", "restart", "x"},
                                                   {"qvm-volume", "info", "x:root"},
                                                   {"xl", "list"}})
            CHECK_FALSE(interprets(argv));
        CHECK_FALSE(ask(rules, shell("ls; ls")).how.may_last);
        CHECK_FALSE(ask(rules, script("ls")).how.may_last);
    }
    SUBCASE("grants are removed") {
        given.revoke(from("dev").name);
        CHECK(given.size() == 1);
        given.forget_expired(999);
        CHECK(given.size() == 1);
        given.revoke(from("work").name);
        CHECK(given.empty());
    }
}

TEST_CASE("every part of a request changes its digest") {
    envelope what = exec({"x", "y"});
    run_terms how;
    how.argv = what.arguments;
    const auto of = [&](const char *qube = "work", std::optional<std::string_view> input = {}) {
        return request_digest(from(qube), what, how, input);
    };
    std::vector<digest256> seen{of(), of("dev"), of("work", ""), of("work", "a")};
    const auto change = [&](auto &field, auto value) {
        const auto before = std::exchange(field, value);
        seen.push_back(of());
        field = before;
    };
    change(how.timeout_s, 5u);
    change(how.tty, true);
    change(how.full, true);
    change(what.detach, true);
    change(how.input, stdin_mode::live);
    change(what.dry_run, true);
    for (auto *list : {&how.argv, &what.arguments}) {
        const auto before = *list;
        *list = {"xy"};
        seen.push_back(of());
        *list = before;
    }
    how.environment = {{"A", "1"}};
    seen.push_back(of());
    how.environment = {{"A1", ""}};
    seen.push_back(of());
    how.user = "u";
    seen.push_back(of());
    how.memory = 1;
    seen.push_back(of());
    how.output = 1;
    seen.push_back(of());
    how.pids = 1;
    seen.push_back(of());
    how.cpu = 1;
    seen.push_back(of());
    what.kind = request_kind::script;
    seen.push_back(of());
    what.set_body("x");
    seen.push_back(of());
    std::sort(seen.begin(), seen.end());
    CHECK(std::adjacent_find(seen.begin(), seen.end()) == seen.end());
}

TEST_CASE("a file of mistakes is read up to the hundredth") {
    std::string text;
    for (int i = 0; i < 1000; ++i)
        text += "\x01\n";
    const auto got = policy::parse({{"50.policy", text}}, level_rules());
    REQUIRE_FALSE(got);
    CHECK(got.error().size() == limits::policy_problems);
}

TEST_CASE("mistakes in a policy, each with its place") {
    struct row {
        const char *text;
        std::uint32_t line, column;
        const char *says;
    };
    static constexpr row rows[] = {
        {"work", 1, 5, "QUBE REQUEST ACTION"},
        {"work allow", 1, 11, "QUBE REQUEST ACTION"},
        {"work * allow", 1, 6, "level:full"},
        {"work level:full", 1, 16, "QUBE REQUEST ACTION"},
        {"\n\n  wo.rk * deny", 3, 5, "not a qube name"},
        {"dom0 * deny", 1, 1, "not a qube name"},
        {"@tag: * deny", 1, 6, "a tag is"},
        {"@tag:a/b * deny", 1, 6, "a tag is"},
        {"@anyVM * deny", 1, 1, "@anyvm"},
        {"@type:AppVM * deny", 1, 1, "@anyvm"},
        {"work all deny", 1, 6, "level:LEVEL"},
        {"work level: deny", 1, 12, "not a level"},
        {"work level:deny deny", 1, 12, "not a level"},
        {"work level:Full allow", 1, 12, "not a level"},
        {"work level:full all allow", 1, 17, "is not allow, ask or deny"},
        {"work exec: allow", 1, 11, "follows exec:"},
        {"work exec: ls allow", 1, 11, "follows exec:"},
        {"work exec:/bin/ls allow", 1, 11, "without its directory"},
        {"work exec:* allow", 1, 11, "is not a program's name"},
        {"work exec:A=1 allow", 1, 11, "is not a program's name"},
        {"work exec:-x allow", 1, 11, "is not a program's name"},
        {"work exec:ls ** -l allow", 1, 14, "must be the last word"},
        {"work exec:ls a* allow", 1, 15, "stands alone"},
        {"work exec:ls 'a' allow", 1, 14, "is not allowed in a word"},
        {"work exec:ls a\\ b allow", 1, 15, "is not allowed in a word"},
        {"work exec:ls $A allow", 1, 14, "is not allowed in a word"},
        {"work exec:ls {qube:} allow", 1, 20, "pattern for qubes"},
        {"work exec:ls {qube:a.b} allow", 1, 20, "pattern for qubes"},
        {"work exec:ls {vm:a} allow", 1, 14, "is not allowed in a word"},
        {"work script:sha256: allow", 1, 6, "64 digits"},
        {"work script:sha256:12 allow", 1, 6, "64 digits"},
        {"work script:sha256:1G allow", 1, 21, "64 digits"},
        {"work script:sha256:AB allow", 1, 20, "64 digits"},
        {"work script:md5:12 allow", 1, 6, "level:LEVEL"},
        {"work level:full permit", 1, 17, "is not allow, ask or deny, nor"},
        {"work level:full allow twice", 1, 23, "is not allow, ask or deny, nor"},
        {"work level:full allow colour=red", 1, 23, "is not an option"},
        {"work level:full allow =", 1, 23, "is not an option"},
        {"work level:full deny timeout=5", 1, 22, "takes no options"},
        {"work level:full allow ttl=5", 1, 23, "goes with ask"},
        {"work level:full allow stdin=collected", 1, 23, "goes with ask"},
        {"work level:full allow timeout=0", 1, 31, "timeout= takes"},
        {"work level:full allow timeout=-5", 1, 31, "timeout= takes"},
        {"work level:full allow timeout=5w", 1, 31, "timeout= takes"},
        {"work level:full allow timeout=367d", 1, 31, "timeout= takes"},
        {"work level:full allow timeout=", 1, 31, "timeout= takes"},
        {"work level:full allow timeout=m", 1, 31, "timeout= takes"},
        {"work level:full allow timeout=5 timeout=6", 1, 33, "twice"},
        {"work level:full allow memory=5X", 1, 30, "memory= takes"},
        {"work level:full allow memory=99999999G", 1, 30, "memory= takes"},
        {"work level:full allow cpu=50", 1, 27, "cpu= takes"},
        {"work level:full allow pids=0", 1, 28, "pids= takes"},
        {"work level:full allow tty=on", 1, 27, "tty= takes"},
        {"work level:full allow stdin=open", 1, 29, "stdin= takes"},
        {"work level:full allow user=", 1, 28, "user= takes"},
        {"work level:full allow user=a:b", 1, 28, "user= takes"},
        {"work level:full allow env=A,B", 1, 27, "env= takes"},
        {"work level:full allow env=A env=A", 1, 29, "twice"},
        {"work level:full allow env=A env!=A", 1, 29, "twice"},
        {"work level:full allow env!=", 1, 28, "env!= takes"},
        {"work level:full allow env!", 1, 23, "is not allow, ask or deny, nor"},
        {"work level:full allow\r\n", 1, 22, "newline alone"},
        {"w\xc3\xb6rk * deny", 1, 2, "not printable ASCII"},
        {"work\x01 * deny", 1, 5, "not printable ASCII"},
        {"# \x1b[31m", 1, 3, "in a comment"},
    };
    for (const row &r : rows) {
        INFO(std::string(r.text));
        const auto got = policy::parse({{"50.policy", r.text}}, levels());
        REQUIRE_FALSE(got);
        REQUIRE(got.error().size() == 1);
        const policy_problem &p = got.error()[0];
        INFO(p.text());
        CHECK(p.line == r.line);
        CHECK(p.column == r.column);
        CHECK(p.what.find(r.says) != std::string::npos);
    }
    const auto nul = policy::parse({{"a", std::string("work\0 * deny", 12)}}, levels());
    REQUIRE_FALSE(nul);
    CHECK(nul.error()[0].column == 5);
    CHECK_FALSE(policy::parse({{"a", std::string(limits::policy_file + 1, '\n')}}, levels()));
    CHECK_FALSE(policy::parse({{"a", "#" + std::string(limits::policy_line, 'x')}}, levels()));

    const auto many = policy::parse({{"b", "x\nwork * deny\ny\n"}, {"a", "z"}}, levels());
    REQUIRE_FALSE(many);
    REQUIRE(many.error().size() == 3);
    CHECK(many.error()[0].text().starts_with("a:1:2: "));
    CHECK(many.error()[2].text().starts_with("b:3:2: "));
}

TEST_CASE("a printed rule parses to the same rule") {
    for (const char *text :
         {"work level:monitor allow",
          "work level:full allow timeout=60 user=bot stdin=live tty=yes env=A env!=B",
          "@tag:agent exec:qvm-ls ** allow timeout=60", "@anyvm * deny",
          "work * ask ttl=600 stdin=collected",
          "work exec:x allow ask deny=1 * {qube:a-*} {number} {name} ** allow memory=512M pids=64 "
          "cpu=150% "
          "output=10K"}) {
        INFO(std::string(text));
        const policy rules = parsed(text);
        REQUIRE(rules.rules().size() == 1);
        CHECK(rules.rules()[0].text() == text);
    }
    CHECK(parsed("work level:read-only ask ttl=10m").rules()[0].text() ==
          "work level:monitor ask ttl=600");
    // Comments may hold UTF-8.
    CHECK(parsed("# \xc3\xb6\nwork\t* \tdeny # \xc3\xb6 * allow\n").rules().size() == 1);
}

TEST_CASE("entries whose text has not come yet") {
    CHECK_FALSE(could_allow(from("work"), policy{}).allowed());
    CHECK(could_allow(from("work"), parsed("work level:monitor allow")).what != action::deny);
    CHECK(could_allow(from("work"), parsed("work exec:x deny\nwork * ask")).what != action::deny);
    CHECK(could_allow(from("work"), parsed("work * deny\nwork level:full allow")).what ==
          action::deny);
    CHECK(could_allow(from("work"), parsed("@tag:a * deny\nwork level:full allow")).what !=
          action::deny);
    CHECK(could_allow(from("work", {}, "no"), parsed("work level:full allow")).what ==
          action::deny);
}
