// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Sends the audit log's heads to the system journal, which shows when lines at the end are removed.
///
/// journald's datagram is a stable interface. libsystemd would bring its dependencies into a process
/// that holds keys, for one call.

#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <sys/socket.h>

#include <qvmremote/audit.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unix_socket.hpp>

#include "base/dom0_limits.hpp"

namespace qvmremote::dom0 {

/// The identifier of our heads in the system journal.
inline constexpr std::string_view head_identifier = "qvm-remote-audit";

/// Sends one head to the journal's socket. Does not wait: fails when the journal is full (EAGAIN) or
/// missing (ENOENT).
[[nodiscard]] inline host::outcome<void> send_head(const std::string &socket_path,
                                                   std::uint64_t serial, std::string_view hash) {
    const auto journal = host::connect_unix(socket_path, SOCK_DGRAM);
    if (!journal)
        return host::failed(journal.error().error_number == ENAMETOOLONG
                                ? "cannot reach the system journal"
                                : "cannot write to the system journal",
                            journal.error().error_number);
    const std::string text = "MESSAGE=" + format_audit_head(serial, hash) +
                             "\nPRIORITY=6\nSYSLOG_IDENTIFIER=" + std::string(head_identifier) +
                             "\n";
    if (::send(journal->get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        return host::failed("cannot write to the system journal", errno);
    return {};
}

/// When a head is sent: every 100 lines, and 10 minutes after the first line that no head covers.
/// Without such a line there is no time, so the thread does not wake up.
class head_schedule {
  public:
    void lines_written(std::size_t count, std::uint64_t now_ms) {
        if (count == 0)
            return;
        if (lines_ == 0)
            due_ms_ = now_ms + limits::audit_head_ms;
        lines_ += count;
    }
    [[nodiscard]] bool is_due(std::uint64_t now_ms) const noexcept {
        return lines_ >= limits::audit_head_lines || (lines_ > 0 && now_ms >= due_ms_);
    }
    /// Whether the newest head is not sent yet.
    [[nodiscard]] bool is_behind() const noexcept { return lines_ > 0 || missed_; }
    [[nodiscard]] std::optional<std::uint64_t> due_ms() const noexcept {
        return lines_ > 0 ? std::optional(due_ms_) : std::nullopt;
    }
    void sent() noexcept {
        lines_ = 0;
        missed_ = false;
    }
    /// There may be no journal: do not try again before there are more lines.
    void failed() noexcept {
        lines_ = 0;
        missed_ = true;
    }

  private:
    std::size_t lines_ = 0; // since the last head
    std::uint64_t due_ms_ = 0;
    bool missed_ = false;
};

} // namespace qvmremote::dom0
