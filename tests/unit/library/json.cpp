// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/json.hpp>

#include <algorithm>
#include <string>
#include <string_view>

#include <doctest/doctest.h>

using namespace qvmremote;
using namespace std::string_view_literals;

TEST_CASE("json_writer: objects, arrays and values") {
    std::string out;
    json_writer w(out);
    w.begin();
    w.text("id", "a\"b");
    w.number("least", INT64_MIN);
    w.flag("yes", true);
    w.begin("empty");
    w.end();
    w.begin_array("list");
    w.text("x");
    w.begin();
    w.flag("no", false);
    w.end();
    w.text("y");
    w.end();
    w.begin_array("nothing");
    w.end();
    w.number("last", 0);
    w.end();
    CHECK(out == R"({"id":"a\"b","least":-9223372036854775808,"yes":true,"empty":{},)"
                 R"("list":["x",{"no":false},"y"],"nothing":[],"last":0})");
}

TEST_CASE("json_writer: hostile bytes") {
    struct row {
        const char *name;
        std::string_view in;
        std::string_view want; // of content()
    };
    static constexpr row rows[] = {
        {"nothing", "", R"({"text":""})"},
        {"plain", "qvm-ls\n", R"({"text":"qvm-ls\n"})"},
        {"quote and backslash", "\"\\", R"({"text":"\"\\"})"},
        {"controls", "\x01\x1b[2J\x7f\0\b"sv, R"({"text":"\u0001\u001b[2J\u007f\u0000\u0008"})"},
        {"C1 controls", "\xc2\x9b", R"({"text":"\u009b"})"},
        {"line separators", "\xe2\x80\xa8\xe2\x80\xa9", R"({"text":"\u2028\u2029"})"},
        {"text in another direction", "\xe2\x80\xae", R"({"text":"\u202e"})"},
        {"two to four bytes", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80",
         "{\"text\":\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"}"},
        {"the end of HTML", "</script>", R"({"text":"</script>"})"},
        {"a byte", "\xff", R"({"base64":"/w=="})"},
        {"one-byte CSI", "\x9b", R"({"base64":"mw=="})"},
        {"half a character", "a\xe2\x82", R"({"base64":"YeKC"})"},
        {"a lone surrogate", "\xed\xa0\x80", R"({"base64":"7aCA"})"},
        {"a pair of surrogates", "\xed\xa0\xbd\xed\xb8\x80", R"({"base64":"7aC97biA"})"},
        {"overlong slash", "\xc0\xaf", R"({"base64":"wK8="})"},
        {"above the last character", "\xf4\x90\x80\x80", R"({"base64":"9JCAgA=="})"},
    };
    for (const row &r : rows) {
        INFO(std::string(r.name));
        std::string out;
        json_writer w(out);
        w.begin();
        w.content(r.in);
        w.end();
        CHECK(out == r.want);
    }
    std::string out;
    json_writer w(out);
    w.begin();
    w.text("text", "a\xff\xed\xa0\x80");
    w.end();
    CHECK(out == R"({"text":"a\u00ff\u00ed\u00a0\u0080"})");
}

TEST_CASE("json_writer: large values leave in pieces, and no character is cut") {
    static std::string taken;
    static std::size_t most = 0;
    for (const std::string &one : {std::string("\xe2\x82\xac"), std::string("\xff\xff\xff")}) {
        taken.clear();
        std::string value, out;
        for (int i = 0; i < 100'000; ++i)
            value += one;
        json_writer w(out, [](std::string &text) {
            most = std::max(most, text.size());
            taken += text;
            text.clear();
        });
        w.begin();
        w.content(value);
        w.end();
        taken += out;
        std::string want = one[0] == '\xff' ? R"({"base64":")" : R"({"text":")";
        if (one[0] == '\xff')
            append_base64(want, as_bytes(value));
        else
            want += value;
        CHECK(taken == want + "\"}");
        CHECK(most < 200'000);
    }
}
