// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The files of the audit log: audit.jsonl, and its earlier parts.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <qvmremote/host/failure.hpp>

#include "base/settings.hpp"

namespace qvmremote::dom0 {

/// An earlier part: audit.jsonl.LAST, where LAST is the serial of its last line, with zeros in front so
/// that the names sort. A file is renamed only once, so a crash leaves no gap.
struct kept_audit_file {
    std::string path;
    std::uint64_t last = 0;
    std::uint64_t inode = 0, bytes = 0;
    std::int64_t changed_s = 0; ///< since 1970
};

/// A place in a file of the log, between two lines.
struct audit_place {
    std::uint64_t inode = 0, offset = 0;
};

/// The name that audit.jsonl gets when it becomes an earlier part.
[[nodiscard]] std::string kept_audit_path(const paths &where, std::uint64_t last);

/// The earlier parts, oldest first.
[[nodiscard]] host::outcome<std::vector<kept_audit_file>> kept_audit_files(const paths &where);

/// Reads a file by lines. Its memory does not grow with the file.
class line_reader {
  public:
    explicit line_reader(int fd, std::uint64_t from = 0) : fd_(fd), offset_(from), read_(from) {}

    /// The next whole line, without its newline, valid until the next call; nothing at the end. EFBIG
    /// for a line that is longer than any that dom0 writes.
    [[nodiscard]] host::outcome<std::optional<std::string_view>> next();

    [[nodiscard]] std::uint64_t offset() const noexcept { return offset_; } ///< after that line
    /// Whether the file ends within a line.
    [[nodiscard]] bool torn() const noexcept { return held_.size() > taken_; }

  private:
    int fd_;
    std::uint64_t offset_, read_;
    std::string held_;
    std::size_t taken_ = 0;
};

} // namespace qvmremote::dom0
