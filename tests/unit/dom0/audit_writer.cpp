// SPDX-License-Identifier: GPL-2.0-or-later
#include "record/audit_writer.hpp"

#include <csignal>

#include <sys/resource.h>
#include <sys/stat.h>

#include "journal_fixture.hpp"

using namespace qvmremote_test;

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
    // verify reports an end that was cut off, also after the log has grown again.
    std::filesystem::resize_file(d.where().audit(), text_of(d.where().audit()).rfind("{\"n\":240"));
    CHECK(d.verifies());
    CHECK_FALSE(d.verifies(heads));
    d.open();
    d.close();
    CHECK_FALSE(d.verifies(heads));
}

TEST_CASE(
    "head_schedule: a head is due after 100 lines, or ten minutes after the first uncovered line") {
    head_schedule s;
    CHECK_FALSE(s.is_due(1'000'000'000));
    CHECK_FALSE(s.due_ms()); // nothing is due
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
    CHECK_FALSE(s.due_ms()); // after a failure nothing is due by time
    CHECK(s.is_behind());
    s.lines_written(1, 900'000);
    CHECK(s.due_ms() == 1'500'000);
}

TEST_CASE("a START that cannot be synced does not run and is not in the log; later ones are") {
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
        CHECK(d.start("dev", timed(error))); // the first request after the error
        CHECK(d->trouble().empty());
    }
    // The end of a command during the error is recorded afterwards.
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

TEST_CASE("the same holds for a disk that is full in the middle of a line") {
    ::signal(SIGXFSZ, SIG_IGN);
    dom0_files d;
    d.open();
    const std::vector<std::string> words(1, std::string(8000, 'x'));
    for (int n = 0; n < 60; ++n) { // so that the log is larger than the files of the index
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

TEST_CASE("I8: nothing runs while the open file does not have the log's name") {
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
        CHECK(d->trouble().find(r.says) != std::string::npos); // before the next request
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
        CHECK(d.count("\"of\":1,\"cause\":\"exited\"") == 1); // the END was kept
        CHECK(d.count("START") == 2);
        CHECK(d.verifies());
    }
}
