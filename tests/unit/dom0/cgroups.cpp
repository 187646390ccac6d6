// SPDX-License-Identifier: GPL-2.0-or-later
// The test makes a group of cgroup v2 and runs in it, as a daemon does in the group of its unit.
// Limits need controllers, which not every machine gives us, so tests/vm tests them. Without the
// right to make a group, only the cases run that need none.
#include "execute/cgroups.hpp"
#include "execute/process_tree.hpp"
#include "execute/warden.hpp"

#include <array>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <optional>
#include <sstream>
#include <string>
#include <thread>

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

using namespace qvmremote::dom0;
using qvmremote::host::unique_fd;
using namespace std::chrono_literals;

namespace {

constexpr auto hang_guard = 60s; // not a requirement: the machine may be busy
cgroup_home the_home;
std::string the_parent; // the parent of our own group
warden *the_warden = nullptr;

[[nodiscard]] std::string file_text(const std::string &path) {
    std::ostringstream text; // an iterator throws when the group ends between open and read
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

bool put(const std::string &path, const std::string &word) {
    const unique_fd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    return fd && ::write(fd.get(), word.data(), word.size()) == static_cast<ssize_t>(word.size());
}

[[nodiscard]] bool exists(const std::string &path) { return ::access(path.c_str(), F_OK) == 0; }

[[nodiscard]] bool soon(const std::function<bool()> &holds) {
    const auto until = std::chrono::steady_clock::now() + hang_guard;
    while (!holds()) {
        if (std::chrono::steady_clock::now() > until)
            return false;
        std::this_thread::sleep_for(5ms);
    }
    return true;
}

[[nodiscard]] std::string group_name(pid_t pid) {
    const std::string text = file_text("/proc/" + std::to_string(pid) + "/cgroup");
    const auto at = text.rfind("0::");
    return at == text.npos ? std::string() : text.substr(at + 3, text.find('\n', at) - at - 3);
}
[[nodiscard]] std::string directory_of(const std::string &name) {
    return the_home.directory + name.substr(the_home.name.size());
}

[[nodiscard]] pid_t parent_of(pid_t pid) {
    const std::string text = file_text("/proc/" + std::to_string(pid) + "/stat");
    return std::atoi(text.c_str() + text.rfind(')') + 4);
}

// Runs `what` in a new process, in `group` if it is not empty, until it returns or is killed.
[[nodiscard]] pid_t aside(const std::string &group, const std::function<void()> &what) {
    const pid_t pid = ::fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        if (group.empty() || put(group + "/cgroup.procs", "0"))
            what();
        ::_exit(0);
    }
    return pid;
}
[[noreturn]] void stay() {
    for (;;)
        ::pause();
}

[[nodiscard]] bool is_ours(pid_t pid, const cgroup_home &home) {
    return is_inside_our_command(pid, home, {}, std::array{the_warden->pid()});
}
[[nodiscard]] bool has_own_terminal(pid_t pid, pid_t root) {
    return has_terminal_of_its_own(pid, std::array{root});
}

struct running {
    child hold;
    pid_t pid;
    std::string group; // name
};

[[nodiscard]] child_event next(child &c) {
    for (;;) {
        if (const auto e = c.next())
            return *e;
        pollfd p{c.descriptor(), POLLIN, 0};
        REQUIRE(::poll(&p, 1, static_cast<int>(std::chrono::milliseconds(hang_guard).count())) ==
                1);
    }
}

// Starts a command, and waits until it has written a line.
[[nodiscard]] running start(const std::string &text) {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    unique_fd read(ends[0]), write(ends[1]);
    const unique_fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    launch what;
    what.program = "bash";
    what.argv = {"bash", "-c", text};
    what.in = what.err = null.get();
    what.out = write.get();
    auto c = the_warden->launch(what);
    REQUIRE(c);
    write.reset();
    const child_event e = next(*c);
    REQUIRE(e.kind == child_event::started);
    char byte = 0;
    REQUIRE(::read(read.get(), &byte, 1) == 1);
    return {std::move(*c), e.pid, group_name(e.pid)};
}
constexpr const char *sleeper = "echo; exec sleep 1000";

void finish(running &what) {
    child_event e = next(what.hold);
    if (e.kind == child_event::exited)
        e = next(what.hold);
    CHECK(e.kind == child_event::empty);
}

struct claim {
    std::string why_none;
    bool moved;
};
// What claim_cgroup() returns to a daemon that starts in this group.
[[nodiscard]] claim claim_in(const std::string &group) {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    const unique_fd read(ends[0]);
    unique_fd write(ends[1]);
    const pid_t pid = aside(group, [&] {
        std::string said = claim_cgroup().why_none + "\n";
        said += group_name(::getpid());
        [[maybe_unused]] const auto n = ::write(write.get(), said.data(), said.size());
    });
    write.reset();
    char text[4096];
    const ssize_t n = ::read(read.get(), text, sizeof text);
    REQUIRE(n > 0);
    ::waitpid(pid, nullptr, 0);
    const std::string said(text, static_cast<std::size_t>(n));
    return {said.substr(0, said.find('\n')), said.ends_with("/daemon")};
}

} // namespace

