// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/escapes.hpp>

#include <string>
#include <string_view>

#include <doctest/doctest.h>

using namespace qvmremote;

namespace {

// What is sent when the keys come in pieces of this size. An action is shown as <leave> and so on.
std::string sent(std::string_view keys, std::size_t piece,
                 std::optional<std::uint8_t> character = '~') {
    escape_scanner scanner(character);
    std::string out;
    while (!keys.empty()) {
        bytes_view typed = as_bytes(keys.substr(0, piece));
        keys.remove_prefix(typed.size());
        while (!typed.empty()) {
            bytes room(typed.size() + 1);
            const auto step = scanner.push(typed, room);
            CHECK(step.used > 0);
            out.append(as_text(bytes_view(room).first(step.written)));
            typed = typed.subspan(step.used);
            constexpr const char *names[] = {"", "<leave>", "<suspend>", "<help>", "<detach>"};
            out += names[static_cast<std::size_t>(step.what)];
        }
    }
    return out;
}

struct row {
    const char *name;
    std::string_view keys, want;
};
const row rows[] = {
    {"at the beginning of the input", "~.", "<leave>"},
    {"at the beginning of a line", "ls\r~.", "ls\r<leave>"},
    {"after a newline", "ls\n~.x", "ls\n<leave>x"},
    {"in the middle of a line", "ls ~.", "ls ~."},
    {"suspend, and again", "~\x1a~\x1a", "<suspend><suspend>"},
    {"after help the line is still at its beginning", "~?~.", "<help><leave>"},
    {"typed twice, it is sent once", "~~.\r", "~.\r"},
    {"before another character", "~ls\r", "~ls\r"},
    {"before a newline", "~\r~.", "~\r<leave>"},
    {"a last character is kept back", "a\r~", "a\r"},
    {"three in a row", "~~~.", "~~."},
    {"bytes that are not text", "\xff\x80~.\r~\xff", "\xff\x80~.\r~\xff"},
};

} // namespace

TEST_CASE("escapes, with the keys in any pieces") {
    for (const row &r : rows)
        for (std::size_t piece = 1; piece <= r.keys.size(); ++piece) {
            CAPTURE(r.name);
            CAPTURE(piece);
            CHECK(sent(r.keys, piece) == r.want);
        }
}

TEST_CASE("another escape character, or none") {
    CHECK(sent("~.\r%%\r%.", 2, '%') == "~.\r%\r<leave>");
    CHECK(sent("~.\r~~\r~?", 3, std::nullopt) == "~.\r~~\r~?");
}

TEST_CASE("the word of -e") {
    CHECK(parse_escape("%")->character == '%');
    CHECK(parse_escape("^")->character == '^');
    CHECK(parse_escape("^B")->character == 2);
    CHECK(parse_escape("^b")->character == 2);
    CHECK(parse_escape("^]")->character == 0x1d);
    CHECK(parse_escape("none"));
    CHECK_FALSE(parse_escape("none")->character);
    for (const std::string_view word : {"", "ab", "^1", "^^^", "\xc3\xa9", "None", "^\xe9"}) {
        CAPTURE(word);
        CHECK_FALSE(parse_escape(word));
    }
}
