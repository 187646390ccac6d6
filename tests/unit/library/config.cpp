// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/config.hpp>

#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

using namespace qvmremote;
using namespace std::string_view_literals;

TEST_CASE("parse: the forms in old files") {
    struct row {
        const char *name;
        std::string_view in;
        std::string_view want; // of KEY; empty: unset
    };
    static constexpr row rows[] = {
        {"plain", "KEY=work\n", "work"},
        {"no final newline", "KEY=work", "work"},
        {"CR LF", "# top\r\nKEY=work\r\nOTHER=1\r\n", "work"},
        {"CR at the end of the text", "KEY=work\r", "work"},
        {"blanks around the equals sign", "  KEY \t=  work  \n", "work"},
        {"blanks inside, bare", "KEY=work  dev\n", "work  dev"},
        {"double quotes", "KEY=\"work dev\"\n", "work dev"},
        {"single quotes", "KEY='work dev'\n", "work dev"},
        {"blanks kept in quotes", "KEY=' a '\n", " a "},
        {"escapes in double quotes", R"(KEY="\"\\\$\`\n")", R"("\$`\n)"},
        {"no escapes in single quotes", R"(KEY='\"\\')", R"(\"\\)"},
        {"escapes in a bare value", R"(KEY=a\ b\"\\)", R"(a b"\)"},
        {"the other quote inside quotes", "KEY=\"it's\"\n", "it's"},
        {"equals sign inside", "KEY=auto work=both\n", "auto work=both"},
        {"dollar is a dollar", "KEY=$HOME\n", "$HOME"},
        {"last one wins", "KEY=a\nKEY=b\n", "b"},
        {"last one empty", "KEY=a\nKEY=\n", ""},
        {"comment after the value", "KEY=work # mine\n", "work"},
        {"comment after quotes", "KEY='work' # it's mine\n", "work"},
        {"comment instead of a value", "KEY= # none\n", ""},
        {"hash inside", "KEY=a#b\n", "a#b"},
        {"hash first", "KEY=#b\n", "#b"},
        {"commented out", "#KEY=a\n  # KEY=b\n", ""},
        {"empty quotes", "KEY=\"\"\n", ""},
        {"UTF-8", "KEY=\xc3\xa9\n", "\xc3\xa9"},
        {"empty lines", "\n \n\t\n\r\nKEY=a\n\n", "a"},
        {"export", "KEY=a\nexport KEY=b\n", "a"},
        {"a key of that name", "export =b\nKEY=a\n", "a"},
        {"another key", "KEYS=a\nXKEY=b\n", ""},
        {"nothing", "", ""},
    };
    for (const row &r : rows) {
        INFO(std::string(r.name));
        const auto parsed = config::parse(r.in);
        REQUIRE(parsed);
        CHECK(parsed->get("KEY").value_or("") == r.want);
        CHECK(parsed->get("KEY").has_value() == !r.want.empty());
    }
}

TEST_CASE("parse: what is refused, and where") {
    struct row {
        const char *name;
        std::string_view in;
        std::uint32_t at;
        std::uint32_t line;
    };
    static constexpr row rows[] = {
        {"no equals sign", "A=1\nwork\n", 4, 2},
        {"blank, no equals sign", "\n  work", 3, 2},
        {"export of nothing", "export -n=1\n", 7, 1},
        {"export of a number", "export 1A=1\n", 7, 1},
        {"no key", "=1\n", 0, 1},
        {"digit first", "1A=1\n", 0, 1},
        {"dash in the key", "A=1\r\nA-B=1\r\n", 6, 2},
        {"dot in the key", "A.B=1\n", 1, 1},
        {"byte order mark",
         "\xef\xbb\xbf"
         "A=1\n",
         0, 1},
        {"open double quote", "A=\"work\nB=1\"\n", 2, 1},
        {"open single quote", "\n\nA='work", 4, 3},
        {"escaped closing quote", "A=\"work\\\"\n", 2, 1},
        {"text after a quote", "A=\"a\"b\n", 5, 1},
        {"hash directly after a quote", "A='a'#b\n", 5, 1},
        {"quote inside a bare value", "A=it's\n", 4, 1},
        {"continued line", "A=a\\\nB=b\n", 3, 1},
        {"NUL", "A=1\nB=a\0b\n"sv, 7, 2},
        {"NUL in a comment", "#\0"sv, 1, 1},
        {"escape sequence", "A=\x1b[2J\n", 2, 1},
        {"escape sequence in quotes", "A='\x1b'\n", 3, 1},
        {"escaped escape", "A=\\\x1b\n", 3, 1},
        {"lone CR", "A=a\rB=b\n", 3, 1},
        {"two CRs", "A=a\r\r\n", 3, 1},
        {"DEL", "A=a\x7f\n", 3, 1},
    };
    for (const row &r : rows) {
        INFO(std::string(r.name));
        const auto parsed = config::parse(r.in);
        REQUIRE_FALSE(parsed);
        CHECK(parsed.error() == error{errc::bad_config, r.at});
        CHECK(config::line_of(r.in, parsed.error().offset) == r.line);
    }
    CHECK(config::parse(std::string(limits::config_file, '\n')));
    CHECK(config::parse(std::string(limits::config_file + 1, '\n')).error() ==
          error{errc::bad_value, limits::config_file});
    CHECK(config::line_of("a\nb", 1000) == 2);
}

