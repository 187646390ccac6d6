// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/history.hpp>

#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

using namespace qvmremote;
using namespace std::string_view_literals;

namespace {
constexpr std::string_view when = "2026-02-18T10:15:00";
constexpr std::string_view an_id = "20260218-101500-42-0a1b2c3d";
constexpr std::string_view meta = "id=20260218-101500-42-0a1b2c3d\nstarted=2026-02-18T10:15:00\n"
                                  "duration_ms=42\nexit_code=-9\n";
} // namespace

TEST_CASE("meta: the four lines are written and read back") {
    CHECK(format_meta(an_id, when, 42, -9) == meta);
    const run_meta want{std::string(an_id), std::string(when), 42, -9};
    CHECK(parse_meta(meta).value() == want);
    CHECK(parse_meta(meta.substr(0, meta.size() - 1)).value() == want);
    CHECK(parse_meta("exit_code=-9\r\nduration_ms=42\r\nfuture=1\r\nstarted=2026-02-18T10:15:00\r\n"
                     "id=20260218-101500-42-0a1b2c3d\r\n")
              .value() == want);
}

TEST_CASE("meta: what is refused, and where") {
    struct row {
        const char *name;
        std::string_view in;
        errc want;
        std::uint32_t at;
    };
    static const std::string large = std::string(meta) + "x=" + std::string(4096, 'x');
    static const row rows[] = {
        {"empty", "", errc::incomplete, 0},
        {"one lacks", "id=a\nstarted=2026-02-18T10:15:00\nduration_ms=1\n", errc::incomplete, 47},
        {"no equals sign", "id=a\nx\n", errc::bad_value, 5},
        {"twice", "id=a\nid=a\n", errc::bad_value, 5},
        {"ID with a step up", "id=../x\nstarted=2026-02-18T10:15:00\nduration_ms=1\nexit_code=0\n",
         errc::bad_value, 3},
        {"time with an escape sequence",
         "id=a\nstarted=2026-02-18T10:15\x1b[J\nduration_ms=1\nexit_code=0\n", errc::bad_value, 13},
        {"negative duration", "id=a\nstarted=2026-02-18T10:15:00\nduration_ms=-1\nexit_code=0\n",
         errc::bad_value, 45},
        {"duration that wraps",
         "id=a\nstarted=2026-02-18T10:15:00\nduration_ms=18446744073709551616\nexit_code=0\n",
         errc::bad_value, 45},
        {"exit code with a NUL",
         "id=a\nstarted=2026-02-18T10:15:00\nduration_ms=1\nexit_code=0\0\n"sv, errc::bad_value,
         57},
        {"too large", large, errc::bad_value, 4096},
    };
    for (const row &r : rows) {
        INFO(std::string(r.name));
        const auto parsed = parse_meta(r.in);
        REQUIRE_FALSE(parsed);
        CHECK(parsed.error() == error{r.want, r.at});
    }
    for (std::size_t n = 0; n + 3 < meta.size(); ++n) {
        CAPTURE(n);
        CHECK_FALSE(parse_meta(meta.substr(0, n)));
    }
}

TEST_CASE("exit: takes digits and a sign, and nothing else") {
    CHECK(parse_exit("0").value() == 0);
    CHECK(parse_exit("127").value() == 127);
    CHECK(parse_exit("-9").value() == -9);
    CHECK(parse_exit("-2147483648").value() == -2147483647 - 1);
    for (const std::string_view bad :
         {""sv, "-"sv, "+1"sv, " 1"sv, "1\n"sv, "01"sv, "-0"sv, "--1"sv, "0x1"sv, "1\0"sv,
          "2147483648"sv, "-2147483649"sv, "1e3"sv}) {
        INFO(std::string(bad));
        const auto code = parse_exit(bad);
        REQUIRE_FALSE(code);
        CHECK(code.error().code == errc::bad_value);
    }
}

