// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What dom0 remembers of requests: the audit log, and from it which IDs were used.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <qvmremote/command_id.hpp>
#include <qvmremote/host/failure.hpp>

#include "base/settings.hpp"
#include "record/journal_entry.hpp"

namespace qvmremote::dom0 {

/// The audit log is the truth. One thread writes it, so that the daemon's loop never waits for the
/// disk and all that wait share one sync; behind it that thread keeps an SQLite index of used IDs,
/// which can be thrown away: at start, what the log holds beyond the index is read into it.
///
/// The thread also begins a new file when one is large, sends heads to the system journal, and sums
/// the refusals of a qube that has too many. With nothing to do it sleeps without a date.
class journal {
  public:
    /// Called on the loop: the serial of the durable START, or nothing when it could not be written
    /// and the request must not run.
    using started = std::function<void(std::optional<std::uint64_t> serial)>;
    /// Hands work to the loop from the journal's thread.
    using poster = std::function<void(std::function<void()>)>;

    /// Opens or makes the files (an index that SQLite calls corrupt or foreign is made anew, and the
    /// log for people says so), repairs a line that a crash cut off (it was never acknowledged),
    /// brings the index up to the log, and writes an END "unknown" for each START that a daemon
    /// before this one left without. Fails when anything cannot be read, written or trusted.
    [[nodiscard]] static host::outcome<std::unique_ptr<journal>>
    open(const paths &where, const audit_limits &limits, poster post);
    ~journal();

    /// Appends one record, durably, while no daemon runs. EWOULDBLOCK when one does.
    [[nodiscard]] static host::outcome<void> append(const paths &where, const audit_limits &limits,
                                                    journal_entry entry);

    /// Whether a qube may have more written about it. If not, its requests are refused as busy until
    /// some of its daily share has come back.
    [[nodiscard]] bool has_room(const qube_name &peer) const;

    /// Takes an ID for good, unless it was used before: false then, or when the index cannot be
    /// read. Until its START is durable the ID can be given back. `key_mark` is that of the key that
    /// signed it: an ID that shows no time is remembered as long as the key stands.
    [[nodiscard]] bool reserve(const qube_name &peer, const command_id &id,
                               const digest256 &key_mark);
    void release(const qube_name &peer, const command_id &id);

    /// Whether an ID of that qube's is known here: it runs, or ran so lately that it is remembered.
    [[nodiscard]] bool was_started(const qube_name &peer, const command_id &id);

    /// Whether an ID shows a time from which IDs may have been forgotten, so that it counts as used.
    /// dom0's clock went far back when a request comes with one.
    [[nodiscard]] bool is_forgotten(const command_id &id) const;

    /// Whether dom0 ended while this ID ran, so that nobody knows its outcome.
    [[nodiscard]] bool is_outcome_unknown(const qube_name &peer, const command_id &id);

    /// Which keys stand. What is remembered for others is let go after id_remembered_s, so that a
    /// key that comes back soon finds its IDs used.
    void keep_keys(std::vector<digest256> standing);

    /// Writes a START and syncs, then tells (I8).
    void start(journal_entry entry, started tell);

    /// Writes a record that nothing waits for; ADMIN is synced all the same. END and ADMIN are kept
    /// while nothing can be written. Of one qube's REFUSED, those beyond a rate and its daily share
    /// are counted and summed.
    void note(journal_entry entry);

    /// Begins a new file, as if this one had become too large.
    void begin_file();

    /// Why nothing is recorded at present; empty when all is well. Looks whether the file that is
    /// written still has its name. It is tried again with the next request, and once a minute.
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
