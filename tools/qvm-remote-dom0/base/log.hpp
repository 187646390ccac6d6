// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The log for people, /var/log/qubes/qvm-remote.log, in the format of the Python daemon
/// (COMPAT-V1.md).

#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include <qvmremote/history.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "base/dom0_limits.hpp"
#include "base/line_gate.hpp"

namespace qvmremote::dom0 {

/// Appends lines to the file; with `echo`, also writes them to stderr. A line that cannot be
/// written is lost: the audit log has what must not be lost. When the file was renamed or removed,
/// a new one is made.
///
/// At limits::event_log_file the file becomes PATH.1, which replaces an earlier one, and a new file is
/// made: qubes must not fill dom0's disk, even if dom0 does not rotate its logs.
class event_log {
  public:
    [[nodiscard]] static host::outcome<event_log> open(const std::string &path, bool echo);

    /// Opens the file that has the name of the log now. Call it after a program has rotated the
    /// logs. After a failure the old file stays in use.
    [[nodiscard]] host::outcome<void> reopen();

    /// Writes a line. Text from a qube must be escaped first, by for_log or preview.
    void write(log_category category, std::string_view text);

    /// Writes a line that a peer can cause as often as it likes: a refusal, a failure, the end of a
    /// stream. Each peer has a limit of its own (line_gate); one line a minute says how many were
    /// left out.
    void write_for(const std::string &peer, log_category category, std::string_view text);
    static constexpr std::uint64_t lines_burst = 100, lines_per_second = 1;
    /// Writes the counts that are due, or all of them. Returns when the next one is due.
    std::optional<std::uint64_t> write_counts(bool all = false);
    /// Sets the function that is called when write_for begins to count, so that write_counts is called
    /// in time.
    void when_counting(std::function<void()> call) { on_counting_ = std::move(call); }

    /// Several lines with the same time. The destructor writes them at once.
    class lines;
    [[nodiscard]] lines begin();

  private:
    event_log(std::string path, bool echo) : path_(std::move(path)), echo_(echo) {}
    void put(std::string_view text);

    [[nodiscard]] bool path_names_open_file() const;

    std::string path_;
    host::unique_fd fd_;
    std::uint64_t size_ = 0;
    bool echo_;
    line_gate gate_{lines_burst, lines_per_second};
    std::function<void()> on_counting_;
};

class event_log::lines {
  public:
    lines &add(log_category category, std::string_view text);
    ~lines() { log_.put(text_); }
    lines(const lines &) = delete;
    lines &operator=(const lines &) = delete;

  private:
    friend class event_log;
    explicit lines(event_log &log);

    event_log &log_;
    std::string timestamp_;
    std::string text_;
};

} // namespace qvmremote::dom0
