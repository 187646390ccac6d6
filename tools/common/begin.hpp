// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// How a program begins: its signals, and in a qube its user's home.

#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <initializer_list>
#include <string>

#include <pwd.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <qvmremote/host/failure.hpp>

namespace qvmremote {

/// Sets all signals to their defaults, since the caller may have changed them: a blocked signal
/// would not reach us, and an ignored SIGCHLD would hide how a child ended. A signal in `kept`
/// stays ignored if the caller ignored it. SIGPIPE and SIGXFSZ are ignored from then on: the write
/// fails, and the program goes on.
inline void begin_with_own_signals(std::initializer_list<int> kept) {
    for (int number = 1; number <= SIGRTMAX; ++number) {
        struct sigaction before {};
        if (std::find(kept.begin(), kept.end(), number) == kept.end() &&
            ::sigaction(number, nullptr, &before) == 0 && before.sa_handler == SIG_IGN)
            ::signal(number, SIG_DFL);
    }
    // The C library uses the signals between the two ranges, so its functions refuse them. The kernel's
    // structure with all zeros means the default.
    constexpr std::size_t kernel_set_size = 8;
    constexpr std::array<unsigned long, 4> by_default{};
    for (int number = SIGSYS + 1; number < SIGRTMIN; ++number)
        ::syscall(SYS_rt_sigaction, number, by_default.data(), nullptr, kernel_set_size);
    ::signal(SIGPIPE, SIG_IGN);
    ::signal(SIGXFSZ, SIG_IGN);
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

/// ~/.qvm-remote of this user: below $HOME, or where the password database says. Renames an old
/// ~/.qubes-remote when the new one does not exist.
[[nodiscard]] inline host::outcome<std::string> find_home() {
    std::string base;
    if (const char *const set = std::getenv("HOME"); set && *set == '/')
        base = set;
    else if (const passwd *const who = ::getpwuid(::geteuid()); who && who->pw_dir)
        base = who->pw_dir;
    if (base.empty())
        return host::failed("there is no home directory for user " + std::to_string(::geteuid()) +
                            ": set HOME");
    std::string out = base + "/.qvm-remote";
    if (::access(out.c_str(), F_OK) != 0 && errno == ENOENT) {
        const std::string old = base + "/.qubes-remote";
        if (::access(old.c_str(), F_OK) == 0 && ::rename(old.c_str(), out.c_str()) != 0)
            return host::failed("cannot rename " + old + " to " + out, errno);
    }
    return out;
}

} // namespace qvmremote
