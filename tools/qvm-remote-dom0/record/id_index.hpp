// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The index of used IDs: an SQLite file that can be made again from the audit log.

#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <qvmremote/digest.hpp>
#include <qvmremote/host/failure.hpp>

struct sqlite3;
struct sqlite3_stmt;

namespace qvmremote::dom0 {

/// A hash of a qube and an ID. Names and IDs hold no NUL, so no two pairs look alike; with 128 bits no
/// two hashes will be equal.
using id_hash = std::array<std::uint8_t, 16>;
[[nodiscard]] id_hash hash_of(std::string_view peer, std::string_view id);

/// One connection to the index, for one thread. A failure holds the message of SQLite. Each statement
/// is prepared once.
class id_index {
  public:
    id_index() = default;
    id_index(const id_index &) = delete;
    id_index &operator=(const id_index &) = delete;
    ~id_index() { close(); }

    [[nodiscard]] host::outcome<void> open(const std::string &path);
    void close();
    [[nodiscard]] host::outcome<void> execute(const char *sql);

    /// Whether SQLite has found since open() that the file is corrupt or not a database. After any
    /// other failure (a full disk, a lock, no memory) the file is still good.
    [[nodiscard]] bool is_damaged() const noexcept { return damaged_; }

    /// Used IDs. An ID without `expires` is remembered until the key with this mark is removed.
    [[nodiscard]] host::outcome<bool> contains(const id_hash &h);
    [[nodiscard]] bool insert(const id_hash &h, std::optional<std::int64_t> expires,
                              const std::optional<digest256> &mark);
    /// Forgets some that have expired, `most` at once so that nobody waits long. Returns how many.
    [[nodiscard]] std::optional<int> forget_expired(std::int64_t now, std::int64_t most);
    /// When the first of them expires.
    [[nodiscard]] host::outcome<std::optional<std::int64_t>> first_expiry();
    /// The time by which IDs are forgotten, and a time that is later than that of every forgotten ID.
    struct clock {
        std::int64_t now_s = 0, forgotten_before_s = 0;
    };
    [[nodiscard]] bool set_clock(const clock &c);
    [[nodiscard]] host::outcome<std::optional<clock>> stored_clock();
    /// The keys that IDs without a time are remembered for.
    [[nodiscard]] std::vector<digest256> marks();
    /// Lets some of a key's IDs expire at `when`. Returns whether there may be more.
    [[nodiscard]] host::outcome<bool> lapse(const digest256 &mark, std::int64_t when,
                                            std::int64_t most);

    /// STARTs without an END.
    struct open_start {
        std::uint64_t serial = 0;
        std::string peer, id;
    };
    [[nodiscard]] bool add_open(const open_start &start);
    [[nodiscard]] bool remove_open(std::uint64_t serial);
    [[nodiscard]] host::outcome<std::vector<open_start>> open_starts(std::uint64_t from);

    /// IDs whose outcome is unknown.
    [[nodiscard]] bool add_unknown(const id_hash &h);
    [[nodiscard]] bool is_unknown(const id_hash &h);

    /// When a qube's last START was.
    [[nodiscard]] bool touch(const std::string &peer, std::int64_t when);
    [[nodiscard]] std::optional<std::int64_t> last_used(const std::string &peer);

    /// The file and the place of the first line that is not in the index.
    [[nodiscard]] bool set_upto(std::uint64_t inode, std::uint64_t offset);
    [[nodiscard]] std::optional<std::pair<std::uint64_t, std::uint64_t>> upto();

  private:
    enum statement {
        find,
        insert_id,
        insert_timeless,
        expired,
        lapse_ids,
        lapse_marks,
        open_add,
        open_remove,
        unknown_add,
        unknown_find,
        peer,
        place,
        clock_set,
        statements
    };

    [[nodiscard]] tl::unexpected<host::failure> failure(const std::string &what) const;
    [[nodiscard]] sqlite3_stmt *prepared(statement which);
    /// Runs a statement that returns no rows. False after an error.
    [[nodiscard]] bool finished(sqlite3_stmt *s);
    /// Notes damage that a result code shows. Returns the code.
    int noted(int code) noexcept;
    /// Runs `sql` and calls `get` for each row. Its parameter, if it has one, is `text` or, when
    /// that is empty, `number`.
    template <class Get>
    [[nodiscard]] bool rows(const char *sql, std::string_view text, std::int64_t number, Get get);

    sqlite3 *db_ = nullptr;
    bool damaged_ = false;
    std::array<sqlite3_stmt *, statements> made_{};
};

} // namespace qvmremote::dom0
