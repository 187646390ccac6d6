// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A command as the daemon wants it to run.

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
/// mask, the limits the daemon had when it forked the warden, and no descriptor but those named.
/// What has no controller in a cgroup is bounded as far as rlimits go: memory for each process alone
/// (RLIMIT_DATA), processes for an account other than root (RLIMIT_NPROC, all that it runs counted),
/// processor time not at all. A bounded command leaves no core file.
struct launch {
    /// With a '/' as it is (a relative one from `directory`), else searched in
    /// /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin; the environment's PATH does not count.
    std::string program;
    std::vector<std::string> argv;        ///< not empty
    std::vector<std::string> environment; ///< "NAME=value"; exactly this
    std::string directory;                ///< "/" where it cannot be entered, or is empty
    mode_t umask = 022;
    std::optional<identity> user;     ///< absent: as the daemon
    std::optional<int> oom_score_adj; ///< absent: as the daemon
    bool no_new_privs = false;
    bool terminal = false; ///< `in` is a terminal, which becomes the controlling one
    bool confined = false; ///< in the view of base/confinement.hpp; it fails where none can be had
    resources most;
    int in = -1, out = -1, err = -1;        ///< become 0, 1, 2
    std::vector<std::pair<int, int>> extra; ///< descriptor -> its number there, from 3
};

} // namespace qvmremote::dom0
