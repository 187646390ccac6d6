// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// How the daemon wants a command to run.

#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <sys/types.h>

#include "base/containment.hpp"
#include "decide/account.hpp"

namespace qvmremote::dom0 {

/// What to run. Descriptors are borrowed for the call; everything else is copied.
///
/// The command gets its own session and process group, default signal dispositions, an empty signal
/// mask, the limits the daemon had when it forked the warden, and only the descriptors named here. A
/// resource without a cgroup controller is limited as far as rlimits allow: memory for each process
/// (RLIMIT_DATA), processes for an account other than root (RLIMIT_NPROC, which counts all of the
/// account), processor time not at all. A limited command leaves no core file.
struct launch {
    /// A path with a '/' (a relative one from `directory`), else a name to search in
    /// /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin; the environment's PATH does not count.
    std::string program;
    std::vector<std::string> argv;        ///< not empty
    std::vector<std::string> environment; ///< "NAME=value"; exactly this
    std::string directory;                ///< "/" is used if it is empty or cannot be entered
    mode_t umask = 022;
    std::optional<identity> user;     ///< absent: the daemon's
    std::optional<int> oom_score_adj; ///< absent: the daemon's
    bool no_new_privs = false;
    bool terminal = false; ///< `in` is a terminal, which becomes the controlling one
    /// Calls confine() (base/confinement.hpp). The launch fails if that is not possible.
    bool confined = false;
    resources most;
    int in = -1, out = -1, err = -1;        ///< become 0, 1, 2
    std::vector<std::pair<int, int>> extra; ///< our descriptor -> its number in the command, from 3
};

} // namespace qvmremote::dom0
