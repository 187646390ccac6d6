// SPDX-License-Identifier: GPL-2.0-or-later
#include "administer/moment.hpp"

#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <string_view>

#include <doctest/doctest.h>

using namespace qvmremote::dom0;

namespace {

// Time zones as POSIX rules, so that the test needs no tzdata.
constexpr const char *utc = "UTC0";
constexpr const char *berlin = "CET-1CEST,M3.5.0,M10.5.0/3";   // 2027-03-28 02:00 is 03:00
constexpr const char *cairo = "EET-2EEST,M4.5.5/0,M10.5.4/24"; // 2027-04-30 00:00 is 01:00

constexpr std::int64_t now = 1800000000; // 2027-01-15 08:00 UTC

void live_in(const char *zone) {
    ::setenv("TZ", zone, 1);
    ::tzset();
}

} // namespace

TEST_CASE("--until: durations and local times that are accepted or refused") {
    struct row {
        const char *zone;
        std::string_view in;
        std::int64_t want; // 0: refused
    };
    static constexpr row rows[] = {
        {utc, "1m", now + 60},
        {utc, "8h", now + 8 * 3600},
        {utc, "7d", now + 7 * 86400},
        {utc, "2027-02-28", 1803772800},
        {utc, "2027-02-29", 0},
        {utc, "2027-02-31", 0},
        {utc, "2028-02-29", 1835395200},
        {utc, "2028-02-29T23:59", 1835481540},
        {utc, "2100-02-29", 0},
        {utc, "2027-04-31", 0},
        {utc, "2027-02-03T24:00", 0},
        {utc, "2027-02-03T10:60", 0},
        {utc, "9999-12-31T23:59", 253402300740},
        {utc, "10000-01-01", 0},
        // These times are before, within and after the hour that the clock skips.
        {berlin, "2027-03-28T01:59", 1806195540},
        {berlin, "2027-03-28T02:00", 0},
        {berlin, "2027-03-28T02:59", 0},
        {berlin, "2027-03-28T03:00", 1806195600},
        {cairo, "2027-04-30", 1809036000},
        {cairo, "2027-04-30T00:30", 0},
        {cairo, "2027-04-30T01:00", 1809036000},
    };
    for (const row &r : rows) {
        CAPTURE(r.zone);
        CAPTURE(r.in);
        live_in(r.zone);
        const auto got = parse_moment(r.in, now);
        CHECK(got.value_or(0) == r.want);
    }
    // In autumn an hour occurs twice. Either one is right.
    live_in(berlin);
    const auto twice = parse_moment("2027-10-31T02:59", now);
    CHECK((twice == 1824944340 || twice == 1824947940));
    live_in(utc);
    for (const std::string_view bad : {"",
                                       "m",
                                       "0m",
                                       "00m",
                                       "01m",
                                       "-1h",
                                       "+1h",
                                       " 1h",
                                       "1h ",
                                       "1 h",
                                       "1.5h",
                                       "0x1h",
                                       "1hh",
                                       "1w",
                                       "60",
                                       "1H",
                                       "2147483648m",
                                       "2147483647d",
                                       "18446744073709551617m",
                                       "2027",
                                       "2027-02",
                                       "2027-2-03",
                                       "2027-02-3",
                                       " 2027-02-03",
                                       "2027-02-03 ",
                                       "+2027-02-03",
                                       "-2027-02-03",
                                       "2027-02-03Z",
                                       "2027-02-03T",
                                       "2027-02-03 10:00",
                                       "2027-02-03T1:00",
                                       "2027-02-03T10:0",
                                       "2027-02-03T+1:00",
                                       "2027-02-03T10:00:00",
                                       "2027-02-03T10:00Z",
                                       "2027-00-01",
                                       "2027-01-00",
                                       "1969-12-31",
                                       "soon"}) {
        CAPTURE(bad);
        CHECK_FALSE(parse_moment(bad, now));
    }
}
