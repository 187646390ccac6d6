// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/keeper.hpp"

#include <csignal>

#include "warden_fixture.hpp"

using namespace qvmremote_test;

TEST_CASE("how a command ends") {
    struct row {
        const char *name;
        std::vector<std::string> argv;
        int wait_status;
    };
    const row rows[] = {
        {"0", {"true"}, 0},
        {"1", {"false"}, 1 << 8},
        {"255", {"bash", "-c", "exit 255"}, 255 << 8},
        {"exit 9 is not a signal", {"bash", "-c", "exit 9"}, 9 << 8},
        {"signal 9", {"bash", "-c", "kill -9 $$"}, 9},
        {"signal 15", {"bash", "-c", "kill $$"}, 15},
        {"by its path", {"/usr/bin/true"}, 0},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        CHECK(run(command(r.argv)).wait_status == r.wait_status);
    }
}

TEST_CASE("a signal goes to the process group") {
    const std::string with = mark();
    pipe_pair out;
    launch what = shell("trap : USR2; (trap 'echo inner; exit 0' USR2; echo up; "
                        "while :; do sleep 0.05; done) & wait; wait; echo outer; exit 7");
    what.environment.push_back(with);
    what.out = out.write.get();
    child c = start(what);
    out.write.reset();
    (void)next(c, child_event::started);
    REQUIRE(read_line(out.read.get()) == "up");
    c.signal(SIGUSR2);
    CHECK(read_to_end(out.read.get()) == "inner\nouter\n");
    CHECK(WEXITSTATUS(next(c, child_event::exited).wait_status) == 7);
    (void)next(c, child_event::empty);
    CHECK(marked(with).empty());
}

TEST_CASE("a signal after the end of the first process goes to the remaining ones") {
    const std::string with = mark();
    pipe_pair out;
    launch what = shell("setsid bash -c 'trap \"echo got; exit 0\" USR1; echo up; "
                        "while :; do sleep 0.05; done' & exec true");
    what.environment.push_back(with);
    what.out = out.write.get();
    child c = start(what);
    out.write.reset();
    (void)next(c, child_event::started);
    REQUIRE(read_line(out.read.get()) == "up");
    CHECK_FALSE(next(c, child_event::exited).tree_empty);
    c.signal(SIGUSR1);
    CHECK(read_line(out.read.get()) == "got");
    (void)next(c, child_event::empty);
    CHECK(all_gone(with));
}

TEST_CASE("a child in the background is reported and then ended") {
    const std::string with = mark();
    launch what = shell("sleep 1000 >/dev/null 2>&1 </dev/null & exit 5");
    what.environment.push_back(with);
    pipe_pair out;
    what.out = out.write.get();
    child c = start(what);
    out.write.reset();
    CHECK(read_to_end(out.read.get()).empty()); // no process of ours has it open
    (void)next(c, child_event::started);
    const auto e = next(c, child_event::exited);
    CHECK(WEXITSTATUS(e.wait_status) == 5);
    CHECK_FALSE(e.tree_empty);
    CHECK_FALSE(c.next());
    CHECK(soon([&] { return marked(with).size() == 1; }));
    c.terminate();
    (void)next(c, child_event::empty);
    CHECK(marked(with).empty());
}

TEST_CASE("terminate: a process that handles SIGTERM ends by itself, even if it was stopped") {
    pipe_pair out;
    launch what =
        shell("trap 'echo bye; exit 4' TERM; echo up; kill -STOP $$; while :; do sleep 0.05; done");
    what.out = out.write.get();
    child c = start(what);
    (void)next(c, child_event::started);
    REQUIRE(read_line(out.read.get()) == "up");
    c.terminate();
    c.terminate();
    CHECK(read_line(out.read.get()) == "bye");
    CHECK(WEXITSTATUS(next(c, child_event::exited).wait_status) == 4);
    (void)next(c, child_event::empty);
}

TEST_CASE("a process that ignores SIGTERM in its own session is killed") {
    struct row {
        const char *name;
        std::function<void(std::optional<child> &)> end;
        bool reported;
    };
    const row rows[] = {
        {"terminate", [](auto &c) { c->terminate(); }, true},
        {"kill", [](auto &c) { c->kill(); }, true},
        {"terminate, then kill", [](auto &c) { c->terminate(), c->kill(); }, true},
        {"destroy the object", [](auto &c) { c.reset(); }, false},
        {"terminate, then destroy the object", [](auto &c) { c->terminate(), c.reset(); }, false},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        const std::string with = mark();
        std::optional<child> c(start_stubborn(*the_warden, with));
        r.end(c);
        if (r.reported) {
            CHECK(next(*c, child_event::exited).wait_status == SIGKILL);
            (void)next(*c, child_event::empty);
            CHECK(marked(with).empty()); // at once, since the end was reported
        } else {
            CHECK(all_gone(with));
        }
    }
}

TEST_CASE("a command ends too if its object is destroyed before it began") {
    const std::string with = mark();
    launch what = shell(stubborn);
    what.environment.push_back(with);
    for (int i = 0; i < 20; ++i)
        (void)start(what);
    (void)run(command({"true"})); // the warden handles launches in order
    CHECK(all_gone(with));
}

TEST_CASE("orders that cross the end of a command do no harm and lose no event") {
    for (int i = 0; i < 100; ++i) {
        child c = start(command({"true"}));
        // Some arrive before the command, and some after its keeper has looked for the last time.
        for (int n = 0; n < i; ++n)
            c.signal(SIGCONT);
        (void)next(c, child_event::started);
        c.signal(SIGCONT);
        CHECK(next(c, child_event::exited).wait_status == 0);
        c.terminate();
        (void)next(c, child_event::empty);
    }
}

TEST_CASE("a keeper is used again only after a command that ended by itself") {
    auto own = warden::start();
    REQUIRE(own);
    const auto keeper_of = [&](launch what, bool kill) {
        auto c = own->launch(what);
        REQUIRE(c);
        const pid_t pid = state_of(next(*c, child_event::started).pid).parent;
        if (kill)
            c->kill();
        while (next(*c).kind != child_event::empty) {
        }
        return pid;
    };
    std::set<pid_t> seen;
    CHECK(soon([&] { return !seen.insert(keeper_of(command({"true"}), false)).second; }));
    const pid_t killed = keeper_of(command({"sleep", "1000"}), true);
    CHECK(soon([&] { return !keepers_of(*own).contains(killed); }));
}
