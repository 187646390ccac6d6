// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// How the daemon wants a command to run.

#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <sys/types.h>

#include "base/containment.hpp"
#include "decide/account.hpp"
#include "execute/cgroups.hpp"

namespace qvmremote::dom0 {

/// What its keeper needs to keep a job (job_keeper.hpp). Descriptors are borrowed for the call.
struct job_launch {
    std::string name;                      ///< job_record::name
    std::array<std::uint8_t, 32> secret{}; ///< job_record::secret
    /// Where its group is made. Without one, the job ends with the daemon, since nothing else would
    /// tell the next daemon which processes belong to it.
    cgroup_home home;
    std::uint64_t kept_bytes = 0;        ///< of its output
    std::uint64_t output_bytes = 0;      ///< it is ended when it writes more; 0: no limit
    std::uint32_t timeout_s = 0;         ///< 0: none
    bool takes_input = false;            ///< input may be attached, else it reads launch::in
    bool ends_with_first = false;        ///< without waiting for the end of its output
    std::uint16_t columns = 0, rows = 0; ///< of its terminal
    int end = -1;                        ///< job_files::end
    int listener = -1;                   ///< for job_link
};

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
    /// The command is a job: `out` and `err` are the files that its keeper writes.
    std::optional<job_launch> job;
};

} // namespace qvmremote::dom0
