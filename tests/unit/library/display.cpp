// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/display.hpp>

#include <doctest/doctest.h>

using namespace qvmremote;

namespace {

std::vector<std::string> word(std::string_view bytes, std::size_t width = 80) {
    field_rows rows(width);
    rows.add_word("argv[0]", bytes);
    return rows.rows();
}

std::vector<std::string> text(std::string_view bytes, std::size_t width = 80) {
    field_rows rows(width);
    rows.add_text("script", bytes);
    return rows.rows();
}

using rows = std::vector<std::string>;

} // namespace

TEST_CASE("I6: a word is one row, whatever bytes it holds") {
    const struct {
        std::string_view bytes;
        const char *shown;
    } table[] = {
        {"sh", R"("sh")"},
        {"", R"("")"},
        {" ", R"(" ")"},
        {"a b", R"("a b")"},
        {"a\nb", R"("a\nb")"},
        {"a\" \"b", R"("a\" \"b")"},
        {"\\n", R"("\\n")"},
        {"\x1b[2J", R"("\x1b[2J")"},
        {"\xe2\x80\xae", R"("\xe2\x80\xae")"}, // right-to-left override
        {"\xff", R"("\xff")"},
        {std::string_view("\0", 1), R"("\x00")"},
    };
    for (const auto &row : table)
        CHECK(word(row.bytes) == rows{std::string("argv[0]       : ") + row.shown});
}

TEST_CASE("a text has a row for each line, and a row about its end") {
    CHECK(text("") == rows{"script        . 0 bytes"});
    CHECK(text("a\n") == rows{"script 1      | a", "script        . 2 bytes"});
    CHECK(text("a") == rows{"script 1      | a",
                            "script        . 1 bytes; its last line does not end with a newline"});
    CHECK(text("a \n\n\tb\n") == rows{"script 1      | a\\x20", "script 2      | ",
                                      "script 3      | \\tb", "script        . 7 bytes"});
}

TEST_CASE("a long value continues in marked rows, and no escape is cut") {
    // At the least width a row has room for 24 bytes.
    CHECK(word("0123456789012345678901234567", 1) ==
          rows{"argv[0]       : \"01234567890123456789012", "              + 34567\""});
    CHECK(word("012345678901234567890\n9", 40) ==
          rows{"argv[0]       : \"012345678901234567890\\n", "              + 9\""});
    CHECK(word("0123456789012345678901\n9", 40) ==
          rows{"argv[0]       : \"0123456789012345678901", "              + \\n9\""});
}

TEST_CASE("a long label is cut, so the text always begins in its column") {
    field_rows out(80);
    out.add_word("an environment's variable", "x");
    CHECK(out.rows().at(0) == "an environ... : \"x\"");
}
