// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/job.hpp>

#include <string>
#include <vector>

#include <doctest/doctest.h>

using namespace qvmremote;

TEST_CASE("the words of a request about a job") {
    struct row {
        std::vector<std::string> words;
        bool good;
    };
    const std::string id = "20260218-143022-12345-a1b2c3d4";
    const row rows[] = {
        {{"list"}, true},
        {{"wait", id}, true},
        {{"cancel", id}, true},
        {{"logs", id, "0", "0"}, true},
        {{"follow", id, "4096", "9223372036854775807"}, true},
        {{"attach", id, "1", "2"}, true},
        {{}, false},
        {{""}, false},
        {{"list", id}, false},
        {{"List"}, false},
        {{"wait"}, false},
        {{"wait", id, "0"}, false},
        {{"wait", ""}, false},
        {{"wait", "../x"}, false},
        {{"wait", "x.auth"}, false},
        {{"logs", id}, false},
        {{"logs", id, "0"}, false},
        {{"logs", id, "0", "0", "0"}, false},
        {{"logs", id, "-1", "0"}, false},
        {{"logs", id, "+1", "0"}, false},
        {{"logs", id, "01", "0"}, false},
        {{"logs", id, "1 ", "0"}, false},
        {{"logs", id, "", "0"}, false},
        {{"logs", id, "0x1", "0"}, false},
        {{"attach", id, "9223372036854775808", "0"}, false},
        {{"attach", id, "0", "18446744073709551616"}, false},
        {{"attach", id, "99999999999999999999999999", "0"}, false},
    };
    for (const row &r : rows) {
        CAPTURE(r.words.size());
        const auto got = job_request::parse(r.words);
        CHECK(got.has_value() == r.good);
        if (got)
            CHECK(got->words() == r.words);
    }
}

TEST_CASE("a row of a list, there and back") {
    job_row row;
    row.id = "20260218-143022-12345-a1b2c3d4";
    row.state = "exited";
    row.exit = 7;
    row.started = "2026-02-18T14:30:22";
    row.seconds = 12;
    row.written = {1000, 20};
    row.gone = {300, 0};
    row.tty = true;
    row.shown = "make -j8";
    const auto got = job_row::parse(row.line());
    REQUIRE(got);
    CHECK(got->line() == row.line());
    CHECK(got->written == row.written);
    CHECK(got->gone == row.gone);
    CHECK(got->tty);
    CHECK(got->exit == 7);
    // A later version may add fields.
    CHECK(job_row::parse(row.line() + "\tmore"));
    for (const char *bad :
         {"", "\t\t\t\t\t\t\t\t\t\t", "x", "../x\texited\t0\tT\t0\t0\t0\t0\t0\t-\tx",
          "a\texited\t256\tT\t0\t0\t0\t0\t0\t-\tx", "a\texited\t-2\tT\t0\t0\t0\t0\t0\t-\tx",
          "a\texited\t0\tT\t-1\t0\t0\t0\t0\t-\tx", "a\texited\t0\tT\t0\t0\t0\t0\t-\tx"})
        CHECK_FALSE(job_row::parse(bad));
}
