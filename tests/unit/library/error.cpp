// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/error.hpp>

#include <set>
#include <string_view>

#include <doctest/doctest.h>

using namespace qvmremote;

namespace {
struct row {
    errc code;
    std::string_view name;
    std::string_view text;
};
constexpr row rows[] = {
#define QVMREMOTE_X(name, value, text) {errc::name, #name, text},
    QVMREMOTE_ERRORS(QVMREMOTE_X)
#undef QVMREMOTE_X
};
} // namespace

TEST_CASE("every reason has a value, a name and a text of its own") {
    std::set<std::uint16_t> values;
    std::set<std::string_view> texts;
    for (const row &r : rows) {
        CAPTURE(r.name);
        CHECK(values.insert(static_cast<std::uint16_t>(r.code)).second);
        CHECK(texts.insert(r.text).second);
        CHECK(message(r.code) == r.text);
        CHECK(name(r.code) == r.name);
        CHECK(static_cast<std::uint16_t>(r.code) != 0);
        CHECK(r.text.back() != '.');
    }
}

TEST_CASE("a reason from a newer peer has a text too") {
    CHECK(message(static_cast<errc>(60000)) == "unknown reason");
    CHECK(name(static_cast<errc>(60000)) == "unknown");
}

TEST_CASE("values are frozen, because audit logs hold them") {
    CHECK(static_cast<int>(errc::command_too_large) == 2);
    CHECK(static_cast<int>(errc::bad_token) == 4);
    CHECK(static_cast<int>(errc::id_used) == 18);
    CHECK(static_cast<int>(errc::outcome_unknown) == 36);
    CHECK(static_cast<int>(errc::panicked) == 37);
    CHECK(static_cast<int>(errc::key_expired) == 41);
}
