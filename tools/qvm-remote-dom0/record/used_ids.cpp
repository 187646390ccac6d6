// SPDX-License-Identifier: GPL-2.0-or-later
#include "record/used_ids.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include <unistd.h>

#include <qvmremote/audit.hpp>
#include <qvmremote/command_id.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/limits.hpp>

#include "base/dom0_limits.hpp"
#include "base/log.hpp"

namespace qvmremote::dom0 {

namespace {

constexpr std::int64_t lapse_step = 1000;         // IDs; the next START may have to wait for them
constexpr std::int64_t widest_zone_s = 14 * 3600; // a record shows local time

// The time in an ID; nothing when it has none.
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

std::optional<digest256> digest_of(const std::optional<std::string> &hex) {
    const auto given = hex ? from_hex(*hex) : std::nullopt;
    digest256 out;
    if (!given || given->size() != out.size())
        return std::nullopt;
    std::copy(given->begin(), given->end(), out.begin());
    return out;
}

} // namespace

host::outcome<void> used_ids::open() {
    if (auto opened = index_.open(where_.index()); !opened)
        return opened;
    return start_clock();
}

// The damaged file is kept, so that somebody can find the cause.
host::outcome<void> used_ids::replace(const std::string &why) {
    index_.close();
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

host::outcome<void> used_ids::start_clock() {
    const std::int64_t wall = host::local_time::now().seconds;
    auto stored = index_.stored_clock();
    if (!stored)
        return tl::unexpected(stored.error());
    std::optional<std::int64_t> begin;
    if (*stored) {
        begin = (*stored)->now_s;
        forgotten_before_s_ = (*stored)->forgotten_before_s;
    } else if (auto first = index_.first_expiry(); !first) {
        return tl::unexpected(first.error());
    } else if (*first) { // the index was made before it had a clock
        begin = std::min(wall, **first - limits::id_remembered_s);
    }
    clock_ = memory_clock(begin, wall, host::boottime_ms());
    return {};
}

std::optional<audit_place> used_ids::known_until() {
    const auto upto = index_.upto();
    return upto ? std::optional(audit_place{upto->first, upto->second}) : std::nullopt;
}

host::outcome<std::uint64_t> used_ids::read_lines(int fd, std::uint64_t from,
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

host::outcome<void> used_ids::commit(const audit_place &known_until) {
    if (!store_clock() || !set_place(known_until))
        return undo(host::failed("cannot write " + where_.index()).value());
    return index_.execute("COMMIT");
}

host::outcome<void> used_ids::undo(host::failure why) {
    static_cast<void>(index_.execute("ROLLBACK"));
    return tl::unexpected(std::move(why));
}

void used_ids::refuse_before(std::string_view record_time) {
    if (const auto begin = seconds_of(record_time))
        forgotten_before_s_ =
            std::max(forgotten_before_s_.load(), *begin + limits::id_clock_skew_s + widest_zone_s);
}

std::int64_t used_ids::now_s(std::int64_t wall) {
    return std::min(wall, clock_.advance(wall, host::boottime_ms()));
}

bool used_ids::settle(const audit_place &known_until) {
    return set_place(known_until) && index_.execute("PRAGMA wal_checkpoint(TRUNCATE)");
}

// An ID without a time is remembered until its key is removed.
std::optional<std::int64_t> used_ids::expiry_of(std::string_view id, std::int64_t wall) const {
    const auto claimed = claimed_time_of(id);
    return claimed ? std::optional(clock_.expiry(wall, *claimed)) : std::nullopt;
}

bool used_ids::remember_line(std::string_view line, std::int64_t now) {
    const auto entry = parse_audit(line);
    if (!entry)
        return true; // `audit verify` names it
    const auto peer = entry->peer();
    const auto id = entry->id();
    if (entry->kind == name(audit_kind::start) && peer && id)
        return index_.insert(hash_of(*peer, *id), expiry_of(*id, now),
                             digest_of(entry->text("key"))) &&
               index_.touch(*peer, now) && index_.add_open({entry->serial, *peer, *id});
    if (entry->kind == name(audit_kind::end)) {
        if (entry->text("cause") == "unknown" && peer && id &&
            !index_.add_unknown(hash_of(*peer, *id)))
            return false;
        const auto of = entry->number("of");
        return !of || index_.remove_open(static_cast<std::uint64_t>(*of));
    }
    return true;
}

host::outcome<void> used_ids::close_starts(const std::vector<id_index::open_start> &starts,
                                           bool outcome_unknown, const audit_place &known_until) {
    bool ok = index_.execute("BEGIN").has_value();
    for (const id_index::open_start &s : starts)
        ok = ok && index_.remove_open(s.serial) &&
             (!outcome_unknown || index_.add_unknown(hash_of(s.peer, s.id)));
    if (!ok || !set_place(known_until) || !index_.execute("COMMIT"))
        return undo(host::failed("cannot write " + where_.index()).value());
    return {};
}

void used_ids::add_start(id_index::open_start start, const std::optional<digest256> &key) {
    unindexed_.push_back({std::move(start), key});
}

bool used_ids::write_index(const audit_place &known_until) {
    const std::int64_t now = host::local_time::now().seconds;
    std::vector<id_hash> known;
    bool ok = index_.execute("BEGIN").has_value();
    for (const unindexed &u : unindexed_) {
        const id_hash h = hash_of(u.start.peer, u.start.id);
        ok = ok && index_.insert(h, expiry_of(u.start.id, now), u.key) &&
             index_.touch(u.start.peer, now) && index_.add_open(u.start);
        known.push_back(h);
    }
    for (const std::uint64_t serial : ended_)
        ok = ok && index_.remove_open(serial);
    ok = ok && forget_some(now) && store_clock() && set_place(known_until) &&
         index_.execute("COMMIT").has_value();
    if (!ok) {
        static_cast<void>(index_.execute("ROLLBACK"));
        return false;
    }
    unindexed_.clear();
    ended_.clear();
    indexed_.insert(indexed_.end(), known.begin(), known.end());
    return true;
}

std::vector<id_hash> used_ids::take_indexed() {
    return indexed_.size() >= 64 ? std::exchange(indexed_, {}) : std::vector<id_hash>();
}

// Removes two for each new ID, so that the index shrinks to what must be remembered. Before an ID is
// removed, the time up to which IDs are forgotten is stored and known to the loop.
bool used_ids::forget_some(std::int64_t wall) {
    const std::int64_t now = clock_.advance(wall, host::boottime_ms());
    const auto most = 2 * static_cast<std::int64_t>(unindexed_.size()) + 8;
    const auto gone = index_.forget_expired(now, most);
    if (gone && *gone > 0)
        forgotten_before_s_ = std::max(forgotten_before_s_.load(), clock_.forgotten_before());
    return gone.has_value();
}

void used_ids::keep_keys(const std::vector<digest256> &standing) {
    lapsed_.clear();
    for (const digest256 &mark : index_.marks())
        if (std::find(standing.begin(), standing.end(), mark) == standing.end())
            lapsed_.push_back(mark);
}

void used_ids::lapse_some() {
    if (lapsed_.empty())
        return;
    const std::int64_t when = clock_.expiry(host::local_time::now().seconds, 0);
    if (!index_.execute("BEGIN"))
        return lapsed_.clear();
    const auto more = index_.lapse(lapsed_.back(), when, lapse_step);
    const bool kept = more && index_.execute("COMMIT").has_value();
    if (!kept)
        static_cast<void>(index_.execute("ROLLBACK"));
    if (!kept) // try again with the next change of keys
        lapsed_.clear();
    else if (!*more)
        lapsed_.pop_back();
}

} // namespace qvmremote::dom0
