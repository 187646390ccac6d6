// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/base64.hpp>

#include <string>
#include <string_view>

#include <doctest/doctest.h>

using namespace qvmremote;

TEST_CASE("append_base64: the test vectors of RFC 4648, and bytes that are not text") {
    struct row {
        std::string_view in;
        std::string_view want;
    };
    using namespace std::string_view_literals;
    static constexpr row rows[] = {
        {"", ""},
        {"f", "Zg=="},
        {"fo", "Zm8="},
        {"foo", "Zm9v"},
        {"foob", "Zm9vYg=="},
        {"fooba", "Zm9vYmE="},
        {"foobar", "Zm9vYmFy"},
        {"\xff\xfe\xfd", "//79"},
        {"\xfb\xef\xbe", "++++"},
        {"\0"sv, "AA=="},
        {"\xff", "/w=="},
    };
    for (const row &r : rows) {
        CAPTURE(r.want);
        std::string out = "x";
        append_base64(out, as_bytes(r.in));
        CHECK(out == "x" + std::string(r.want));
    }
}
