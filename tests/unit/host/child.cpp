// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/host/child.hpp>

#include <cerrno>
#include <csignal>
#include <string>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include <qvmremote/host/files.hpp>

#include "support/scratch.hpp"

using namespace qvmremote::host;
using namespace qvmremote_test;

namespace {

constexpr int hang_guard_ms = 60'000;

// A shell with this script.
child_plan shell(std::string script, child_group group = child_group::session) {
    child_plan out;
    out.argv = {"/bin/sh", "-c", std::move(script)};
    out.group = group;
    return out;
}

bool has_ended(const child &process) {
    pollfd wait{process.descriptor(), POLLIN, 0};
    return ::poll(&wait, 1, hang_guard_ms) == 1;
}

struct pipe_ends {
    unique_fd read, write;
    pipe_ends() {
        int ends[2];
        REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
        read.reset(ends[0]);
        write.reset(ends[1]);
    }
};

// What the program prints until every process that has its output open has ended.
std::string output_of(child_plan plan) {
    pipe_ends pipe;
    plan.out = pipe.write.get();
    auto process = child::start(plan);
    REQUIRE_MESSAGE(process, process.error().what);
    pipe.write.reset();
    auto out = read_all(pipe.read.get(), 1 << 16).value();
    process->wait();
    return out;
}

} // namespace

TEST_CASE("child: both ways of waiting return how it ended, and only once") {
    struct row {
        const char *name;
        const char *script;
        bool by_signal;
        int number;
    };
    const row rows[] = {
        {"success", "exit 0", false, 0},
        {"a failure", "exit 3", false, 3},
        {"the largest exit code", "exit 255", false, 255},
        {"SIGTERM", "kill -TERM $$", true, SIGTERM},
        {"SIGKILL", "kill -KILL $$", true, SIGKILL},
    };
    for (const row &r : rows)
        for (const child_group group : {child_group::ours, child_group::own, child_group::session})
            for (const bool blocks : {true, false}) {
                CAPTURE(r.name);
                CAPTURE(static_cast<int>(group));
                auto process = child::start(shell(r.script, group));
                REQUIRE(process);
                if (!blocks)
                    REQUIRE(has_ended(*process));
                const auto end = blocks ? process->wait() : process->take_end();
                REQUIRE(end);
                CHECK(end->by_signal == r.by_signal);
                CHECK(end->number == r.number);
                CHECK_FALSE(process->take_end());
                CHECK_FALSE(process->wait());
                process->signal(SIGKILL); // reaches nobody
                CHECK(::waitpid(-1, nullptr, WNOHANG) == -1);
            }
}

TEST_CASE("child: a failure to start says why") {
    const scratch dir;
    struct row {
        const char *name;
        std::vector<std::string> argv;
        int want;
    };
    const row rows[] = {
        {"no program", {}, EINVAL},
        {"no such path", {dir / "none"}, ENOENT},
        {"no such name in PATH", {"qvm-remote-no-such-program"}, ENOENT},
        {"an empty name", {""}, ENOENT},
        {"a file that may not be run", {put(dir / "plain", "x", 0644)}, EACCES},
        {"a directory", {dir.path()}, EACCES},
        {"a file that is not a program", {put(dir / "junk", "x", 0755)}, ENOEXEC},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        child_plan plan;
        plan.argv = r.argv;
        const auto made = child::start(plan);
        REQUIRE_FALSE(made);
        CHECK(made.error().error_number == r.want);
    }
    CHECK(child::start(shell("exit 0")).value().wait());
    child_plan elsewhere = shell("exit 0");
    elsewhere.directory = dir / "none";
    CHECK(child::start(elsewhere).error().error_number == ENOENT);
    CHECK(child::start(elsewhere).error().what ==
          "cannot start /bin/sh: No such file or directory");
    CHECK(::waitpid(-1, nullptr, WNOHANG) == -1); // none of them has left a process
}

TEST_CASE("child: argv, directory and environment arrive unchanged") {
    const scratch dir;
    child_plan plan;
    plan.argv = {"printf", "[%s]", "a b", "", "*", "$HOME", "\n", "\xff"};
    CHECK(output_of(plan) == "[a b][][*][$HOME][\n][\xff]");

    CHECK(output_of(shell("pwd -P")) == output_of(shell("readlink /proc/$PPID/cwd")));
    plan = shell("pwd -P");
    plan.directory = dir.path();
    CHECK(output_of(plan) == dir.path() + "\n");

    ::setenv("QVMREMOTE_TEST_MARK", "ours", 1);
    CHECK(output_of(shell("echo $QVMREMOTE_TEST_MARK")) == "ours\n");
    plan = shell("echo $QVMREMOTE_TEST_MARK $OTHER; exec env");
    plan.environment = {"OTHER=given"};
    CHECK(contains(output_of(plan), "given\n"));
    CHECK_FALSE(contains(output_of(plan), "MARK"));
    plan.environment.emplace();
    CHECK_FALSE(contains(output_of(plan), "given"));
}

