// SPDX-License-Identifier: GPL-2.0-or-later
#include "record/audit_files.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/bytes.hpp>
#include <qvmremote/config.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/limits.hpp>

namespace qvmremote::dom0 {

std::string kept_audit_path(const paths &where, std::uint64_t last) {
    char digits[24];
    std::snprintf(digits, sizeof digits, "%012llu", static_cast<unsigned long long>(last));
    return where.audit() + "." + digits;
}

host::outcome<std::vector<kept_audit_file>> kept_audit_files(const paths &where) {
    std::vector<kept_audit_file> out;
    const auto names = host::names_in(where.audit_directory());
    if (!names)
        return host::failed("cannot read " + where.audit_directory(), names.error().error_number);
    constexpr std::string_view prefix = "audit.jsonl.";
    for (std::string_view digits : *names) {
        if (!digits.starts_with(prefix))
            continue;
        digits.remove_prefix(prefix.size());
        const std::size_t zeros = std::min(digits.find_first_not_of('0'), digits.size());
        const auto last = parse_decimal<std::uint64_t>(digits.substr(zeros));
        struct stat st {};
        if (!last || kept_audit_path(where, *last) != where.audit() + "." + std::string(digits) ||
            ::lstat(kept_audit_path(where, *last).c_str(), &st) != 0)
            continue; // not a file of the log
        out.push_back({kept_audit_path(where, *last), *last, st.st_ino,
                       static_cast<std::uint64_t>(st.st_size), st.st_mtime});
    }
    std::sort(out.begin(), out.end(),
              [](const kept_audit_file &a, const kept_audit_file &b) { return a.last < b.last; });
    return out;
}

host::outcome<std::optional<std::string_view>> line_reader::next() {
    std::size_t searched = taken_;
    for (;;) {
        if (const std::size_t end = held_.find('\n', searched); end != held_.npos) {
            const auto line = std::string_view(held_).substr(taken_, end - taken_);
            taken_ = end + 1;
            offset_ += line.size() + 1;
            return std::optional(line);
        }
        held_.erase(0, taken_);
        taken_ = 0;
        searched = held_.size();
        if (held_.size() > limits::audit_line)
            return host::failed("a line is longer than any that dom0 writes", EFBIG);
        constexpr std::size_t piece = 1 << 16;
        held_.resize(searched + piece);
        const ssize_t n = ::pread(fd_, held_.data() + searched, piece, static_cast<off_t>(read_));
        held_.resize(searched + (n > 0 ? static_cast<std::size_t>(n) : 0));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return host::failed("cannot read", errno);
        if (n == 0)
            return std::optional<std::string_view>();
        read_ += static_cast<std::uint64_t>(n);
    }
}

} // namespace qvmremote::dom0
