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

/// Sends a request that runs no command. Returns 0, or 1 after it has complained. `answer` becomes
/// dom0's text: escape it before you print it. Protocol 1 has no text. `over` becomes the name of the
/// transport or protocol.
[[nodiscard]] int converse(const settings &how, const home &where, request_kind kind,
                           std::string &answer, std::uint64_t &took_ms, std::string &over);

/// Prints "qvm-remote: " and one line on stderr.
void complain(const std::string &what);

/// While it lives, complain() keeps its lines here and prints nothing. There is one at a time.
class held_complaints {
  public:
    held_complaints();
    ~held_complaints();
    held_complaints(const held_complaints &) = delete;
    held_complaints &operator=(const held_complaints &) = delete;

    /// The lines, with "; " between them. They are printable.
    [[nodiscard]] std::string text() const;
};

} // namespace qvmremote::qube
