// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/process_tree.hpp"

#include <csignal>

#include "warden_fixture.hpp"

using namespace qvmremote_test;

TEST_CASE("all processes of a fork bomb end") {
    const std::string with = mark();
    for (int i = 0; i < 5; ++i) {
        pipe_pair out;
        launch what = command({own_path(), "--bomb"});
        what.environment.push_back(with);
        what.out = out.write.get();
        child c = start(what);
        (void)next(c, child_event::started);
        REQUIRE(read_line(out.read.get()) == "up");
        CHECK(soon([&] { return marked(with).size() > 100; }));
        c.kill();
        while (next(c).kind != child_event::empty) {
        }
        CHECK(marked(with).empty());
    }
}

TEST_CASE("both ways to list a tree give the same processes") {
    const std::string with = mark();
    const child c = start_stubborn(*the_warden, with);
    const auto all = [&](listing how) {
        const auto found = processes_below(the_warden->pid(), how);
        return std::set<pid_t>(found.begin(), found.end());
    };
    CHECK(soon([&] {
        const auto one = all(listing::children_files);
        const auto other = all(listing::whole_proc);
        const auto want = marked(with);
        return one == other && want.size() >= 2 &&
               std::includes(one.begin(), one.end(), want.begin(), want.end());
    }));
}
