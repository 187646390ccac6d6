// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A journal in a scratch directory, with clocks and a disk that a test controls.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <latch>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "record/audit_files.hpp"
#include "record/heads.hpp"
#include "record/journal.hpp"
#include "support/scratch.hpp"

namespace qvmremote_test {

using namespace qvmremote;
using namespace qvmremote::dom0;

inline constexpr std::chrono::seconds hang_guard{60};

/// The disk: how often it was synced, the errno with which a sync fails, and what the next one
/// waits for.
extern std::atomic<int> syncs;
extern std::atomic<int> sync_error;
extern std::atomic<std::latch *> sync_gate;

/// Shifts the clocks. The destructor resets them.
struct shifted_clocks {
    ~shifted_clocks() { set(0, 0); }
    static void set(std::int64_t wall_s, std::int64_t boottime_s);
};

inline qube_name qube(std::string_view name) { return qube_name::parse(name).value(); }
inline command_id id_of(std::string_view text) { return command_id::parse(text).value(); }
/// An ID with a time in it, which is remembered for some days.
inline command_id timed(int n) { return id_of("20260218-101500-1-" + std::to_string(n)); }
/// An ID with the present time of dom0's clock.
inline command_id fresh(int n) {
    return id_of(host::local_time::now().compact() + "-1-" + std::to_string(n));
}
inline digest256 mark(std::uint8_t n) {
    digest256 out{};
    out[0] = n;
    return out;
}

/// A dom0 in a scratch directory, and the daemon's loop, which this thread runs.
class dom0_files {
  public:
    dom0_files() : where_(paths::below(root_.path()).value()) {}

    [[nodiscard]] const paths &where() const { return where_; }
    audit_limits limits;

    journal &open() {
        auto opened = journal::open(where_, limits, [this](std::function<void()> work) {
            const std::lock_guard lock(mutex_);
            posted_.push_back(std::move(work));
            wake_.notify_one();
        });
        REQUIRE_MESSAGE(opened, (opened ? "" : opened.error().what));
        journal_ = std::move(*opened);
        return *journal_;
    }
    void close() { journal_.reset(); }
    journal &operator*() { return *journal_; }
    journal *operator->() { return journal_.get(); }

    // Runs posted handlers until a condition holds.
    template <class Condition>
    void run_until(Condition condition) {
        const auto end = std::chrono::steady_clock::now() + hang_guard;
        while (!condition()) {
            std::function<void()> work;
            {
                std::unique_lock lock(mutex_);
                wake_.wait_for(lock, std::chrono::milliseconds(1),
                               [this] { return !posted_.empty(); });
                if (!posted_.empty()) {
                    work = std::move(posted_.front());
                    posted_.pop_front();
                }
            }
            if (work)
                work();
            REQUIRE(std::chrono::steady_clock::now() < end);
        }
    }

    // Writes a START. Returns its serial, or nothing if it is not durable.
    std::optional<std::uint64_t> start(std::string_view peer, const command_id &id,
                                       const digest256 &key = mark(1)) {
        REQUIRE(journal_->reserve(qube(peer), id, key));
        bool told = false;
        std::optional<std::uint64_t> out;
        journal_->start(entry(audit_kind::start, peer, id), [&](auto serial) {
            told = true;
            out = serial;
        });
        run_until([&] { return told; });
        if (!out)
            journal_->release(qube(peer), id);
        return out;
    }
    void end(std::string_view peer, const command_id &id, std::uint64_t of) {
        journal_entry e = entry(audit_kind::end, peer, id);
        e.of = of;
        e.cause = "exited";
        journal_->note(std::move(e));
    }
    static journal_entry entry(audit_kind kind, std::string_view peer, const command_id &id) {
        journal_entry e;
        e.kind = kind;
        e.peer = peer;
        e.id = id.text();
        return e;
    }

    // All lines of all files, in order.
    std::vector<std::string> lines() {
        std::vector<std::string> files, out;
        for (const auto &f : kept())
            files.push_back(f.path);
        files.push_back(where_.audit());
        for (const std::string &path : files) {
            const host::unique_fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
            line_reader reader(fd.get());
            while (const auto line = reader.next().value())
                out.emplace_back(*line);
            CHECK_FALSE(reader.torn());
        }
        return out;
    }
    std::vector<kept_audit_file> kept() { return kept_audit_files(where_).value(); }
    bool verifies(std::vector<audit_head> heads = {}) {
        audit_verifier verifier(std::move(heads));
        for (const std::string &line : lines())
            if (verifier.push(line))
                return false;
        return !verifier.finish();
    }
    std::size_t count(std::string_view part) {
        std::size_t n = 0;
        for (const std::string &line : lines())
            n += line.find(part) != line.npos;
        return n;
    }
    std::int64_t in_index(const std::string &sql) {
        sqlite3 *db = nullptr;
        sqlite3_open(where_.index().c_str(), &db);
        sqlite3_stmt *s = nullptr;
        sqlite3_prepare_v2(db, sql.c_str(), -1, &s, nullptr);
        const std::int64_t out = sqlite3_step(s) == SQLITE_ROW ? sqlite3_column_int64(s, 0) : -1;
        sqlite3_finalize(s);
        sqlite3_close(db);
        return out;
    }
    void lose_index() {
        for (const char *suffix : {"", "-wal", "-shm"})
            std::filesystem::remove(where_.index() + suffix);
    }

  private:
    scratch root_;
    paths where_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<std::function<void()>> posted_;
    std::unique_ptr<journal> journal_;
};

/// Listens at the socket of the system journal.
class listener {
  public:
    explicit listener(const std::string &path) {
        std::filesystem::create_directories(std::filesystem::path(path).parent_path());
        fd_.reset(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        REQUIRE(path.size() < sizeof address.sun_path);
        std::copy(path.begin(), path.end(), address.sun_path);
        REQUIRE(::bind(fd_.get(), reinterpret_cast<sockaddr *>(&address), sizeof address) == 0);
    }
    std::vector<audit_head> take() {
        std::vector<audit_head> out;
        char text[4096];
        for (ssize_t n; (n = ::recv(fd_.get(), text, sizeof text, MSG_DONTWAIT)) > 0;) {
            const std::string got(text, static_cast<std::size_t>(n));
            CHECK(got.ends_with("\nPRIORITY=6\nSYSLOG_IDENTIFIER=qvm-remote-audit\n"));
            const auto head = parse_audit_head(got.substr(0, got.find('\n')));
            REQUIRE(head);
            out.push_back(*head);
        }
        return out;
    }

  private:
    host::unique_fd fd_;
};

} // namespace qvmremote_test
