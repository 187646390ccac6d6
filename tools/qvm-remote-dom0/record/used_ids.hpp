// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The used IDs, kept in the index beside the audit log.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <qvmremote/digest.hpp>
#include <qvmremote/host/failure.hpp>

#include "base/settings.hpp"
#include "record/audit_files.hpp"
#include "record/id_index.hpp"
#include "record/memory_clock.hpp"

namespace qvmremote::dom0 {

/// Writes the index: adds IDs from the lines of the log, and removes those that are too old or whose
/// key was removed. The index may be behind the log; the missing lines are read into it at start.
///
/// One thread uses it; any thread may call forgotten_before_s().
class used_ids {
  public:
    explicit used_ids(const paths &where) : where_(where) {}

    /// Opens the index and its clock.
    [[nodiscard]] host::outcome<void> open();
    [[nodiscard]] bool is_damaged() const noexcept { return index_.is_damaged(); }
    /// Renames a damaged index, so that open() makes a new one, and says why in the log for people.
    [[nodiscard]] host::outcome<void> replace(const std::string &why);

    /// The file and the place of the first line that is not in the index; nothing for a new index.
    [[nodiscard]] std::optional<audit_place> known_until();
    /// Reads lines of the log in one transaction: begin(), read_lines() for each file, then commit()
    /// or undo().
    [[nodiscard]] host::outcome<void> begin() { return index_.execute("BEGIN"); }
    /// Returns where the last whole line ends.
    [[nodiscard]] host::outcome<std::uint64_t> read_lines(int fd, std::uint64_t from,
                                                          const std::string &path);
    [[nodiscard]] host::outcome<void> commit(const audit_place &known_until);
    [[nodiscard]] host::outcome<void> undo(host::failure why);

    /// Refuses IDs with a time before that of a record; the argument has the form of the log.
    void refuse_before(std::string_view record_time);
    /// IDs with an earlier time are refused. Any thread may call this.
    [[nodiscard]] std::int64_t forgotten_before_s() const noexcept { return forgotten_before_s_; }

    /// The time by which IDs and files of the log get old.
    [[nodiscard]] std::int64_t now_s(std::int64_t wall);
    /// Makes the place durable: after a crash the index must not go back to an earlier one.
    [[nodiscard]] bool settle(const audit_place &known_until);

    /// STARTs without an END, from this serial on.
    [[nodiscard]] host::outcome<std::vector<id_index::open_start>> open_starts(std::uint64_t from) {
        return index_.open_starts(from);
    }
    /// These have an END now.
    [[nodiscard]] host::outcome<void> close_starts(const std::vector<id_index::open_start> &starts,
                                                   bool outcome_unknown,
                                                   const audit_place &known_until);

    /// Adds what was written to the log since the last write_index().
    void add_start(id_index::open_start start, const std::optional<digest256> &key);
    void add_end(std::uint64_t of) { ended_.push_back(of); }
    [[nodiscard]] std::size_t waiting_starts() const noexcept { return unindexed_.size(); }
    [[nodiscard]] std::size_t waiting_ends() const noexcept { return ended_.size(); }
    [[nodiscard]] bool write_index(const audit_place &known_until);
    /// IDs that the index holds now, once there are enough to be worth the call.
    [[nodiscard]] std::vector<id_hash> take_indexed();

    /// Tells which keys are registered. IDs of other keys lapse, some with each call of lapse_some().
    void keep_keys(const std::vector<digest256> &standing);
    [[nodiscard]] bool has_lapsed() const noexcept { return !lapsed_.empty(); }
    void lapse_some();

  private:
    struct unindexed {
        id_index::open_start start;
        std::optional<digest256> key;
    };

    host::outcome<void> start_clock();
    bool store_clock() { return index_.set_clock({clock_.now_s(), forgotten_before_s_}); }
    bool set_place(const audit_place &p) { return index_.set_upto(p.inode, p.offset); }
    std::optional<std::int64_t> expiry_of(std::string_view id, std::int64_t wall) const;
    bool remember_line(std::string_view line, std::int64_t now);
    bool forget_some(std::int64_t wall);

    const paths where_;
    id_index index_;
    memory_clock clock_{std::nullopt, 0, 0};
    std::atomic<std::int64_t> forgotten_before_s_{0};
    std::vector<unindexed> unindexed_;
    std::vector<std::uint64_t> ended_;
    std::vector<id_hash> indexed_;
    std::vector<digest256> lapsed_;
};

} // namespace qvmremote::dom0
