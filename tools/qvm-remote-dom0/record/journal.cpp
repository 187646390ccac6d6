// SPDX-License-Identifier: GPL-2.0-or-later
#include "record/journal.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <iterator>
#include <map>
#include <mutex>
#include <thread>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/limits.hpp>

#include "base/line_gate.hpp"
#include "base/log.hpp"
#include "record/audit_files.hpp"
#include "record/heads.hpp"
#include "record/id_index.hpp"
#include "record/memory_clock.hpp"
#include "record/quota.hpp"

namespace qvmremote::dom0 {

namespace {

constexpr std::uint64_t retry_ms = 60'000; // while nothing can be written
constexpr std::size_t held_notes = 4096;   // ENDs that wait for that
constexpr std::size_t unindexed_starts = 4096;
constexpr std::int64_t lapse_step = 1000; // IDs; what the next START may have to wait for
constexpr int lock_tries = 500;           // of 20 ms: who else appends is done in one

// The time that an ID shows; nothing for one that shows none.
std::optional<std::int64_t> claimed_time_of(std::string_view id) {
    const auto parsed = command_id::parse(id);
    return parsed ? parsed->claimed_time() : std::nullopt;
}

// A record's local time "YYYY-MM-DDTHH:MM:SS…", in seconds since 1970 as if it were UTC.
std::optional<std::int64_t> seconds_of(std::string_view record_time) {
    if (record_time.size() < 19)
        return std::nullopt;
    std::string as_id;
    for (const std::size_t at : {0U, 5U, 8U, 11U, 14U, 17U}) {
        if (at == 11)
            as_id += '-';
        as_id += record_time.substr(at, at == 0 ? 4 : 2);
    }
    return claimed_time_of(as_id + "-");
}
constexpr std::int64_t widest_zone_s = 14 * 3600;

// Which file it is, whatever its name.
struct file_identity {
    dev_t device = 0;
    ino_t inode = 0;

    static file_identity of(const struct stat &st) { return {st.st_dev, st.st_ino}; }
    friend bool operator==(const file_identity &, const file_identity &) = default;
};

std::optional<digest256> digest_of(const std::optional<std::string> &hex) {
    digest256 out;
    if (!hex || hex->size() != 2 * out.size())
        return std::nullopt;
    for (std::size_t i = 0; i < out.size(); ++i) {
        const int high = hex_value((*hex)[2 * i]), low = hex_value((*hex)[2 * i + 1]);
        if (high < 0 || low < 0)
            return std::nullopt;
        out[i] = static_cast<std::uint8_t>(high << 4 | low);
    }
    return out;
}

std::optional<std::string_view> unless_empty(const std::string &text) {
    if (text.empty())
        return std::nullopt;
    return text;
}

audit_record record_of(const journal_entry &e, std::string_view time) {
    audit_record r;
    r.kind = e.kind;
    r.time = time;
    r.peer = unless_empty(e.peer);
    r.id = unless_empty(e.id);
    r.key = e.key;
    if (e.kind != audit_kind::end && e.kind != audit_kind::head && e.kind != audit_kind::admin)
        r.proto = e.protocol;
    if (r.proto == 1u && e.kind == audit_kind::start)
        r.body = "unsigned";
    r.transport = unless_empty(e.transport);
    r.request = unless_empty(e.request);
    if (!e.argv.empty())
        r.argv = e.argv;
    r.script = e.script;
    r.verdict = unless_empty(e.verdict);
    r.policy = unless_empty(e.rule);
    r.approval = e.approval;
    r.digest = e.digest;
    r.user = unless_empty(e.user);
    r.timeout_s = e.timeout_s;
    r.of = e.of;
    r.previous = unless_empty(e.previous);
    r.oldest = e.oldest;
    r.exit = e.exit;
    r.cause = unless_empty(e.cause);
    r.stdin_bytes = e.stdin_bytes;
    r.stdout_bytes = e.stdout_bytes;
    r.stderr_bytes = e.stderr_bytes;
    r.started = unless_empty(e.started);
    r.duration_ms = e.duration_ms;
    r.reason = unless_empty(e.reason);
    r.count = e.count;
    return r;
}

} // namespace

class journal::state {
  public:
    state(const paths &where, const audit_limits &limits, poster post)
        : where_(where), limits_(limits), post_(std::move(post)),
          quota_(limits.qube_bytes_per_day) {}

    ~state() {
        {
            const std::lock_guard lock(mutex_);
            stop_ = true;
        }
        wake_.notify_one();
        if (thread_.joinable())
            thread_.join();
    }

