// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What dom0 records of requests: the audit log, and the index of used IDs.

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
#include "record/id_index.hpp"
#include "record/journal_entry.hpp"

namespace qvmremote::dom0 {

/// The audit log is the truth. One thread writes it, so that the daemon's loop never waits for the
/// disk, and all records that wait share one sync. The same thread keeps an SQLite index of used IDs.
/// The index can be removed: at start, the lines that it lacks are read from the log.
///
/// The thread also begins a new file when one is large, sends heads to the system journal, and counts
/// the refusals of a qube that has too many. It does not wake up when there is nothing to do.
class journal {
  public:
    /// Called on the loop with the serial of the durable START, or with nothing when it could not be
    /// written and the request must not run.
    using started = std::function<void(std::optional<std::uint64_t> serial)>;
    /// Runs a function on the loop; called from the journal's thread.
    using poster = std::function<void(std::function<void()>)>;

    /// Opens or makes the files. Makes a new index when SQLite finds the old one damaged, and says so
    /// in the log for people. Removes a part of a line after a crash (it was never acknowledged). Reads
    /// the lines that the index lacks. Writes an END "unknown" for each START that an earlier daemon
    /// left without an END, except those that `goes_on` accepts. Fails when a file cannot be read or
    /// written, or is not safe.
    using spare = std::function<bool(const id_index::open_start &)>;
    [[nodiscard]] static host::outcome<std::unique_ptr<journal>>
    open(const paths &where, const audit_limits &limits, poster post, const spare &goes_on = {});
    ~journal();

    /// Appends one record, durably, while no daemon runs; EWOULDBLOCK when one does.
    [[nodiscard]] static host::outcome<void> append(const paths &where, const audit_limits &limits,
                                                    journal_entry entry);

    /// Whether the log may take more records of this qube. If not, its requests are refused as busy
    /// until it gets a part of its daily share back.
    [[nodiscard]] bool has_room(const qube_name &peer) const;

    /// Marks an ID as used. False when it was used before, or when the index cannot be read. Until its
    /// START is durable, release() can undo this. `key_mark` is the mark of the key that signed it: an
    /// ID without a time is remembered until that key is removed.
    [[nodiscard]] bool reserve(const qube_name &peer, const command_id &id,
                               const digest256 &key_mark);
    void release(const qube_name &peer, const command_id &id);

    /// Whether the journal remembers an ID of that qube: it runs, or has run.
    [[nodiscard]] bool was_started(const qube_name &peer, const command_id &id);

    /// Whether IDs with the time of this one may have been forgotten already, so that it counts as
    /// used. A new request has such an ID only when dom0's clock went far back.
    [[nodiscard]] bool is_forgotten(const command_id &id) const;

    /// Whether dom0 ended while this ID ran, so that nobody knows its outcome.
    [[nodiscard]] bool is_outcome_unknown(const qube_name &peer, const command_id &id);

    /// Tells which keys are registered. IDs of other keys are remembered for id_remembered_s more, in
    /// case a key is registered again.
    void keep_keys(std::vector<digest256> standing);

    /// Writes a START and syncs, then calls back (I8).
    void start(journal_entry entry, started on_written);

    /// Writes a record that nothing waits for; ADMIN is synced too. END and ADMIN are kept while the
    /// disk cannot be written. REFUSED records of one qube beyond a rate and its daily share are only
    /// counted.
    void note(journal_entry entry);

    /// Begins a new file, as if this one had become too large.
    void begin_file();

    /// Why records cannot be written now; empty when they can. Checks whether the file still has its
    /// name. Writing is tried again with the next request, and once a minute.
    [[nodiscard]] std::string trouble() const;

  private:
    class state;
    explicit journal(std::unique_ptr<state> s);

    std::unique_ptr<state> state_;
};

/// When a qube's last START was, in seconds since 1970, by the index of IDs; nothing when there was
/// none, or when no daemon has run here.
[[nodiscard]] std::optional<std::int64_t> last_used(const paths &where, const qube_name &peer);

} // namespace qvmremote::dom0
