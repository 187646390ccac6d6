// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What `qvm-remote doctor` looks at in a qube, and the table of checks.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <sys/types.h>

#include <qvmremote/host/failure.hpp>

#include "common/findings.hpp"
#include "home.hpp"
#include "reach.hpp"
#include "run.hpp"

namespace qvmremote::qube {

/// The process that listens for clients at a socket.
struct agent_facts {
    std::string socket;
    int error = 0; ///< of errno: why it was not reached
    pid_t pid = 0;
    program_facts running;   ///< the program of that process
    program_facts installed; ///< the program that dom0 would start
};

/// What dom0 says about itself and this qube.
struct dom0_facts {
    std::string failure; ///< why there is no answer, printable; empty: dom0 answered
    std::string over;    ///< the name of the transport, or "protocol 1"
    answer_of_dom0 answer;
    std::int64_t asked_at = 0, answered_at = 0; ///< seconds since 1970, by the clock here
    /// The value of a line of the answer, printable; empty if there is none.
    [[nodiscard]] std::string value(std::string_view key) const;
};

struct facts {
    std::string version;                 ///< of this program
    std::string program;                 ///< its path
    host::outcome<void> program_is_ours; ///< nobody else can change it
    bool is_dom0 = false;
    uid_t user = 0;

    std::string settings_problem; ///< empty: they can be read
    std::string settings_warning;
    std::string transport;
    bool has_queue = false;          ///< protocol 1 may be used
    bool has_private_daemon = false; ///< the mock transport makes key and dom0 for each command

    file_facts directory; ///< ~/.qvm-remote
    std::optional<room_facts> room;
    file_facts key_file;
    std::string key_problem; ///< as a command would say it; empty: the key can be used
    std::string fingerprint;
    std::vector<file_facts> queue;       ///< queue, and the three in it
    std::size_t old_entries = 0;         ///< that nobody took
    std::vector<file_facts> own_records; ///< audit.log, history
    std::string unwritable_record;       ///< the first of them that cannot be written; empty: none

    std::optional<host::failure> plugin_problem;
    std::string plugin;                     ///< its path; empty when it is compiled in
    std::optional<file_facts> call_program; ///< of qrexec
    std::optional<agent_facts> agent;
    std::optional<dom0_facts> dom0; ///< nothing when another link is broken, so it was not asked
};

/// Looks at this machine, and asks dom0 once. `typed` are the settings of the command line.
[[nodiscard]] facts gather(const settings &typed, const home &where);

/// All checks, in the order of the way to dom0.
[[nodiscard]] std::span<const health_check<facts>> checks();

} // namespace qvmremote::qube
