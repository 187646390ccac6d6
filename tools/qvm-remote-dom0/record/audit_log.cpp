// SPDX-License-Identifier: GPL-2.0-or-later
#include "record/audit_log.hpp"

#include <algorithm>
#include <cerrno>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <qvmremote/audit.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/limits.hpp>

#include "base/dom0_limits.hpp"

namespace qvmremote::dom0 {

namespace {

constexpr int lock_tries = 500; // 20 ms each; another process needs less than that to append

// The first or last line of a file that ends in a newline.
host::outcome<std::string> edge_of(int fd, std::uint64_t size, bool last) {
    const std::uint64_t n = std::min<std::uint64_t>(size, 2 * limits::audit_line);
    std::string block(n, '\0');
    if (n > 0 && ::pread(fd, block.data(), n, static_cast<off_t>(last ? size - n : 0)) !=
                     static_cast<ssize_t>(n))
        return host::failed("cannot read the audit log", errno);
    if (!last)
        return block.substr(0, block.find('\n'));
    if (!block.empty())
        block.pop_back();
    const std::size_t newline = block.rfind('\n');
    return newline == block.npos ? block : block.substr(newline + 1);
}
host::outcome<std::string> edge_of_kept(const kept_audit_file &file, bool last) {
    auto fd = host::open_trusted(file.path, host::trusted::secret);
    if (!fd)
        return tl::unexpected(fd.error());
    return edge_of(fd->get(), file.bytes, last);
}

} // namespace

host::outcome<void> audit_log::open(bool patience) {
    for (const std::string &directory : {where_.audit_directory(), where_.state_directory()}) {
        if (auto made = host::make_directories(directory, 0700); !made)
            return made;
        if (auto safe = host::open_trusted(directory, host::trusted::directory); !safe)
            return tl::unexpected(safe.error());
    }
    if (auto locked = take_lock(patience ? lock_tries : 1); !locked)
        return locked;
    auto opened = open_both();
    if (opened || !ids_.is_damaged())
        return opened;
    if (auto replaced = ids_.replace(opened.error().what); !replaced)
        return replaced;
    return open_both();
}

host::outcome<void> audit_log::take_lock(int tries) {
    const std::string path = where_.audit_lock();
    lock_.reset(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!lock_)
        return host::failed("cannot open " + path, errno);
    while (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK || --tries <= 0)
            return host::failed("another process writes the audit log " + where_.audit(), errno);
        ::usleep(20'000);
    }
    return {};
}

host::outcome<void> audit_log::open_both() {
    if (auto opened = ids_.open(); !opened)
        return opened;
    return open_file();
}

host::outcome<void> audit_log::open_file() {
    const auto size = file_.open();
    if (!size)
        return tl::unexpected(size.error());
    auto kept = kept_audit_files(where_);
    if (!kept)
        return tl::unexpected(kept.error());
    if (auto caught_up = catch_up(*kept, *size); !caught_up)
        return caught_up;
    const std::uint64_t whole = file_.size();
    if (whole == 0 && kept->empty()) {
        file_.set_chain(audit_chain());
        return {};
    }
    // Continues the chain from the last whole line.
    std::string last;
    if (auto read = whole > 0 ? edge_of(file_.fd(), whole, true) : edge_of_kept(kept->back(), true);
        !read)
        return tl::unexpected(read.error());
    else
        last = std::move(*read);
    const auto entry = parse_audit(last);
    if (!entry)
        return host::failed(
            where_.audit() +
            ": dom0 did not write the last line; move the files of the log away and "
            "keep them");
    file_.set_chain(audit_chain(entry->serial + 1, entry->hash));
    return whole > 0 ? host::outcome<void>() : begin_with_head(*kept);
}

// Reads the lines that the index does not have yet, in this file and the earlier ones. Removes a line
// that is not whole: the daemon crashed while it was written, so it was never acknowledged.
host::outcome<void> audit_log::catch_up(const std::vector<kept_audit_file> &kept,
                                        std::uint64_t size) {
    std::uint64_t from = 0;
    auto first = kept.begin(); // without a known place, read all of them
    if (const auto upto = ids_.known_until()) {
        if (upto->inode == file_.place().inode && upto->offset <= size) {
            from = upto->offset;
            first = kept.end();
        } else if (const auto at = std::find_if(kept.begin(), kept.end(),
                                                [&](const auto &f) {
                                                    return f.inode == upto->inode &&
                                                           upto->offset <= f.bytes;
                                                });
                   at != kept.end()) {
            from = upto->offset;
            first = at;
        }
    }
    if (!ids_.known_until())
        if (auto refused = refuse_ids_of_lost_files(kept, size); !refused)
            return refused;
    if (auto begun = ids_.begin(); !begun)
        return begun;
    for (; first != kept.end(); ++first, from = 0) {
        const auto fd = host::open_trusted(first->path, host::trusted::secret);
        if (!fd)
            return ids_.undo(fd.error());
        if (auto read = ids_.read_lines(fd->get(), from, first->path); !read)
            return ids_.undo(read.error());
    }
    const auto end = ids_.read_lines(file_.fd(), from, where_.audit());
    if (!end)
        return ids_.undo(end.error());
    if (auto cut = file_.set_end(*end, size); !cut)
        return ids_.undo(cut.error());
    return ids_.commit(file_.place());
}

// The index is new. It lacks the IDs of files of the log that were removed, so IDs with a time of those
// files are refused.
host::outcome<void> audit_log::refuse_ids_of_lost_files(const std::vector<kept_audit_file> &kept,
                                                        std::uint64_t size) {
    if (kept.empty() && size == 0)
        return {};
    const auto line =
        kept.empty() ? edge_of(file_.fd(), size, false) : edge_of_kept(kept.front(), false);
    if (!line)
        return tl::unexpected(line.error());
    const auto entry = parse_audit(*line);
    if (!entry || entry->serial <= 1)
        return {};
    ids_.refuse_before(entry->time().value_or(""));
    return {};
}

// Writes the first line of a file that follows others. With that line, the file can be checked
// without them. Files that are too old or too many are removed only after the line is durable,
// since it names the oldest file that is left.
host::outcome<void> audit_log::begin_with_head(const std::vector<kept_audit_file> &kept) {
    const std::int64_t now = ids_.now_s(host::local_time::now().seconds);
    std::uint64_t bytes = 0;
    for (const kept_audit_file &f : kept)
        bytes += f.bytes;
    auto first = kept.begin();
    for (; first != kept.end(); bytes -= first->bytes, ++first) {
        const std::int64_t age = now - first->changed_s;
        if (age <= limits::id_remembered_s ||
            (bytes <= limits_.kept_bytes && age <= limits_.kept_s))
            break;
    }
    journal_entry head;
    head.kind = audit_kind::head;
    head.of = file_.chain().next_serial() - 1;
    head.previous = file_.chain().head();
    head.oldest = file_.chain().next_serial();
    if (first != kept.end()) {
        const auto line = edge_of_kept(*first, false);
        const auto entry = line ? parse_audit(*line) : result<audit_entry>(fail(errc::bad_json));
        if (!entry)
            return host::failed(first->path + ": dom0 did not write the first line; move the "
                                              "files of the log away and keep them");
        head.oldest = entry->serial;
    }
    if (auto written = file_.write_durably({head}); !written)
        return written;
    if (first == kept.begin())
        return {};
    // After a crash the index must not refer to a file that was removed.
    if (!ids_.settle(file_.place()))
        return {};
    for (auto f = kept.begin(); f != first; ++f)
        ::unlink(f->path.c_str());
    return file_.sync_directory();
}

host::outcome<void>
audit_log::close_open_starts(std::uint64_t from, const char *cause, errc why,
                             const std::function<bool(const id_index::open_start &)> &goes_on) {
    auto starts = ids_.open_starts(from);
    if (!starts)
        return tl::unexpected(starts.error());
    if (goes_on)
        std::erase_if(*starts, goes_on);
    std::vector<journal_entry> ends;
    for (const id_index::open_start &s : *starts) {
        journal_entry &e = ends.emplace_back();
        e.kind = audit_kind::end;
        e.peer = s.peer;
        e.id = s.id;
        e.of = s.serial;
        e.cause = cause;
        e.reason = name(why);
    }
    if (ends.empty())
        return {};
    if (auto written = file_.write_durably(ends); !written)
        return written;
    return ids_.close_starts(*starts, why == errc::outcome_unknown, file_.place());
}

host::outcome<void> audit_log::make_ready() {
    if (auto named = file_.check_name_for_write(); !named)
        return named;
    if (!file_.is_open())
        if (auto reopened = reopen(); !reopened)
            return reopened;
    return file_.size() >= limits_.file_bytes ? new_file() : host::outcome<void>();
}

// Begins again from the files on disk, and trusts them only when a test record is durable. Lines that
// could not be removed are in the chain again; the commands that they start never ran.
host::outcome<void> audit_log::reopen() {
    const std::uint64_t unsure = file_.chain().next_serial();
    if (auto opened = open_file(); !opened) {
        file_.close();
        return opened;
    }
    journal_entry probe;
    probe.kind = audit_kind::head;
    probe.of = file_.chain().next_serial() - 1;
    if (auto written = file_.write_durably({probe}); !written)
        return written;
    if (auto told = close_open_starts(unsure, "not-run", errc::not_recorded); !told) {
        file_.close();
        return told;
    }
    return {};
}

// After a crash at any point here, open_file() does the rest.
host::outcome<void> audit_log::new_file() {
    if (!file_.is_open() || file_.size() == 0)
        return {};
    if (auto named = file_.check_name(); !named)
        return named;
    if (auto synced = file_.sync(); !synced)
        return synced;
    const std::string kept = kept_audit_path(where_, file_.chain().next_serial() - 1);
    if (::access(kept.c_str(), F_OK) == 0)
        return host::failed(kept + " exists already; move it away and keep it");
    if (auto aside = file_.set_aside(kept); !aside)
        return aside;
    if (auto opened = open_file(); !opened) {
        file_.close();
        file_.retry_later();
        return opened;
    }
    return {};
}

} // namespace qvmremote::dom0
