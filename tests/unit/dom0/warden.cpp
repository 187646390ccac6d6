// SPDX-License-Identifier: GPL-2.0-or-later
// Tests invariant I9: the warden starts what was asked for, and no process of it is left
// afterwards.
#include "execute/warden.hpp"

#include <csignal>
#include <map>

#include <sys/resource.h>

#include "warden_fixture.hpp"

using namespace qvmremote_test;

TEST_CASE("if a keeper is killed, the warden kills its orphans and no others") {
    const std::string with = mark(), other = mark();
    child bystander = start_stubborn(*the_warden, other);
    pipe_pair out;
    launch what = shell(std::string("(setsid bash -c \"trap '' TERM; echo up; sleep 1000\" &); ") +
                        "exec sleep 1000");
    what.environment.push_back(with);
    what.out = out.write.get();
    child c = start(what);
    const pid_t pid = next(c, child_event::started).pid;
    REQUIRE(read_line(out.read.get()) == "up");
    const pid_t keeper = state_of(pid).parent;
    REQUIRE(state_of(keeper).name == "qvm-remote-keep");
    REQUIRE(::kill(keeper, SIGKILL) == 0);
    (void)next(c, child_event::lost);
    CHECK_FALSE(c.next());
    CHECK(all_gone(with));
    CHECK(marked(other).size() >= 2);
    c.signal(SIGTERM);
    c.terminate();
    c.kill();
    CHECK(the_warden->alive());
}

TEST_CASE("if the daemon is killed, no process is left") {
    for (const bool whole_group : {false, true}) {
        CAPTURE(whole_group);
        const std::string with = mark();
        pipe_pair out;
        const pid_t daemon = ::fork();
        REQUIRE(daemon >= 0);
        if (daemon == 0) {
            ::dup2(out.write.get(), 1);
            ::execl("/proc/self/exe", "warden", "--daemon", with.c_str(), nullptr);
            ::_exit(127);
        }
        out.write.reset();
        const pid_t warden_pid = std::stoi(read_line(out.read.get()));
        CHECK(state_of(warden_pid).name == "qvm-remote-ward");
        CHECK(marked(with).size() >= 2);
        ::kill(whole_group ? -daemon : daemon, SIGKILL);
        ::waitpid(daemon, nullptr, 0);
        CHECK(all_gone(with));
        CHECK(soon([&] { return is_gone(warden_pid); }));
    }
}

TEST_CASE("if the warden is killed, the daemon notices, and commands go on and end as before") {
    auto own = warden::start();
    REQUIRE(own);
    CHECK(own->alive());
    const std::string with = mark();
    child c = start_stubborn(*own, with);
    REQUIRE(::kill(own->pid(), SIGKILL) == 0);
    pollfd p{own->descriptor(), POLLIN, 0};
    CHECK(::poll(&p, 1, static_cast<int>(std::chrono::milliseconds(hang_guard).count())) == 1);
    CHECK_FALSE(own->alive());
    const auto refused = own->launch(command({"true"}));
    REQUIRE_FALSE(refused);
    CHECK((refused.error().error_number == EPIPE || refused.error().error_number == ECONNRESET));
    CHECK(marked(with).size() >= 2);
    CHECK_FALSE(c.next());
    c.kill();
    (void)next(c, child_event::exited);
    (void)next(c, child_event::empty);
    CHECK(marked(with).empty());
}

TEST_CASE("the warden ends after its object is destroyed and its commands have ended") {
    const std::string with = mark();
    std::optional<pid_t> pid;
    {
        auto own = warden::start();
        REQUIRE(own);
        pid = own->pid();
        { const child c = start_stubborn(*own, with); }
        own->stop();
        CHECK(marked(with).empty());
    }
    CHECK(state_of(*pid).state == 'X');
}

TEST_CASE("the warden has no descriptor of the daemon, and a keeper none of the command") {
    // The warden has 0 to 2, its socket, and one socket for each keeper.
    const auto settled = [] {
        return descriptors_of(the_warden->pid()).size() == 4 + keepers_of(*the_warden).size();
    };
    CHECK(soon(settled));
    child first = start(command({"sleep", "1000"}));
    (void)next(first, child_event::started);
    pipe_pair extra;
    launch what = command({"sleep", "1000"});
    what.extra = {{extra.read.get(), 9}};
    what.environment.push_back("LONG=" + std::string(100 * 1024, 'x'));
    child second = start(what);
    const pid_t keeper = state_of(next(second, child_event::started).pid).parent;
    // A keeper has 0 to 2, the socket to the warden, and the command's control socket.
    CHECK(soon([&] { return descriptors_of(keeper).size() == 5; }));
    CHECK(soon(settled));
}

