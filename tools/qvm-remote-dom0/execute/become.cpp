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

// Runs in the new process between vfork and exec. It uses the keeper's memory, and the keeper is
// stopped. So it only makes system calls, and writes only the two answers.
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
    // All other descriptors are close-on-exec already. This also closes one for which somebody
    // forgot that.
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
    if (!p.oom_score.empty()) { // before the privileges are dropped: lowering it needs one
        const int fd = ::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
        if (fd >= 0) {
            // A failure only changes when the kernel kills the command, so the command starts anyway.
            [[maybe_unused]] const ssize_t n = ::write(fd, p.oom_score.data(), p.oom_score.size());
            ::close(fd);
        }
    }
    if (p.confined) // before the privileges are dropped: the account could not do it
        if (const int failure = confine(); failure != 0) {
            errno = failure;
            give_up();
        }
    if (p.user) {
        // Direct system calls: glibc's functions of these names change all threads of a process, which
        // does not work after vfork.
        const identity &as = *p.user;
        if (::syscall(SYS_setgroups, as.groups.size(), as.groups.data()) != 0 ||
            ::syscall(SYS_setresgid, as.gid, as.gid, as.gid) != 0 ||
            ::syscall(SYS_setresuid, as.uid, as.uid, as.uid) != 0)
            give_up();
    }
    // Do this after the change of user: the user may have no access where root has it, or the other
    // way round on a network.
    if (*p.directory == '\0' || ::chdir(p.directory) != 0) {
        p.directory_missing = *p.directory != '\0';
        if (::chdir("/") != 0)
            give_up();
    }
    if (p.no_new_privs && ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        give_up();
    ::sigprocmask(SIG_SETMASK, &p.no_signals, nullptr);
    // As execvp does: report a program that may not be run, if no later directory has one that may. But
    // a file that is not a program (ENOEXEC) is not given to a shell.
    int why = ENOENT;
    for (const std::string &place : p.places) {
        ::execve(place.c_str(), p.argv.data(), p.environment.data());
        // The script was just written. A helper that the daemon started at that moment holds a copy of
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

// vfork lends our memory to the new process and wakes us when it has called exec or ended. So the cost
// does not depend on the size of our memory, and errno needs no pipe. This function is separate because
// the new process must not return from the function that called vfork.
[[gnu::noinline]] pid_t start_process(preparation &p) noexcept {
    const pid_t pid = ::vfork();
    if (pid == 0)
        become(p);
    if (pid < 0)
        p.error = errno;
    return pid;
}

// A process that moves to a cgroup waits 10 ms (for the write lock on cgroup_threadgroup_rwsem); a
// process that is made there does not wait. glibc has no function for this. As with vfork, the new
// process must not overwrite our stack: so the call is inline, and the code after it in the new process
// does not return.
[[gnu::noinline]] pid_t start_process_in_group(preparation &p) noexcept {
    clone_args arguments{};
    arguments.flags = CLONE_VM | CLONE_VFORK | CLONE_INTO_CGROUP;
    arguments.exit_signal = SIGCHLD;
    arguments.cgroup = static_cast<std::uint64_t>(p.cgroup);
#if defined(__x86_64__)
    long pid;
    asm volatile("syscall"
                 : "=a"(pid)
                 : "0"(long{SYS_clone3}), "D"(&arguments), "S"(sizeof arguments)
                 : "rcx", "r11", "memory");
    if (pid == 0)
        become(p);
#if defined(__SANITIZE_ADDRESS__)
    // The new process has marked the stack below our frame. For vfork the sanitizer clears this itself.
    constexpr std::size_t deep = 256 * 1024;
    __asan_unpoison_memory_region(static_cast<char *>(__builtin_frame_address(0)) - deep, deep);
#endif
    if (pid < 0)
        p.error = static_cast<int>(-pid);
    return static_cast<pid_t>(pid);
#else
    p.error = ENOSYS; // claim_cgroup checks for this
    return -1;
#endif
}

} // namespace qvmremote::dom0
