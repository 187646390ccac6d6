// SPDX-License-Identifier: GPL-2.0-or-later
#include "record/journal.hpp"

#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <filesystem>
#include <functional>
#include <latch>
#include <mutex>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "base/log.hpp"
#include "record/audit_files.hpp"
#include "record/heads.hpp"
#include "record/memory_clock.hpp"
#include "record/quota.hpp"
#include "support/scratch.hpp"

using namespace qvmremote;
using namespace qvmremote::dom0;
using qvmremote_test::scratch;
using qvmremote_test::text_of;

namespace {

std::atomic<int> syncs{0};
std::atomic<int> sync_error{0};
std::atomic<std::latch *> sync_gate{nullptr};

constexpr std::chrono::seconds hang_guard{60};

} // namespace

namespace {

std::atomic<std::int64_t> wall_shift_s{0}, boottime_shift_s{0};

// What a test did to the clocks, undone when it ends.
struct shifted_clocks {
    ~shifted_clocks() { set(0, 0); }
    static void set(std::int64_t wall_s, std::int64_t boottime_s) {
        wall_shift_s = wall_s;
        boottime_shift_s = boottime_s;
    }
};

} // namespace

// The clocks as the journal sees them.
extern "C" int clock_gettime(clockid_t clock, timespec *t) {
    const int out = static_cast<int>(::syscall(SYS_clock_gettime, clock, t));
    if (clock == CLOCK_REALTIME)
        t->tv_sec += wall_shift_s;
    if (clock == CLOCK_BOOTTIME)
        t->tv_sec += boottime_shift_s;
    return out;
}

// The disk as the journal sees it: counted, and failing or slow on demand.
extern "C" int fdatasync(int fd) {
    ++syncs;
    if (std::latch *const gate = sync_gate.exchange(nullptr))
        gate->wait();
    if (const int error = sync_error) {
        errno = error;
        return -1;
    }
    return static_cast<int>(::syscall(SYS_fdatasync, fd));
}

namespace {

qube_name qube(std::string_view name) { return qube_name::parse(name).value(); }
command_id id_of(std::string_view text) { return command_id::parse(text).value(); }
// One that shows its time, and is remembered for some days.
command_id timed(int n) { return id_of("20260218-101500-1-" + std::to_string(n)); }
// One that shows the time of dom0's clock.
command_id fresh(int n) {
    return id_of(host::local_time::now().compact() + "-1-" + std::to_string(n));
}
digest256 mark(std::uint8_t n) {
    digest256 out{};
    out[0] = n;
    return out;
}

// A dom0 below a scratch directory, and the daemon's loop, which is this thread.
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

    // Runs what is posted until a condition holds.
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

    // The serial of a durable START, or nothing.
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

    // Every line of every file, in order.
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

// The system journal's socket.
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

} // namespace

TEST_CASE("64 STARTs at once share two syncs") {
    dom0_files d;
    d.open();
    std::latch gate(1);
    std::size_t told = 0;
    const int before = syncs;
    sync_gate = &gate;
    for (int n = 0; n < 64; ++n) {
        REQUIRE(d->reserve(qube("work"), timed(n), mark(1)));
        d->start(dom0_files::entry(audit_kind::start, "work", timed(n)),
                 [&](auto serial) { told += serial.has_value(); });
        if (n == 0) // the thread is at the disk with the first one; the others come meanwhile
            d.run_until([&] { return sync_gate == nullptr; });
    }
    gate.count_down();
    d.run_until([&] { return told == 64; });
    CHECK(syncs - before == 2);
    CHECK(d.count("START") == 64);
    d.close();
    CHECK(d.verifies());
}

TEST_CASE("an ID is used once, whatever is restarted or lost") {
    dom0_files d;
    d.open();
    CHECK(d.start("work", timed(1)) == 1);
    CHECK_FALSE(d->reserve(qube("work"), timed(1), mark(1)));
    CHECK(d->reserve(qube("dev"), timed(1), mark(1)));
    d->release(qube("dev"), timed(1));
    d.close();
    for (const bool lost : {false, true}) {
        if (lost)
            d.lose_index();
        d.open();
        CHECK_FALSE(d->reserve(qube("work"), timed(1), mark(1)));
        CHECK(d->reserve(qube("dev"), timed(1), mark(1)));
        d.close();
    }
}

