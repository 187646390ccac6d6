// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/request.hpp>

#include <optional>
#include <string>
#include <vector>

#include <doctest/doctest.h>

using namespace qvmremote;

TEST_CASE("words and texts as requests") {
    using words = std::vector<std::string>;
    using form = command_form;
    using kind = request_kind;
    struct row {
        const char *name;
        typed_command typed;
        std::optional<errc> why_not;
        kind what = kind::shell;
        words arguments = {};
        std::string body = {};
        bool stdin_live = false;
        std::string shown = {};
    };
    const std::string nul("a\0b", 3);
    const std::string longest(limits::command, 'x');
    const row rows[] = {
        {"one word",
         {form::line, {"qvm-ls"}, "", false},
         {},
         kind::shell,
         {},
         "qvm-ls",
         false,
         "qvm-ls"},
        {"words are joined by a blank",
         {form::line, {"echo", "a  b", "", "$HOME;"}, "", true},
         {},
         kind::shell,
         {},
         "echo a  b  $HOME;",
         true,
         "echo a  b  $HOME;"},
        {"with words, the text is ignored",
         {form::line, {"ls"}, "id", true},
         {},
         kind::shell,
         {},
         "ls",
         true,
         "ls"},
        {"a script from standard input leaves no input for the command",
         {form::line, {}, "id\n", true},
         {},
         kind::shell,
         {},
         "id\n",
         false,
         "id\n"},
        {"an argv is unchanged",
         {form::argv, {"echo", "a b", ""}, "", true},
         {},
         kind::exec,
         {"echo", "a b", ""},
         "",
         true,
         "echo a b "},
        {"with an argv, the text is ignored",
         {form::argv, {"echo"}, "id", false},
         {},
         kind::exec,
         {"echo"},
         "",
         false,
         "echo"},
        {"a script and its arguments",
         {form::script, {"-x", ""}, "#!/bin/sh\n", true},
         {},
         kind::script,
         {"-x", ""},
         "#!/bin/sh\n",
         true,
         "#!/bin/sh\n"},
        {"a script may hold a NUL",
         {form::script, {}, nul, false},
         {},
         kind::script,
         {},
         nul,
         false,
         nul},
        {"the longest line",
         {form::line, {longest}, "", false},
         {},
         kind::shell,
         {},
         longest,
         false,
         longest},
        {"nothing", {form::line, {}, "", true}, errc::command_empty},
        {"blanks", {form::line, {" ", "\t\r\n"}, "", true}, errc::command_empty},
        {"a blank script", {form::script, {"a"}, "\n", true}, errc::command_empty},
        {"an argv without a program", {form::argv, {}, "id", true}, errc::command_empty},
        {"an argv with an empty program", {form::argv, {"", "a"}, "", true}, errc::command_empty},
        {"a line with a NUL", {form::line, {}, nul, true}, errc::binary_content},
        {"an argv of 1 MiB and more",
         {form::argv, words(9, std::string(131000, 'x')), "", false},
         errc::command_too_large},
        {"a word that Linux does not take",
         {form::argv, {"a", std::string(131072, 'x')}, "", false},
         errc::argument_too_large},
        {"too many words", {form::argv, words(32769, "x"), "", false}, errc::too_many_arguments},
        {"a script's word that Linux does not take",
         {form::script, {std::string(131072, 'x')}, "id", false},
         errc::argument_too_large},
        {"a script that is too long with its arguments",
         {form::script, {"x"}, longest, false},
         errc::command_too_large},
        {"too long", {form::line, {longest, "x"}, "", true}, errc::command_too_large},
        {"a script that is too long",
         {form::script, {}, longest + "x", true},
         errc::command_too_large},
    };
    for (const row &r : rows) {
        INFO(std::string(r.name));
        const auto got = request_of(r.typed);
        REQUIRE(got.has_value() == !r.why_not.has_value());
        if (r.why_not) {
            CHECK(got.error().code == *r.why_not);
            continue;
        }
        CHECK(got->kind == r.what);
        CHECK(got->arguments == r.arguments);
        CHECK(got->body == r.body);
        CHECK(got->stdin_live == r.stdin_live);
        CHECK(got->shown() == r.shown);
    }
    CHECK(request_of({form::line, {}, nul, true}).error().offset == 1);
}
