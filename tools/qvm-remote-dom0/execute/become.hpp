// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Starts a command from a keeper: the new process takes the command's identity, limits and namespaces.

#pragma once

#include <csignal>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <sys/resource.h>
#include <sys/types.h>

#include "base/containment.hpp"
#include "decide/account.hpp"
#include "execute/launch.hpp"

namespace qvmremote::dom0 {

/// Everything that the new process needs, prepared before vfork: nothing may be allocated after it.
struct preparation {
    std::vector<std::string> places; // files to try, in order
    std::vector<char *> argv, environment;
    const char *directory = nullptr;
    mode_t mask = 0;
    std::string oom_score; // empty: unchanged
    bool no_new_privs = false;
    bool confined = false;
    bool terminal = false;
    resources most;
    std::vector<std::pair<int, rlim_t>> rlimits; // RLIMIT_..., where there is no controller
    int cgroup = -1;                             // a directory; none: the keeper's own
    std::optional<identity> user;
    std::vector<std::pair<int, int>> descriptors; // from -> to, in order of `to`
    std::optional<job_launch> job;                // its two descriptors come after the others
    sigset_t no_signals{};

    // The new process writes these into our memory.
    volatile int error = 0;
    volatile bool directory_missing = false;
};

/// Starts the command and returns its process ID when exec has succeeded. Otherwise p.error says why,
/// and no process is left.
[[nodiscard]] pid_t start_process(preparation &p) noexcept;

/// The same, in p.cgroup from the beginning. ENOSYS on an architecture without this code.
[[nodiscard]] pid_t start_process_in_group(preparation &p) noexcept;

} // namespace qvmremote::dom0