TEST_CASE("the text for people says what can be limited") {
    cgroup_home home;
    home.why_none = "for this reason";
    CHECK(home.describe() ==
          "commands have no cgroups: for this reason; cannot be limited: memory (except "
          "of each process alone), processes (except of a dedicated account), "
          "processor time");
    home.directory = home.name = "/g";
    home.memory = home.pids = home.cpu = true;
    CHECK(home.describe() ==
          "a cgroup for each command below /g; memory, processes and processor time "
          "can be limited");
}

TEST_CASE("a ceiling lowers limits and never raises them") {
    containment policy, house;
    house.most = {100, 0, 50};
    house.output_bytes = 7;
    policy.most = {0, 9, 80};
    policy.output_bytes = 5;
    const containment got = within(policy, house);
    CHECK(got.most.memory_bytes == 100);
    CHECK(got.most.pids == 9);
    CHECK(got.most.cpu_percent == 50);
    CHECK(got.output_bytes == 5);
}

TEST_CASE("without a group, functions do nothing and succeed") {
    command_cgroup group;
    CHECK_FALSE(group);
    CHECK(group.make());
    CHECK(group.limit({1, 1, 1}, {}));
    CHECK_FALSE(*group.open());
    group.kill();
    CHECK(group.remove());
}

TEST_CASE("which processes are inside a command of ours") {
    // All of its tree, also without groups: a process in its own session, whose two parents are
    // gone.
    running one = start("(setsid bash -c 'echo $BASHPID; exec sleep 1000' &); exec sleep 1000");
    for (const cgroup_home &home : {the_home, cgroup_home()}) {
        CAPTURE(home.directory);
        CHECK(is_ours(one.pid, home));
        const auto below = processes_below(parent_of(one.pid));
        REQUIRE(soon([&] { return processes_below(parent_of(one.pid)).size() == 2; }));
        for (const pid_t pid : below)
            CHECK(is_ours(pid, home));
        CHECK_FALSE(is_ours(::getpid(), home));
        CHECK_FALSE(is_ours(::getppid(), home));
        CHECK_FALSE(is_ours(1, home));
        const pid_t gone = aside({}, [] {});
        ::waitpid(gone, nullptr, 0);
        CHECK(is_ours(gone, home));
    }
    one.hold.kill();
    finish(one);
}

