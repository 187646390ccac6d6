// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The file of the audit log that lines are appended to.

#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include <sys/stat.h>

#include <qvmremote/audit.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "base/settings.hpp"
#include "record/audit_files.hpp"
#include "record/heads.hpp"
#include "record/journal_entry.hpp"

namespace qvmremote::dom0 {

/// Lines that are written together: either all of them count, or none.
class audit_lines {
  public:
    explicit audit_lines(const audit_chain &chain) : next_(chain) {}

    /// Returns the number of bytes of the line. Its serial is the value of next_serial() before the
    /// call.
    std::size_t add(const journal_entry &e);
    [[nodiscard]] std::uint64_t next_serial() const noexcept { return next_.next_serial(); }

  private:
    friend class audit_writer;

    audit_chain next_;
    std::string time_ = host::local_time::now().precise();
    std::string text_;
    std::size_t count_ = 0;
};

/// Appends lines to the file that has the log's name, and sends heads of the chain to the system
/// journal. A failed write closes the file; audit_log opens it again.
///
/// One thread uses it; any thread may call check_name().
class audit_writer {
  public:
    explicit audit_writer(const paths &where) : where_(where) {}

    /// Opens or makes the file, and makes its name durable. Returns the file's size, which may include
    /// a part of a line after a crash.
    [[nodiscard]] host::outcome<std::uint64_t> open();
    void close() { fd_.reset(); }
    [[nodiscard]] bool is_open() const noexcept { return static_cast<bool>(fd_); }
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }

    /// Removes from the file of `size` bytes everything after its last whole line.
    [[nodiscard]] host::outcome<void> set_end(std::uint64_t whole_lines, std::uint64_t size);
    /// Continues the chain from this head.
    void set_chain(const audit_chain &chain) { chain_ = chain; }
    [[nodiscard]] const audit_chain &chain() const noexcept { return chain_; }
    [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
    [[nodiscard]] audit_place place() const noexcept { return {inode_, size_}; }

    /// Fails when another file, or none, has the log's name: a line counts as recorded only in the file
    /// that has the name. Any thread may call this.
    [[nodiscard]] host::outcome<void> check_name() const;
    /// check_name() before a write. lost_name() tells whether the last write failed for that reason.
    [[nodiscard]] host::outcome<void> check_name_for_write();
    [[nodiscard]] bool lost_name() const noexcept { return lost_name_; }

    [[nodiscard]] audit_lines begin() const { return audit_lines(chain_); }
    [[nodiscard]] host::outcome<void> write(const audit_lines &lines, bool sync);
    [[nodiscard]] host::outcome<void> write_durably(const std::vector<journal_entry> &entries);
    [[nodiscard]] host::outcome<void> sync();
    [[nodiscard]] host::outcome<void> sync_directory() const;

    /// Gives the file another name. Then no file has the log's name, and open() makes one.
    [[nodiscard]] host::outcome<void> set_aside(const std::string &path);

    /// Sends the head when it is due, or when the daemon ends.
    [[nodiscard]] host::outcome<void> send_head(bool at_the_end);
    [[nodiscard]] const head_schedule &heads() const noexcept { return heads_; }

    /// When to try again, while nothing can be written.
    [[nodiscard]] std::uint64_t retry_at_ms() const noexcept { return retry_at_ms_; }
    void retry_later();

  private:
    // Identifies a file, independent of its name.
    struct file_identity {
        dev_t device = 0;
        ino_t inode = 0;

        friend bool operator==(const file_identity &, const file_identity &) = default;
    };

    host::outcome<void> abandon(const char *what);
    void set_identity(const file_identity &file);

    const paths where_;
    host::unique_fd fd_;
    audit_chain chain_;
    std::uint64_t inode_ = 0;
    std::uint64_t size_ = 0;
    std::uint64_t retry_at_ms_ = 0;
    bool lost_name_ = false;
    head_schedule heads_;

    mutable std::mutex mutex_;
    file_identity identity_; // of the file that is written; empty before the first
};

} // namespace qvmremote::dom0