    // With `patience`, waits for one who appends a record and goes.
    host::outcome<void> open(bool patience) {
        for (const std::string &directory : {where_.audit_directory(), where_.state_directory()}) {
            if (auto made = host::make_directories(directory, 0700); !made)
                return made;
            if (auto safe = host::open_trusted(directory, host::trusted::directory); !safe)
                return tl::unexpected(safe.error());
        }
        if (auto locked = take_lock(patience ? lock_tries : 1); !locked)
            return locked;
        auto opened = open_records();
        if (opened || !writer_.is_damaged())
            return opened;
        if (auto replaced = replace_index(opened.error().what); !replaced)
            return replaced;
        return open_records();
    }

    host::outcome<void> serve() {
        if (auto reader = reader_.open(where_.index()); !reader)
            return reader;
        if (auto told = close_open_starts(1, "unknown", errc::outcome_unknown); !told)
            return told;
        thread_ = std::thread([this] { run(); });
        return {};
    }

    host::outcome<void> append(journal_entry entry) {
        std::vector<item> batch;
        batch.push_back({std::move(entry), {}});
        if (auto written = write(batch); !written)
            return written;
        static_cast<void>(send_head(true));
        return {};
    }

    bool has_room(const std::string &peer) const {
        const std::lock_guard lock(mutex_);
        return quota_.has_room(peer, host::boottime_ms());
    }

    bool was_started(const id_hash &h) {
        return reader_.contains(h).value_or(false) || recent_.contains(h);
    }

    bool is_forgotten(const command_id &id) const {
        const auto claimed = id.claimed_time();
        return claimed && *claimed < forgotten_before_s_;
    }
    bool reserve(const id_hash &h, const command_id &id, const digest256 &mark) {
        if (recent_.contains(h))
            return false;
        if (is_forgotten(id))
            return false;
        const auto used = reader_.contains(h);
        if (!used)
            set_trouble(used.error().what);
        if (!used || *used)
            return false;
        recent_.emplace(h, mark);
        return true;
    }
    void release(const id_hash &h) { recent_.erase(h); }
    bool is_unknown(const id_hash &h) { return reader_.is_unknown(h); }

    void push(journal_entry entry, started tell) {
        if (entry.kind == audit_kind::start)
            if (const auto at = recent_.find(hash_of(entry.peer, entry.id)); at != recent_.end())
                entry.key = at->second;
        bool was_empty;
        {
            const std::lock_guard lock(mutex_);
            // What is counted takes no place in the queue, however fast a peer fails.
            if (entry.kind == audit_kind::refused && !entry.peer.empty()) {
                const std::uint64_t now = host::boottime_ms();
                const bool counts = gate_.due_ms().has_value();
                if (!gate_.take(entry.peer, entry.reason, quota_.has_room(entry.peer, now), now)) {
                    if (!counts)
                        wake_.notify_one(); // it has a date now
                    return;
                }
            }
            was_empty = queue_.empty();
            queue_.push_back({std::move(entry), std::move(tell)});
        }
        if (was_empty)
            wake_.notify_one();
    }

    void keep_keys(std::vector<digest256> standing) {
        chore([this, standing = std::move(standing)] { let_go(standing); });
    }
    void begin_file() {
        chore([this] {
            if (auto begun = new_file(); !begun)
                set_trouble(begun.error().what);
        });
    }

    std::string trouble() const {
        const std::lock_guard lock(mutex_);
        if (auto named = keeps_its_name(identity_); !named)
            return named.error().what;
        return trouble_;
    }

  private:
    struct item {
        journal_entry entry;
        started tell;
        std::uint64_t serial = 0;
        std::size_t bytes = 0;
    };

    void chore(std::function<void()> work) {
        {
            const std::lock_guard lock(mutex_);
            chores_.push_back(std::move(work));
        }
        wake_.notify_one();
    }