TEST_CASE("a warden that cannot make a keeper says so, and makes one when it can again") {
    auto own = warden::start();
    REQUIRE(own);
    const auto first_event = [&] {
        auto c = own->launch(command({"true"}));
        REQUIRE(c);
        return next(*c);
    };
    // The keeper that waited and comes back, and the keeper that was made meanwhile.
    {
        auto c = own->launch(command({"true"}));
        REQUIRE(c);
        while (next(*c).kind != child_event::empty) {
        }
    }
    REQUIRE(soon([&] { return keepers_of(*own).size() == 2; }));
    // Leave no room for a link to a keeper, which takes two descriptors, but for a control socket,
    // on which the warden answers.
    const rlim_t used = descriptors_of(own->pid()).size();
    rlimit old{};
    rlimit few{used + 1, used + 1};
    REQUIRE(::prlimit(own->pid(), RLIMIT_NOFILE, nullptr, &old) == 0);
    few.rlim_max = old.rlim_max;
    REQUIRE(::prlimit(own->pid(), RLIMIT_NOFILE, &few, nullptr) == 0);
    std::vector<child> busy;
    for (int i = 0; i < 2; ++i) {
        auto c = own->launch(command({"sleep", "1000"}));
        REQUIRE(c);
        CHECK(next(*c).kind == child_event::started);
        busy.push_back(std::move(*c));
    }
    for (int i = 0; i < 3; ++i) {
        const child_event e = first_event();
        CHECK(e.kind == child_event::failed);
        CHECK(e.error_number == EMFILE);
    }
    REQUIRE(::prlimit(own->pid(), RLIMIT_NOFILE, &old, nullptr) == 0);
    CHECK(first_event().kind == child_event::started);
}

TEST_CASE("at most two keepers wait") {
    auto own = warden::start();
    REQUIRE(own);
    {
        std::vector<child> many;
        for (int i = 0; i < 8; ++i) {
            auto c = own->launch(command({"sh", "-c", "read -r _ || true"}));
            REQUIRE(c);
            (void)next(*c, child_event::started);
            many.push_back(std::move(*c));
        }
        for (child &c : many)
            while (next(c).kind != child_event::empty) {
            }
    }
    CHECK(soon([&] { return keepers_of(*own).size() == 2; }));
}

TEST_CASE("a keeper that is killed while it waits is replaced") {
    auto own = warden::start();
    REQUIRE(own);
    const auto below = [&] { return processes_below(own->pid(), listing::children_files); };
    for (int i = 0; i < 3; ++i) {
        REQUIRE(soon([&] { return below().size() == 1; }));
        const pid_t waiting = below().front();
        REQUIRE(::kill(waiting, SIGKILL) == 0);
        CHECK(soon([&] { return below().size() == 1 && below().front() != waiting; }));
    }
    auto c = own->launch(command({"true"}));
    REQUIRE(c);
    (void)next(*c, child_event::started);
}

TEST_CASE("signals from a terminal or to the group do not end the warden") {
    for (const int n : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGUSR1, SIGTSTP, SIGCHLD})
        ::kill(the_warden->pid(), n);
    CHECK(run(command({"true"})).wait_status == 0);
    CHECK(the_warden->alive());
}

TEST_CASE("200 launches leak no descriptor and no process") {
    (void)run(command({"true"}));
    // Wait until the usual number of keepers waits.
    const auto quiet = [] {
        const std::size_t waiting = keepers_of(*the_warden).size();
        return waiting >= 1 && waiting <= 2 &&
               processes_below(the_warden->pid(), listing::children_files).size() == waiting &&
               descriptors_of(the_warden->pid()).size() == 4 + waiting;
    };
    REQUIRE(soon(quiet));
    const auto ours = descriptors_of(::getpid());
    std::vector<child> all;
    for (int i = 0; i < 200; ++i)
        all.push_back(start(command({i % 4 ? "true" : "qvm-remote-no-such-program"})));
    for (child &c : all)
        for (auto kind = next(c).kind; kind != child_event::empty && kind != child_event::failed;)
            kind = next(c).kind;
    all.clear();
    CHECK(soon(quiet));
    CHECK(descriptors_of(::getpid()) == ours);
}
