// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// /var/log/qubes/qvm-remote.log, as the Python daemon wrote it (COMPAT-V1.md).

#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include <qvmremote/history.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "base/line_gate.hpp"

namespace qvmremote::dom0 {

/// Appends lines; with `echo`, to stderr as well. A line that cannot be written is lost: what must
/// not be lost is in the audit log. Where the file was renamed or removed, another is begun.
///
/// At limits::event_log_file the file becomes PATH.1, in the place of an earlier one, and another is
/// begun: what qubes do must not fill dom0's disk, whether dom0 rotates its logs or not.
class event_log {
  public:
    [[nodiscard]] static host::outcome<event_log> open(const std::string &path, bool echo);

    /// The file that now has the name, for who rotates logs otherwise. Fails as open does, and then
    /// writes on where it wrote.
    [[nodiscard]] host::outcome<void> reopen();

    /// `text` holds no raw bytes of a qube: they have passed for_log or preview.
    void write(log_category category, std::string_view text);

    /// A line that bytes of a peer can cause and that no START bounds: a refusal, a failure, the end of
    /// a stream. Each peer has a limit of its own (line_gate); one line a minute counts the others.
    void write_for(const std::string &peer, log_category category, std::string_view text);
    static constexpr std::uint64_t lines_burst = 100, lines_per_second = 1;
    /// Writes the counts that are due, or all of them; tells when the next one is due.
    std::optional<std::uint64_t> write_counts(bool all = false);
    /// Called when write_for has begun to count, so that somebody calls write_counts in time.
    void when_counting(std::function<void()> call) { on_counting_ = std::move(call); }

    /// Several lines of one moment in one write.
    class lines;
    [[nodiscard]] lines begin();

  private:
    event_log(std::string path, bool echo) : path_(std::move(path)), echo_(echo) {}
    void put(std::string_view text);

    [[nodiscard]] bool keeps_its_name() const;

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
