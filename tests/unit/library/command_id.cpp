// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/command_id.hpp>

#include <doctest/doctest.h>

using namespace qvmremote;

namespace {
struct row {
    const char *name;
    std::string in;
    std::uint32_t at;
};
const row bad_ids[] = {
    {"empty", "", 0},
    {"too long", std::string(129, 'x'), 128},
    {"hidden", ".x", 0},
    {"option", "-x", 0},
    {"this directory", ".", 0},
    {"parent", "..", 0},
    {"path step", "20260218/../x", 8},
    {"newline at the end", "x\n", 1},
    {"NUL", std::string("x\0y", 3), 1},
    {"blank", "a b", 1},
    {"escape sequence", "a\033[2J", 1},
    {"not ASCII", "caf\xc3\xa9", 3},
    {"token file", "x.auth", 1},
    {"copy of the command", "x.cmd", 1},
    {"longest token file", std::string(123, 'x') + ".auth", 123},
};
const row bad_names[] = {
    {"empty", "", 0},
    {"too long", std::string(32, 'x'), 31},
    {"digit first", "1work", 0},
    {"dot", "a.b", 1},
    {"path", "../x", 0},
    {"slash", "a/b", 1},
    {"newline", "work\n", 4},
    {"dom0", "dom0", 0},
    {"dom0 in another case", "Dom0", 0},
    {"dom0 of Xen", "Domain-0", 0},
    {"dom0 of Xen in another case", "domain-0", 0},
    {"dom0 by number", "0", 0},
    {"dom0 by UUID", "00000000-0000-0000-0000-000000000000", 0},
    {"dom0 by UUID, as Qubes writes it", "uuid:00000000-0000-0000-0000-000000000000", 4},
    {"dom0 by keyword", "@adminvm", 0},
    {"none", "none", 0},
    {"default", "default", 0},
    {"stub domain", "work-dm", 4},
    {"not ASCII", "\xc3\xa9", 0},
};
} // namespace

TEST_CASE("I6: an ID that could name another path is refused, with the place") {
    for (const row &r : bad_ids) {
        CAPTURE(r.name);
        const auto id = command_id::parse(r.in);
        REQUIRE_FALSE(id);
        CHECK(id.error() == error{errc::bad_command_id, r.at});
    }
    for (const std::string &good :
         {std::string("20260218-143022-12345-a1b2c3d4"), std::string("a"), std::string("_"),
          std::string("a.b-c_D9"), std::string(128, 'x'), std::string("auth"),
          std::string("x.auth2")}) {
        CAPTURE(good);
        CHECK(command_id::parse(good).value().text() == good);
    }
}

TEST_CASE("an ID may hold 65 of 256 bytes, and begin with 63") {
    int inside = 0, first = 0;
    for (int c = 0; c < 256; ++c) {
        first += command_id::parse(std::string(1, static_cast<char>(c))).has_value();
        inside += command_id::parse(std::string("x") + static_cast<char>(c)).has_value();
    }
    CHECK(first == 63);
    CHECK(inside == 65);
}

TEST_CASE("the time that an ID claims") {
    const auto time = [](std::string_view text) {
        return command_id::parse(text).value().claimed_time();
    };
    CHECK(time("19700101-000000-1-x") == 0);
    CHECK(time("20260218-143022-12345-a1b2c3d4") == 1771425022);
    CHECK(time("20240229-235959-1-x") == 1709251199);
    CHECK(time("20240301-000000-1-x") == 1709251200);
    CHECK(time("00000101-000000-x") == -62167219200);
    CHECK(time("99991231-235960-x") == 253402300800);
    for (const std::string_view none :
         {"e2e-single-001", "ping-1771425022000000000-4242", "20261318-143022-1-x",
          "20260200-143022-1", "20260218-243022-1", "20260218-146022-1", "20260218-143061-1",
          "20260218-143022", "2026021x-143022-1", "20270229-143022-1", "20270231-143022-1",
          "20260431-143022-1", "20260218x143022-1"}) {
        CAPTURE(none);
        CHECK_FALSE(time(none));
    }
}

TEST_CASE("names of qubes") {
    for (const row &r : bad_names) {
        CAPTURE(r.name);
        const auto name = qube_name::parse(r.in);
        REQUIRE_FALSE(name);
        CHECK(name.error() == error{errc::bad_qube_name, r.at});
    }
    for (const std::string &good :
         {std::string("work"), std::string("A"), std::string("sys-net_2"), std::string(31, 'x'),
          std::string("dom0x"), std::string("dm")}) {
        CAPTURE(good);
        CHECK(qube_name::parse(good).value().text() == good);
    }
}
