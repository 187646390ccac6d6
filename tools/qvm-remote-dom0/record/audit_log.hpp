// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The audit log and the index of its IDs on the disk. Opens them, repairs them after a crash, and
/// begins a new file when one is large.

#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <qvmremote/error.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "base/settings.hpp"
#include "record/audit_files.hpp"
#include "record/audit_writer.hpp"
#include "record/used_ids.hpp"

namespace qvmremote::dom0 {

/// The log is the truth, and the index follows it. One thread uses both; any thread may call the
/// functions that say so.
class audit_log {
  public:
    audit_log(const paths &where, const audit_limits &limits)
        : where_(where), limits_(limits), file_(where), ids_(where) {}

    /// Takes the lock of the log and opens both. With `patience`, waits for a process that only appends
    /// a record.
    [[nodiscard]] host::outcome<void> open(bool patience);

    /// Call before each write: makes sure that the file is open, has its name, and is not too large.
    [[nodiscard]] host::outcome<void> make_ready();

    /// Makes the file an earlier part, and begins a new one.
    [[nodiscard]] host::outcome<void> new_file();

    /// Writes an END for each START, from this serial on, that will get no other END. `goes_on`
    /// accepts those that will.
    [[nodiscard]] host::outcome<void>
    close_open_starts(std::uint64_t from, const char *cause, errc why,
                      const std::function<bool(const id_index::open_start &)> &goes_on = {});

    [[nodiscard]] audit_writer &file() noexcept { return file_; }
    [[nodiscard]] const audit_writer &file() const noexcept { return file_; }
    [[nodiscard]] used_ids &ids() noexcept { return ids_; }
    [[nodiscard]] const used_ids &ids() const noexcept { return ids_; }

  private:
    host::outcome<void> take_lock(int tries);
    host::outcome<void> open_both();
    host::outcome<void> open_file();
    host::outcome<void> reopen();
    host::outcome<void> catch_up(const std::vector<kept_audit_file> &kept, std::uint64_t size);
    host::outcome<void> refuse_ids_of_lost_files(const std::vector<kept_audit_file> &kept,
                                                 std::uint64_t size);
    host::outcome<void> begin_with_head(const std::vector<kept_audit_file> &kept);

    const paths where_;
    const audit_limits limits_;
    host::unique_fd lock_;
    audit_writer file_;
    used_ids ids_;
};

} // namespace qvmremote::dom0
