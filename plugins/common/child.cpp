// SPDX-License-Identifier: GPL-2.0-or-later
#include "child.hpp"

#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

namespace plugins {
namespace {

using qvmremote::host::failed;

// The arguments of posix_spawn, freed at the end of the scope.
struct spawn_plan {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;

    spawn_plan() {
        ::posix_spawn_file_actions_init(&actions);
        ::posix_spawnattr_init(&attributes);
    }
    spawn_plan(const spawn_plan &) = delete;
    spawn_plan &operator=(const spawn_plan &) = delete;
    ~spawn_plan() {
        ::posix_spawnattr_destroy(&attributes);
        ::posix_spawn_file_actions_destroy(&actions);
    }
};

} // namespace

outcome<child> child::start(const std::vector<std::string> &argv, int in, int out, int err) {
    spawn_plan plan;
    // A descriptor below 3 could be overwritten before it is duplicated.
    const int given[] = {in, out, err};
    unique_fd lifted[3];
    int error = 0;
    for (int i = 0; i < 3 && error == 0; ++i) {
        int from = given[i];
        if (from >= 0 && from < 3) {
            lifted[i].reset(::fcntl(from, F_DUPFD_CLOEXEC, 3));
            from = lifted[i].get();
            if (from < 0)
                return failed("cannot duplicate a descriptor", errno);
        }
        error = from < 0
                    ? ::posix_spawn_file_actions_addopen(&plan.actions, i, "/dev/null", O_RDWR, 0)
                    : ::posix_spawn_file_actions_adddup2(&plan.actions, from, i);
    }
    if (error == 0)
        error = ::posix_spawn_file_actions_addclosefrom_np(&plan.actions, 3);
    if (error == 0)
        error = ::posix_spawn_file_actions_addchdir_np(&plan.actions, "/");
    // Every signal: sigfillset leaves out those that glibc uses itself, and then posix_spawn would not
    // reset them.
    sigset_t all;
    std::memset(&all, 0xff, sizeof all);
    sigset_t none;
    ::sigemptyset(&none);
    if (error == 0)
        error = ::posix_spawnattr_setsigdefault(&plan.attributes, &all);
    if (error == 0)
        error = ::posix_spawnattr_setsigmask(&plan.attributes, &none);
    if (error == 0)
        error = ::posix_spawnattr_setflags(
            &plan.attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
    if (error != 0)
        return failed("cannot prepare a process", error);

    std::vector<char *> words;
    words.reserve(argv.size() + 1);
    for (const std::string &word : argv) // posix_spawn takes char *const and does not change it
        words.push_back(const_cast<char *>(word.c_str()));
    words.push_back(nullptr);
    pid_t pid = 0;
    error = ::posix_spawn(&pid, words[0], &plan.actions, &plan.attributes, words.data(), environ);
    if (error != 0)
        return failed("cannot start " + argv[0], error);
    child made(pid, unique_fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))));
    if (!made.pidfd_)
        return failed("cannot watch " + argv[0], errno); // the destructor of `made` kills it
    return made;
}

child::child(child &&other) noexcept
    : pid_(std::exchange(other.pid_, 0)), pidfd_(std::move(other.pidfd_)) {}

child::~child() {
    if (pid_ == 0)
        return;
    signal(SIGKILL);
    wait();
}

void child::signal(int number) const noexcept {
    // Until we wait for it, no other process or group gets its number.
    if (pid_ != 0)
        ::kill(-pid_, number);
}

std::optional<child_end> child::take_end() noexcept {
    if (pid_ == 0)
        return std::nullopt;
    siginfo_t info{};
    int gone;
    do
        gone = ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT);
    while (gone != 0 && errno == EINTR);
    if (gone == 0 && info.si_pid == 0)
        return std::nullopt;
    signal(SIGKILL);
    wait();
    return child_end{info.si_code != CLD_EXITED, info.si_status};
}

void child::wait() noexcept {
    siginfo_t info{};
    while (::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED) != 0 && errno == EINTR) {
    }
    pid_ = 0;
}

} // namespace plugins