TEST_CASE(
    "a START without an END has an unknown outcome after a crash, and that is known for good") {
    dom0_files d;
    d.open();
    const auto first = d.start("work", timed(1)), second = d.start("work", timed(2));
    REQUIRE(first);
    REQUIRE(second);
    d.end("work", timed(1), *first);
    CHECK_FALSE(d->is_outcome_unknown(qube("work"), timed(2)));
    d.close(); // as a crash: nobody wrote the second one's END
    for (const bool lost : {false, false, true}) {
        if (lost)
            d.lose_index();
        d.open();
        CHECK_FALSE(d->reserve(qube("work"), timed(2), mark(1)));
        CHECK(d->is_outcome_unknown(qube("work"), timed(2)));
        CHECK_FALSE(d->is_outcome_unknown(qube("work"), timed(1)));
        d.close();
        CHECK(d.count("\"cause\":\"unknown\"") == 1);
        CHECK(d.count("\"of\":2,\"cause\":\"unknown\",\"reason\":\"outcome_unknown\"") == 1);
    }
    CHECK(d.verifies());
}

TEST_CASE("a head goes to the system journal every 100 lines and at a clean end") {
    dom0_files d;
    listener socket(d.where().system_journal());
    d.open();
    std::vector<audit_head> heads;
    for (int n = 0; n < 250; ++n)
        REQUIRE(d.start("work", timed(n)));
    d.run_until([&] {
        for (audit_head &h : socket.take())
            heads.push_back(std::move(h));
        return heads.size() == 2;
    });
    CHECK(heads[0].serial == 100);
    CHECK(heads[1].serial == 200);
    d.close();
    const auto last = socket.take();
    REQUIRE(last.size() == 1);
    CHECK(last[0].serial == 250);
    heads.push_back(last[0]);
    CHECK(d.verifies(heads));
    // A tail that is cut off shows, and so does one that grew again otherwise.
    std::filesystem::resize_file(d.where().audit(), text_of(d.where().audit()).rfind("{\"n\":240"));
    CHECK(d.verifies());
    CHECK_FALSE(d.verifies(heads));
    d.open();
    d.close();
    CHECK_FALSE(d.verifies(heads));
}

