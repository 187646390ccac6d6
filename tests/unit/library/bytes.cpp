// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/bytes.hpp>

#include <optional>
#include <string_view>

#include <doctest/doctest.h>

using namespace qvmremote;

TEST_CASE("fields are written and read as big-endian") {
    bytes out;
    byte_writer w(out);
    w.u8(0x01);
    w.u16(0x0203);
    w.u32(0x04050607);
    w.u64(0x08090a0b0c0d0e0f);
    w.put("ab");
    CHECK(to_hex(out) == "0102030405060708090a0b0c0d0e0f6162");

    byte_reader r(out);
    CHECK(r.u8().value() == 0x01);
    CHECK(r.u16().value() == 0x0203);
    CHECK(r.u32().value() == 0x04050607);
    CHECK(r.u64().value() == 0x08090a0b0c0d0e0f);
    CHECK(as_text(r.take(2).value()) == "ab");
    CHECK(r.left() == 0);

    std::uint8_t at[8];
    store_u32(at, 0xfffefdfc);
    CHECK(to_hex(bytes_view(at, 4)) == "fffefdfc");
    CHECK(load_u32(at) == 0xfffefdfc);
    store_u64(at, 0x0102030405060708);
    CHECK(to_hex(at) == "0102030405060708");
}

TEST_CASE("from_hex: takes what to_hex returns, in either case, and nothing else") {
    struct row {
        const char *name;
        std::string_view in;
        std::optional<bytes> want;
    };
    const row rows[] = {
        {"nothing", "", bytes{}},
        {"one byte", "5a", bytes{0x5a}},
        {"both ends of the range", "00ff", bytes{0x00, 0xff}},
        {"capital letters", "ABCDEF", bytes{0xab, 0xcd, 0xef}},
        {"mixed case", "aBCd", bytes{0xab, 0xcd}},
        {"one digit", "0", {}},
        {"an odd number of digits", "012", {}},
        {"a letter after f", "0g", {}},
        {"a letter before a digit", "g0", {}},
        {"the byte before '0'", "0/", {}},
        {"the byte after '9'", "0:", {}},
        {"the byte before 'A'", "0@", {}},
        {"the byte before 'a'", "0`", {}},
        {"a blank", "0 ", {}},
        {"a prefix", "0x12", {}},
        {"a newline at the end", "12\n", {}},
        {"a NUL", std::string_view("1\0", 2), {}},
        {"a byte with the high bit", "0\xff", {}},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        CHECK(from_hex(r.in) == r.want);
    }
    bytes all(256);
    for (std::size_t i = 0; i < all.size(); ++i)
        all[i] = static_cast<std::uint8_t>(i);
    CHECK(from_hex(to_hex(all)) == all);
}

TEST_CASE("at every prefix, the field that is cut fails at its offset") {
    const bytes all(15, 0x5a);
    for (std::size_t n = 0; n <= all.size(); ++n) {
        CAPTURE(n);
        byte_reader r(bytes_view(all).first(n));
        const auto a = r.u8();
        const auto b = r.u16();
        const auto c = r.u32();
        const auto d = r.u64();
        CHECK(a.has_value() == (n >= 1));
        CHECK(b.has_value() == (n >= 3));
        CHECK(c.has_value() == (n >= 7));
        CHECK(d.has_value() == (n >= 15));
        if (!d)
            CHECK(d.error() == error{errc::incomplete, n < 1 ? 0u : n < 3 ? 1u : n < 7 ? 3u : 7u});
    }
}

TEST_CASE("after one failure all calls fail, so that it is enough to check the last one") {
    const bytes all(5, 0);
    byte_reader r(all);
    CHECK_FALSE(r.u64());
    CHECK_FALSE(r.u8());
    CHECK_FALSE(r.take(0));
    CHECK_FALSE(r.array<2>());
    CHECK(r.offset() == 0);
}

TEST_CASE("a length near the largest number does not wrap") {
    const bytes all(3, 0);
    byte_reader r(all);
    CHECK(r.u8());
    CHECK_FALSE(r.take(SIZE_MAX));
}

TEST_CASE("only ASCII characters are hexadecimal digits") {
    int digits = 0;
    for (int c = -128; c < 128; ++c)
        digits += hex_value(static_cast<char>(c)) >= 0;
    CHECK(digits == 22);
    CHECK(hex_value('0') == 0);
    CHECK(hex_value('f') == 15);
    CHECK(hex_value('F') == 15);
    CHECK(hex_value('g') == -1);
    CHECK_FALSE(is_alnum('\xe9'));
}
