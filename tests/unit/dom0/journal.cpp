// SPDX-License-Identifier: GPL-2.0-or-later
#include "record/journal.hpp"

#include "base/log.hpp"
#include "journal_fixture.hpp"

using namespace qvmremote_test;

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
        if (n == 0) // the thread syncs the first one while the others come
            d.run_until([&] { return sync_gate == nullptr; });
    }
    gate.count_down();
    d.run_until([&] { return told == 64; });
    CHECK(syncs - before == 2);
    CHECK(d.count("START") == 64);
    d.close();
    CHECK(d.verifies());
}

TEST_CASE("a removed log for people is created again") {
    const scratch root;
    const std::string path = root.path() + "/qvm-remote.log";
    auto log = event_log::open(path, false).value();
    log.write(log_category::info, "one");
    std::filesystem::rename(path, path + ".1");
    log.write(log_category::info, "two");
    CHECK(text_of(path).find("two") != std::string::npos);
    CHECK(text_of(path + ".1").find("two") == std::string::npos);
    std::filesystem::remove(path);
    std::filesystem::create_symlink(path + ".1", path); // not followed
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
    // Its refusals are then counted in one line.
    for (int i = 0; i < 1000; ++i) {
        journal_entry e = dom0_files::entry(audit_kind::refused, "work", timed(i));
        e.reason = "busy";
        d->note(std::move(e));
    }
    d.close();
    // One at once, as there was none for a minute, and one at the end.
    CHECK(d.count("REFUSED") <= 2);
    CHECK(d.count("\"reason\":\"busy\",\"count\":") >= 1);
    CHECK(d.verifies());
}

TEST_CASE("append: records what the administrator does while no daemon has the log") {
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
