// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/secret.hpp>

#include <algorithm>
#include <new>
#include <type_traits>

#include <doctest/doctest.h>

#include "support/vectors.hpp"

using namespace qvmremote;

namespace {
const std::string digits = "0123456789abcdefABCDEF0123456789abcdef0123456789ABCDEF0123456789";

struct row {
    const char *name;
    std::string in;
    std::uint32_t at;
};
const row refused[] = {
    {"empty", "", 0},
    {"blanks alone", " \n", 2},
    {"one digit short", digits.substr(1), 63},
    {"one digit more", digits + "0", 64},
    {"prefix", "0x" + digits.substr(2), 1},
    {"sign", "+" + digits.substr(1), 0},
    {"separator", digits.substr(0, 8) + "_" + digits.substr(9), 8},
    {"blank inside", digits.substr(0, 8) + " " + digits.substr(9), 8},
    {"NUL as the last digit", digits.substr(0, 63) + std::string(1, '\0'), 63},
    {"NUL after the digits", digits + std::string(1, '\0'), 64},
    {"two lines", digits + "\n" + digits, 64},
    {"full-width digit", "\xef\xbc\x90" + digits.substr(3), 0},
    {"form feed around", "\f" + digits, 0},
};
} // namespace

TEST_CASE("a key is 64 hexadecimal digits, kept as typed") {
    for (const std::string &text : {digits, " \t\r\n" + digits + "\n"}) {
        const auto key = secret::parse(text);
        REQUIRE(key);
        CHECK(as_text(key->text()) == digits);
    }
    for (const row &r : refused) {
        CAPTURE(r.name);
        const auto key = secret::parse(r.in);
        REQUIRE_FALSE(key);
        CHECK(key.error() == error{errc::bad_key, r.at});
    }
}

TEST_CASE("every byte that is not a digit is refused, at each place") {
    for (std::size_t i = 0; i < digits.size(); ++i)
        for (const char c : {'g', '/', ':', '@', 'G', '`', '\x80', '\0'}) {
            std::string text = digits;
            text[i] = c;
            CHECK_FALSE(secret::parse(text));
        }
    for (std::size_t n = 0; n < digits.size(); ++n)
        CHECK_FALSE(secret::parse(digits.substr(0, n)));
}

TEST_CASE("fingerprints are those of the vectors, and differ with the case") {
    const test::vector_file v("protocol1.txt");
    for (const std::string which : {"lower", "upper"})
        CHECK(secret::parse(v.text("key." + which))->fingerprint() ==
              v.text("fingerprint." + which));
    CHECK(v.text("fingerprint.lower") != v.text("fingerprint.upper"));
}

TEST_CASE("I11: a key is moved, not copied, and its source holds zeros afterwards") {
    static_assert(!std::is_copy_constructible_v<secret> && !std::is_copy_assignable_v<secret>);
    static_assert(!std::is_copy_constructible_v<secret_bytes<32>>);
    // Secret bytes are made only from a value that can be moved, so that no caller keeps the
    // original by accident.
    static_assert(!std::is_constructible_v<secret_bytes<32>, const std::array<std::uint8_t, 32> &>);

    const auto is_zero = [](bytes_view v) {
        return std::all_of(v.begin(), v.end(), [](std::uint8_t b) { return b == 0; });
    };
    std::array<std::uint8_t, 32> plain;
    plain.fill(9);
    secret_bytes<32> first(std::move(plain));
    CHECK(is_zero(plain));
    secret_bytes<32> second(std::move(first));
    CHECK(is_zero(first.view()));
    CHECK_FALSE(is_zero(second.view()));
    first = std::move(second);
    CHECK(is_zero(second.view()));
    CHECK_FALSE(is_zero(first.view()));

    // The memory outlives the object, so that the test may look at it afterwards.
    alignas(secret_bytes<32>) std::uint8_t storage[sizeof(secret_bytes<32>)];
    auto *const third = new (storage) secret_bytes<32>(std::move(first));
    CHECK_FALSE(is_zero(storage));
    third->~secret_bytes();
    CHECK(is_zero(storage));
}

TEST_CASE("keys are equal if their texts are") {
    const auto key = secret::parse(digits);
    CHECK(key->equals(key->duplicate()));
    std::string other = digits;
    other[63] = '8';
    CHECK_FALSE(key->equals(*secret::parse(other)));
    other = digits;
    other[10] = 'A';
    CHECK_FALSE(key->equals(*secret::parse(other)));
}