    host::outcome<void> take_lock(int tries) {
        const std::string path = where_.audit_lock();
        lock_.reset(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
        if (!lock_)
            return host::failed("cannot open " + path, errno);
        while (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) {
            if (errno != EWOULDBLOCK || --tries <= 0)
                return host::failed("another process writes the audit log " + where_.audit(),
                                    errno);
            ::usleep(20'000);
        }
        return {};
    }

    host::outcome<void> open_records() {
        if (auto opened = writer_.open(where_.index()); !opened)
            return opened;
        if (auto started = start_clock(); !started)
            return started;
        return open_audit();
    }

    // The damaged file is kept for whoever wants to know why.
    host::outcome<void> replace_index(const std::string &why) {
        writer_.close();
        const std::string path = where_.index(), aside = path + ".damaged";
        if (::rename(path.c_str(), aside.c_str()) != 0)
            return host::failed("cannot rename the damaged index " + path, errno);
        for (const char *suffix : {"-wal", "-shm"})
            ::unlink((path + suffix).c_str());
        const std::string text = "the index of used IDs is damaged (" + why + "); it is kept as " +
                                 aside + " and made again from the audit log";
        if (auto log = event_log::open(where_.log(), false))
            log->write(log_category::error, for_log(text));
        return {};
    }

    host::outcome<void> start_clock() {
        const std::int64_t wall = host::local_time::now().seconds;
        auto stored = writer_.stored_clock();
        if (!stored)
            return tl::unexpected(stored.error());
        std::optional<std::int64_t> begin;
        if (*stored) {
            begin = (*stored)->now_s;
            forgotten_before_s_ = (*stored)->forgotten_before_s;
        } else if (auto first = writer_.first_expiry(); !first) {
            return tl::unexpected(first.error());
        } else if (*first) { // an index that is older than the clock in it
            begin = std::min(wall, **first - limits::id_remembered_s);
        }
        clock_ = memory_clock(begin, wall, host::boottime_ms());
        return {};
    }
    bool store_clock() { return writer_.set_clock({clock_.now_s(), forgotten_before_s_}); }

    // A line counts as recorded only in the file that people find under the name. Where none was
    // begun yet, there is nothing to compare.
    host::outcome<void> keeps_its_name(const file_identity &file) const {
        if (file == file_identity())
            return {};
        const std::string path = where_.audit();
        struct stat st {};
        if (::lstat(path.c_str(), &st) != 0)
            return host::failed("the audit log " + path + " was removed or renamed; nothing runs " +
                                    "before it is put back or the daemon is restarted",
                                errno);
        if (!S_ISREG(st.st_mode) || file_identity::of(st) != file)
            return host::failed("another file is in the place of the audit log " + path +
                                "; nothing runs before the log is put back or the daemon is "
                                "restarted");
        return {};
    }

    void set_identity(const file_identity &file) {
        const std::lock_guard lock(mutex_);
        identity_ = file;
    }

    host::outcome<void> open_audit() {
        const std::string path = where_.audit();
        fd_.reset(::open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
        if (!fd_)
            return host::failed("cannot open the audit log " + path, errno);
        if (auto safe = host::open_trusted(path, host::trusted::secret); !safe)
            return tl::unexpected(safe.error());
        // A file whose name is not on the disk holds no durable line.
        if (auto synced = sync_directory(); !synced)
            return synced;
        struct stat st {};
        if (::fstat(fd_.get(), &st) != 0)
            return host::failed("cannot look at " + path, errno);
        inode_ = st.st_ino;
        set_identity(file_identity::of(st));
        if (auto named = keeps_its_name(identity_); !named)
            return named;
        auto kept = kept_audit_files(where_);
        if (!kept)
            return tl::unexpected(kept.error());
        if (auto caught_up = catch_up(*kept, static_cast<std::uint64_t>(st.st_size)); !caught_up)
            return caught_up;
        if (size_ == 0 && kept->empty()) {
            chain_ = audit_chain();
            return {};
        }
        // Where the chain goes on: the last whole line.
        std::string last;
        if (auto read =
                size_ > 0 ? edge_of(fd_.get(), size_, true) : edge_of_kept(kept->back(), true);
            !read)
            return tl::unexpected(read.error());
        else
            last = std::move(*read);
        const auto entry = parse_audit(last);
        if (!entry)
            return host::failed(path +
                                ": the last line is not one of ours; move the files away and "
                                "keep them");
        chain_ = audit_chain(entry->serial + 1, entry->hash);
        return size_ > 0 ? host::outcome<void>() : begin_with_head(*kept);
    }

    host::outcome<void> sync_directory() {
        const host::unique_fd directory(
            ::open(where_.audit_directory().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        if (!directory || ::fsync(directory.get()) != 0)
            return host::failed("cannot sync " + where_.audit_directory(), errno);
        return {};
    }

    // The first line of a file behind others, by which it can be checked without them. Only when it
    // stands do those go that are too old or too many: it says so.
    host::outcome<void> begin_with_head(const std::vector<kept_audit_file> &kept) {
        const std::int64_t wall = host::local_time::now().seconds;
        const std::int64_t now = std::min(wall, clock_.advance(wall, host::boottime_ms()));
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
        head.of = chain_.next_serial() - 1;
        head.previous = chain_.head();
        head.oldest = chain_.next_serial();
        if (first != kept.end()) {
            const auto line = edge_of_kept(*first, false);
            const auto entry =
                line ? parse_audit(*line) : result<audit_entry>(fail(errc::bad_json));
            if (!entry)
                return host::failed(first->path + ": the first line is not one of ours; move the "
                                                  "files away and keep them");
            head.oldest = entry->serial;
        }
        if (auto written = write_durably({head}); !written)
            return written;
        if (first == kept.begin())
            return {};
        // No crash may take the index back to a file that is gone.
        if (!writer_.set_upto(inode_, size_) || !writer_.execute("PRAGMA wal_checkpoint(TRUNCATE)"))
            return {};
        for (auto f = kept.begin(); f != first; ++f)
            ::unlink(f->path.c_str());
        return sync_directory();
    }

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

    // Reads the lines that the index does not know, in this file and in those before it, and cuts off
    // one that has no end: a crash fell into its writing, so nobody was told that it stood.
    host::outcome<void> catch_up(const std::vector<kept_audit_file> &kept, std::uint64_t size) {
        std::uint64_t from = 0;
        auto first = kept.begin(); // without a place that is known, all of them
        if (const auto upto = writer_.upto()) {
            if (upto->first == inode_ && upto->second <= size) {
                from = upto->second;
                first = kept.end();
            } else if (const auto at = std::find_if(kept.begin(), kept.end(),
                                                    [&](const auto &f) {
                                                        return f.inode == upto->first &&
                                                               upto->second <= f.bytes;
                                                    });
                       at != kept.end()) {
                from = upto->second;
                first = at;
            }
        }
        if (!writer_.upto())
            if (auto refused = refuse_ids_of_lost_files(kept, size); !refused)
                return refused;
        if (auto begun = writer_.execute("BEGIN"); !begun)
            return begun;
        for (; first != kept.end(); ++first, from = 0) {
            const auto fd = host::open_trusted(first->path, host::trusted::secret);
            if (!fd)
                return undo(fd.error());
            if (auto read = read_into_index(fd->get(), from, first->path); !read)
                return undo(read.error());
        }
        const auto end = read_into_index(fd_.get(), from, where_.audit());
        if (!end)
            return undo(end.error());
        size_ = *end;
        if (size_ < size && ::ftruncate(fd_.get(), static_cast<off_t>(size_)) != 0)
            return undo(host::failed("cannot repair " + where_.audit(), errno).value());
        if (!store_clock() || !writer_.set_upto(inode_, size_))
            return undo(host::failed("cannot write " + where_.index()).value());
        return writer_.execute("COMMIT");
    }

    // The index is new. IDs that were used in files of the log that are gone are not in it, so IDs
    // that show a time of those files are refused.
    host::outcome<void> refuse_ids_of_lost_files(const std::vector<kept_audit_file> &kept,
                                                 std::uint64_t size) {
        if (kept.empty() && size == 0)
            return {};
        const auto line =
            kept.empty() ? edge_of(fd_.get(), size, false) : edge_of_kept(kept.front(), false);
        if (!line)
            return tl::unexpected(line.error());
        const auto entry = parse_audit(*line);
        if (!entry || entry->serial <= 1)
            return {};
        if (const auto begin = seconds_of(entry->time().value_or("")))
            forgotten_before_s_ = std::max(forgotten_before_s_.load(),
                                           *begin + limits::id_clock_skew_s + widest_zone_s);
        return {};
    }

    host::outcome<void> undo(host::failure why) {
        static_cast<void>(writer_.execute("ROLLBACK"));
        return tl::unexpected(std::move(why));
    }

    // Up to the end of the last whole line.
    host::outcome<std::uint64_t> read_into_index(int fd, std::uint64_t from,
                                                 const std::string &path) {
        const std::int64_t now = host::local_time::now().seconds;
        line_reader lines(fd, from);
        for (;;) {
            const auto line = lines.next();
            if (!line)
                return host::failed(path + ": " + line.error().what +
                                    "; move the files away and keep them");
            if (!*line)
                return lines.offset();
            if (!remember_line(**line, now))
                return host::failed("cannot write the index of used IDs " + where_.index());
        }
    }

    // An ID that shows no time is remembered as long as its key stands.
    std::optional<std::int64_t> expiry_of(std::string_view id, std::int64_t wall) const {
        const auto claimed = claimed_time_of(id);
        return claimed ? std::optional(clock_.expiry(wall, *claimed)) : std::nullopt;
    }

    bool remember_line(std::string_view line, std::int64_t now) {
        const auto entry = parse_audit(line);
        if (!entry)
            return true; // `audit verify` names it
        const auto peer = entry->peer();
        const auto id = entry->id();
        if (entry->kind == name(audit_kind::start) && peer && id)
            return writer_.insert(hash_of(*peer, *id), expiry_of(*id, now),
                                  digest_of(entry->text("key"))) &&
                   writer_.touch(*peer, now) && writer_.add_open({entry->serial, *peer, *id});
        if (entry->kind == name(audit_kind::end)) {
            if (entry->text("cause") == "unknown" && peer && id &&
                !writer_.add_unknown(hash_of(*peer, *id)))
                return false;
            const auto of = entry->number("of");
            return !of || writer_.remove_open(static_cast<std::uint64_t>(*of));
        }
        return true;
    }

    // An END for each START from a serial on that has none and will get none.
    host::outcome<void> close_open_starts(std::uint64_t from, const char *cause, errc why) {
        auto starts = writer_.open_starts(from);
        if (!starts)
            return tl::unexpected(starts.error());
        std::vector<journal_entry> ends;
        for (id_index::open_start &s : *starts) {
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
        if (auto written = write_durably(ends); !written)
            return written;
        bool ok = writer_.execute("BEGIN").has_value();
        for (const journal_entry &e : ends)
            ok = ok && writer_.remove_open(*e.of) &&
                 (why != errc::outcome_unknown || writer_.add_unknown(hash_of(e.peer, e.id)));
        if (!ok || !writer_.set_upto(inode_, size_) || !writer_.execute("COMMIT"))
            return undo(host::failed("cannot write " + where_.index()).value());
        return {};
    }

    void run() {
        // Signals are the loop's.
        sigset_t all;
        sigfillset(&all);
        ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
        for (bool stopping = false; !stopping;) {
            std::vector<item> batch;
            std::vector<std::function<void()>> chores;
            {
                std::unique_lock lock(mutex_);
                const auto ready = [this] { return stop_ || !queue_.empty() || !chores_.empty(); };
                if (const auto due = due_ms(); !due) {
                    wake_.wait(lock, ready);
                } else if (const std::uint64_t now = host::boottime_ms(); now < *due) {
                    wake_.wait_for(lock, std::chrono::milliseconds(*due - now), ready);
                }
                batch.assign(std::make_move_iterator(queue_.begin()),
                             std::make_move_iterator(queue_.end()));
                queue_.clear();
                chores = std::exchange(chores_, {});
                stopping = stop_;
            }
            for (const auto &work : chores)
                work();
            process(std::move(batch), stopping);
            if (!stopping)
                lapse_some();
        }
    }

    // When there is something to do that nobody asks for. Called with the mutex held.
    std::optional<std::uint64_t> due_ms() const {
        if (!lapsed_.empty())
            return 0;
        std::optional<std::uint64_t> due =
            fd_ && held_.empty() ? heads_.due_ms() : std::optional(retry_at_ms_);
        if (fd_)
            if (const auto sum = gate_.due_ms())
                due = std::min(due.value_or(*sum), *sum);
        return due;
    }

    void process(std::vector<item> fresh, bool stopping) {
        const std::uint64_t now = host::boottime_ms();
        std::vector<item> batch = std::exchange(held_, {});
        batch.insert(batch.end(), std::make_move_iterator(fresh.begin()),
                     std::make_move_iterator(fresh.end()));
        if (fd_ || stopping) {
            const std::lock_guard lock(mutex_);
            while (auto sum = gate_.next_sum(now, stopping))
                batch.push_back({sum_entry(std::move(*sum)), {}});
        }
        if (!batch.empty() || (!fd_ && (stopping || now >= retry_at_ms_))) {
            const auto written = write(batch);
            // trouble() looks for itself whether the file has its name.
            set_trouble(written || lost_its_name_ ? std::string() : written.error().what);
            tell(batch, written.has_value());
            if (written)
                remember(batch);
            else
                hold(std::move(batch));
        }
        if (stopping && (!ended_.empty() || !unindexed_.empty()))
            write_index();
        if (auto sent = send_head(stopping); !sent)
            set_trouble(sent.error().what);
    }

    static journal_entry sum_entry(std::pair<std::string, line_gate::sum> of) {
        journal_entry out;
        out.kind = audit_kind::refused;
        out.peer = std::move(of.first);
        out.reason = std::move(of.second.reason);
        out.count = of.second.count;
        return out;
    }

    // What happened stays true while the disk is full.
    void hold(std::vector<item> batch) {
        for (item &i : batch)
            if ((i.entry.kind == audit_kind::end || i.entry.kind == audit_kind::admin ||
                 i.entry.count) &&
                held_.size() < held_notes)
                held_.push_back(std::move(i));
    }

    // One write and at most one sync for all that wait. On any failure nothing of the batch counts.
    host::outcome<void> write(std::vector<item> &batch) {
        retry_at_ms_ = host::boottime_ms() + retry_ms;
        if (unindexed_.size() >= unindexed_starts && !write_index())
            return host::failed("cannot write the index of used IDs " + where_.index());
        const auto named = keeps_its_name(identity_);
        lost_its_name_ = !named;
        if (!named)
            return named;
        if (!fd_)
            if (auto reopened = reopen(); !reopened)
                return reopened;
        if (size_ >= limits_.file_bytes)
            if (auto begun = new_file(); !begun)
                return begun;
        audit_chain next = chain_;
        std::string lines;
        bool sync = false;
        const std::string time = host::local_time::now().precise();
        for (item &i : batch) {
            i.serial = next.next_serial();
            const std::string line = next.append(record_of(i.entry, time));
            i.bytes = line.size();
            lines += line;
            sync = sync || i.entry.kind == audit_kind::start || i.entry.kind == audit_kind::admin;
        }
        if (auto written = put(lines, sync, next, batch.size()); !written)
            return written;
        const std::uint64_t now = host::boottime_ms();
        const std::lock_guard lock(mutex_);
        for (const item &i : batch)
            if (!i.entry.peer.empty())
                quota_.charge(i.entry.peer, i.bytes, now);
        return {};
    }

    host::outcome<void> write_durably(const std::vector<journal_entry> &entries) {
        audit_chain next = chain_;
        std::string lines;
        const std::string time = host::local_time::now().precise();
        for (const journal_entry &e : entries)
            lines += next.append(record_of(e, time));
        return put(lines, true, next, entries.size());
    }

    host::outcome<void> put(const std::string &lines, bool sync, const audit_chain &next,
                            std::size_t count) {
        std::string_view left = lines;
        while (!left.empty()) {
            const ssize_t n = ::write(fd_.get(), left.data(), left.size());
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                return abandon("cannot write");
            left.remove_prefix(static_cast<std::size_t>(n));
        }
        // After a failed sync the kernel may have dropped the pages and call the next one good.
        if (sync && ::fdatasync(fd_.get()) != 0)
            return abandon("cannot sync");
        if (auto named = keeps_its_name(identity_); sync && !named) {
            lost_its_name_ = true;
            static_cast<void>(abandon("cannot keep"));
            return named;
        }
        chain_ = next;
        size_ += lines.size();
        heads_.lines_written(count, host::boottime_ms());
        return {};
    }

    // What of the lines came into the file is taken out again, since nobody is told that they stand.
    host::outcome<void> abandon(const char *what) {
        const int error = errno;
        [[maybe_unused]] const int cut = ::ftruncate(fd_.get(), static_cast<off_t>(size_));
        fd_.reset();
        retry_at_ms_ = host::boottime_ms() + retry_ms; // a sync may have failed on its own
        return host::failed(std::string(what) + " the audit log " + where_.audit() +
                                "; nothing runs until it can be written again",
                            error);
    }

    // Begins anew from what is on disk, and believes it only when a test record is durable. Lines
    // that could not be taken out are in the chain again; what they start never ran.
    host::outcome<void> reopen() {
        const std::uint64_t unsure = chain_.next_serial();
        if (auto opened = open_audit(); !opened) {
            fd_.reset();
            return opened;
        }
        journal_entry probe;
        probe.kind = audit_kind::head;
        probe.of = chain_.next_serial() - 1;
        if (auto written = write_durably({probe}); !written)
            return written;
        if (auto told = close_open_starts(unsure, "not-run", errc::not_recorded); !told) {
            fd_.reset();
            return told;
        }
        return {};
    }

    // What a crash leaves at any point of this, open_audit finishes.
    host::outcome<void> new_file() {
        if (!fd_ || size_ == 0)
            return {};
        if (auto named = keeps_its_name(identity_); !named)
            return named;
        if (::fdatasync(fd_.get()) != 0)
            return abandon("cannot sync");
        const std::string kept = kept_audit_path(where_, chain_.next_serial() - 1);
        if (::access(kept.c_str(), F_OK) == 0)
            return host::failed(kept + " is there already; move it away and keep it");
        if (::rename(where_.audit().c_str(), kept.c_str()) != 0)
            return host::failed("cannot rename " + where_.audit(), errno);
        set_identity({}); // no file has the name now
        if (auto opened = open_audit(); !opened) {
            fd_.reset();
            retry_at_ms_ = host::boottime_ms() + retry_ms;
            return opened;
        }
        return {};
    }

    void tell(std::vector<item> &batch, bool good) {
        std::vector<std::pair<started, std::optional<std::uint64_t>>> calls;
        for (item &i : batch)
            if (i.tell)
                calls.emplace_back(std::move(i.tell),
                                   good ? std::optional(i.serial) : std::nullopt);
        if (!calls.empty())
            post_([calls = std::move(calls)] {
                for (const auto &[call, serial] : calls)
                    call(serial);
            });
    }

    // The index may lag: what it lacks is in recent_, and after a crash in the log. ENDs ride along
    // with the next STARTs.
    void remember(const std::vector<item> &batch) {
        bool starts = false;
        for (const item &i : batch) {
            if (i.entry.kind == audit_kind::start) {
                unindexed_.push_back({{i.serial, i.entry.peer, i.entry.id}, i.entry.key});
                starts = true;
            } else if (i.entry.kind == audit_kind::end && i.entry.of) {
                ended_.push_back(*i.entry.of);
            }
        }
        if ((starts || ended_.size() >= 64) && !write_index())
            set_trouble("cannot write the index of used IDs " + where_.index());
    }

    bool write_index() {
        const std::int64_t now = host::local_time::now().seconds;
        std::vector<id_hash> known;
        bool ok = writer_.execute("BEGIN").has_value();
        for (const unindexed &u : unindexed_) {
            const id_hash h = hash_of(u.start.peer, u.start.id);
            ok = ok && writer_.insert(h, expiry_of(u.start.id, now), u.key) &&
                 writer_.touch(u.start.peer, now) && writer_.add_open(u.start);
            known.push_back(h);
        }
        for (const std::uint64_t serial : ended_)
            ok = ok && writer_.remove_open(serial);
        ok = ok && forget_some(now) && store_clock() && writer_.set_upto(inode_, size_) &&
             writer_.execute("COMMIT").has_value();
        if (!ok) {
            static_cast<void>(writer_.execute("ROLLBACK"));
            return false; // they stay in recent_
        }
        unindexed_.clear();
        ended_.clear();
        indexed_.insert(indexed_.end(), known.begin(), known.end());
        // Forgetting is not urgent: it rides along once there is something to gain.
        if (indexed_.size() >= 64) {
            post_([this, done = std::move(indexed_)] {
                for (const id_hash &h : done)
                    recent_.erase(h);
            });
            indexed_.clear();
        }
        return true;
    }

    // Two for each that comes, so the index shrinks to what must be remembered. That they are
    // forgotten is stored, and known to the loop, before they are gone.
    bool forget_some(std::int64_t wall) {
        const std::int64_t now = clock_.advance(wall, host::boottime_ms());
        const auto most = 2 * static_cast<std::int64_t>(unindexed_.size()) + 8;
        const auto gone = writer_.forget_expired(now, most);
        if (gone && *gone > 0)
            forgotten_before_s_ = std::max(forgotten_before_s_.load(), clock_.forgotten_before());
        return gone.has_value();
    }

    void let_go(const std::vector<digest256> &standing) {
        lapsed_.clear();
        for (const digest256 &mark : writer_.marks())
            if (std::find(standing.begin(), standing.end(), mark) == standing.end())
                lapsed_.push_back(mark);
    }

    void lapse_some() {
        if (lapsed_.empty())
            return;
        const std::int64_t when = clock_.expiry(host::local_time::now().seconds, 0);
        if (!writer_.execute("BEGIN"))
            return lapsed_.clear();
        const auto more = writer_.lapse(lapsed_.back(), when, lapse_step);
        const bool kept = more && writer_.execute("COMMIT").has_value();
        if (!kept)
            static_cast<void>(writer_.execute("ROLLBACK"));
        if (!kept) // then with the next change of keys
            lapsed_.clear();
        else if (!*more)
            lapsed_.pop_back();
    }

    // The lines are on the disk before their head is known elsewhere: one that a crash takes back
    // would look cut off.
    host::outcome<void> send_head(bool at_the_end) {
        const std::uint64_t now = host::boottime_ms();
        if (!fd_ || !(heads_.is_due(now) || (at_the_end && heads_.is_behind())))
            return {};
        if (::fdatasync(fd_.get()) != 0)
            return abandon("cannot sync");
        if (dom0::send_head(where_.system_journal(), chain_.next_serial() - 1, chain_.head()))
            heads_.sent();
        else
            heads_.failed();
        return {};
    }

    void set_trouble(std::string what) {
        const std::lock_guard lock(mutex_);
        trouble_ = std::move(what);
    }

    struct unindexed {
        id_index::open_start start;
        std::optional<digest256> key;
    };

    const paths where_;
    const audit_limits limits_;
    poster post_;

    // The loop's.
    id_index reader_;
    std::map<id_hash, digest256> recent_; // used, with the mark of the key that signed

    // The thread's.
    host::unique_fd lock_, fd_;
    id_index writer_;
    bool lost_its_name_ = false; // found by the last write
    memory_clock clock_{std::nullopt, 0, 0};
    audit_chain chain_;
    std::uint64_t inode_ = 0;
    std::uint64_t size_ = 0;
    std::uint64_t retry_at_ms_ = 0;
    head_schedule heads_;
    std::vector<item> held_;
    std::vector<unindexed> unindexed_;
    std::vector<std::uint64_t> ended_;
    std::vector<id_hash> indexed_;
    std::vector<digest256> lapsed_;

    // Shared.
    std::atomic<std::int64_t> forgotten_before_s_{0}; // IDs that show an earlier time are refused
    file_identity identity_; // the file that is written; the thread sets it
    mutable std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<item> queue_;
    std::vector<std::function<void()>> chores_;
    daily_quota quota_;
    line_gate gate_{limits::refused_lines_burst, limits::refused_lines_per_second};
    std::string trouble_;
    bool stop_ = false;

    std::thread thread_;
};

journal::journal(std::unique_ptr<state> s) : state_(std::move(s)) {}
journal::~journal() = default;

host::outcome<std::unique_ptr<journal>> journal::open(const paths &where,
                                                      const audit_limits &limits, poster post) {
    auto s = std::make_unique<state>(where, limits, std::move(post));
    if (auto opened = s->open(true); !opened)
        return tl::unexpected(opened.error());
    if (auto serving = s->serve(); !serving)
        return tl::unexpected(serving.error());
    return std::unique_ptr<journal>(new journal(std::move(s)));
}

host::outcome<void> journal::append(const paths &where, const audit_limits &limits,
                                    journal_entry entry) {
    state s(where, limits, {});
    if (auto opened = s.open(false); !opened)
        return opened;
    return s.append(std::move(entry));
}

bool journal::has_room(const qube_name &peer) const { return state_->has_room(peer.text()); }
bool journal::reserve(const qube_name &peer, const command_id &id, const digest256 &key_mark) {
    return state_->reserve(hash_of(peer.text(), id.text()), id, key_mark);
}
void journal::release(const qube_name &peer, const command_id &id) {
    state_->release(hash_of(peer.text(), id.text()));
}
bool journal::was_started(const qube_name &peer, const command_id &id) {
    return state_->was_started(hash_of(peer.text(), id.text()));
}
bool journal::is_forgotten(const command_id &id) const { return state_->is_forgotten(id); }
bool journal::is_outcome_unknown(const qube_name &peer, const command_id &id) {
    return state_->is_unknown(hash_of(peer.text(), id.text()));
}
void journal::keep_keys(std::vector<digest256> standing) { state_->keep_keys(std::move(standing)); }
void journal::start(journal_entry entry, started tell) {
    state_->push(std::move(entry), std::move(tell));
}
void journal::note(journal_entry entry) { state_->push(std::move(entry), {}); }
void journal::begin_file() { state_->begin_file(); }
std::string journal::trouble() const { return state_->trouble(); }

std::optional<std::int64_t> last_used(const paths &where, const qube_name &peer) {
    if (::access(where.index().c_str(), R_OK) != 0)
        return std::nullopt;
    id_index index;
    if (!index.open(where.index()))
        return std::nullopt;
    return index.last_used(peer.text());
}

} // namespace qvmremote::dom0
