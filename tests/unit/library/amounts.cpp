// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/amounts.hpp>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include <doctest/doctest.h>

using namespace qvmremote;
using namespace std::string_view_literals;

TEST_CASE("parse_positive: takes digits and nothing else") {
    CHECK(parse_positive("1").value() == 1);
    CHECK(parse_positive("300").value() == 300);
    CHECK(parse_positive("2147483647").value() == 2147483647);
    struct row {
        const char *name;
        std::string_view in;
        std::uint32_t at;
    };
    static constexpr row bad[] = {
        {"empty", "", 0},
        {"zero", "0", 0},
        {"leading zero", "010", 0},
        {"sign", "+1", 0},
        {"negative", "-1", 0},
        {"blank before", " 1", 0},
        {"blank at the end", "1 ", 1},
        {"newline", "1\n", 1},
        {"hexadecimal", "0x10", 0},
        {"fraction", "1.5", 1},
        {"unit", "10s", 2},
        {"one too large", "2147483648", 9},
        {"wraps in 32 bits", "4294967297", 9},
        {"twenty digits", "18446744073709551617", 10},
        {"Arabic digits", "\xd9\xa1", 0},
        {"NUL", "1\0"sv, 1},
    };
    for (const row &r : bad) {
        INFO(std::string(r.name));
        const auto number = parse_positive(r.in);
        REQUIRE_FALSE(number);
        CHECK(number.error() == error{errc::bad_value, r.at});
    }
}

TEST_CASE("parse_decimal: takes one spelling of each number of the type") {
    CHECK(parse_decimal<std::uint64_t>("0") == 0);
    CHECK(parse_decimal<std::uint64_t>("18446744073709551615") == UINT64_MAX);
    CHECK(parse_decimal<std::int64_t>("-9223372036854775808") == INT64_MIN);
    CHECK(parse_decimal<std::int32_t>("-1") == -1);
    for (const std::string_view bad : {""sv, "-"sv, "+1"sv, " 1"sv, "1 "sv, "01"sv, "00"sv, "0x1"sv,
                                       "1."sv, "1\0"sv, "-1"sv, "18446744073709551616"sv}) {
        CAPTURE(bad);
        CHECK_FALSE(parse_decimal<std::uint64_t>(bad));
    }
    for (const std::string_view bad : {"-0", "-01", "--1", "- 1", "2147483648", "-2147483649"}) {
        CAPTURE(bad);
        CHECK_FALSE(parse_decimal<std::int32_t>(bad));
    }
}

TEST_CASE("durations, sizes and counts: limits and refused spellings") {
    struct row {
        std::string_view in;
        std::uint64_t duration, size, count; // 0: refused
    };
    static constexpr std::uint64_t year = 366 * 86400;
    static constexpr row rows[] = {
        {"1", 1, 1, 1},
        {"60", 60, 60, 60},
        {"1s", 1, 0, 0},
        {"10m", 600, 0, 0},
        {"1h", 3600, 0, 0},
        {"1d", 86400, 0, 0},
        {"366d", year, 0, 0},
        {"367d", 0, 0, 0},
        {"8784h", year, 0, 0},
        {"8785h", 0, 0, 0},
        {"31622400", year, 31622400, 0},
        {"31622401", 0, 31622401, 0},
        {"1K", 0, 1024, 0},
        {"1G", 0, 1u << 30, 0},
        {"1048576G", 0, std::uint64_t{1} << 50, 0},
        {"1048577G", 0, 0, 0},
        {"2147483647", 0, 2147483647, 0},
        {"2147483648", 0, 0, 0},
        {"2147483647G", 0, 0, 0},
        {"2147483647d", 0, 0, 0},
        {"1000000", 1000000, 1000000, 1000000},
        {"1000001", 1000001, 1000001, 0},
    };
    for (const row &r : rows) {
        CAPTURE(r.in);
        CHECK(parse_duration(r.in).value_or(0) == r.duration);
        CHECK(parse_size(r.in).value_or(0) == r.size);
        CHECK(parse_count(r.in).value_or(0) == r.count);
    }
    for (const std::string_view bad : {""sv,      "0"sv,    "0s"sv,  "0K"sv,
                                       "00"sv,    "01"sv,   "01m"sv, "-1"sv,
                                       "-1s"sv,   "+1"sv,   "+1K"sv, " 1"sv,
                                       "1 "sv,    "1 s"sv,  "1\n"sv, "0x10"sv,
                                       "0x10K"sv, "1.5h"sv, "1e3"sv, "1,000"sv,
                                       "s"sv,     "K"sv,    "ss"sv,  "1ms"sv,
                                       "1sm"sv,   "1KK"sv,  "1k"sv,  "1S"sv,
                                       "1KiB"sv,  "1w"sv,   "5%"sv,  "18446744073709551617"sv,
                                       "1\0"sv}) {
        CAPTURE(bad);
        CHECK_FALSE(parse_duration(bad));
        CHECK_FALSE(parse_size(bad));
        CHECK_FALSE(parse_count(bad));
    }
}

TEST_CASE("calendar times that exist and that do not") {
    struct row {
        std::string_view in;
        bool exists;
    };
    static constexpr row days[] = {
        {"2027-02-28", true},   {"2027-02-29", false},  {"2028-02-29", true},
        {"2028-02-30", false},  {"2000-02-29", true},   {"2100-02-29", false},
        {"2027-02-31", false},  {"2027-04-30", true},   {"2027-04-31", false},
        {"2027-12-31", true},   {"2027-12-32", false},  {"2027-01-00", false},
        {"2027-00-10", false},  {"2027-13-01", false},  {"0000-01-01", true},
        {"9999-12-31", true},   {"2027-2-03", false},   {"2027-02-3", false},
        {" 2027-02-03", false}, {"2027-02-03 ", false}, {"+027-02-03", false},
        {"-027-02-03", false},  {"2027-+2-03", false},  {"2027- 2-03", false},
        {"2027/02/03", false},  {"20270203", false},    {"", false},
        {"12027-02-03", false}, {"2027-0x-03", false},  {"2027-02-03Z", false},
    };
    for (const row &r : days) {
        CAPTURE(r.in);
        CHECK(parse_calendar_time(r.in, "YYYY-MM-DD").has_value() == r.exists);
    }
    static constexpr row times[] = {
        {"00:00:00", true},  {"23:59:59", true},  {"23:59:60", true},  {"24:00:00", false},
        {"00:60:00", false}, {"00:00:61", false}, {"-1:00:00", false}, {" 1:00:00", false},
        {"1:00:00", false},  {"01:00", false},    {"01:00:0", false},  {"0x:00:00", false},
    };
    for (const row &r : times) {
        CAPTURE(r.in);
        CHECK(parse_calendar_time(r.in, "hh:mm:ss").has_value() == r.exists);
    }
    CHECK(parse_calendar_time("2028-02-29T23:05", "YYYY-MM-DDThh:mm") ==
          calendar_time{2028, 2, 29, 23, 5, 0});
    CHECK(calendar_time{2028, 2, 29, 23, 59, 59}.utc_seconds() == 1835481599);
    CHECK(calendar_time{2028, 3, 1, 0, 0, 0}.utc_seconds() == 1835481600);
}
