// SPDX-License-Identifier: GPL-2.0-or-later
#include "journal.hpp"

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <mutex>
#include <set>
#include <thread>

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/digest.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/limits.hpp>

namespace qvmremote::dom0 {

namespace {

// Names of qubes and IDs hold no NUL, so the pair is told apart; 128 bits leave no accident.
using id_hash = std::array<std::uint8_t, 16>;

id_hash hash_of(std::string_view peer, std::string_view id) {
    const digest256 whole =
        sha256_hash().update(peer).update(std::string_view("\0", 1)).update(id).finish();
    id_hash out;
    std::copy_n(whole.begin(), out.size(), out.begin());
    return out;
}

// An ID with a time is refused when that time is a day off, so it need not be remembered for ever.
std::optional<std::int64_t> expiry_of(std::string_view id, std::int64_t now) {
    const auto parsed = command_id::parse(id);
    if (parsed && parsed->claimed_time())
        return now + limits::id_remembered_s;
    return std::nullopt;
}

// One connection to the index. SQLite's words go into the failure; a statement is made once.
class index_connection {
public:
    index_connection() = default;
    index_connection(const index_connection &) = delete;
    index_connection &operator=(const index_connection &) = delete;
    ~index_connection() { close(); }

    host::outcome<void> open(const std::string &path) {
        close();
        if (sqlite3_open_v2(path.c_str(), &db_,
                            SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX |
                                SQLITE_OPEN_NOFOLLOW,
                            nullptr) != SQLITE_OK)
            return failure("cannot open " + path);
        sqlite3_busy_timeout(db_, 5000);
        return execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
                       "PRAGMA cache_size=-1024;"
                       "CREATE TABLE IF NOT EXISTS ids(h BLOB PRIMARY KEY, expires INTEGER)"
                       " WITHOUT ROWID;"
                       "CREATE INDEX IF NOT EXISTS ids_expires ON ids(expires)"
                       " WHERE expires IS NOT NULL;"
                       "CREATE TABLE IF NOT EXISTS peers(name TEXT PRIMARY KEY, last INTEGER);"
                       "CREATE TABLE IF NOT EXISTS upto(one INTEGER PRIMARY KEY CHECK (one = 1),"
                       " inode INTEGER, offset INTEGER)");
    }
    void close() {
        for (sqlite3_stmt *s : {find_, insert_, peer_, upto_})
            sqlite3_finalize(s);
        find_ = insert_ = peer_ = upto_ = nullptr;
        sqlite3_close(db_);
        db_ = nullptr;
    }

    host::outcome<void> execute(const char *sql) {
        if (sqlite3_exec(db_, sql, nullptr, nullptr, nullptr) != SQLITE_OK)
            return failure("the index of used IDs does not answer");
        return {};
    }

    host::outcome<bool> contains(const id_hash &h) {
        if (!prepared(find_, "SELECT 1 FROM ids WHERE h = ?"))
            return tl::unexpected(failure("cannot read the index of used IDs").error());
        sqlite3_bind_blob(find_, 1, h.data(), static_cast<int>(h.size()), SQLITE_STATIC);
        const int code = sqlite3_step(find_);
        sqlite3_reset(find_);
        if (code != SQLITE_ROW && code != SQLITE_DONE)
            return tl::unexpected(failure("cannot read the index of used IDs").error());
        return code == SQLITE_ROW;
    }

