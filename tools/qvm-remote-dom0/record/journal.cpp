// SPDX-License-Identifier: GPL-2.0-or-later
#include "record/journal.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <iterator>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include <unistd.h>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/quota.hpp>

#include "base/dom0_limits.hpp"
#include "base/line_gate.hpp"
#include "record/audit_log.hpp"
#include "record/id_index.hpp"

namespace qvmremote::dom0 {

namespace {

constexpr std::size_t held_notes = 4096; // ENDs that wait until the disk can be written
constexpr std::size_t unindexed_starts = 4096;

} // namespace

class journal::state {
  public:
    state(const paths &where, const audit_limits &limits, poster post)
        : where_(where), post_(std::move(post)), log_(where, limits),
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

    host::outcome<void> open(bool patience) { return log_.open(patience); }

    host::outcome<void> serve(const spare &goes_on) {
        if (auto reader = reader_.open(where_.index()); !reader)
            return reader;
        if (auto told = log_.close_open_starts(1, "unknown", errc::outcome_unknown, goes_on); !told)
            return told;
        thread_ = std::thread([this] { run(); });
        return {};
    }

    host::outcome<void> append(journal_entry entry) {
        std::vector<item> batch;
        batch.push_back({std::move(entry), {}});
        if (auto written = write(batch); !written)
            return written;
        static_cast<void>(log_.file().send_head(true));
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
        return claimed && *claimed < log_.ids().forgotten_before_s();
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

    void push(journal_entry entry, started on_written) {
        if (entry.kind == audit_kind::start)
            if (const auto at = recent_.find(hash_of(entry.peer, entry.id)); at != recent_.end())
                entry.key = at->second;
        bool was_empty;
        {
            const std::lock_guard lock(mutex_);
            // Counted refusals take no place in the queue, however fast a peer sends them.
            if (entry.kind == audit_kind::refused && !entry.peer.empty()) {
                const std::uint64_t now = host::boottime_ms();
                const bool counts = gate_.due_ms().has_value();
                if (!gate_.take(entry.peer, entry.reason, quota_.has_room(entry.peer, now), now)) {
                    if (!counts)
                        wake_.notify_one(); // the thread must wake up when the count is due
                    return;
                }
            }
            was_empty = queue_.empty();
            queue_.push_back({std::move(entry), std::move(on_written)});
        }
        if (was_empty)
            wake_.notify_one();
    }

    void keep_keys(std::vector<digest256> standing) {
        chore([this, standing = std::move(standing)] { log_.ids().keep_keys(standing); });
    }
    void begin_file() {
        chore([this] {
            if (auto begun = log_.new_file(); !begun)
                set_trouble(begun.error().what);
        });
    }

    std::string trouble() const {
        const std::lock_guard lock(mutex_);
        if (auto named = log_.file().check_name(); !named)
            return named.error().what;
        return trouble_;
    }

  private:
    struct item {
        journal_entry entry;
        started on_written;
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

    void run() {
        // The loop's thread takes the signals.
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
                log_.ids().lapse_some();
        }
    }

    // When there is something to do without a request. Called with the mutex held.
    std::optional<std::uint64_t> due_ms() const {
        if (log_.ids().has_lapsed())
            return 0;
        const audit_writer &file = log_.file();
        std::optional<std::uint64_t> due = file.is_open() && held_.empty()
                                               ? file.heads().due_ms()
                                               : std::optional(file.retry_at_ms());
        if (file.is_open())
            if (const auto sum = gate_.due_ms())
                due = std::min(due.value_or(*sum), *sum);
        return due;
    }

    void process(std::vector<item> fresh, bool stopping) {
        audit_writer &file = log_.file();
        const std::uint64_t now = host::boottime_ms();
        std::vector<item> batch = std::exchange(held_, {});
        batch.insert(batch.end(), std::make_move_iterator(fresh.begin()),
                     std::make_move_iterator(fresh.end()));
        if (file.is_open() || stopping) {
            const std::lock_guard lock(mutex_);
            while (auto sum = gate_.next_sum(now, stopping))
                batch.push_back({sum_entry(std::move(*sum)), {}});
        }
        if (!batch.empty() || (!file.is_open() && (stopping || now >= file.retry_at_ms()))) {
            const auto written = write(batch);
            // trouble() checks by itself whether the file has its name.
            set_trouble(written || file.lost_name() ? std::string() : written.error().what);
            call_back(batch, written.has_value());
            if (written)
                remember(batch);
            else
                hold(std::move(batch));
        }
        if (stopping && (log_.ids().waiting_ends() > 0 || log_.ids().waiting_starts() > 0))
            write_index();
        if (auto sent = file.send_head(stopping); !sent)
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

    // These events happened, so they are kept while the disk is full.
    void hold(std::vector<item> batch) {
        for (item &i : batch)
            if ((i.entry.kind == audit_kind::end || i.entry.kind == audit_kind::admin ||
                 i.entry.count) &&
                held_.size() < held_notes)
                held_.push_back(std::move(i));
    }

    // One write and at most one sync for everything that waits. After any failure nothing of the batch
    // counts.
    host::outcome<void> write(std::vector<item> &batch) {
        log_.file().retry_later();
        if (log_.ids().waiting_starts() >= unindexed_starts && !write_index())
            return host::failed("cannot write the index of used IDs " + where_.index());
        if (auto ready = log_.make_ready(); !ready)
            return ready;
        audit_lines lines = log_.file().begin();
        bool sync = false;
        for (item &i : batch) {
            i.serial = lines.next_serial();
            i.bytes = lines.add(i.entry);
            sync = sync || i.entry.kind == audit_kind::start || i.entry.kind == audit_kind::admin;
        }
        if (auto written = log_.file().write(lines, sync); !written)
            return written;
        const std::uint64_t now = host::boottime_ms();
        const std::lock_guard lock(mutex_);
        for (const item &i : batch)
            if (!i.entry.peer.empty())
                quota_.charge(i.entry.peer, i.bytes, now);
        return {};
    }

    void call_back(std::vector<item> &batch, bool good) {
        std::vector<std::pair<started, std::optional<std::uint64_t>>> calls;
        for (item &i : batch)
            if (i.on_written)
                calls.emplace_back(std::move(i.on_written),
                                   good ? std::optional(i.serial) : std::nullopt);
        if (!calls.empty())
            post_([calls = std::move(calls)] {
                for (const auto &[call, serial] : calls)
                    call(serial);
            });
    }

    // The index may be behind: what it lacks is in recent_, and after a crash in the log. ENDs are
    // written together with the next STARTs.
    void remember(const std::vector<item> &batch) {
        bool starts = false;
        for (const item &i : batch) {
            if (i.entry.kind == audit_kind::start) {
                log_.ids().add_start({i.serial, i.entry.peer, i.entry.id}, i.entry.key);
                starts = true;
            } else if (i.entry.kind == audit_kind::end && i.entry.of) {
                log_.ids().add_end(*i.entry.of);
            }
        }
        if ((starts || log_.ids().waiting_ends() >= 64) && !write_index())
            set_trouble("cannot write the index of used IDs " + where_.index());
    }

    bool write_index() {
        if (!log_.ids().write_index(log_.file().place()))
            return false; // they stay in recent_
        // Forgetting is not urgent: it happens with another write, once there are enough IDs.
        if (auto done = log_.ids().take_indexed(); !done.empty())
            post_([this, done = std::move(done)] {
                for (const id_hash &h : done)
                    recent_.erase(h);
            });
        return true;
    }

    void set_trouble(std::string what) {
        const std::lock_guard lock(mutex_);
        trouble_ = std::move(what);
    }

    const paths where_;
    poster post_;

    // For the loop's thread.
    id_index reader_;
    std::map<id_hash, digest256> recent_; // used, with the mark of the key that signed

    // For the journal's thread.
    audit_log log_;
    std::vector<item> held_;

    // Shared.
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

host::outcome<std::unique_ptr<journal>>
journal::open(const paths &where, const audit_limits &limits, poster post, const spare &goes_on) {
    auto s = std::make_unique<state>(where, limits, std::move(post));
    if (auto opened = s->open(true); !opened)
        return tl::unexpected(opened.error());
    if (auto serving = s->serve(goes_on); !serving)
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
void journal::start(journal_entry entry, started on_written) {
    state_->push(std::move(entry), std::move(on_written));
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
