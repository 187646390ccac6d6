// SPDX-License-Identifier: GPL-2.0-or-later
#include "record/id_index.hpp"

#include <algorithm>

#include <sqlite3.h>

namespace qvmremote::dom0 {

namespace {

constexpr const char *schema =
    "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-1024;"
    "CREATE TABLE IF NOT EXISTS ids(h BLOB PRIMARY KEY, expires INTEGER) WITHOUT ROWID;"
    "CREATE INDEX IF NOT EXISTS ids_expires ON ids(expires) WHERE expires IS NOT NULL;"
    "CREATE TABLE IF NOT EXISTS timeless(mark BLOB, h BLOB, PRIMARY KEY(mark, h)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS open(serial INTEGER PRIMARY KEY, peer TEXT, id TEXT);"
    "CREATE TABLE IF NOT EXISTS unknown(h BLOB PRIMARY KEY) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS peers(name TEXT PRIMARY KEY, last INTEGER);"
    "CREATE TABLE IF NOT EXISTS upto(one INTEGER PRIMARY KEY CHECK (one = 1),"
    " inode INTEGER, offset INTEGER);"
    "CREATE TABLE IF NOT EXISTS clock(one INTEGER PRIMARY KEY CHECK (one = 1),"
    " now INTEGER, forgotten_before INTEGER)";

template <std::size_t N>
void bind(sqlite3_stmt *s, int at, const std::array<std::uint8_t, N> &bytes) {
    sqlite3_bind_blob(s, at, bytes.data(), static_cast<int>(N), SQLITE_STATIC);
}
void bind(sqlite3_stmt *s, int at, std::int64_t number) { sqlite3_bind_int64(s, at, number); }
void bind(sqlite3_stmt *s, int at, std::uint64_t number) {
    sqlite3_bind_int64(s, at, static_cast<sqlite3_int64>(number));
}
void bind(sqlite3_stmt *s, int at, std::string_view text) {
    sqlite3_bind_text(s, at, text.data(), static_cast<int>(text.size()), SQLITE_STATIC);
}
std::string text_in(sqlite3_stmt *s, int column) {
    const auto *const text = reinterpret_cast<const char *>(sqlite3_column_text(s, column));
    return text ? std::string(text, static_cast<std::size_t>(sqlite3_column_bytes(s, column)))
                : std::string();
}

} // namespace

id_hash hash_of(std::string_view peer, std::string_view id) {
    const digest256 whole =
        sha256_hash().update(peer).update(std::string_view("\0", 1)).update(id).finish();
    id_hash out;
    std::copy_n(whole.begin(), out.size(), out.begin());
    return out;
}

host::outcome<void> id_index::open(const std::string &path) {
    close();
    damaged_ = false;
    if (noted(sqlite3_open_v2(path.c_str(), &db_,
                              SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX |
                                  SQLITE_OPEN_NOFOLLOW,
                              nullptr)) != SQLITE_OK)
        return failure("cannot open " + path);
    sqlite3_busy_timeout(db_, 5000);
    return execute(schema);
}

void id_index::close() {
    for (sqlite3_stmt *&s : made_) {
        sqlite3_finalize(s);
        s = nullptr;
    }
    sqlite3_close(db_);
    db_ = nullptr;
}

host::outcome<void> id_index::execute(const char *sql) {
    if (noted(sqlite3_exec(db_, sql, nullptr, nullptr, nullptr)) != SQLITE_OK)
        return failure("the index of used IDs does not answer");
    return {};
}

int id_index::noted(int code) noexcept {
    const int primary = code & 0xff; // without the details of an extended code
    damaged_ = damaged_ || primary == SQLITE_CORRUPT || primary == SQLITE_NOTADB;
    return code;
}

tl::unexpected<host::failure> id_index::failure(const std::string &what) const {
    return host::failed(what + ": " + (db_ ? sqlite3_errmsg(db_) : "out of memory"));
}

sqlite3_stmt *id_index::prepared(statement which) {
    static constexpr const char *texts[] = {
        "SELECT 1 FROM ids WHERE h = ?",
        "INSERT OR IGNORE INTO ids VALUES(?, ?)",
        "INSERT OR IGNORE INTO timeless VALUES(?, ?)",
        "DELETE FROM ids WHERE h IN (SELECT h FROM ids WHERE expires < ? LIMIT ?)",
        "UPDATE ids SET expires = ?3 WHERE h IN (SELECT h FROM timeless WHERE mark = ?1 LIMIT ?2)",
        ("DELETE FROM timeless WHERE mark = ?1 AND h IN"
         " (SELECT h FROM timeless WHERE mark = ?1 LIMIT ?2)"),
        "INSERT OR IGNORE INTO open VALUES(?, ?, ?)",
        "DELETE FROM open WHERE serial = ?",
        "INSERT OR IGNORE INTO unknown VALUES(?)",
        "SELECT 1 FROM unknown WHERE h = ?",
        "INSERT INTO peers VALUES(?1, ?2) ON CONFLICT(name) DO UPDATE SET last = ?2",
        "INSERT OR REPLACE INTO upto VALUES(1, ?, ?)",
        "INSERT OR REPLACE INTO clock VALUES(1, ?, ?)",
    };
    static_assert(std::size(texts) == statements);
    sqlite3_stmt *&s = made_[which];
    if (!s && noted(sqlite3_prepare_v3(db_, texts[which], -1, SQLITE_PREPARE_PERSISTENT, &s,
                                       nullptr)) != SQLITE_OK)
        return nullptr;
    return s;
}

bool id_index::finished(sqlite3_stmt *s) {
    const int code = noted(sqlite3_step(s));
    sqlite3_reset(s);
    return code == SQLITE_DONE;
}

template <class Get>
bool id_index::rows(const char *sql, std::string_view text, std::int64_t number, Get get) {
    sqlite3_stmt *s = nullptr;
    if (noted(sqlite3_prepare_v2(db_, sql, -1, &s, nullptr)) != SQLITE_OK)
        return false;
    if (sqlite3_bind_parameter_count(s) > 0) {
        if (text.empty())
            bind(s, 1, number);
        else
            bind(s, 1, text);
    }
    int code;
    while ((code = noted(sqlite3_step(s))) == SQLITE_ROW)
        get(s);
    sqlite3_finalize(s);
    return code == SQLITE_DONE;
}

host::outcome<bool> id_index::contains(const id_hash &h) {
    int code = SQLITE_ERROR;
    if (sqlite3_stmt *const s = prepared(find)) {
        bind(s, 1, h);
        code = noted(sqlite3_step(s));
        sqlite3_reset(s);
    }
    if (code != SQLITE_ROW && code != SQLITE_DONE)
        return failure("cannot read the index of used IDs");
    return code == SQLITE_ROW;
}

bool id_index::insert(const id_hash &h, std::optional<std::int64_t> expires,
                      const std::optional<digest256> &mark) {
    sqlite3_stmt *s = prepared(insert_id);
    if (!s)
        return false;
    bind(s, 1, h);
    if (expires)
        bind(s, 2, *expires);
    else
        sqlite3_bind_null(s, 2);
    if (!finished(s))
        return false;
    if (expires || !mark)
        return true;
    if (!(s = prepared(insert_timeless)))
        return false;
    bind(s, 1, *mark);
    bind(s, 2, h);
    return finished(s);
}

std::optional<int> id_index::forget_expired(std::int64_t now, std::int64_t most) {
    sqlite3_stmt *const s = prepared(expired);
    if (!s)
        return std::nullopt;
    bind(s, 1, now);
    bind(s, 2, most);
    if (!finished(s))
        return std::nullopt;
    return sqlite3_changes(db_);
}

host::outcome<std::optional<std::int64_t>> id_index::first_expiry() {
    std::optional<std::int64_t> out;
    if (!rows("SELECT expires FROM ids WHERE expires IS NOT NULL ORDER BY expires LIMIT 1", {}, 0,
              [&](sqlite3_stmt *s) { out = sqlite3_column_int64(s, 0); }))
        return failure("cannot read the index of used IDs");
    return out;
}

bool id_index::set_clock(const clock &c) {
    sqlite3_stmt *const s = prepared(clock_set);
    if (!s)
        return false;
    bind(s, 1, c.now_s);
    bind(s, 2, c.forgotten_before_s);
    return finished(s);
}

host::outcome<std::optional<id_index::clock>> id_index::stored_clock() {
    std::optional<clock> out;
    if (!rows("SELECT now, forgotten_before FROM clock", {}, 0, [&](sqlite3_stmt *s) {
            out = clock{sqlite3_column_int64(s, 0), sqlite3_column_int64(s, 1)};
        }))
        return failure("cannot read the index of used IDs");
    return out;
}

std::vector<digest256> id_index::marks() {
    std::vector<digest256> out;
    // Steps from one mark to the next, so that the cost does not depend on the number of IDs.
    const bool read =
        rows("WITH RECURSIVE m(mark) AS (SELECT min(mark) FROM timeless UNION ALL"
             " SELECT (SELECT min(t.mark) FROM timeless t WHERE t.mark > m.mark) FROM m"
             " WHERE m.mark IS NOT NULL) SELECT mark FROM m WHERE mark IS NOT NULL",
             {}, 0, [&](sqlite3_stmt *s) {
                 digest256 mark;
                 if (sqlite3_column_bytes(s, 0) != static_cast<int>(mark.size()))
                     return;
                 const auto *const bytes =
                     static_cast<const std::uint8_t *>(sqlite3_column_blob(s, 0));
                 std::copy_n(bytes, mark.size(), mark.begin());
                 out.push_back(mark);
             });
    return read ? out : std::vector<digest256>();
}

host::outcome<bool> id_index::lapse(const digest256 &mark, std::int64_t when, std::int64_t most) {
    for (const statement which : {lapse_ids, lapse_marks}) {
        sqlite3_stmt *const s = prepared(which);
        if (!s)
            return failure("cannot write the index of used IDs");
        bind(s, 1, mark);
        bind(s, 2, most);
        if (which == lapse_ids)
            bind(s, 3, when);
        if (!finished(s))
            return failure("cannot write the index of used IDs");
    }
    return sqlite3_changes(db_) == most;
}

bool id_index::add_open(const open_start &start) {
    sqlite3_stmt *const s = prepared(open_add);
    if (!s)
        return false;
    bind(s, 1, start.serial);
    bind(s, 2, std::string_view(start.peer));
    bind(s, 3, std::string_view(start.id));
    return finished(s);
}

bool id_index::remove_open(std::uint64_t serial) {
    sqlite3_stmt *const s = prepared(open_remove);
    if (!s)
        return false;
    bind(s, 1, serial);
    return finished(s);
}

host::outcome<std::vector<id_index::open_start>> id_index::open_starts(std::uint64_t from) {
    std::vector<open_start> out;
    if (!rows("SELECT serial, peer, id FROM open WHERE serial >= ? ORDER BY serial", {},
              static_cast<std::int64_t>(from), [&](sqlite3_stmt *s) {
                  out.push_back({static_cast<std::uint64_t>(sqlite3_column_int64(s, 0)),
                                 text_in(s, 1), text_in(s, 2)});
              }))
        return failure("cannot read the index of used IDs");
    return out;
}

bool id_index::add_unknown(const id_hash &h) {
    sqlite3_stmt *const s = prepared(unknown_add);
    if (!s)
        return false;
    bind(s, 1, h);
    return finished(s);
}

bool id_index::is_unknown(const id_hash &h) {
    sqlite3_stmt *const s = prepared(unknown_find);
    if (!s)
        return false;
    bind(s, 1, h);
    const int code = sqlite3_step(s);
    sqlite3_reset(s);
    return code == SQLITE_ROW;
}

bool id_index::touch(const std::string &peer_name, std::int64_t when) {
    sqlite3_stmt *const s = prepared(peer);
    if (!s)
        return false;
    bind(s, 1, std::string_view(peer_name));
    bind(s, 2, when);
    return finished(s);
}

std::optional<std::int64_t> id_index::last_used(const std::string &peer_name) {
    std::optional<std::int64_t> out;
    static_cast<void>(rows("SELECT last FROM peers WHERE name = ?", peer_name, 0,
                           [&](sqlite3_stmt *s) { out = sqlite3_column_int64(s, 0); }));
    return out;
}

bool id_index::set_upto(std::uint64_t inode, std::uint64_t offset) {
    sqlite3_stmt *const s = prepared(place);
    if (!s)
        return false;
    bind(s, 1, inode);
    bind(s, 2, offset);
    return finished(s);
}

std::optional<std::pair<std::uint64_t, std::uint64_t>> id_index::upto() {
    std::optional<std::pair<std::uint64_t, std::uint64_t>> out;
    static_cast<void>(rows("SELECT inode, offset FROM upto", {}, 0, [&](sqlite3_stmt *s) {
        out.emplace(static_cast<std::uint64_t>(sqlite3_column_int64(s, 0)),
                    static_cast<std::uint64_t>(sqlite3_column_int64(s, 1)));
    }));
    return out;
}

} // namespace qvmremote::dom0
