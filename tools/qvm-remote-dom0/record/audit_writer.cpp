// SPDX-License-Identifier: GPL-2.0-or-later
#include "record/audit_writer.hpp"

#include <cerrno>
#include <cstdio>

#include <fcntl.h>
#include <unistd.h>

#include <qvmremote/host/files.hpp>

namespace qvmremote::dom0 {

namespace {

constexpr std::uint64_t retry_ms = 60'000; // while nothing can be written

} // namespace

std::size_t audit_lines::add(const journal_entry &e) {
    const std::string line = next_.append(record_of(e, time_));
    text_ += line;
    ++count_;
    return line.size();
}

host::outcome<std::uint64_t> audit_writer::open() {
    const std::string path = where_.audit();
    fd_.reset(::open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd_)
        return host::failed("cannot open the audit log " + path, errno);
    if (auto safe = host::open_trusted(path, host::trusted::secret); !safe)
        return tl::unexpected(safe.error());
    // The lines of a file are not durable before its name is.
    if (auto synced = sync_directory(); !synced)
        return tl::unexpected(synced.error());
    struct stat st {};
    if (::fstat(fd_.get(), &st) != 0)
        return host::failed("cannot look at " + path, errno);
    inode_ = st.st_ino;
    set_identity({st.st_dev, st.st_ino});
    if (auto named = check_name(); !named)
        return tl::unexpected(named.error());
    return static_cast<std::uint64_t>(st.st_size);
}

host::outcome<void> audit_writer::set_end(std::uint64_t whole_lines, std::uint64_t size) {
    size_ = whole_lines;
    if (size_ < size && ::ftruncate(fd_.get(), static_cast<off_t>(size_)) != 0)
        return host::failed("cannot repair " + where_.audit(), errno);
    return {};
}

host::outcome<void> audit_writer::sync_directory() const {
    const host::unique_fd directory(
        ::open(where_.audit_directory().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!directory || ::fsync(directory.get()) != 0)
        return host::failed("cannot sync " + where_.audit_directory(), errno);
    return {};
}

host::outcome<void> audit_writer::check_name() const {
    const std::lock_guard lock(mutex_);
    // Before the first file there is nothing to compare.
    if (identity_ == file_identity())
        return {};
    const std::string path = where_.audit();
    struct stat st {};
    if (::lstat(path.c_str(), &st) != 0)
        return host::failed("the audit log " + path + " was removed or renamed; no command runs " +
                                "before it is put back or the daemon is restarted",
                            errno);
    if (!S_ISREG(st.st_mode) || file_identity{st.st_dev, st.st_ino} != identity_)
        return host::failed("another file is in the place of the audit log " + path +
                            "; no command runs before the log is put back or the daemon is "
                            "restarted");
    return {};
}

host::outcome<void> audit_writer::check_name_for_write() {
    const auto named = check_name();
    lost_name_ = !named;
    return named;
}

void audit_writer::set_identity(const file_identity &file) {
    const std::lock_guard lock(mutex_);
    identity_ = file;
}

host::outcome<void> audit_writer::write(const audit_lines &lines, bool sync) {
    if (!host::write_all(fd_.get(), lines.text_))
        return abandon("cannot write");
    // After a failed sync the kernel may drop the pages, and then the next sync succeeds without them.
    if (sync && ::fdatasync(fd_.get()) != 0)
        return abandon("cannot sync");
    if (auto named = check_name(); sync && !named) {
        lost_name_ = true;
        static_cast<void>(abandon("cannot keep"));
        return named;
    }
    chain_ = lines.next_;
    size_ += lines.text_.size();
    heads_.lines_written(lines.count_, host::boottime_ms());
    return {};
}

host::outcome<void> audit_writer::write_durably(const std::vector<journal_entry> &entries) {
    audit_lines lines = begin();
    for (const journal_entry &e : entries)
        lines.add(e);
    return write(lines, true);
}

host::outcome<void> audit_writer::sync() {
    return ::fdatasync(fd_.get()) == 0 ? host::outcome<void>() : abandon("cannot sync");
}

// Removes the part of the lines that was written, since they are not acknowledged.
host::outcome<void> audit_writer::abandon(const char *what) {
    const int error = errno;
    [[maybe_unused]] const int cut = ::ftruncate(fd_.get(), static_cast<off_t>(size_));
    fd_.reset();
    retry_later(); // the sync may fail without a failed write
    return host::failed(std::string(what) + " the audit log " + where_.audit() +
                            "; no command runs until it can be written again",
                        error);
}

void audit_writer::retry_later() { retry_at_ms_ = host::boottime_ms() + retry_ms; }

host::outcome<void> audit_writer::set_aside(const std::string &path) {
    if (::rename(where_.audit().c_str(), path.c_str()) != 0)
        return host::failed("cannot rename " + where_.audit(), errno);
    set_identity({});
    return {};
}

// The lines must be durable before their head is sent. Otherwise lines that a crash removes would look
// like an attack.
host::outcome<void> audit_writer::send_head(bool at_the_end) {
    const std::uint64_t now = host::boottime_ms();
    if (!fd_ || !(heads_.is_due(now) || (at_the_end && heads_.is_behind())))
        return {};
    if (auto synced = sync(); !synced)
        return synced;
    if (dom0::send_head(where_.system_journal(), chain_.next_serial() - 1, chain_.head()))
        heads_.sent();
    else
        heads_.failed();
    return {};
}

} // namespace qvmremote::dom0
