// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// /var/log/qubes/qvm-remote.log, as the Python daemon wrote it (COMPAT-V1.md).

#pragma once

#include <string>
#include <string_view>

#include <qvmremote/history.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote::dom0 {

/// Appends lines; with `echo`, to stderr as well. A line that cannot be written is lost: what must
/// not be lost is in the audit log.
class event_log {
public:
    [[nodiscard]] static host::outcome<event_log> open(const std::string &path, bool echo);

    /// `text` holds no raw bytes of a qube: they have passed for_log or preview.
    void write(log_category category, std::string_view text);

    /// Several lines of one moment in one write.
    class lines;
    [[nodiscard]] lines begin();

private:
    event_log(host::unique_fd fd, bool echo) : fd_(std::move(fd)), echo_(echo) {}
    void put(std::string_view text);

    host::unique_fd fd_;
    bool echo_;
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