TEST_CASE("entries, unknown keys, and the environment overrides") {
    config settings = config::parse("A=1\nB=\nC=3\nA=4\n").value();
    REQUIRE(settings.entries().size() == 3);
    CHECK(settings.entries()[0] == std::pair<std::string, std::string>("A", "4"));
    CHECK(settings.entries()[1] == std::pair<std::string, std::string>("B", ""));
    static constexpr std::string_view known[] = {"A", "B"};
    CHECK(settings.unknown_keys(known) == std::vector<std::string_view>{"C"});

    settings.set("A", "env");
    settings.set("C", ""); // an empty variable counts as unset
    settings.set("D", "new");
    CHECK(settings.get("A") == "env");
    CHECK(settings.get("C") == "3");
    CHECK(settings.get("D") == "new");
}

TEST_CASE("listed_qubes: takes the first key that lists any") {
    struct row {
        const char *name;
        std::string_view in;
        std::vector<std::string_view> want;
    };
    static const row rows[] = {
        {"none", "", {}},
        {"the usual", "QVM_REMOTE_VMS='work  dev'\nQVM_REMOTE_VM=x\n", {"work", "dev"}},
        {"the oldest name", "QUBES_REMOTE_VM=old\n", {"old"}},
        {"old list before new single", "QVM_REMOTE_VM=a\nQUBES_REMOTE_VMS=b\n", {"b"}},
        {"single before old single", "QUBES_REMOTE_VM=b\nQVM_REMOTE_VM=a\n", {"a"}},
        {"blanks only are empty", "QVM_REMOTE_VMS='  '\nQVM_REMOTE_VM=a\n", {"a"}},
        {"twice the same", "QVM_REMOTE_VMS=a b a\n", {"a", "b"}},
    };
    for (const row &r : rows) {
        INFO(std::string(r.name));
        const config settings = config::parse(r.in).value();
        CHECK(listed_qubes(settings) == r.want);
    }
}

TEST_CASE("split_words") {
    CHECK(split_words("").empty());
    CHECK(split_words(" \t\r\n").empty());
    CHECK(split_words(" a\tb\nc  d ") == std::vector<std::string_view>{"a", "b", "c", "d"});
}

TEST_CASE("choose_for: a default, then qubes by name") {
    constexpr std::string_view spec = "auto work=both dev=2";
    CHECK(choose_for(spec, "work") == "both");
    CHECK(choose_for(spec, "dev") == "2");
    CHECK(choose_for(spec, "other") == "auto");
    CHECK(choose_for(spec, "wor") == "auto");
    CHECK_FALSE(choose_for("work=both", "dev"));
    CHECK_FALSE(choose_for("", "dev"));
    CHECK(choose_for("work=1 2 work=both", "work") == "both");
    CHECK(choose_for("2 work=", "work") == "2");
    CHECK(choose_for("1 2", "work") == "2");
    CHECK_FALSE(choose_for("=1", ""
                                 "x"));
}

TEST_CASE("with_value: changes one value and no other byte") {
    struct row {
        const char *name;
        std::string_view in;
        std::string_view value;
        std::string_view want;
    };
    static constexpr row rows[] = {
        {"empty file", "", "work", "KEY=work\n"},
        {"added at the end", "# top\nA=1\n", "work", "# top\nA=1\nKEY=work\n"},
        {"no final newline", "A=1", "work", "A=1\nKEY=work\n"},
        {"replaced", "A=1\nKEY=old\nB=2\n", "new", "A=1\nKEY=new\nB=2\n"},
        {"the last of two", "KEY=a\nKEY=b", "c", "KEY=a\nKEY=c"},
        {"comment and blanks stay", " KEY = old\t# mine \n", "new", " KEY = new\t# mine \n"},
        {"quoted old value", "KEY='old one' # mine\n", "new", "KEY=new # mine\n"},
        {"empty before a comment", "KEY=  # mine\n", "new", "KEY=new  # mine\n"},
        {"CR LF stays", "KEY=old\r\nB=2\r\n", "new", "KEY=new\r\nB=2\r\n"},
        {"two words", "KEY=work\n", "work dev", "KEY=\"work dev\"\n"},
        {"every character that a shell interprets", "", "\"\\$`'#;", "KEY=\"\\\"\\\\\\$\\`'#;\"\n"},
        {"to an empty value", "KEY=work # mine\n", "", "KEY= # mine\n"},
        {"commented out", "#KEY=old\n", "new", "#KEY=old\nKEY=new\n"},
        {"longer key", "KEYS=old\n", "new", "KEYS=old\nKEY=new\n"},
    };
    for (const row &r : rows) {
        INFO(std::string(r.name));
        const std::string text = with_value(r.in, "KEY", r.value);
        CHECK(text == r.want);
        CHECK(config::parse(text).value().get("KEY").value_or("") == r.value);
        CHECK(with_value(text, "KEY", r.value) == text);
    }
}
