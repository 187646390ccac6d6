// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/become.hpp"

#include <cerrno>
#include <cstdint>

#include <fcntl.h>
#include <grp.h>
#include <linux/sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "base/confinement.hpp"

namespace qvmremote::dom0 {

namespace {

constexpr int busy_tries = 500; // 2 ms apart
constexpr long busy_wait_ns = 2'000'000;

// Runs in the new process between vfork and exec: on the keeper's memory, while the keeper stands
// still. So only system calls, and nothing is written but the two answers.
[[noreturn, gnu::noinline]] void become(preparation &p) noexcept {
    const auto give_up = [&p] {
        p.error = errno;
        ::_exit(127);
    };
    ::setsid();
    for (const auto &[from, to] : p.descriptors)
        if (::dup2(from, to) < 0)
            give_up();
    if (p.terminal && ::ioctl(0, TIOCSCTTY, 0) != 0)
        give_up();
    // All else is close-on-exec already; this holds even where somebody forgets it once.
    unsigned first = 0;
    for (const auto &[from, to] : p.descriptors) {
        const auto kept = static_cast<unsigned>(to);
        if (kept > first)
            ::syscall(SYS_close_range, first, kept - 1, 0);
        first = kept + 1;
    }
    ::syscall(SYS_close_range, first, ~0U, 0);
    ::umask(p.mask);
    for (const auto &[what, most] : p.rlimits) {
        const rlimit both{most, most};
        if (::syscall(SYS_prlimit64, 0, what, &both, nullptr) != 0)
            give_up();
    }
    if (!p.oom_score.empty()) { // while we may: lowering it needs a privilege
        const int fd = ::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
        if (fd >= 0) {
            // A command that is killed later, or earlier, than it might be is no reason against it.
            [[maybe_unused]] const ssize_t n = ::write(fd, p.oom_score.data(), p.oom_score.size());
            ::close(fd);
        }
    }
    if (p.confined) // while we may: as the account we could not
        if (const int failure = confine(); failure != 0) {
            errno = failure;
            give_up();
        }
    if (p.user) {
        // The system calls themselves: glibc's functions of these names change all threads of a
        // process, by a protocol that knows nothing of vfork.
        const identity &as = *p.user;
        if (::syscall(SYS_setgroups, as.groups.size(), as.groups.data()) != 0 ||
            ::syscall(SYS_setresgid, as.gid, as.gid, as.gid) != 0 ||
            ::syscall(SYS_setresuid, as.uid, as.uid, as.uid) != 0)
            give_up();
    }
    // As the user that it runs as, who may see less than root, or on a network more.
    if (*p.directory == '\0' || ::chdir(p.directory) != 0) {
        p.directory_missing = *p.directory != '\0';
        if (::chdir("/") != 0)
            give_up();
    }
    if (p.no_new_privs && ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        give_up();
    ::sigprocmask(SIG_SETMASK, &p.no_signals, nullptr);
    // As execvp: a program that may not be run counts when there is none behind it that may. But
    // what is no program (ENOEXEC) is not handed to a shell.
    int why = ENOENT;
    for (const std::string &place : p.places) {
        ::execve(place.c_str(), p.argv.data(), p.environment.data());
        // A script that was just written: a helper that the daemon started at that moment holds a copy of
        // the descriptor that wrote it, until its own exec.
        for (int i = 0; errno == ETXTBSY && i < busy_tries; ++i) {
            const timespec moment{0, busy_wait_ns};
            ::nanosleep(&moment, nullptr);
            ::execve(place.c_str(), p.argv.data(), p.environment.data());
        }
        if (errno == EACCES)
            why = EACCES;
        else if (errno != ENOENT && errno != ENOTDIR) {
            why = errno;
            break;
        }
    }
    errno = why;
    give_up();
    __builtin_unreachable();
}

} // namespace

// vfork lends our memory to the new process and wakes us when it has called exec or ended, so the
// cost does not depend on what we hold, and errno needs no pipe. A frame of its own, since the new
// process must not return from the one that called vfork.
[[gnu::noinline]] pid_t start_process(preparation &p) noexcept {
    const pid_t pid = ::vfork();
    if (pid == 0)
        become(p);
    if (pid < 0)
        p.error = errno;
    return pid;
}

// A process that moves there by itself waits 10 ms for all others to notice
// (the write lock on cgroup_threadgroup_rwsem); one that is born there waits for nobody. glibc has
// no such call, and vfork's other half is to leave nothing on the stack that the new process could
// write over: the call itself is inline, and what follows it in the new process does not return.
[[gnu::noinline]] pid_t start_process_in_group(preparation &p) noexcept {
    clone_args how{};
    how.flags = CLONE_VM | CLONE_VFORK | CLONE_INTO_CGROUP;
    how.exit_signal = SIGCHLD;
    how.cgroup = static_cast<std::uint64_t>(p.cgroup);
#if defined(__x86_64__)
    long pid;
    asm volatile("syscall"
                 : "=a"(pid)
                 : "0"(long{SYS_clone3}), "D"(&how), "S"(sizeof how)
                 : "rcx", "r11", "memory");
    if (pid == 0)
        become(p);
#if defined(__SANITIZE_ADDRESS__)
    // What its frames were marked with lies below ours; for vfork the sanitizer does this itself.
    constexpr std::size_t deep = 256 * 1024;
    __asan_unpoison_memory_region(static_cast<char *>(__builtin_frame_address(0)) - deep, deep);
#endif
    if (pid < 0)
        p.error = static_cast<int>(-pid);
    return static_cast<pid_t>(pid);
#else
    p.error = ENOSYS; // claim_cgroup knows
    return -1;
#endif
}

} // namespace qvmremote::dom0