TEST_CASE("child: it has the three descriptors and clean signals, whatever we have") {
    sigset_t some, old;
    ::sigemptyset(&some);
    ::sigaddset(&some, SIGTERM);
    ::sigaddset(&some, SIGCHLD);
    REQUIRE(::sigprocmask(SIG_BLOCK, &some, &old) == 0);
    const auto before = std::signal(SIGPIPE, SIG_IGN);
    const unique_fd stray(::open("/dev/null", O_RDONLY)); // not close-on-exec
    child_plan plan;
    plan.argv = {"grep", "-hE", "SigBlk|SigIgn", "/proc/self/status"};
    const std::string signals = output_of(plan);
    plan.argv = {"ls", "-l", "/proc/self/fd"};
    const std::string open = output_of(plan);
    std::signal(SIGPIPE, before);
    REQUIRE(::sigprocmask(SIG_SETMASK, &old, nullptr) == 0);
    CHECK(signals == "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
    CAPTURE(open);
    CHECK(contains(open, " 0 -> /dev/null"));
    CHECK(contains(open, " 1 -> pipe:"));
    CHECK(contains(open, " 2 -> /dev/null"));
    CHECK(contains(open, " 3 -> /proc/")); // the directory that ls reads
    CHECK_FALSE(contains(open, " 4 -> "));
}

TEST_CASE("child: its descriptors may have any numbers, in any order") {
    // Use another process, since this changes the standard descriptors.
    const scratch dir;
    const std::string path = put(dir / "in", "text");
    const pid_t pid = ::fork();
    if (pid == 0) {
        const int in = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
        const int out = ::open((dir / "out").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (::dup2(in, 2) != 2 || ::dup2(out, 0) != 0 || ::close(1) != 0)
            ::_exit(1);
        child_plan plan;
        plan.argv = {"/bin/sh", "-c", "cat; readlink /proc/self/fd/2"};
        plan.in = 2;
        plan.out = 0;
        plan.err = 1; // closed
        auto process = child::start(plan);
        ::_exit(process && process->wait()->number == 0 ? 0 : 2);
    }
    int status = -1;
    REQUIRE(::waitpid(pid, &status, 0) == pid);
    CHECK(status == 0);
    CHECK(text_of(dir / "out") == "text/dev/null\n");
}

TEST_CASE("child: its group decides which processes a signal reaches") {
    // Shows the shell's process, group and session, and the process that it started.
    const std::string script = "sleep 1000 >&- & read -r line </proc/$$/stat; set -- ${line##*) }; "
                               "echo $$ $3 $4 $!; exec >&-; wait";
    const std::string our_group = std::to_string(::getpgrp());
    const std::string our_session = std::to_string(::getsid(0));
    for (const child_group group : {child_group::ours, child_group::own, child_group::session}) {
        CAPTURE(static_cast<int>(group));
        pipe_ends shown, alive;
        child_plan plan = shell(script, group);
        plan.out = shown.write.get();
        plan.err = alive.write.get();
        std::string below;
        {
            auto process = child::start(plan);
            REQUIRE(process);
            shown.write.reset();
            alive.write.reset();
            const std::string line = read_all(shown.read.get(), 100).value();
            const std::string pid = line.substr(0, line.find(' '));
            below = line.substr(line.rfind(' ') + 1);
            CHECK(line == pid + " " + (group == child_group::ours ? our_group : pid) + " " +
                              (group == child_group::session ? pid : our_session) + " " + below);
            CHECK_FALSE(process->take_end()); // it runs
            process->signal(SIGTERM);
            REQUIRE(has_ended(*process));
            CHECK(process->take_end()->number == SIGTERM);
        }
        // sleep has the pipe as its stderr, so the pipe is at its end only when sleep has ended
        // too.
        pollfd wait{alive.read.get(), POLLIN, 0};
        const bool is_over =
            ::poll(&wait, 1, group == child_group::session ? hang_guard_ms : 200) == 1;
        CHECK(is_over == (group == child_group::session));
        if (!is_over)
            ::kill(std::stoi(below), SIGKILL);
    }
}

TEST_CASE("child: the destructor kills what still runs, and a moved-from child is empty") {
    pipe_ends alive;
    {
        child_plan plan = shell("trap '' TERM; sleep 1000 & wait");
        plan.err = alive.write.get();
        auto process = child::start(plan);
        REQUIRE(process);
        alive.write.reset();
        const child moved(std::move(*process));
        CHECK_FALSE(process->take_end());
        process->signal(SIGKILL); // reaches nobody
        CHECK(moved.descriptor() >= 0);
    }
    pollfd wait{alive.read.get(), POLLIN, 0};
    CHECK(::poll(&wait, 1, hang_guard_ms) == 1);
    CHECK(::waitpid(-1, nullptr, WNOHANG) == -1);
}
