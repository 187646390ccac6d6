// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/envelope.hpp>

#include <functional>

#include <doctest/doctest.h>

#include "support/vectors.hpp"

using namespace qvmremote;

namespace {

const test::vector_file vectors("protocol2.txt");
constexpr std::string_view names[] = {"shell",         "exec",     "script",   "script_follows",
                                      "ping",          "status",   "dry_run",  "exec_packed",
                                      "script_packed", "terminal", "detached", "job_list",
                                      "job_attach"};

envelope decoded(std::string_view name) {
    return envelope::decode(vectors["envelope." + std::string(name)]).value();
}

struct row {
    const char *name;
    std::string_view from; // the vector to change
    std::function<void(envelope &)> change;
    errc want;
};
const row unencodable[] = {
    {"nothing asked for", "shell", [](envelope &e) { e = {}; }, errc::bad_envelope},
    {"no ID", "shell", [](envelope &e) { e.id.reset(); }, errc::bad_envelope},
    {"no kind", "shell", [](envelope &e) { e.kind = {}; }, errc::unsupported},
    {"unknown kind", "shell", [](envelope &e) { e.kind = static_cast<request_kind>(7); },
     errc::unsupported},
    {"unknown feature", "shell", [](envelope &e) { e.features = 1u << 31; }, errc::unsupported},
    {"empty command line", "shell", [](envelope &e) { e.set_body(""); }, errc::command_empty},
    {"empty script", "script", [](envelope &e) { e.set_body(""); }, errc::command_empty},
    {"no argv", "exec", [](envelope &e) { e.arguments.clear(); }, errc::command_empty},
    {"empty program", "exec", [](envelope &e) { e.arguments[0].clear(); }, errc::command_empty},
    {"argv with a body", "exec", [](envelope &e) { e.set_body("x"); }, errc::bad_envelope},
    {"command line with arguments", "shell", [](envelope &e) { e.arguments = {"x"}; },
     errc::bad_envelope},
    {"ping with a body", "ping", [](envelope &e) { e.set_body("x"); }, errc::bad_envelope},
    {"ping with stdin", "ping", [](envelope &e) { e.stdin_live = true; }, errc::bad_envelope},
    {"status with arguments", "status", [](envelope &e) { e.arguments = {"x"}; },
     errc::bad_envelope},
    {"ping in a terminal", "ping",
     [](envelope &e) {
         e.tty = true;
         e.features = feature::terminal;
     },
     errc::bad_envelope},
    {"a terminal without the feature", "terminal", [](envelope &e) { e.features = 0; },
     errc::unsupported},
    {"the feature without a terminal", "shell",
     [](envelope &e) { e.features |= feature::terminal; }, errc::unsupported},
    {"a job without the feature", "detached", [](envelope &e) { e.features = 0; },
     errc::unsupported},
    {"about a job without the feature", "job_list", [](envelope &e) { e.features = 0; },
     errc::unsupported},
    {"packed arguments of a job without the feature", "exec_packed",
     [](envelope &e) { e.detach = true; }, errc::unsupported},
    {"about a job, detached", "job_list", [](envelope &e) { e.detach = true; }, errc::bad_envelope},
    {"about a job, a dry run", "job_list", [](envelope &e) { e.dry_run = true; },
     errc::bad_envelope},
    {"about a job with a body", "job_list", [](envelope &e) { e.set_body("x"); },
     errc::bad_envelope},
    {"about a job without words", "job_list", [](envelope &e) { e.arguments.clear(); },
     errc::bad_envelope},
    {"a list with input", "job_list", [](envelope &e) { e.stdin_live = true; }, errc::bad_envelope},
    {"a job with a path for an ID", "job_attach", [](envelope &e) { e.arguments[1] = "../x"; },
     errc::bad_envelope},
    {"an offset beyond 63 bits", "job_attach",
     [](envelope &e) { e.arguments[2] = "9223372036854775808"; }, errc::bad_envelope},
    {"a ping as a job", "ping",
     [](envelope &e) {
         e.detach = true;
         e.features = feature::jobs;
     },
     errc::bad_envelope},
    {"columns without a terminal", "shell", [](envelope &e) { e.columns = 80; },
     errc::bad_envelope},
    {"rows without a terminal", "exec", [](envelope &e) { e.rows = 24; }, errc::bad_envelope},
    {"NUL in an argument", "exec", [](envelope &e) { e.arguments[1].push_back('\0'); },
     errc::bad_envelope},
    {"NUL in a value", "shell", [](envelope &e) { e.environment[0].second.push_back('\0'); },
     errc::bad_envelope},
    {"NUL in a command line", "shell", [](envelope &e) { e.set_body(std::string("a\0b", 3)); },
     errc::binary_content},
    {"NUL in a long command line", "shell",
     [](envelope &e) { e.set_body(std::string(20'000, 'x') + std::string(1, '\0')); },
     errc::binary_content},
    {"variable without a name", "shell", [](envelope &e) { e.environment[0].first.clear(); },
     errc::bad_envelope},
    {"variable with '='", "shell", [](envelope &e) { e.environment[0].first = "A=B"; },
     errc::bad_envelope},
    {"exported function", "shell", [](envelope &e) { e.environment[0].first = "BASH_FUNC_ls%%"; },
     errc::bad_envelope},
    {"variable that begins with a digit", "shell",
     [](envelope &e) { e.environment[0].first = "1A"; }, errc::bad_envelope},
    {"a variable twice", "shell", [](envelope &e) { e.environment[1].first = "TERM"; },
     errc::bad_envelope},
    {"65 variables", "shell",
     [](envelope &e) {
         for (int i = 2; i <= 64; ++i)
             e.environment.emplace_back(std::string(static_cast<std::size_t>(i), 'V'), "");
     },
     errc::bad_envelope},
    {"1025 arguments", "exec", [](envelope &e) { e.arguments.resize(1025, "x"); },
     errc::bad_envelope},
    {"an argument of 64 KiB", "exec", [](envelope &e) { e.arguments.emplace_back(65536, 'x'); },
     errc::frame_too_large},
    {"a header of more than 16 KiB", "exec",
     [](envelope &e) { e.arguments.emplace_back(16 * 1024, 'x'); }, errc::frame_too_large},
    {"a body of more than 1 MiB", "script",
     [](envelope &e) { e.set_body(std::string(limits::command + 1, 'x')); },
     errc::command_too_large},
    {"packed arguments without a body", "exec_packed",
     [](envelope &e) {
         e.body_follows = false;
         e.body_length = 0;
     },
     errc::bad_envelope},
    {"packed arguments in the header too", "exec_packed", [](envelope &e) { e.arguments = {"x"}; },
     errc::bad_envelope},
    {"packed arguments of a command line", "exec_packed",
     [](envelope &e) { e.kind = request_kind::shell; }, errc::bad_envelope},
    {"packed arguments of a ping", "exec_packed", [](envelope &e) { e.kind = request_kind::ping; },
     errc::bad_envelope},
    {"a body changed after set_body", "script", [](envelope &e) { e.body += "x"; },
     errc::bad_envelope},
};

} // namespace

TEST_CASE("a parsed header encodes to the same bytes again") {
    for (const std::string_view name : names) {
        CAPTURE(name);
        const bytes &whole = vectors["envelope." + std::string(name)];
        const auto header = envelope::decode(whole);
        REQUIRE(header);
        CHECK(header->encode().value() == whole);
    }
}

TEST_CASE("the vectors have these fields") {
    const envelope shell = decoded("shell");
    CHECK(shell.kind == request_kind::shell);
    CHECK(shell.stdin_live);
    CHECK(shell.timeout_s == 60);
    CHECK(shell.id->text() == "20260218-143022-12345-a1b2c3d4");
    CHECK(shell.environment.size() == 2);
    CHECK(shell.environment[1] == std::pair<std::string, std::string>("LANG", "C.UTF-8"));
    CHECK(shell.body == "cat; echo done >&2\n");
    CHECK(shell.nonce[15] == 15);

    CHECK(decoded("exec").arguments ==
          std::vector<std::string>{"qvm-prefs", "work", "memory", "4096"});
    CHECK(decoded("script").arguments == std::vector<std::string>{"one", "two words", ""});
    const envelope follows = decoded("script_follows");
    CHECK(follows.body_follows);
    CHECK(follows.body.empty());
    CHECK(follows.body_length == vectors["body"].size());
    CHECK(follows.body_digest == sha256(vectors["body"]));
    CHECK(follows.features == feature::gmac);
    CHECK(decoded("dry_run").dry_run);
    const envelope terminal = decoded("terminal");
    CHECK(terminal.tty);
    CHECK(terminal.stdin_live);
    CHECK(terminal.columns == 132);
    CHECK(terminal.rows == 43);
    CHECK_FALSE(decoded("shell").tty);
    CHECK(decoded("ping").timeout_s == 0);
}

TEST_CASE("a header cut at any place, or with a byte after it, is refused") {
    for (const std::string_view name : names) {
        CAPTURE(name);
        const bytes &whole = vectors["envelope." + std::string(name)];
        for (std::size_t n = 0; n < whole.size(); ++n) {
            CAPTURE(n);
            const auto cut = envelope::decode(bytes_view(whole).first(n));
            REQUIRE_FALSE(cut);
            CHECK(cut.error().code == errc::incomplete);
            CHECK(cut.error().offset <= n);
        }
        bytes longer = whole;
        longer.push_back(0);
        CHECK(envelope::decode(longer).error() ==
              error{errc::bad_envelope, static_cast<std::uint32_t>(whole.size())});
    }
}

TEST_CASE("a header with a damaged byte is refused, or encodes to the damaged bytes again") {
    for (const std::string_view name : names) {
        const bytes &whole = vectors["envelope." + std::string(name)];
        for (std::size_t i = 0; i < whole.size(); ++i)
            for (const std::uint8_t damage : bytes{0x01, 0x80, 0xff}) {
                CAPTURE(name);
                CAPTURE(i);
                bytes bad = whole;
                bad[i] ^= damage;
                if (const auto header = envelope::decode(bad)) {
                    const auto again = header->encode();
                    REQUIRE(again);
                    CHECK(*again == bad);
                }
            }
    }
}

TEST_CASE("a request that dom0 would refuse does not encode") {
    for (const row &r : unencodable) {
        CAPTURE(r.name);
        envelope header = decoded(r.from);
        r.change(header);
        const auto out = header.encode();
        REQUIRE_FALSE(out);
        CHECK(out.error().code == r.want);
    }
}

namespace {
// A request with packed arguments whose body has come.
envelope packed(request_kind kind, std::string body) {
    envelope out = decoded("exec_packed");
    out.kind = kind;
    out.body = std::move(body);
    return out;
}
std::string block(std::uint32_t size, std::string_view rest) {
    bytes out;
    byte_writer w(out);
    w.u32(size);
    w.put(rest);
    return std::string(as_text(out));
}
} // namespace

TEST_CASE("arguments that do not fit into the header travel in the body and arrive unchanged") {
    using words = std::vector<std::string>;
    const std::string script = "#!/bin/sh\n", large(limits::inline_body, 'x');
    struct row {
        const char *name;
        request_kind kind;
        words arguments;
        std::string body;
        bool follows, packed;
    };
    const row rows[] = {
        {"short", request_kind::exec, {"a", ""}, "", false, false},
        {"1024 words", request_kind::exec, words(1024, "x"), "", false, false},
        {"1025 words", request_kind::exec, words(1025, "x"), "", true, true},
        {"1025 empty words after a program", request_kind::exec,
         [] {
             words w(1026);
             w[0] = "x";
             return w;
         }(),
         "", true, true},
        {"the most words", request_kind::exec, words(limits::long_arguments, "x"), "", true, true},
        {"a word of 15 KiB", request_kind::exec, words{std::string(15 * 1024, 'x')}, "", false,
         false},
        {"a word of 16 KiB", request_kind::exec, words{std::string(16 * 1024, 'x')}, "", true,
         true},
        {"the longest word", request_kind::exec, words{std::string(limits::argument, 'x')}, "",
         true, true},
        {"1 MiB", request_kind::exec,
         [] {
             words w(8, std::string(128 * 1024 - 2, 'x'));
             w[0].resize(128 * 1024 + 2 * 7 - 4 - 1 - 14);
             return w;
         }(),
         "", true, true},
        {"a script that leaves the header first", request_kind::script,
         words{std::string(8 * 1024, 'x')}, large, true, false},
        {"a script and many words", request_kind::script, words(5000, "x y"), script, true, true},
        {"a script and a long word", request_kind::script, words{std::string(100 * 1024, 'x')},
         large, true, true},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        envelope e = decoded(r.kind == request_kind::exec ? "exec" : "script");
        e.arguments = r.arguments;
        e.set_body(r.body);
        REQUIRE(e.make_header_fit());
        CHECK(e.body_follows == r.follows);
        CHECK(e.has_packed_arguments() == r.packed);
        CHECK(e.body.size() <= limits::command);
        const auto header = e.encode();
        REQUIRE(header);
        envelope there = envelope::decode(*header).value();
        if (there.body_follows)
            there.body = e.body;
        REQUIRE(there.unpack_arguments());
        CHECK(there.arguments == r.arguments);
        CHECK(there.body == r.body);
        CHECK(there.body_length == r.body.size());
        CHECK_FALSE(there.has_packed_arguments());
    }
}

TEST_CASE("arguments and body that no request can carry") {
    using words = std::vector<std::string>;
    struct row {
        const char *name;
        words arguments;
        std::size_t body;
        error want;
    };
    const row rows[] = {
        {"too many words",
         words(limits::long_arguments + 1, "x"),
         0,
         {errc::too_many_arguments, limits::long_arguments}},
        {"a word that Linux does not take",
         {"a", std::string(limits::argument + 1, 'x')},
         0,
         {errc::argument_too_large, 1}},
        {"1 MiB and a byte",
         {"a"},
         limits::command - 5,
         {errc::command_too_large, limits::command}},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        const auto got = envelope::check_arguments(r.arguments, r.body);
        REQUIRE_FALSE(got);
        CHECK(got.error() == r.want);
        envelope e = decoded("script");
        e.arguments = r.arguments;
        e.set_body(std::string(r.body, 'x'));
        CHECK_FALSE(e.make_header_fit());
    }
    CHECK(envelope::check_arguments(words{"a"}, limits::command - 6));
    CHECK(envelope::check_arguments({}, limits::command));
}

TEST_CASE("a packed body of another form is refused") {
    using namespace std::string_view_literals;
    using kind = request_kind;
    struct row {
        const char *name;
        kind what;
        std::string body;
        errc want;
    };
    const row rows[] = {
        {"no size", kind::exec, std::string("\0\0\0"sv), errc::bad_envelope},
        {"no arguments", kind::exec, block(0, ""), errc::bad_envelope},
        {"a script without arguments", kind::script, block(0, "true"), errc::bad_envelope},
        {"a size larger than the body", kind::exec, block(3, "a\0"sv), errc::bad_envelope},
        {"a size that wraps", kind::exec, block(0xffffffff, "a\0"sv), errc::bad_envelope},
        {"no NUL at the end", kind::exec, block(2, "ab"), errc::bad_envelope},
        {"a body after an argv", kind::exec, block(2, "a\0b"sv), errc::bad_envelope},
        {"an empty program", kind::exec, block(3, "\0a\0"sv), errc::command_empty},
        {"an empty script", kind::script, block(2, "a\0"sv), errc::command_empty},
        {"too many words", kind::exec,
         block(limits::long_arguments + 1, std::string(limits::long_arguments + 1, '\0')),
         errc::too_many_arguments},
        {"a long word", kind::exec,
         block(limits::argument + 2, std::string(limits::argument + 1, 'x') + '\0'),
         errc::argument_too_large},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        envelope e = packed(r.what, r.body);
        const auto got = e.unpack_arguments();
        REQUIRE_FALSE(got);
        CHECK(got.error().code == r.want);
    }
}

TEST_CASE("a script may hold any byte") {
    envelope header = decoded("script");
    header.set_body(std::string("\0\x01\xff", 3));
    CHECK(envelope::decode(header.encode().value())->body == header.body);
}

TEST_CASE("a body of up to 12 KiB travels in the header, and a larger one after it") {
    envelope header = decoded("script");
    header.set_body(std::string(limits::inline_body, 'x'));
    CHECK_FALSE(header.body_follows);
    CHECK(header.encode());
    header.set_body(std::string(limits::inline_body + 1, 'x'));
    CHECK(header.body_follows);
    CHECK(header.encode().value().size() < 200);
    header.set_body(std::string(limits::command, 'x'));
    CHECK(header.encode());
}

TEST_CASE("I4: too large lengths in a header are refused before memory is taken") {
    bytes bad = vectors["envelope.script_follows"];
    // The length of the body is before its digest of 32 bytes.
    store_u32(bad.data() + bad.size() - 36, limits::command + 1);
    CHECK(envelope::decode(bad).error().code == errc::command_too_large);
    store_u32(bad.data() + bad.size() - 36, 0xffffffff);
    CHECK(envelope::decode(bad).error().code == errc::command_too_large);
    CHECK(envelope::decode(bytes(limits::request_header + 1)).error().code ==
          errc::frame_too_large);
}

TEST_CASE("a header that is cut in the nonce is incomplete at that place") {
    // The later fields must not be read from the bytes of a nonce that is cut.
    bytes cut = vectors["envelope.shell"];
    cut.resize(17);
    CHECK(envelope::decode(cut).error() == error{errc::incomplete, 2});
}
