// SPDX-License-Identifier: GPL-2.0-or-later
#include "record/audit_log.hpp"

#include <sys/stat.h>

#include "journal_fixture.hpp"

#include "base/dom0_limits.hpp"

using namespace qvmremote_test;

TEST_CASE(
    "a large file is set aside and the chain continues, even after a crash between the steps") {
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

TEST_CASE("old files are removed when they are too many or too old, and the log says so") {
    dom0_files d;
    d.limits.file_bytes = 2048;
    d.limits.kept_bytes = 8 * 1024;
    d.open();
    for (int n = 0; n < 60; ++n)
        d.end("work", timed(n), d.start("work", timed(n)).value());
    d.close();
    auto kept = d.kept();
    REQUIRE(kept.size() > 6); // no file of the last three days is removed
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
    for (int n = 0; n < 60; ++n) // the index has the IDs that the log has no more
        CHECK_FALSE(d->reserve(qube("work"), timed(n), mark(1)));
    d.close();
    // verify reports a file that somebody else has removed.
    kept = d.kept();
    std::filesystem::remove(kept[0].path);
    CHECK_FALSE(d.verifies());
}

TEST_CASE("only an index that SQLite calls damaged is replaced") {
    struct row {
        const char *name;
        std::function<void(const std::string &index)> harm;
        bool replaced; // otherwise the start fails, and the file stays
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

TEST_CASE("a START without an END has an unknown outcome after a crash, and stays so") {
    dom0_files d;
    d.open();
    const auto first = d.start("work", timed(1)), second = d.start("work", timed(2));
    REQUIRE(first);
    REQUIRE(second);
    d.end("work", timed(1), *first);
    CHECK_FALSE(d->is_outcome_unknown(qube("work"), timed(2)));
    d.close(); // like a crash: the second one has no END
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