TEST_CASE("head_schedule: 100 lines, or ten minutes after the first that no head covers") {
    head_schedule s;
    CHECK_FALSE(s.is_due(1'000'000'000));
    CHECK_FALSE(s.due_ms()); // nothing to wake up for
    s.lines_written(1, 5000);
    s.lines_written(98, 300'000);
    CHECK(s.due_ms() == 605'000);
    CHECK_FALSE(s.is_due(604'999));
    CHECK(s.is_due(605'000));
    s.lines_written(1, 300'000);
    CHECK(s.is_due(300'000));
    s.sent();
    CHECK_FALSE(s.due_ms());
    CHECK_FALSE(s.is_behind());
    s.lines_written(1, 700'000);
    s.failed();
    CHECK_FALSE(s.due_ms()); // without a journal nobody wakes up for it again
    CHECK(s.is_behind());
    s.lines_written(1, 900'000);
    CHECK(s.due_ms() == 1'500'000);
}

TEST_CASE(
    "a large file is set aside and the chain goes on, through a crash between the steps as well") {
    dom0_files d;
    d.limits.file_bytes = 4096;
    d.open();
    for (int n = 0; n < 60; ++n)
        d.end("work", timed(n), d.start("work", timed(n)).value());
    d->begin_file(); // and on demand
    d.run_until([&] { return d.kept().size() > 5; });
    d.close();
    const std::size_t files = d.kept().size();
    CHECK(d.verifies());
    CHECK(d.count("START") == 60);

    const auto still_used = [&] {
        d.open();
        for (int n = 0; n < 60; ++n)
            CHECK_FALSE(d->reserve(qube("work"), timed(n), mark(1)));
        d.close();
        CHECK(d.verifies());
        CHECK(d.count("START") == 60);
        CHECK(d.count("unknown") == 0);
    };
    still_used();
    d.lose_index();
    still_used();
    const std::string audit = d.where().audit();
    const std::string before = d.lines().back();
    const std::uint64_t last = parse_audit(before)->serial;
    for (const char *left : {"renamed", "empty", "torn"}) {
        CAPTURE(left);
        const std::string newest = d.lines().back();
        std::filesystem::rename(audit, kept_audit_path(d.where(), parse_audit(newest)->serial));
        if (left == std::string_view("empty"))
            qvmremote_test::put(audit, "", 0600);
        if (left == std::string_view("torn"))
            qvmremote_test::put(audit, R"({"n":1)", 0600);
        still_used();
        CHECK(text_of(audit).find("\"kind\":\"HEAD\"") != std::string::npos);
    }
    CHECK(d.kept().size() == files + 3);
    const std::string after = d.lines().back();
    CHECK(parse_audit(after)->serial == last + 3);
}

TEST_CASE("old files go when they are too many or too old, and the log says so") {
    dom0_files d;
    d.limits.file_bytes = 2048;
    d.limits.kept_bytes = 8 * 1024;
    d.open();
    for (int n = 0; n < 60; ++n)
        d.end("work", timed(n), d.start("work", timed(n)).value());
    d.close();
    auto kept = d.kept();
    REQUIRE(kept.size() > 6); // none of the last three days goes
    const std::int64_t now = ::time(nullptr);
    const auto make_old = [&](const std::string &path, std::int64_t s) {
        const timespec times[2] = {{now - s, 0}, {now - s, 0}};
        REQUIRE(::utimensat(AT_FDCWD, path.c_str(), times, 0) == 0);
    };
    for (std::size_t n = 0; n < kept.size(); ++n)
        make_old(kept[n].path, n < 2 ? limits::audit_kept_s + 60 : limits::id_remembered_s + 60);
    d.open();
    d->begin_file();
    d.run_until([&] { return !std::filesystem::exists(kept[0].path); });
    d.run_until([&] { return !std::filesystem::exists(kept[1].path); });
    d.close();
    std::uint64_t bytes = 0;
    for (const auto &f : d.kept())
        bytes += f.bytes;
    CHECK(bytes <= d.limits.kept_bytes);
    CHECK(bytes > d.limits.kept_bytes / 2);
    CHECK(d.verifies());
    d.open();
    for (int n = 0; n < 60; ++n) // what has gone from the log is in the index
        CHECK_FALSE(d->reserve(qube("work"), timed(n), mark(1)));
    d.close();
    // Who removes more is found out.
    kept = d.kept();
    std::filesystem::remove(kept[0].path);
    CHECK_FALSE(d.verifies());
}

TEST_CASE("what cannot be synced does not run, is not in the log, and recovers by itself") {
    dom0_files d;
    d.open();
    const auto first = d.start("work", timed(1));
    REQUIRE(first);
    for (const int error : {EIO, ENOSPC, EROFS}) {
        sync_error = error;
        CHECK_FALSE(d.start("work", timed(2)));
        CHECK(d->trouble().find(std::string("cannot sync the audit log")) != std::string::npos);
        CHECK(d->trouble().find(std::strerror(error)) != std::string::npos);
        CHECK_FALSE(d.start("work", timed(2)));
        sync_error = 0;
        CHECK(d.start("dev", timed(error))); // the first that comes after
        CHECK(d->trouble().empty());
    }
    // What ended meanwhile is recorded when it can be.
    sync_error = EIO;
    CHECK_FALSE(d.start("work", timed(2)));
    d.end("work", timed(1), *first);
    sync_error = 0;
    CHECK(d.start("work", timed(2)));
    d.close();
    CHECK(d.count("\"of\":1,\"cause\":\"exited\"") == 1);
    CHECK(d.count('"' + timed(2).text() + '"') == 1);
    CHECK(d.verifies());
}

TEST_CASE("a disk that is full in the middle of a line is no different") {
    ::signal(SIGXFSZ, SIG_IGN);
    dom0_files d;
    d.open();
    const std::vector<std::string> words(1, std::string(8000, 'x'));
    for (int n = 0; n < 60; ++n) { // the index's files are smaller than the log then
        journal_entry e = dom0_files::entry(audit_kind::refused, "work", timed(n));
        e.argv = words;
        d->note(std::move(e));
    }
    REQUIRE(d.start("work", timed(100)));
    const auto size = std::filesystem::file_size(d.where().audit());
    rlimit before{};
    ::getrlimit(RLIMIT_FSIZE, &before);
    rlimit tight = before;
    tight.rlim_cur = size + 10;
    ::setrlimit(RLIMIT_FSIZE, &tight);
    const auto refused = d.start("work", timed(101));
    const auto size_then = std::filesystem::file_size(d.where().audit());
    ::setrlimit(RLIMIT_FSIZE, &before);
    CHECK_FALSE(refused);
    CHECK(size_then == size);
    CHECK(d.start("work", timed(101)));
    d.close();
    CHECK(d.count(timed(101).text()) == 1);
    CHECK(d.verifies());
}

TEST_CASE("IDs without a time go with the key that signed them, some days later") {
    dom0_files d;
    d.open();
    for (int n = 0; n < 1500; ++n) {
        REQUIRE(d->reserve(qube("work"), id_of("a-" + std::to_string(n)), mark(1)));
        d->start(dom0_files::entry(audit_kind::start, "work", id_of("a-" + std::to_string(n))), {});
    }
    CHECK(d.start("work", id_of("b-1"), mark(2)));
    CHECK(d.start("work", timed(1), mark(1)));
    d.close();
    const std::string lasting = "SELECT count(*) FROM ids WHERE expires IS NULL";
    CHECK(d.in_index(lasting) == 1501);
    d.lose_index();
    d.open(); // the log says which key it was
    CHECK(d.in_index("SELECT count(*) FROM timeless") == 1501);
    d->keep_keys({mark(1), mark(2)});
    CHECK(d.start("work", timed(2)));
    CHECK(d.in_index(lasting) == 1501);
    d->keep_keys({mark(2)});
    d.run_until([&] { return d.in_index(lasting) == 1; });
    CHECK(d.in_index("SELECT count(*) FROM timeless") == 1);
    CHECK_FALSE(d->reserve(qube("work"), id_of("a-7"), mark(1)));
    d.close();
}

TEST_CASE("an index that is full of what is expired shrinks with use") {
    dom0_files d;
    d.open();
    d.close();
    CHECK(d.in_index("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 200)"
                     " INSERT INTO ids SELECT randomblob(16), 1 FROM n RETURNING 7") == 7);
    d.open();
    for (int n = 0; n < 25; ++n)
        REQUIRE(d.start("work", fresh(n)));
    d.close();
    CHECK(d.in_index("SELECT count(*) FROM ids WHERE expires = 1") == 0);
    CHECK(d.in_index("SELECT count(*) FROM ids") == 25);
}

TEST_CASE("memory_clock: it never goes back, and goes forward with the time that the machine ran") {
    constexpr std::int64_t hour = 3600, day = 24 * hour, t = 1'800'000'000;
    constexpr std::uint64_t hour_ms = 3'600'000;
    struct row {
        const char *name;
        std::optional<std::int64_t> stored_s;
        std::int64_t wall_then_s, wall_s;
        std::uint64_t ran_ms;
        std::int64_t want_s;
    };
    static constexpr row rows[] = {
        {"it begins at the clock's time", {}, t, t, 0, t},
        {"it goes with the clock", {}, t, t + hour, hour_ms, t + hour},
        {"it does not go back", {}, t, t - 300 * day, hour_ms, t},
        {"nor behind what is stored", t, t - day, t - day, hour_ms, t},
        {"it does not jump", {}, t, t + 300 * day, 0, t},
        {"nor at a start", t, t + 300 * day, t + 300 * day, 0, t},
        {"it follows eight times as fast", {}, t, t + 300 * day, hour_ms, t + 8 * hour},
        {"as far as the clock's time", t, t + day, t + day, 4 * hour_ms, t + day},
        {"three hours catch up with a day", t, t + day, t + day, 3 * hour_ms, t + day},
    };
    for (const row &r : rows) {
        CAPTURE(std::string(r.name));
        memory_clock c(r.stored_s, r.wall_then_s, 5000);
        CHECK(c.advance(r.wall_s, 5000 + r.ran_ms) == r.want_s);
        CHECK(c.now_s() == r.want_s);
    }
    // Parts of a second are not lost.
    memory_clock c({}, t, 0);
    for (std::uint64_t ms = 700; ms <= 70'000; ms += 700)
        c.advance(t + 1000, ms);
    CHECK(c.now_s() == t + 560);
    // What can be forgotten is refused, whatever the clock says and the ID shows.
    for (const std::int64_t wall : {t - 9 * day, t, t + 9 * day})
        for (const std::int64_t skew : {-26 * hour, std::int64_t{0}, 26 * hour}) {
            const memory_clock then(t, wall, 0);
            const std::int64_t claimed = wall + skew, gone = then.expiry(wall, claimed) + 1;
            CHECK(claimed < memory_clock(gone, wall, 0).forgotten_before());
        }
}

TEST_CASE("I2: dom0's clock goes days forward and back, and a used ID stays used") {
    constexpr std::int64_t hour = 3600, day = 24 * hour;
    struct row {
        const char *name;
        std::int64_t wall_s, boottime_s; // while other requests come
        bool forgotten;                  // what was expired from the beginning aside
    };
    static constexpr row rows[] = {
        {"four days ahead at once", 4 * day, 60, false},
        {"years ahead for eight hours", 4000 * day, 8 * hour, false},
        {"ahead for good", 8 * day, 8 * day, true},
        {"back", -300 * day, hour, false},
    };
    for (const row &r : rows)
        for (const bool restarted : {false, true}) {
            CAPTURE(std::string(r.name));
            CAPTURE(restarted);
            const shifted_clocks clocks;
            dom0_files d;
            d.open();
            const command_id id = fresh(1);
            REQUIRE(d.start("work", id));
            d.run_until([&] { return d.in_index("SELECT count(*) FROM ids") == 1; });
            if (restarted) {
                d.close();
                shifted_clocks::set(r.wall_s, 0);
                d.open();
            }
            shifted_clocks::set(r.wall_s, r.boottime_s);
            for (int n = 2; n < 20; ++n)
                REQUIRE(d.start("work", fresh(n)));
            shifted_clocks::set(0, r.boottime_s);
            d.close(); // what is in memory goes
            d.open();
            CHECK_FALSE(d->reserve(qube("work"), id, mark(1)));
            CHECK(d->is_forgotten(id) == r.forgotten);
            CHECK(d->reserve(qube("work"), fresh(100), mark(1)) == !r.forgotten);
            d.close();
        }
}

TEST_CASE("I2: with the index lost, IDs of the log's files that are gone are refused") {
    dom0_files d;
    d.limits.file_bytes = 2048;
    d.open();
    for (int n = 0; n < 30; ++n)
        REQUIRE(d.start("work", fresh(n)));
    const command_id first = id_of([&] {
        const std::string line = d.lines().front();
        return line.substr(line.find("\"id\":\"") + 6, fresh(0).text().size());
    }());
    d.close();
    REQUIRE(d.kept().size() > 2);
    std::filesystem::remove(d.kept().front().path);
    d.open(); // the index knows it still
    CHECK_FALSE(d->reserve(qube("work"), first, mark(1)));
    CHECK_FALSE(d->is_forgotten(first));
    d.close();
    d.lose_index();
    for (int n = 0; n < 2; ++n) {
        d.open();
        CHECK_FALSE(d->reserve(qube("work"), first, mark(1)));
        CHECK(d->is_forgotten(first));
        d.close();
    }
}

TEST_CASE("only an index that SQLite calls damaged is replaced") {
    struct row {
        const char *name;
        std::function<void(const std::string &index)> harm;
        bool replaced; // or the start fails, and the file stays
    };
    const auto write = [](std::size_t at, std::string_view bytes) {
        return [at, bytes](const std::string &index) {
            const host::unique_fd fd(::open(index.c_str(), O_WRONLY | O_CLOEXEC));
            REQUIRE(::pwrite(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(at)) > 0);
        };
    };
    static sqlite3 *locking = nullptr;
    const row rows[] = {
        {"a foreign file", write(0, "not a database at all, but long"), true},
        {"the first page overwritten", write(100, std::string_view("\xff\xff\xff\xff\xff", 5)),
         true},
        {"locked by another process",
         [](const std::string &index) {
             REQUIRE(sqlite3_open(index.c_str(), &locking) == SQLITE_OK);
             REQUIRE(sqlite3_exec(locking,
                                  "PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE; "
                                  "UPDATE peers SET last = last",
                                  nullptr, nullptr, nullptr) == SQLITE_OK);
         },
         false},
        {"a symbolic link",
         [](const std::string &index) {
             std::filesystem::rename(index, index + ".else");
             std::filesystem::create_symlink(index + ".else", index);
         },
         false},
        {"a directory",
         [](const std::string &index) {
             std::filesystem::remove(index);
             std::filesystem::create_directory(index);
         },
         false},
    };
    for (const row &r : rows) {
        CAPTURE(std::string(r.name));
        dom0_files d;
        d.open();
        REQUIRE(d.start("work", timed(1)));
        d.close();
        const std::string index = d.where().index();
        std::filesystem::create_directories(std::filesystem::path(d.where().log()).parent_path());
        r.harm(index);
        const auto opened = journal::open(d.where(), d.limits, [](auto) {});
        CHECK(opened.has_value() == r.replaced);
        CHECK(std::filesystem::exists(index + ".damaged") == r.replaced);
        CHECK((text_of(d.where().log()).find("is damaged") != std::string::npos) == r.replaced);
        if (opened)
            CHECK_FALSE((*opened)->reserve(qube("work"), timed(1), mark(1)));
        sqlite3_close(locking);
        locking = nullptr;
    }
}

TEST_CASE("I8: nothing runs while the file that is written does not have the log's name") {
    struct row {
        const char *name;
        void (*harm)(const std::string &audit);
        void (*mend)(const std::string &audit);
        const char *says;
    };
    static constexpr auto rename = [](const std::string &from, const std::string &to) {
        std::filesystem::rename(from, to);
    };
    static const std::string aside = ".aside";
    static const row rows[] = {
        {"renamed", [](auto &a) { rename(a, a + aside); }, [](auto &a) { rename(a + aside, a); },
         "was removed or renamed"},
        {"replaced by a copy",
         [](auto &a) {
             rename(a, a + aside);
             std::filesystem::copy_file(a + aside, a);
         },
         [](auto &a) { rename(a + aside, a); }, "another file is in the place"},
        {"replaced by a symbolic link to itself",
         [](auto &a) {
             rename(a, a + aside);
             std::filesystem::create_symlink(a + aside, a);
         },
         [](auto &a) { rename(a + aside, a); }, "another file is in the place"},
        {"its directory renamed",
         [](auto &a) {
             const auto dir = std::filesystem::path(a).parent_path().string();
             rename(dir, dir + aside);
             std::filesystem::create_directory(dir);
         },
         [](auto &a) {
             const auto dir = std::filesystem::path(a).parent_path().string();
             std::filesystem::remove(dir);
             rename(dir + aside, dir);
         },
         "was removed or renamed"},
        {"removed", [](auto &a) { std::filesystem::remove(a); }, nullptr, "was removed or renamed"},
    };
    for (const row &r : rows) {
        CAPTURE(std::string(r.name));
        dom0_files d;
        d.open();
        const auto serial = d.start("work", timed(1));
        REQUIRE(serial);
        r.harm(d.where().audit());
        CHECK(d->trouble().find(r.says) != std::string::npos); // before anybody asks for anything
        CHECK_FALSE(d.start("work", timed(2)));
        CHECK_FALSE(d.start("work", timed(2)));
        CHECK(d->trouble().find(r.says) != std::string::npos);
        d.end("work", timed(1), *serial);
        if (r.mend) {
            r.mend(d.where().audit());
            CHECK(d->trouble() == "");
            CHECK(d.start("work", timed(2)));
            CHECK(d->trouble() == "");
        }
        d.close();
        if (!r.mend)
            continue;
        CHECK(d.count("\"of\":1,\"cause\":\"exited\"") == 1); // it was kept
        CHECK(d.count("START") == 2);
        CHECK(d.verifies());
    }
}

TEST_CASE("the log for people is begun anew when somebody removes it") {
    const scratch root;
    const std::string path = root.path() + "/qvm-remote.log";
    auto log = event_log::open(path, false).value();
    log.write(log_category::info, "one");
    std::filesystem::rename(path, path + ".1");
    log.write(log_category::info, "two");
    CHECK(text_of(path).find("two") != std::string::npos);
    CHECK(text_of(path + ".1").find("two") == std::string::npos);
    std::filesystem::remove(path);
    std::filesystem::create_symlink(path + ".1", path); // never followed
    log.write(log_category::info, "three");
    CHECK(text_of(path + ".1").find("three") == std::string::npos);
}

TEST_CASE("one qube that fills its share is refused, and others go on") {
    dom0_files d;
    d.limits.qube_bytes_per_day = 10'000;
    d.open();
    int n = 0;
    while (d->has_room(qube("work"))) {
        REQUIRE(n < 1000);
        REQUIRE(d.start("work", timed(n++)));
    }
    CHECK(n > 5);
    CHECK(d->has_room(qube("dev")));
    CHECK(d.start("dev", timed(1)));
    // Its refusals are counted then, and stand in one line.
    for (int i = 0; i < 1000; ++i) {
        journal_entry e = dom0_files::entry(audit_kind::refused, "work", timed(i));
        e.reason = "busy";
        d->note(std::move(e));
    }
    d.close();
    CHECK(d.count("REFUSED") <= 2); // one at once, since none was for a minute, and one at the end
    CHECK(d.count("\"reason\":\"busy\",\"count\":") >= 1);
    CHECK(d.verifies());
}

TEST_CASE("daily_quota: what was spent flows back evenly in a day") {
    daily_quota q(86'400'000); // a byte a millisecond
    CHECK(q.has_room("work", 0));
    q.charge("work", 86'400'000 + 500, 1000);
    CHECK_FALSE(q.has_room("work", 1000));
    CHECK_FALSE(q.has_room("work", 1500));
    CHECK(q.has_room("work", 1501));
    CHECK(q.has_room("dev", 1000));
    q.charge("work", 1000, 1501);
    CHECK_FALSE(q.has_room("work", 2500));
    CHECK(q.has_room("work", 2501));
    daily_quota small(10); // less than a byte an hour
    small.charge("work", 20, 0);
    CHECK_FALSE(small.has_room("work", 43'200'000));
    CHECK(small.has_room("work", 86'400'000 + 86'400'000 / 10));
    small.charge("work", 1 << 20, 0);
    CHECK_FALSE(small.has_room("work", 2 * 86'400'000ull));
}

TEST_CASE("append: an act of the administrator, when no daemon holds the log") {
    dom0_files d;
    journal_entry e;
    e.kind = audit_kind::admin;
    e.peer = "work";
    e.user = "root";
    e.reason = "authorize level=full";
    listener socket(d.where().system_journal());
    CHECK(journal::append(d.where(), d.limits, e));
    d.open();
    CHECK(d.start("work", timed(1)) == 2);
    const auto refused = journal::append(d.where(), d.limits, e);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().error_number == EWOULDBLOCK);
    d->note(e);
    d.close();
    CHECK(
        d.count("\"kind\":\"ADMIN\",\"peer\":\"work\",\"user\":\"root\",\"reason\":\"authorize") ==
        2);
    const auto heads = socket.take();
    CHECK(heads.size() == 2);
    CHECK(d.verifies(heads));
}
