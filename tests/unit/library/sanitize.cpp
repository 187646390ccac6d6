// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/sanitize.hpp>

#include <algorithm>
#include <string>
#include <string_view>

#include <doctest/doctest.h>

using namespace qvmremote;
using namespace std::string_view_literals;

namespace {
std::string every_byte() {
    std::string out;
    for (int b = 0; b < 256; ++b)
        out.push_back(static_cast<char>(b));
    return out;
}
bool printable(std::string_view text) {
    return std::all_of(text.begin(), text.end(), detail::is_printable);
}
} // namespace

TEST_CASE("for_terminal and for_log: the output does not control a terminal") {
    struct row {
        const char *name;
        std::string_view in;
        std::string_view want;
    };
    static constexpr row rows[] = {
        {"empty", "", ""},
        {"plain", "qvm-ls --all ~", "qvm-ls --all ~"},
        {"backslash", R"(a\x1bb)", R"(a\\x1bb)"},
        {"clear the screen", "\x1b[2J", R"(\x1b[2J)"},
        {"set the title", "\x1b]0;root\x07", R"(\x1b]0;root\x07)"},
        {"one-byte CSI",
         "\x9b"
         "31m",
         R"(\x9b31m)"},
        {"overwrite the line", "rm -rf /\rls      ", R"(rm -rf /\rls      )"},
        {"backspaces", "rm\b\bls", R"(rm\x08\x08ls)"},
        {"forged line", "x\n[2026-02-18T10:00:00] AUTH-OK vm=work id=1",
         R"(x\n[2026-02-18T10:00:00] AUTH-OK vm=work id=1)"},
        {"tab", "a\tb", R"(a\tb)"},
        {"NUL", "a\0b"sv, R"(a\x00b)"},
        {"DEL", "a\x7f", R"(a\x7f)"},
        {"UTF-8 right-to-left mark",
         "\xe2\x80\xae"
         "abc",
         R"(\xe2\x80\xaeabc)"},
    };
    for (const row &r : rows) {
        INFO(std::string(r.name));
        CHECK(for_terminal(r.in) == r.want);
        CHECK(for_log(r.in) == r.want);
    }
    CHECK(printable(for_terminal(every_byte())));
    CHECK(printable(for_log(every_byte())));
}

TEST_CASE("a text that is cut keeps its limit, ends in dots and splits no escape") {
    struct row {
        const char *name;
        std::string_view in;
        std::size_t limit;
        std::string_view want;
    };
    static constexpr row rows[] = {
        {"fits exactly", "abcdef", 6, "abcdef"},
        {"one too many", "abcdefg", 6, "abc..."},
        {"an escape fits exactly", "ab\x1b", 6, R"(ab\x1b)"},
        {"an escape at the limit", "abc\x1b", 6, "abc..."},
        {"an escape before the dots", "\x1b\x1b", 7, R"(\x1b...)"},
        {"no room for the escape and dots", "\x1b\x1b", 6, "..."},
        {"two bytes", "abc", 2, ".."},
        {"nothing", "abc", 0, ""},
        {"an empty text, no room", "", 0, ""},
    };
    for (const row &r : rows) {
        INFO(std::string(r.name));
        CHECK(for_terminal(r.in, r.limit) == r.want);
    }
    CHECK(for_terminal(std::string(5000, 'a')).size() == sanitized_text);
    CHECK(for_json("ab\xc3\xa9\xc3\xa9", 5) == "ab...");
    CHECK(for_json("ab\xc3\xa9\xc3\xa9", 6) == "ab\xc3\xa9\xc3\xa9");
    CHECK(for_markup("&&&", 10) == "&amp;...");
}

TEST_CASE("preview: as protocol 1 shows a command, without its escape sequences") {
    CHECK(preview("qvm-prefs work memory 4096\n", 100) == "qvm-prefs work memory 4096 ");
    CHECK(preview("a\nb\n\nc", 100) == "a b  c");
    CHECK(preview("abcdef", 3) == "abc");
    CHECK(preview("ab\x1b[2J", 3) == R"(ab\x1b)");
    CHECK(preview("a\tb\r\n", 100) == R"(a\tb\r )");
    CHECK(preview(R"(printf 'a\n')", 100) == R"(printf 'a\n')");
    CHECK(preview("", 100).empty());
    CHECK(printable(preview(every_byte(), 256)));
}

