// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of host/child.hpp.

#pragma once

#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <qvmremote/host/child.hpp>

namespace qvmremote::host {
namespace detail {

// The arguments of posix_spawn, freed at the end of the scope.
struct spawn_arguments {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;

    spawn_arguments() {
        ::posix_spawn_file_actions_init(&actions);
        ::posix_spawnattr_init(&attributes);
    }
    spawn_arguments(const spawn_arguments &) = delete;
    spawn_arguments &operator=(const spawn_arguments &) = delete;
    ~spawn_arguments() {
        ::posix_spawnattr_destroy(&attributes);
        ::posix_spawn_file_actions_destroy(&actions);
    }
};

// Pointers as execve takes them. It does not change the texts, although their type is char *const.
[[nodiscard]] inline std::vector<char *> pointers_to(const std::vector<std::string> &texts) {
    std::vector<char *> out;
    out.reserve(texts.size() + 1);
    for (const std::string &text : texts)
        out.push_back(const_cast<char *>(text.c_str()));
    out.push_back(nullptr);
    return out;
}

// Sets default signals and the group. Returns 0 or errno.
[[nodiscard]] inline int set_attributes(posix_spawnattr_t &attributes, child_group group) {
    // Do not use sigfillset: it leaves out the signals that glibc uses, and posix_spawn would not
    // reset them.
    sigset_t all, none;
    std::memset(&all, 0xff, sizeof all);
    ::sigemptyset(&none);
    int flags = POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK;
    if (group == child_group::own)
        flags |= POSIX_SPAWN_SETPGROUP; // 0, the default, is a new group
    if (group == child_group::session)
        flags |= POSIX_SPAWN_SETSID;
    int error = ::posix_spawnattr_setsigdefault(&attributes, &all);
    if (error == 0)
        error = ::posix_spawnattr_setsigmask(&attributes, &none);
    if (error == 0)
        error = ::posix_spawnattr_setflags(&attributes, static_cast<short>(flags));
    return error;
}

} // namespace detail

inline outcome<child> child::start(const child_plan &plan) {
    if (plan.argv.empty())
        return failed("a child needs a program", EINVAL);
    detail::spawn_arguments to;
    // A descriptor below 3 could be overwritten before it is duplicated.
    const int given[] = {plan.in, plan.out, plan.err};
    unique_fd lifted[3];
    int error = 0;
    for (int i = 0; i < 3 && error == 0; ++i) {
        int from = given[i];
        if (from >= 0 && from < 3) {
            lifted[i].reset(::fcntl(from, F_DUPFD_CLOEXEC, 3));
            from = lifted[i].get();
            if (from < 0 && errno != EBADF)
                return failed("cannot duplicate a descriptor", errno);
        }
        error = from < 0
                    ? ::posix_spawn_file_actions_addopen(&to.actions, i, "/dev/null", O_RDWR, 0)
                    : ::posix_spawn_file_actions_adddup2(&to.actions, from, i);
    }
    if (error == 0)
        error = ::posix_spawn_file_actions_addclosefrom_np(&to.actions, 3);
    if (error == 0 && !plan.directory.empty())
        error = ::posix_spawn_file_actions_addchdir_np(&to.actions, plan.directory.c_str());
    if (error == 0)
        error = detail::set_attributes(to.attributes, plan.group);
    if (error != 0)
        return failed("cannot prepare a process", error);

    const std::vector<char *> argv = detail::pointers_to(plan.argv);
    std::vector<char *> environment;
    if (plan.environment)
        environment = detail::pointers_to(*plan.environment);
    pid_t pid = 0;
    error = ::posix_spawnp(&pid, argv[0], &to.actions, &to.attributes, argv.data(),
                           plan.environment ? environment.data() : environ);
    if (error != 0)
        return failed("cannot start " + plan.argv[0], error);
    child made(pid, plan.group, unique_fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))));
    if (!made.pidfd_)
        return failed("cannot watch " + plan.argv[0], errno); // the destructor of `made` kills it
    return made;
}

inline child::child(child &&other) noexcept
    : pid_(std::exchange(other.pid_, 0)), group_(other.group_), pidfd_(std::move(other.pidfd_)) {}

inline child::~child() {
    signal(SIGKILL);
    wait();
}

inline void child::signal(int number) const noexcept {
    // Until we wait for it, no other process or group gets its number.
    if (pid_ != 0)
        ::kill(group_ == child_group::session ? -pid_ : pid_, number);
}

inline std::optional<child_end> child::take_end() noexcept {
    if (pid_ == 0)
        return std::nullopt;
    siginfo_t info{};
    int failure;
    do
        failure = ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT);
    while (failure != 0 && errno == EINTR);
    if (failure == 0 && info.si_pid == 0)
        return std::nullopt;
    return wait();
}

inline std::optional<child_end> child::wait() noexcept {
    if (pid_ == 0)
        return std::nullopt;
    siginfo_t info{};
    const auto wait_for_end = [&](int flags) {
        while (::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | flags) != 0 &&
               errno == EINTR) {
        }
    };
    if (group_ == child_group::session) {
        wait_for_end(WNOWAIT); // it is a zombie now, so the group still has its number
        signal(SIGKILL);
    }
    wait_for_end(0);
    pid_ = 0;
    return child_end{info.si_code != CLD_EXITED, info.si_status};
}

} // namespace qvmremote::host
