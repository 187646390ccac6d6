// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What dom0 remembers of requests: the audit log, and from it which IDs were used.

#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <qvmremote/audit.hpp>
#include <qvmremote/command_id.hpp>
#include <qvmremote/host/failure.hpp>

#include "settings.hpp"

namespace qvmremote::dom0 {

/// One record on its way to the audit log: audit_record with texts of its own, empty or 0 where a
/// kind has none.
struct journal_entry {
    audit_kind kind{};
    std::string peer, id, transport, request;
    std::vector<std::string> argv;
    std::optional<audit_script> script;
    std::string verdict, rule, user, reason, cause, started;
    std::uint32_t protocol = 2;
    std::optional<std::uint32_t> timeout_s;
    std::optional<std::uint64_t> of;
    std::optional<std::int32_t> exit;
    std::optional<std::uint64_t> stdin_bytes, stdout_bytes, stderr_bytes, duration_ms;
};

/// The audit log is the truth. One thread writes it, so that the daemon's loop never waits for the
/// disk and all that wait share one sync; behind it that thread keeps an SQLite index of used IDs,
/// which can be thrown away: at start, what the log holds beyond the index is read into it.
class journal {
public:
    /// Called on the loop: the serial of the durable START, or nothing when it could not be written
    /// and the request must not run.
    using started = std::function<void(std::optional<std::uint64_t> serial)>;
    /// Hands work to the loop from the journal's thread.
    using poster = std::function<void(std::function<void()>)>;

    /// Opens or makes both files, repairs a line that a crash cut off (it was never acknowledged),
    /// and brings the index up to the log. Fails when anything cannot be read, written or trusted.
    [[nodiscard]] static host::outcome<std::unique_ptr<journal>> open(const paths &where,
                                                                      poster post);
    ~journal();

    /// Takes an ID for good, unless it was used before: false then, or when the index cannot be
    /// read. Until its START is durable the ID can be given back.
    [[nodiscard]] bool reserve(const qube_name &peer, const command_id &id);
    void release(const qube_name &peer, const command_id &id);

    /// Writes a START and syncs, then tells (I8).
    void start(journal_entry entry, started tell);

    /// Writes a record that nothing waits for.
    void note(journal_entry entry);

    /// Why nothing is recorded at present; empty when all is well.
    [[nodiscard]] std::string trouble() const;

private:
    class state;
    explicit journal(std::unique_ptr<state> s);

    std::unique_ptr<state> state_;
};

/// When a qube's last START was, in seconds since 1970, as the index of IDs knows it; nothing when
/// there was none, or no daemon has run here.
[[nodiscard]] std::optional<std::int64_t> last_used(const paths &where, const qube_name &peer);

} // namespace qvmremote::dom0
