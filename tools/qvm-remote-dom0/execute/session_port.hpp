// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Where an execution sends its output and its end: a session of protocol 2, or an entry of the queue.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <qvmremote/session.hpp>

namespace qvmremote::dom0 {

/// What the records in the qube say about a command that has ended.
struct run_record {
    std::string started; ///< YYYY-MM-DDTHH:MM:SS
    std::uint64_t duration_ms = 0;
};

/// What an execution calls to reach its client. Each protocol implements it.
class session_port {
  public:
    virtual ~session_port() = default;

    /// Tells the client that the command starts.
    virtual void accept(std::uint32_t timeout_s, bool stdin_live) = 0;
    /// Whether no output can be taken now. The execution is told when that changes.
    [[nodiscard]] virtual bool stalled() const = 0;
    /// As server_stream::prepare_output and commit_output. Only call them while not stalled.
    [[nodiscard]] virtual std::span<std::uint8_t> prepare_output(std::size_t most) = 0;
    virtual void commit_output(bool is_stdout, std::size_t n) = 0;
    /// Tells the client that the command has closed this output.
    virtual void output_eof(bool is_stdout) = 0;
    /// Lets the client send `n` more bytes of standard input.
    virtual void grant_stdin(std::size_t n) = 0;
    /// Shows a text to the person who waits for the command. It is not part of the output.
    virtual void notify(std::string_view text) = 0;
    /// Says where in a job's output the next bytes of each stream stand.
    virtual void position(const job_offsets &) {}
    /// Reports the end of the command. Returns it with the byte counts filled in.
    virtual run_end end(run_end ended, const run_record &record) = 0;
    /// Sends what was queued.
    virtual void flush() = 0;
};

} // namespace qvmremote::dom0
