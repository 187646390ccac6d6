// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/terminal_filter.hpp>

#include <string>
#include <string_view>

#include <doctest/doctest.h>

using namespace qvmremote;
using namespace std::string_view_literals;

namespace {
std::string shown(std::string_view output, std::size_t piece, bool utf8 = true) {
    terminal_filter filter(utf8);
    std::string out;
    for (std::size_t i = 0; i < output.size(); i += piece)
        filter.push(out, output.substr(i, piece));
    filter.end(out);
    return out;
}
} // namespace

TEST_CASE("terminal_filter: text passes, and nothing that controls a terminal") {
    struct row {
        const char *name;
        std::string_view in;
        std::string_view want;
    };
    static constexpr row rows[] = {
        {"nothing", "", ""},
        {"text", "NAME\tSTATE\nwork\t~ \\x1b \"$HOME\"\n",
         "NAME\tSTATE\nwork\t~ \\x1b \"$HOME\"\n"},
        {"no newline at the end", "42", "42"},
        {"lines that end in CR LF", "a\r\nb\r\n", "a\r\nb\r\n"},
        {"overwrites the line", "rm -rf /\rls", R"(rm -rf /\x0dls)"},
        {"CR at the end", "10%\r", R"(10%\x0d)"},
        {"CR CR LF", "a\r\r\n", "a\\x0d\r\n"},
        {"colour", "\x1b[31mred\x1b[0m", R"(\x1b[31mred\x1b[0m)"},
        {"title of the window", "\x1b]0;root\x07", R"(\x1b]0;root\x07)"},
        {"asks the terminal to type", "\x1b[6n\x1bZ\x05", R"(\x1b[6n\x1bZ\x05)"},
        {"the other controls", "a\0b\b\v\f\x0e\x7f"sv, R"(a\x00b\x08\x0b\x0c\x0e\x7f)"},
        {"characters of two to four bytes", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80",
         "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
        {"CSI of C1",
         "\xc2\x9b"
         "31m",
         R"(\xc2\x9b31m)"},
        {"the byte of CSI",
         "\x9b"
         "31m",
         R"(\x9b31m)"},
        {"not UTF-8", "\xff\xc0\xaf\xed\xa0\x80", R"(\xff\xc0\xaf\xed\xa0\x80)"},
        {"half a character at the end", "a\xe2\x82", R"(a\xe2\x82)"},
        {"half a character before text",
         "\xe2\x82"
         "a\n",
         "\\xe2\\x82a\n"},
        {"half a character before a whole one", "\xe2\xc3\xa9", "\\xe2\xc3\xa9"},
        {"text in another direction", "\xe2\x80\xaegpj", R"(\xe2\x80\xaegpj)"},
        {"line separator", "\xe2\x80\xa8", R"(\xe2\x80\xa8)"},
    };
    for (const row &r : rows) {
        INFO(std::string(r.name));
        for (std::size_t piece = 1; piece <= 5; ++piece)
            CHECK(shown(r.in, piece) == r.want);
        CHECK(shown(r.in, 1000) == r.want);
    }
}

TEST_CASE("terminal_filter: only ASCII for a terminal with another character set") {
    CHECK(shown("a\xe2\x82\xac\n\x9b", 1, false) == "a\\xe2\\x82\\xac\n\\x9b");
    CHECK(shown("a\r\nb", 2, false) == "a\r\nb");
}

TEST_CASE("terminal_filter: what can be shown is shown at once") {
    terminal_filter filter(true);
    std::string out;
    filter.push(out, "login: ");
    CHECK(out == "login: ");
    filter.push(out, "\xe2\x82");
    CHECK(out == "login: ");
    filter.push(out, "\xac");
    CHECK(out == "login: \xe2\x82\xac");
}
