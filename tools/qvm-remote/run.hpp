// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Runs one command in dom0, with its streams, signals and exit code.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <qvmremote/config.hpp>
#include <qvmremote/host/client.hpp>

#include "home.hpp"
#include "reach.hpp"

namespace qvmremote::qube {

struct run_request {
    host::command what;
    bool stdin_live = false;
    std::string shown;                        ///< the command as records show it
    std::optional<std::uint8_t> escape = '~'; ///< in a terminal; absent: no escapes
};
/// Runs a command and returns its exit code.
[[nodiscard]] int run_remote(const settings &how, const home &where, run_request request);

/// Asks whether dom0 answers, and for its status. Returns 0, or 1 with the reason on stderr.
[[nodiscard]] int ping(const settings &how, const home &where);
[[nodiscard]] int status(const settings &how, const home &where);

/// A request about a job, and what it is connected to.
struct job_run {
    job_request about;
    bool has_terminal = false; ///< the job's terminal is shown in ours
    bool reads_stdin = false;
    std::optional<std::uint8_t> escape = '~';
};
/// Sends it, and passes the job's output on. A lost stream is made again, where the output had
/// stopped. Returns the exit code.
[[nodiscard]] int run_about_job(const settings &how, const home &where, job_run request);
/// The rows of this qube's jobs; the exit code after it has printed what is wrong.
[[nodiscard]] tl::expected<std::vector<job_row>, int> list_jobs(const settings &how,
                                                                const home &where);

/// Prints "qvm-remote: " and one line on stderr.
void complain(const std::string &what);

} // namespace qvmremote::qube
