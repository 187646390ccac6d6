// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What the measuring programs share: a clock, a way to start a process, and quartiles as JSON.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>
#include <vector>

#include <fcntl.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

namespace bench {

[[noreturn]] inline void die(const std::string &what) {
    std::fprintf(stderr, "bench: %s\n", what.c_str());
    std::exit(2);
}

[[nodiscard]] inline double now_us() {
    timespec t{};
    ::clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) / 1e3;
}

/// One program: leading NAME=VALUE words go into its environment.
struct stage {
    std::vector<std::string> variables, words;
};

/// Starts a program with posix_spawn, which shares the caller's memory until exec, so that the time
/// does not depend on the size of the caller. -1 for a descriptor means /dev/null.
[[nodiscard]] inline pid_t start(stage &what, int in, int out) {
    std::vector<char *> argv, envp;
    for (std::string &word : what.words)
        argv.push_back(word.data());
    argv.push_back(nullptr);
    for (std::string &variable : what.variables)
        envp.push_back(variable.data());
    for (char **entry = environ; *entry; ++entry)
        envp.push_back(*entry);
    envp.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    if (in >= 0)
        ::posix_spawn_file_actions_adddup2(&actions, in, 0);
    else
        ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    if (out >= 0)
        ::posix_spawn_file_actions_adddup2(&actions, out, 1);
    else
        ::posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    pid_t pid = 0;
    const int error = ::posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), envp.data());
    ::posix_spawn_file_actions_destroy(&actions);
    if (error != 0)
        die("cannot start " + what.words[0]);
    return pid;
}

/// Waits for one process, and stores its peak of resident memory in KiB. Returns false when it did
/// not exit with 0.
[[nodiscard]] inline bool finish(pid_t pid, long &peak_kib) {
    int status = 0;
    rusage used{};
    if (::wait4(pid, &status, 0, &used) != pid)
        die("wait4");
    peak_kib = std::max(peak_kib, used.ru_maxrss);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/// The quartiles of the samples as {"n":…,"median_us":…,…}, without the closing brace.
[[nodiscard]] inline std::string summary(std::vector<double> samples) {
    if (samples.empty())
        samples.push_back(0);
    std::sort(samples.begin(), samples.end());
    const auto at = [&](double share) {
        return samples[static_cast<std::size_t>(share * static_cast<double>(samples.size() - 1) +
                                                0.5)];
    };
    char text[256];
    std::snprintf(text, sizeof text,
                  "{\"n\":%zu,\"min_us\":%.1f,\"q1_us\":%.1f,\"median_us\":%.1f,\"q3_us\":%.1f,"
                  "\"max_us\":%.1f",
                  samples.size(), samples.front(), at(0.25), at(0.5), at(0.75), samples.back());
    return text;
}

} // namespace bench