TEST_CASE("audit.log: every line is that of protocol 1, and is read back") {
    CHECK(line_submit(when, an_id, "qvm-ls\n") ==
          "[2026-02-18T10:15:00] SUBMIT id=20260218-101500-42-0a1b2c3d size=7B cmd=qvm-ls \n");
    CHECK(line_done(when, an_id, 1) ==
          "[2026-02-18T10:15:00] DONE id=20260218-101500-42-0a1b2c3d exit=1\n");
    CHECK(line_timeout(when, an_id, 300) ==
          "[2026-02-18T10:15:00] TIMEOUT id=20260218-101500-42-0a1b2c3d after=300s\n");
    CHECK(line_queue_clean(when, 3) == "[2026-02-18T10:15:00] QUEUE-CLEAN removed=3\n");
    CHECK(line_started(when, an_id, -9, 42, "qvm-ls") ==
          "[2026-02-18T10:15:00] id=20260218-101500-42-0a1b2c3d exit=-9 duration=42ms "
          "cmd=qvm-ls\n");

    const auto read = [](const std::string &line) {
        return parse_audit_line(std::string_view(line).substr(0, line.size() - 1)).value().kind;
    };
    CHECK(read(line_submit(when, an_id, "a")) == history_kind::submit);
    CHECK(read(line_done(when, an_id, -1)) == history_kind::done);
    CHECK(read(line_timeout(when, an_id, 1)) == history_kind::timeout);
    CHECK(read(line_queue_clean(when, 0)) == history_kind::queue_clean);
    CHECK(read(line_started(when, an_id, 0, 0, "")) == history_kind::started);

    const std::string line = line_started(when, "e2e-single-001", 3, 42, "a cmd=b exit=0");
    const auto parsed = parse_audit_line(std::string_view(line).substr(0, line.size() - 1));
    REQUIRE(parsed);
    CHECK(parsed->timestamp == when);
    CHECK(parsed->id == "e2e-single-001");
    CHECK(parsed->exit_code == 3);
    CHECK(parsed->duration_ms == 42);
    CHECK(parsed->untrusted_command == "a cmd=b exit=0");
}

TEST_CASE("audit.log: a line with a time that does not exist is refused") {
    for (const std::string_view bad :
         {"2027-02-29T10:00:00", "2027-13-01T10:00:00", "2027-02-03T24:00:00",
          "2027-02-03T10:60:00", "2027-02-03 10:00:00"}) {
        CAPTURE(bad);
        CHECK_FALSE(parse_audit_line("[" + std::string(bad) + "] DONE id=x exit=0"));
    }
    CHECK(parse_audit_line("[2028-02-29T23:59:60] DONE id=x exit=0"));
}

TEST_CASE("audit.log: a command cannot forge a line or an escape sequence") {
    const std::string forged =
        "true\n[2026-02-18T10:15:00] DONE id=x exit=0\n\x1b[2J" + std::string(500, 'x');
    for (const std::string &line :
         {line_submit(when, an_id, forged), line_started(when, an_id, 0, 1, forged)}) {
        CHECK(line.find('\n') == line.size() - 1);
        CHECK(line.find('\x1b') == std::string::npos);
    }
    const std::string line = line_submit(when, an_id, std::string(500, 'x'));
    CHECK(line.ends_with("cmd=" + std::string(100, 'x') + "\n"));
    CHECK(line_started(when, an_id, 0, 1, std::string(500, 'x'))
              .ends_with("cmd=" + std::string(200, 'x') + "\n"));
}

TEST_CASE("audit.log: what is refused, and where") {
    struct row {
        const char *name;
        std::string_view in;
        std::uint32_t at;
    };
    static constexpr row rows[] = {
        {"empty", "", 0},
        {"no bracket", "2026-02-18T10:15:00 DONE id=a exit=0", 0},
        {"short time", "[2026-02-18T10:15] DONE id=a exit=0", 1},
        {"time of letters", "[2026-02-18T10:15:xx] DONE id=a exit=0", 1},
        {"unknown word", "[2026-02-18T10:15:00] GONE id=a exit=0", 22},
        {"empty ID", "[2026-02-18T10:15:00] DONE id= exit=0", 30},
        {"ID with a step up", "[2026-02-18T10:15:00] DONE id=../a exit=0", 30},
        {"ID with an escape sequence", "[2026-02-18T10:15:00] DONE id=\x1b[J exit=0", 30},
        {"exit with a blank", "[2026-02-18T10:15:00] DONE id=a exit= 0", 37},
        {"text at the end", "[2026-02-18T10:15:00] DONE id=a exit=0 x", 38},
        {"CR at the end", "[2026-02-18T10:15:00] DONE id=a exit=0\r", 37},
        {"size without unit", "[2026-02-18T10:15:00] SUBMIT id=a size=1 cmd=x", 39},
        {"negative size", "[2026-02-18T10:15:00] SUBMIT id=a size=-1B cmd=x", 39},
        {"no command", "[2026-02-18T10:15:00] SUBMIT id=a size=1B", 41},
        {"half a line", "[2026-02-18T10:15:00] id=a exit=0 dura", 33},
    };
    for (const row &r : rows) {
        INFO(std::string(r.name));
        const auto parsed = parse_audit_line(r.in);
        REQUIRE_FALSE(parsed);
        CHECK(parsed.error() == error{errc::bad_value, r.at});
    }
    const std::string line = line_timeout(when, an_id, 300);
    for (std::size_t n = 0; n + 1 < line.size(); ++n) {
        CAPTURE(n);
        CHECK_FALSE(parse_audit_line(std::string_view(line).substr(0, n)));
    }
}

