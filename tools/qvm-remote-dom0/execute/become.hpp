// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// From a keeper to the command: the new process takes the command's identity, limits and view.

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

namespace qvmremote::dom0 {

/// All that the new process needs, ready before vfork: from there on nothing may be allocated.
struct preparation {
    std::vector<std::string> places; // where the program may be
    std::vector<char *> argv, environment;
    const char *directory = nullptr;
    mode_t mask = 0;
    std::string oom_score; // empty: as it is
    bool no_new_privs = false;
    bool confined = false;
    bool terminal = false;
    resources most;
    std::vector<std::pair<int, rlim_t>> rlimits; // RLIMIT_…, of what has no controller
    int cgroup = -1;                             // a directory; none: the keeper's own
    std::optional<identity> user;
    std::vector<std::pair<int, int>> descriptors; // from -> to, in order of `to`
    sigset_t no_signals{};

    // Written by the new process, in our memory, which is how we learn of it.
    volatile int error = 0;
    volatile bool directory_missing = false;
};

/// Starts the command and returns its number when exec has succeeded. When it has not, p.error says
/// why, and the process, if there was one, has ended.
[[nodiscard]] pid_t start_process(preparation &p) noexcept;

/// The same, born in p.cgroup. ENOSYS on an architecture for which nobody has written it.
[[nodiscard]] pid_t start_process_in_group(preparation &p) noexcept;

} // namespace qvmremote::dom0