TEST_CASE("for_json: valid UTF-8 passes, and everything else is escaped") {
    struct row {
        const char *name;
        std::string_view in;
        std::string_view want;
    };
    static constexpr row rows[] = {
        {"plain", "qvm-ls", "qvm-ls"},
        {"quote and backslash", R"(a"b\c)", R"(a\"b\\c)"},
        {"controls", "\n\r\t\b\0"sv, R"(\n\r\t\u0008\u0000)"},
        {"DEL", "\x7f", R"(\u007f)"},
        {"two bytes", "\xc3\xa9", "\xc3\xa9"},
        {"three bytes", "\xe2\x82\xac", "\xe2\x82\xac"},
        {"four bytes", "\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80"},
        {"the last code point", "\xf4\x8f\xbf\xbf", "\xf4\x8f\xbf\xbf"},
        {"beyond the last", "\xf4\x90\x80\x80", R"(\u00f4\u0090\u0080\u0080)"},
        {"overlong slash", "\xc0\xaf", R"(\u00c0\u00af)"},
        {"overlong of three", "\xe0\x80\xaf", R"(\u00e0\u0080\u00af)"},
        {"overlong of four", "\xf0\x80\x80\xaf", R"(\u00f0\u0080\u0080\u00af)"},
        {"surrogate", "\xed\xa0\x80", R"(\u00ed\u00a0\u0080)"},
        {"cut in the middle", "\xe2\x82", R"(\u00e2\u0082)"},
        {"continuation alone", "\x80", R"(\u0080)"},
        {"lead, then ASCII", "\xc3(", R"(\u00c3()"},
        {"0xff", "\xff", R"(\u00ff)"},
        {"C1 control", "\xc2\x9b", R"(\u009b)"},
        {"line separator", "\xe2\x80\xa8", R"(\u2028)"},
        {"paragraph separator", "\xe2\x80\xa9", R"(\u2029)"},
        {"right-to-left override", "\xe2\x80\xae", R"(\u202e)"},
    };
    for (const row &r : rows) {
        INFO(std::string(r.name));
        CHECK(for_json(r.in) == r.want);
    }
}

TEST_CASE("for_markup: the output holds no tag, no entity and no byte that Pango refuses") {
    CHECK(for_markup(R"(<a href="x" title='y'>&amp;</a>)") ==
          "&lt;a href=&quot;x&quot; title=&#39;y&#39;&gt;&amp;amp;&lt;/a&gt;");
    CHECK(for_markup("a\n\x1b\xe9\\") == R"(a\n\x1b\xe9\\)");
    const std::string all = for_markup(every_byte());
    CHECK(printable(all));
    CHECK(all.find_first_of("<>\"'") == std::string::npos);
}

TEST_CASE("for_file_name: refuses, never repairs") {
    struct row {
        const char *name;
        std::string_view in;
        std::uint32_t at;
    };
    static const std::string too_long(129, 'a');
    static const row bad[] = {
        {"empty", "", 0},
        {"dot", ".", 0},
        {"dots", "..", 0},
        {"hidden", ".key", 0},
        {"option", "-rf", 0},
        {"slash", "a/b", 1},
        {"step up", "a/../b", 1},
        {"NUL", "work\0.key"sv, 4},
        {"newline", "work\n", 4},
        {"blank", "my qube", 2},
        {"UTF-8", "caf\xc3\xa9", 3},
        {"too long", too_long, 128},
    };
    for (const row &r : bad) {
        INFO(std::string(r.name));
        const auto name = for_file_name(r.in);
        REQUIRE_FALSE(name);
        CHECK(name.error() == error{errc::bad_value, r.at});
    }
    for (const std::string_view good : {"work"sv, "20260218-101500-42-0a1b2c3d"sv, "_a..b-"sv})
        CHECK(for_file_name(good).value() == good);
    CHECK(for_file_name(std::string(128, 'a')));
}

TEST_CASE("from_terminal: returns the bytes of a text, and refuses other texts") {
    const std::string_view bytes("a\n\t\r\\x41\x1b\0\xff", 11);
    CHECK(from_terminal(for_terminal(bytes)).value() == bytes);
    const struct {
        std::string_view text;
        std::size_t offset;
    } refused[] = {{"a\n", 1},   {"\\", 0},    {"ab\\q", 2}, {"\\x4", 0},
                   {"\\xg0", 0}, {"\\x0g", 0}, {"\x7f", 0},  {"\\x41", 0},
                   {"\\x0a", 0}, {"\\x5c", 0}, {"\\x1B", 0}, {"\\x09", 0}};
    for (const auto &row : refused) {
        const auto got = from_terminal(row.text);
        REQUIRE_FALSE(got);
        CHECK(got.error().offset == row.offset);
    }
}