    bool insert(const id_hash &h, std::optional<std::int64_t> expires) {
        if (!prepared(insert_, "INSERT OR IGNORE INTO ids VALUES(?, ?)"))
            return false;
        sqlite3_bind_blob(insert_, 1, h.data(), static_cast<int>(h.size()), SQLITE_STATIC);
        if (expires)
            sqlite3_bind_int64(insert_, 2, *expires);
        else
            sqlite3_bind_null(insert_, 2);
        return finished(insert_);
    }
    bool touch(const std::string &peer, std::int64_t when) {
        if (!prepared(peer_, "INSERT INTO peers VALUES(?1, ?2)"
                             " ON CONFLICT(name) DO UPDATE SET last = ?2"))
            return false;
        sqlite3_bind_text(peer_, 1, peer.data(), static_cast<int>(peer.size()), SQLITE_STATIC);
        sqlite3_bind_int64(peer_, 2, when);
        return finished(peer_);
    }
    bool set_upto(std::uint64_t inode, std::uint64_t offset) {
        if (!prepared(upto_, "INSERT OR REPLACE INTO upto VALUES(1, ?, ?)"))
            return false;
        sqlite3_bind_int64(upto_, 1, static_cast<sqlite3_int64>(inode));
        sqlite3_bind_int64(upto_, 2, static_cast<sqlite3_int64>(offset));
        return finished(upto_);
    }
    // Where in which file the next line begins that is not in the index.
    std::optional<std::pair<std::uint64_t, std::uint64_t>> upto() {
        return row<std::pair<std::uint64_t, std::uint64_t>>(
            "SELECT inode, offset FROM upto", {}, [](sqlite3_stmt *s) {
                return std::pair{static_cast<std::uint64_t>(sqlite3_column_int64(s, 0)),
                                 static_cast<std::uint64_t>(sqlite3_column_int64(s, 1))};
            });
    }
    std::optional<std::int64_t> last_used(const std::string &peer) {
        return row<std::int64_t>("SELECT last FROM peers WHERE name = ?", peer,
                                 [](sqlite3_stmt *s) { return sqlite3_column_int64(s, 0); });
    }

private:
    host::outcome<void> failure(const std::string &what) const {
        return host::failed(what + ": " + (db_ ? sqlite3_errmsg(db_) : "out of memory"));
    }
    [[nodiscard]] bool prepared(sqlite3_stmt *&statement, const char *sql) {
        return statement || sqlite3_prepare_v3(db_, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement,
                                               nullptr) == SQLITE_OK;
    }
    [[nodiscard]] static bool finished(sqlite3_stmt *statement) {
        const int code = sqlite3_step(statement);
        sqlite3_reset(statement);
        return code == SQLITE_DONE;
    }
    template <class T, class Get>
    std::optional<T> row(const char *sql, const std::string &text, Get get) {
        sqlite3_stmt *statement = nullptr;
        if (sqlite3_prepare_v2(db_, sql, -1, &statement, nullptr) != SQLITE_OK)
            return std::nullopt;
        if (sqlite3_bind_parameter_count(statement) > 0)
            sqlite3_bind_text(statement, 1, text.data(), static_cast<int>(text.size()),
                              SQLITE_STATIC);
        std::optional<T> out;
        if (sqlite3_step(statement) == SQLITE_ROW)
            out = get(statement);
        sqlite3_finalize(statement);
        return out;
    }

    sqlite3 *db_ = nullptr;
    sqlite3_stmt *find_ = nullptr, *insert_ = nullptr, *peer_ = nullptr, *upto_ = nullptr;
};

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
    r.user = unless_empty(e.user);
    r.timeout_s = e.timeout_s;
    r.of = e.of;
    r.exit = e.exit;
    r.cause = unless_empty(e.cause);
    r.stdin_bytes = e.stdin_bytes;
    r.stdout_bytes = e.stdout_bytes;
    r.stderr_bytes = e.stderr_bytes;
    r.started = unless_empty(e.started);
    r.duration_ms = e.duration_ms;
    r.reason = unless_empty(e.reason);
    return r;
}

} // namespace

class journal::state {
public:
    state(const paths &where, poster post) : where_(where), post_(std::move(post)) {}

    ~state() {
        {
            const std::lock_guard lock(mutex_);
            stop_ = true;
        }
        wake_.notify_one();
        if (thread_.joinable())
            thread_.join();
    }

    host::outcome<void> open() {
        for (const std::string &directory : {where_.audit_directory(), where_.state_directory()}) {
            if (auto made = host::make_directories(directory, 0700); !made)
                return made;
            if (auto safe = host::open_trusted(directory, host::trusted::directory); !safe)
                return tl::unexpected(safe.error());
        }
        if (auto opened = open_index(); !opened)
            return opened;
        if (auto opened = open_audit(); !opened)
            return opened;
        thread_ = std::thread([this] { run(); });
        return {};
    }

    bool reserve(const id_hash &h) {
        if (recent_.contains(h))
            return false;
        const auto used = reader_.contains(h);
        if (!used || *used)
            return false;
        recent_.insert(h);
        return true;
    }
    void release(const id_hash &h) { recent_.erase(h); }

    void push(journal_entry entry, started tell) {
        bool was_empty;
        {
            const std::lock_guard lock(mutex_);
            was_empty = queue_.empty();
            queue_.push_back({std::move(entry), std::move(tell)});
        }
        if (was_empty)
            wake_.notify_one();
    }

    std::string trouble() const {
        const std::lock_guard lock(mutex_);
        return trouble_;
    }

private:
    struct item {
        journal_entry entry;
        started tell;
        std::uint64_t serial = 0;
    };

    // An index that is damaged is made anew from the log.
    host::outcome<void> open_index() {
        auto opened = writer_.open(where_.index());
        if (!opened) {
            writer_.close();
            for (const char *suffix : {"", "-wal", "-shm"})
                ::unlink((where_.index() + suffix).c_str());
            opened = writer_.open(where_.index());
        }
        if (!opened)
            return opened;
        if (auto reader = reader_.open(where_.index()); !reader)
            return reader;
        return writer_.execute(
            ("DELETE FROM ids WHERE expires < " + std::to_string(host::local_time::now().seconds))
                .c_str());
    }

