// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/utf8.hpp>

#include <string_view>

#include <doctest/doctest.h>

#include <qvmremote/bytes.hpp>

using namespace qvmremote;

TEST_CASE("whole_characters: leaves out a character that is not complete") {
    struct row {
        std::string_view in;
        std::size_t want;
    };
    static constexpr row rows[] = {
        {"", 0},
        {"ab", 2},
        {"a\xc3", 1},
        {"a\xc3\xa9", 3},
        {"a\xe2", 1},
        {"a\xe2\x82", 1},
        {"a\xe2\x82\xac", 4},
        {"a\xf0\x9f\x98", 1},
        {"a\xf0\x9f\x98\x80", 5},
        {"\xf0", 0},
        {"\x80\x80\x80\x80", 4}, // no character begins here
    };
    for (const row &r : rows) {
        CAPTURE(to_hex(as_bytes(r.in)));
        CHECK(whole_characters(r.in) == r.want);
    }
}