TEST_CASE("tail_lines: the end of a file, oldest first") {
    using lines = std::vector<std::string_view>;
    CHECK(tail_lines("", 5).empty());
    CHECK(tail_lines("a\nb\nc\n", 0).empty());
    CHECK(tail_lines("a\nb\nc\n", 2) == lines{"b", "c"});
    CHECK(tail_lines("a\nb\nc", 2) == lines{"b", "c"});
    CHECK(tail_lines("a\nb\n", 5) == lines{"a", "b"});
    CHECK(tail_lines("a\r\nb\r\n", 5) == lines{"a", "b"});
    CHECK(tail_lines("\n", 5) == lines{""});
    CHECK(tail_lines("a\n\n\n", 5) == lines{"a", "", ""});
    CHECK(tail_lines("\na", 5) == lines{"", "a"});
}

TEST_CASE("dom0's log: the categories and their order") {
    std::string all;
#define QVMREMOTE_X(member, word) all.append(name(log_category::member)).append(" ");
    QVMREMOTE_LOG_CATEGORIES(QVMREMOTE_X)
#undef QVMREMOTE_X
    CHECK(all == "INFO EXEC CMD AUTH-OK AUTH-FAIL AUTH-DENY REJECT OUT ERR DONE DONE-FAIL ERROR "
                 "TIMEOUT TRUNC DRY ");
    CHECK(log_line(when, log_category::auth_deny, "vm=work id=a (no key for this VM)") ==
          "[2026-02-18T10:15:00] AUTH-DENY vm=work id=a (no key for this VM)\n");
    CHECK(log_line(when, log_category::out, "  stdout: x") ==
          "[2026-02-18T10:15:00] OUT   stdout: x\n");
}

TEST_CASE("dom0's log: up to three lines of output are shown, of more the first and the last") {
    using texts = std::vector<std::string>;
    struct row {
        const char *name;
        std::string_view in;
        texts want;
    };
    static const std::string wide(200, 'x');
    static const row rows[] = {
        {"nothing", "", {}},
        {"one", "a\n", {"> a"}},
        {"one, no newline", "a", {"> a"}},
        {"one, empty", "\n", {"> "}},
        {"three", "a\nb\nc\n", {"> a", "> b", "> c"}},
        {"four", "a\nb\nc\nd\n", {"> a", "> ... (2 more lines)", "> d"}},
        {"four, no newline", "a\nb\nc\nd", {"> a", "> ... (2 more lines)", "> d"}},
        {"empty lines count", "\n\n\n\n\n", {"> ", "> ... (3 more lines)", "> "}},
        {"seven", "a\nbb\nc\n\n\nd\ne", {"> a", "> ... (5 more lines)", "> e"}},
        {"escape sequence", "\x1b[2Ja\rb\n", {R"(> \x1b[2Ja\rb)"}},
        {"wide", wide, {"> " + wide.substr(0, 160)}},
    };
    for (const row &r : rows) {
        INFO(std::string(r.name));
        // In pieces of every size, the last of which is the whole text.
        for (std::size_t piece = 1; piece <= r.in.size() + 1; ++piece) {
            CAPTURE(piece);
            output_lines lines;
            for (std::size_t at = 0; at < r.in.size(); at += piece)
                lines.feed(r.in.substr(at, piece));
            CHECK(lines.show("> ") == r.want);
        }
    }
}
