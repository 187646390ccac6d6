// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Runs one command in dom0, with its streams, signals and exit code.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
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

/// What comes of a request that runs no command.
struct answer_of_dom0 {
    std::string untrusted_text; ///< protocol 1 has none
    int protocol = 2;
    std::uint64_t took_ms = 0;

    /// The name of the transport or protocol, for people.
    [[nodiscard]] std::string over(const settings &how) const {
        return protocol == 1 ? "protocol 1" : how.transport;
    }
    /// The value of the line "KEY: VALUE" of a status, untrusted; nothing if there is none.
    [[nodiscard]] std::optional<std::string_view> value(std::string_view key) const;
};

/// Sends a request that runs no command. The exit code after it has reported why there is no answer.
[[nodiscard]] tl::expected<answer_of_dom0, int> converse(const settings &how, const home &where,
                                                         request_kind kind);

} // namespace qvmremote::qube