    host::outcome<void> open_audit() {
        const std::string path = where_.audit();
        fd_.reset(::open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
        if (!fd_)
            return host::failed("cannot open the audit log " + path, errno);
        if (auto safe = host::open_trusted(path, host::trusted::secret); !safe)
            return tl::unexpected(safe.error());
        struct stat st {};
        if (::fstat(fd_.get(), &st) != 0)
            return host::failed("cannot look at " + path, errno);
        const auto size = static_cast<std::uint64_t>(st.st_size);
        inode_ = st.st_ino;
        std::uint64_t from = 0;
        if (const auto upto = writer_.upto(); upto && upto->first == inode_ && upto->second <= size)
            from = upto->second;
        if (auto caught_up = catch_up(from, size); !caught_up)
            return caught_up;
        // Where the chain goes on: the last whole line.
        if (auto last = last_line(); !last)
            return tl::unexpected(last.error());
        else if (!last->empty()) {
            auto entry = parse_audit(*last);
            if (!entry)
                return host::failed(path + ": the last line is not one of ours; move the file away "
                                           "and keep it");
            chain_ = audit_chain(entry->serial + 1, entry->hash);
        }
        return {};
    }

    // Reads the lines that the index does not know, and cuts off one that has no end: a crash fell
    // into its writing, so nobody was told that it stood.
    host::outcome<void> catch_up(std::uint64_t from, std::uint64_t size) {
        std::string held;
        std::uint64_t at = from;
        const std::int64_t now = host::local_time::now().seconds;
        if (auto begun = writer_.execute("BEGIN"); !begun)
            return begun;
        std::vector<char> block(1 << 16);
        while (at < size) {
            const ssize_t n = ::pread(fd_.get(), block.data(), block.size(),
                                      static_cast<off_t>(at));
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                return host::failed("cannot read " + where_.audit(), n < 0 ? errno : EIO);
            at += static_cast<std::uint64_t>(n);
            held.append(block.data(), static_cast<std::size_t>(n));
            std::size_t begin = 0;
            for (std::size_t end; (end = held.find('\n', begin)) != held.npos; begin = end + 1)
                remember(std::string_view(held).substr(begin, end - begin), now);
            held.erase(0, begin);
            if (held.size() > 2 * limits::audit_line)
                return host::failed(where_.audit() + ": a line is too long to be one of ours; "
                                                     "move the file away and keep it");
        }
        size_ = size - held.size();
        if (!held.empty() && ::ftruncate(fd_.get(), static_cast<off_t>(size_)) != 0)
            return host::failed("cannot repair " + where_.audit(), errno);
        if (!writer_.set_upto(inode_, size_))
            return host::failed("cannot write " + where_.index());
        return writer_.execute("COMMIT");
    }

    void remember(std::string_view line, std::int64_t now) {
        const auto entry = parse_audit(line);
        if (!entry || entry->kind != name(audit_kind::start))
            return;
        const auto peer = entry->peer();
        const auto id = entry->id();
        if (peer && id) {
            writer_.insert(hash_of(*peer, *id), expiry_of(*id, now));
            writer_.touch(*peer, now);
        }
    }

    host::outcome<std::string> last_line() {
        const std::uint64_t n = std::min<std::uint64_t>(size_, 2 * limits::audit_line);
        std::string block(n, '\0');
        if (n > 0 && ::pread(fd_.get(), block.data(), n, static_cast<off_t>(size_ - n)) !=
                         static_cast<ssize_t>(n))
            return host::failed("cannot read " + where_.audit(), errno);
        if (block.empty())
            return block;
        block.pop_back();
        const std::size_t newline = block.rfind('\n');
        return newline == block.npos ? block : block.substr(newline + 1);
    }

    void run() {
        // Signals are the loop's.
        sigset_t all;
        sigfillset(&all);
        ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
        std::vector<item> batch;
        for (;;) {
            {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
                if (queue_.empty())
                    return;
                batch.assign(std::make_move_iterator(queue_.begin()),
                             std::make_move_iterator(queue_.end()));
                queue_.clear();
            }
            const auto written = write(batch);
            set_trouble(written ? std::string() : written.error().what);
            tell(batch, written.has_value());
            if (written)
                remember(batch);
        }
    }

    // One write and at most one sync for all that wait. On any failure nothing of the batch counts.
    host::outcome<void> write(std::vector<item> &batch) {
        if (!fd_)
            if (auto reopened = reopen(); !reopened)
                return reopened;
        audit_chain next = chain_;
        std::string lines;
        bool sync = false;
        const std::string time = host::local_time::now().precise();
        for (item &i : batch) {
            i.serial = next.next_serial();
            lines += next.append(record_of(i.entry, time));
            sync = sync || i.entry.kind == audit_kind::start;
        }
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
        chain_ = next;
        size_ += lines.size();
        return {};
    }

    host::outcome<void> abandon(const char *what) {
        const int error = errno;
        fd_.reset();
        return host::failed(std::string(what) + " the audit log " + where_.audit() +
                                "; nothing runs until it can be written again",
                            error);
    }

    // Begins anew from what is on disk, and believes it only when a test record is durable.
    host::outcome<void> reopen() {
        if (auto opened = open_audit(); !opened) {
            fd_.reset();
            return opened;
        }
        journal_entry probe;
        probe.kind = audit_kind::head;
        probe.of = chain_.next_serial() - 1;
        audit_chain next = chain_;
        const std::string line = next.append(record_of(probe, host::local_time::now().precise()));
        if (::write(fd_.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()) ||
            ::fdatasync(fd_.get()) != 0)
            return abandon("cannot write");
        chain_ = next;
        size_ += line.size();
        return {};
    }

    void tell(std::vector<item> &batch, bool good) {
        std::vector<std::pair<started, std::optional<std::uint64_t>>> calls;
        for (item &i : batch)
            if (i.tell)
                calls.emplace_back(std::move(i.tell), good ? std::optional(i.serial) : std::nullopt);
        if (!calls.empty())
            post_([calls = std::move(calls)] {
                for (const auto &[call, serial] : calls)
                    call(serial);
            });
    }

    // The index may lag: what it lacks is in recent_, and after a crash in the log.
    void remember(const std::vector<item> &batch) {
        const std::int64_t now = host::local_time::now().seconds;
        std::vector<id_hash> known;
        bool ok = true;
        for (const item &i : batch) {
            if (i.entry.kind != audit_kind::start)
                continue;
            if (known.empty())
                ok = writer_.execute("BEGIN").has_value();
            const id_hash h = hash_of(i.entry.peer, i.entry.id);
            ok = ok && writer_.insert(h, expiry_of(i.entry.id, now)) &&
                 writer_.touch(i.entry.peer, now);
            known.push_back(h);
        }
        if (known.empty())
            return;
        ok = ok && writer_.set_upto(inode_, size_) && writer_.execute("COMMIT").has_value();
        if (!ok) {
            static_cast<void>(writer_.execute("ROLLBACK"));
            set_trouble("cannot write the index of used IDs " + where_.index());
            return; // they stay in recent_
        }
        indexed_.insert(indexed_.end(), known.begin(), known.end());
        // Forgetting is not urgent: it rides along once there is something to gain.
        if (indexed_.size() >= 64) {
            post_([this, done = std::move(indexed_)] {
                for (const id_hash &h : done)
                    recent_.erase(h);
            });
            indexed_.clear();
        }
    }

    void set_trouble(std::string what) {
        const std::lock_guard lock(mutex_);
        trouble_ = std::move(what);
    }

    paths where_;
    poster post_;

    // The loop's.
    index_connection reader_;
    std::set<id_hash> recent_;

    // The thread's.
    index_connection writer_;
    host::unique_fd fd_;
    audit_chain chain_;
    std::uint64_t inode_ = 0;
    std::uint64_t size_ = 0;
    std::vector<id_hash> indexed_;

    // Shared.
    mutable std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<item> queue_;
    std::string trouble_;
    bool stop_ = false;

    std::thread thread_;
};

journal::journal(std::unique_ptr<state> s) : state_(std::move(s)) {}
journal::~journal() = default;

host::outcome<std::unique_ptr<journal>> journal::open(const paths &where, poster post) {
    auto s = std::make_unique<state>(where, std::move(post));
    if (auto opened = s->open(); !opened)
        return tl::unexpected(opened.error());
    return std::unique_ptr<journal>(new journal(std::move(s)));
}

bool journal::reserve(const qube_name &peer, const command_id &id) {
    return state_->reserve(hash_of(peer.text(), id.text()));
}
void journal::release(const qube_name &peer, const command_id &id) {
    state_->release(hash_of(peer.text(), id.text()));
}
void journal::start(journal_entry entry, started tell) {
    state_->push(std::move(entry), std::move(tell));
}
void journal::note(journal_entry entry) { state_->push(std::move(entry), {}); }
std::string journal::trouble() const { return state_->trouble(); }

std::optional<std::int64_t> last_used(const paths &where, const qube_name &peer) {
    if (::access(where.index().c_str(), R_OK) != 0)
        return std::nullopt;
    index_connection index;
    if (!index.open(where.index()))
        return std::nullopt;
    return index.last_used(peer.text());
}

} // namespace qvmremote::dom0