TEST_CASE("whether a process has its own terminal") {
    const unique_fd master(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
    REQUIRE(master);
    REQUIRE(::grantpt(master.get()) == 0);
    REQUIRE(::unlockpt(master.get()) == 0);
    const std::string name = ::ptsname(master.get());
    const pid_t without = aside({}, [] {
        ::setsid();
        stay();
    });
    const pid_t with = aside({}, [&] {
        ::setsid();
        const int fd = ::open(name.c_str(), O_RDWR);
        ::ioctl(fd, TIOCSCTTY, 0);
        stay();
    });
    CHECK(soon([&] { return has_own_terminal(with, the_warden->pid()); }));
    CHECK_FALSE(has_own_terminal(without, the_warden->pid()));
    // If a process of ours is on the same terminal, it does not count: here this process is the
    // warden.
    CHECK_FALSE(has_own_terminal(with, ::getpid()));
    for (const pid_t pid : {with, without}) {
        ::kill(pid, SIGKILL);
        ::waitpid(pid, nullptr, 0);
    }
    CHECK_FALSE(has_own_terminal(with, the_warden->pid()));
}

#define NEEDS_GROUP                                                                                \
    if (!the_home) {                                                                               \
        MESSAGE("skipped: ", the_home.why_none);                                                   \
        return;                                                                                    \
    }

TEST_CASE("each command has its own group, which is removed with it") {
    NEEDS_GROUP
    CHECK(group_name(::getpid()) == the_home.name + "/daemon");
    CHECK(group_name(the_warden->pid()) == the_home.name + "/daemon");
    running one = start(sleeper), other = start(sleeper);
    CHECK(one.group.starts_with(the_home.name + "/command-"));
    CHECK(other.group.starts_with(the_home.name + "/command-"));
    CHECK(one.group != other.group);
    CHECK(group_name(parent_of(one.pid)) == the_home.name + "/daemon");
    one.hold.kill();
    finish(one);
    CHECK_FALSE(exists(directory_of(one.group))); // at once, since the end was reported
    CHECK(group_name(other.pid) == other.group);
    other.hold.terminate();
    finish(other);
    // The group is gone, or made again by a keeper that waits for the next command.
    std::string left;
    std::getline(std::ifstream(directory_of(other.group) + "/cgroup.procs"), left);
    CHECK(left.empty());
}

TEST_CASE("a program that does not exist leaves no group") {
    NEEDS_GROUP
    const auto groups = [] {
        std::size_t n = 0;
        for (int i = 0; i < 1000; ++i)
            n += exists(the_home.directory + "/command-" + std::to_string(i));
        return n;
    };
    const auto of_who_waits = [&] { return groups() >= 1 && groups() <= 2; };
    REQUIRE(soon(of_who_waits));
    for (int i = 0; i < 5; ++i) {
        const unique_fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
        launch what;
        what.program = "qvm-remote-no-such-program";
        what.argv = {what.program};
        what.in = what.out = what.err = null.get();
        auto c = the_warden->launch(what);
        REQUIRE(c);
        const child_event e = next(*c);
        CHECK(e.kind == child_event::failed);
        CHECK(e.error_number == ENOENT);
    }
    CHECK(soon(of_who_waits));
}

TEST_CASE("a process in the group that is not below the keeper ends too") {
    NEEDS_GROUP
    for (const bool by_itself : {false, true}) {
        CAPTURE(by_itself);
        running one = start(by_itself ? "echo; sleep 0.3" : sleeper);
        const pid_t stranger = aside(directory_of(one.group), [] {
            ::signal(SIGTERM, SIG_IGN);
            stay();
        });
        REQUIRE(soon([&] { return by_itself || group_name(stranger) == one.group; }));
        if (!by_itself)
            one.hold.kill();
        finish(one);
        CHECK_FALSE(exists(directory_of(one.group)));
        ::waitpid(stranger, nullptr, 0);
    }
}

TEST_CASE("a process that leaves the group is still below the keeper") {
    NEEDS_GROUP
    running one = start("echo 0 >" + the_parent + "/cgroup.procs; echo; exec sleep 1000");
    CHECK_FALSE(group_name(one.pid).starts_with(the_home.name));
    CHECK(is_ours(one.pid, the_home));
    one.hold.kill();
    finish(one);
}

TEST_CASE("groups that a command makes are removed with it") {
    NEEDS_GROUP
    running one =
        start("g=" + the_home.directory +
              "/command-; own=; "
              "while read -r line; do "
              "case $line in 0::*) own=${line##*/command-};; esac; done </proc/self/cgroup; "
              "mkdir -p $g$own/a/b; (echo 0 >$g$own/a/b/cgroup.procs; exec sleep 1000) & "
              "echo; exec sleep 1000");
    REQUIRE(exists(directory_of(one.group) + "/a/b"));
    one.hold.kill();
    finish(one);
    CHECK_FALSE(exists(directory_of(one.group)));
}

TEST_CASE("if the keeper is killed, the warden ends the group") {
    NEEDS_GROUP
    running one = start(sleeper), other = start(sleeper);
    const pid_t stranger = aside(directory_of(one.group), stay);
    REQUIRE(soon([&] { return group_name(stranger) == one.group; }));
    REQUIRE(::kill(parent_of(one.pid), SIGKILL) == 0);
    CHECK(next(one.hold).kind == child_event::lost);
    CHECK(soon([&] { return !exists(directory_of(one.group)); }));
    ::waitpid(stranger, nullptr, 0);
    CHECK(group_name(other.pid) == other.group);
    other.hold.kill();
    finish(other);
}

TEST_CASE("a group that is not ours is left alone") {
    NEEDS_GROUP
    const std::string group = the_parent + "/qvm-remote-test-claim-" + std::to_string(::getpid());
    REQUIRE(::mkdir(group.c_str(), 0755) == 0);
    claim got = claim_in(group);
    CHECK(got.why_none.ends_with("is not delegated (Delegate=yes in the unit)"));
    CHECK_FALSE(got.moved);
    REQUIRE(::setxattr(group.c_str(), "trusted.delegate", "1", 1, 0) == 0);
    const pid_t neighbour = aside(group, stay);
    REQUIRE(soon([&] { return !file_text(group + "/cgroup.procs").empty(); }));
    got = claim_in(group);
    CHECK(got.why_none.ends_with("holds other processes"));
    CHECK_FALSE(got.moved);
    CHECK_FALSE(exists(group + "/daemon"));
    ::kill(neighbour, SIGKILL);
    ::waitpid(neighbour, nullptr, 0);

    // The processes that an earlier daemon left are ended.
    const std::string left = group + "/command-7";
    REQUIRE(::mkdir(left.c_str(), 0755) == 0);
    const pid_t survivor = aside(left, stay);
    REQUIRE(soon([&] { return !file_text(left + "/cgroup.procs").empty(); }));
    got = claim_in(group);
    CHECK(got.why_none.empty());
    CHECK(got.moved);
    int status = 0;
    CHECK(::waitpid(survivor, &status, 0) == survivor);
    CHECK(WTERMSIG(status) == SIGKILL);
    ::rmdir(left.c_str());
    CHECK(soon([&] { return ::rmdir((group + "/daemon").c_str()) == 0; }));
    CHECK(soon([&] { return ::rmdir(group.c_str()) == 0; }));
}

namespace {

// Makes a delegated group for this test, below one that it may write to; nothing if there is none.
[[nodiscard]] std::optional<std::string> make_group() {
    for (const char *parent : {"/sys/fs/cgroup/unified", "/sys/fs/cgroup"}) {
        const std::string group =
            std::string(parent) + "/qvm-remote-test-" + std::to_string(::getpid());
        if (!exists(std::string(parent) + "/cgroup.procs") || ::mkdir(group.c_str(), 0755) != 0)
            continue;
        if (exists(group + "/cgroup.kill") &&
            ::setxattr(group.c_str(), "trusted.delegate", "1", 1, 0) == 0)
            return group;
        ::rmdir(group.c_str());
    }
    return {};
}

int run_tests(int argc, char **argv) {
    the_home = claim_cgroup();
    the_parent = the_home.directory.substr(0, the_home.directory.rfind('/'));
    auto started = warden::start(the_home);
    if (!started) {
        std::fprintf(stderr, "%s\n", started.error().what.c_str());
        return 1;
    }
    the_warden = &*started;
    return doctest::Context(argc, argv).run();
}

} // namespace

int main(int argc, char **argv) {
    const auto group = make_group();
    if (!group)
        return run_tests(argc, argv);
    const pid_t pid = ::fork();
    if (pid == 0) {
        // doctest does not run yet. Use exit, not _exit, so that leaks are reported.
        const bool entered = put(*group + "/cgroup.procs", "0");
        std::exit(entered ? run_tests(argc, argv) : 1);
    }
    int status = 1;
    ::waitpid(pid, &status, 0);
    put(*group + "/cgroup.kill", "1");
    const bool clean = soon([&] {
        ::rmdir((*group + "/daemon").c_str());
        for (int i = 0; i < 1000; ++i)
            ::rmdir((*group + "/command-" + std::to_string(i)).c_str());
        return ::rmdir(group->c_str()) == 0;
    });
    return WIFEXITED(status) && clean ? WEXITSTATUS(status) : 1;
}
