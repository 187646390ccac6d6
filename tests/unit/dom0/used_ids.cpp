// SPDX-License-Identifier: GPL-2.0-or-later
#include "record/used_ids.hpp"

#include "journal_fixture.hpp"
#include "record/memory_clock.hpp"

using namespace qvmremote_test;

TEST_CASE("an ID is accepted once, whatever is restarted or lost") {
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

TEST_CASE("IDs without a time are removed some days after the key that signed them") {
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
    d.open(); // the log names the key
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

TEST_CASE("an index that is full of expired IDs shrinks with use") {
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

TEST_CASE("memory_clock: it never goes back, and goes forward only while the machine runs") {
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
        {"it follows the clock", {}, t, t + hour, hour_ms, t + hour},
        {"it does not go back", {}, t, t - 300 * day, hour_ms, t},
        {"nor before the stored time", t, t - day, t - day, hour_ms, t},
        {"it does not jump", {}, t, t + 300 * day, 0, t},
        {"nor jump at a start", t, t + 300 * day, t + 300 * day, 0, t},
        {"it follows eight times as fast", {}, t, t + 300 * day, hour_ms, t + 8 * hour},
        {"but not beyond the clock", t, t + day, t + day, 4 * hour_ms, t + day},
        {"three hours catch up with a day", t, t + day, t + day, 3 * hour_ms, t + day},
    };
    for (const row &r : rows) {
        CAPTURE(std::string(r.name));
        memory_clock c(r.stored_s, r.wall_then_s, 5000);
        CHECK(c.advance(r.wall_s, 5000 + r.ran_ms) == r.want_s);
        CHECK(c.now_s() == r.want_s);
    }
    // Fractions of a second are not lost.
    memory_clock c({}, t, 0);
    for (std::uint64_t ms = 700; ms <= 70'000; ms += 700)
        c.advance(t + 1000, ms);
    CHECK(c.now_s() == t + 560);
    // An ID that the index may have forgotten is refused, whatever the time of the clock and in the
    // ID.
    for (const std::int64_t wall : {t - 9 * day, t, t + 9 * day})
        for (const std::int64_t skew : {-26 * hour, std::int64_t{0}, 26 * hour}) {
            const memory_clock then(t, wall, 0);
            const std::int64_t claimed = wall + skew, gone = then.expiry(wall, claimed) + 1;
            CHECK(claimed < memory_clock(gone, wall, 0).forgotten_before());
        }
}

TEST_CASE("I2: a used ID stays used when dom0's clock goes days forward and back") {
    constexpr std::int64_t hour = 3600, day = 24 * hour;
    struct row {
        const char *name;
        std::int64_t wall_s, boottime_s; // how far the clocks move while other requests come
        bool forgotten;                  // whether the index has forgotten the ID
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
            d.close(); // clears the memory of the daemon
            d.open();
            CHECK_FALSE(d->reserve(qube("work"), id, mark(1)));
            CHECK(d->is_forgotten(id) == r.forgotten);
            CHECK(d->reserve(qube("work"), fresh(100), mark(1)) == !r.forgotten);
            d.close();
        }
}

TEST_CASE("I2: after the index is lost, IDs that may have been in removed files are refused") {
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
    d.open(); // the index still knows it
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
