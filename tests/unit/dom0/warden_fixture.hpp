// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A real warden and real processes. Each process has a mark in its environment, so that a test
/// finds survivors anywhere.

#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include <qvmremote/host/unique_fd.hpp>

#include "execute/process_tree.hpp"
#include "execute/warden.hpp"

namespace qvmremote_test {

using namespace qvmremote;
using namespace qvmremote::dom0;
using host::unique_fd;

inline constexpr auto hang_guard =
    std::chrono::seconds(60); // not a requirement: the machine may be busy
/// The warden that main started.
extern warden *the_warden;

[[nodiscard]] inline std::string mark() {
    static int n = 0;
    return "QVMREMOTE_TEST_MARK=" + std::to_string(::getpid()) + "." + std::to_string(++n);
}

struct pipe_pair {
    unique_fd read, write;
    pipe_pair() {
        int ends[2];
        REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
        read.reset(ends[0]);
        write.reset(ends[1]);
    }
};

[[nodiscard]] inline int dev_null() {
    static const int fd = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    return fd;
}

[[nodiscard]] inline launch command(std::vector<std::string> argv) {
    launch out;
    out.program = argv.front();
    out.argv = std::move(argv);
    out.environment = {"PATH=/usr/bin:/bin"};
    out.in = out.out = out.err = dev_null();
    return out;
}

[[nodiscard]] inline launch shell(const std::string &text) { return command({"bash", "-c", text}); }

[[nodiscard]] inline child start(const launch &what) {
    auto out = the_warden->launch(what);
    REQUIRE(out);
    return std::move(*out);
}

/// Waits for the next event.
[[nodiscard]] inline child_event next(child &c) {
    for (;;) {
        if (const auto e = c.next())
            return *e;
        pollfd p{c.descriptor(), POLLIN, 0};
        REQUIRE(::poll(&p, 1, static_cast<int>(std::chrono::milliseconds(hang_guard).count())) ==
                1);
    }
}

[[nodiscard]] inline child_event next(child &c, child_event::event_kind want) {
    const child_event out = next(c);
    REQUIRE(out.kind == want);
    return out;
}

[[nodiscard]] inline std::string read_to_end(int fd) {
    std::string out;
    char piece[4096];
    for (;;) {
        pollfd p{fd, POLLIN, 0};
        REQUIRE(::poll(&p, 1, static_cast<int>(std::chrono::milliseconds(hang_guard).count())) ==
                1);
        const ssize_t n = ::read(fd, piece, sizeof piece);
        if (n <= 0)
            return out;
        out.append(piece, static_cast<std::size_t>(n));
    }
}

[[nodiscard]] inline std::string read_line(int fd) {
    std::string out;
    char c = 0;
    pollfd p{fd, POLLIN, 0};
    while (::poll(&p, 1, static_cast<int>(std::chrono::milliseconds(hang_guard).count())) == 1 &&
           ::read(fd, &c, 1) == 1 && c != '\n')
        out.push_back(c);
    REQUIRE(c == '\n');
    return out;
}

struct result_of_run {
    int wait_status = -1;
    int error_number = 0;
    bool directory_missing = false;
    std::string out, err;
};

/// Runs a command with little output to its end.
[[nodiscard]] inline result_of_run run(launch what) {
    pipe_pair out, err;
    what.out = out.write.get();
    what.err = err.write.get();
    child c = start(what);
    out.write.reset();
    err.write.reset();
    result_of_run r;
    r.out = read_to_end(out.read.get());
    r.err = read_to_end(err.read.get());
    child_event e = next(c);
    if (e.kind == child_event::failed) {
        r.error_number = e.error_number;
        return r;
    }
    REQUIRE(e.kind == child_event::started);
    r.directory_missing = e.directory_missing;
    e = next(c, child_event::exited);
    r.wait_status = e.wait_status;
    if (!e.tree_empty)
        c.terminate();
    (void)next(c, child_event::empty);
    CHECK_FALSE(c.next());
    return r;
}

[[nodiscard]] inline std::string file_text(const std::string &path) {
    // Do not use an iterator, which throws when the process ends between open and read.
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

inline void for_each_process(const std::function<void(pid_t)> &take) {
    DIR *const proc = ::opendir("/proc");
    REQUIRE(proc);
    while (const dirent *entry = ::readdir(proc))
        if (const int pid = std::atoi(entry->d_name); pid > 0)
            take(pid);
    ::closedir(proc);
}

/// The processes with the mark. A dead process that is not reaped yet has no environment, so it
/// does not count.
[[nodiscard]] inline std::set<pid_t> marked(const std::string &with) {
    std::set<pid_t> out;
    for_each_process([&](pid_t pid) {
        const std::string text =
            '\0' + file_text("/proc/" + std::to_string(pid) + "/environ") + '\0';
        if (text.find('\0' + with + '\0') != text.npos)
            out.insert(pid);
    });
    return out;
}

[[nodiscard]] inline bool soon(const std::function<bool()> &holds) {
    const auto until = std::chrono::steady_clock::now() + hang_guard;
    while (!holds()) {
        if (std::chrono::steady_clock::now() > until)
            return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
}

[[nodiscard]] inline bool all_gone(const std::string &with) {
    return soon([&] { return marked(with).empty(); });
}

struct process_state {
    std::string name;
    char state = 'X'; // as in stat; X: no such process
    pid_t parent = 0, group = 0, session = 0;
};

[[nodiscard]] inline process_state state_of(pid_t pid) {
    process_state out;
    const std::string text = file_text("/proc/" + std::to_string(pid) + "/stat");
    const auto open = text.find('('), close = text.rfind(')');
    if (close == text.npos)
        return out;
    out.name = text.substr(open + 1, close - open - 1);
    std::sscanf(text.c_str() + close + 2, "%c %d %d %d", &out.state, &out.parent, &out.group,
                &out.session);
    return out;
}

[[nodiscard]] inline bool is_gone(pid_t pid) {
    const char state = state_of(pid).state;
    return state == 'X' || state == 'Z';
}

[[nodiscard]] inline std::set<int> descriptors_of(pid_t pid) {
    std::set<int> out;
    const std::string path = "/proc/" + std::to_string(pid) + "/fd";
    DIR *const open = ::opendir(path.c_str());
    REQUIRE(open);
    while (const dirent *entry = ::readdir(open))
        if (entry->d_name[0] != '.')
            out.insert(std::atoi(entry->d_name));
    if (pid == ::getpid())
        out.erase(::dirfd(open));
    ::closedir(open);
    return out;
}

/// The keepers of a warden: its children.
[[nodiscard]] inline std::set<pid_t> keepers_of(const warden &of) {
    std::set<pid_t> out;
    for (const pid_t pid : processes_below(of.pid(), listing::children_files))
        if (state_of(pid).parent == of.pid() && !is_gone(pid))
            out.insert(pid);
    return out;
}

/// Starts a process that ignores SIGTERM, in its own session, whose two parents are gone; it writes
/// a line when it runs. The first shell stays, and ignores SIGTERM too.
inline constexpr const char *stubborn =
    "trap '' TERM HUP INT; "
    "( ( setsid bash -c 'echo up; while :; do sleep 1; done' & ) & ); while :; do sleep 1; done";

/// Starts `stubborn`, and waits until its process runs.
[[nodiscard]] inline child start_stubborn(warden &by, const std::string &with) {
    pipe_pair out;
    launch what = shell(stubborn);
    what.environment.push_back(with);
    what.out = out.write.get();
    auto c = by.launch(what);
    REQUIRE(c);
    REQUIRE(next(*c).kind == child_event::started);
    REQUIRE(read_line(out.read.get()) == "up");
    REQUIRE(marked(with).size() >= 2);
    return std::move(*c);
}

[[nodiscard]] inline std::string own_path() {
    char text[4096];
    const ssize_t n = ::readlink("/proc/self/exe", text, sizeof text);
    REQUIRE(n > 0);
    return std::string(text, static_cast<std::size_t>(n));
}

} // namespace qvmremote_test
