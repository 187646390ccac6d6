// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// One record on its way to the audit log.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <qvmremote/audit.hpp>

namespace qvmremote::dom0 {

/// One record for the audit log: an audit_record that owns its texts. A field that a kind does not have
/// is empty or 0.
struct journal_entry {
    audit_kind kind{};
    std::string peer, id, transport, request;
    std::vector<std::string> argv;
    std::optional<audit_script> script;
    bool tty = false;
    std::string verdict, rule, user, reason, cause, started;
    std::uint32_t protocol = 2;
    std::optional<std::uint32_t> timeout_s;
    std::optional<std::uint64_t> of;
    std::optional<std::int32_t> exit;
    std::optional<std::uint64_t> stdin_bytes, stdout_bytes, stderr_bytes, duration_ms;

    /// APPROVED: the approval's serial and the digest of what was shown. `user` is the operator; peer,
    /// ID and request are those of the START that follows.
    std::optional<std::uint64_t> approval;
    std::optional<digest256> digest;

    // Set by the journal.
    std::optional<digest256> key;
    std::string previous;
    std::optional<std::uint64_t> oldest, count;
};

/// The record as the log has it. It borrows the entry's texts.
[[nodiscard]] audit_record record_of(const journal_entry &e, std::string_view time);

} // namespace qvmremote::dom0
