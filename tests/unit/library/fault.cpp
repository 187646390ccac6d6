// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/fault.hpp>

#include <string>
#include <string_view>

#include <doctest/doctest.h>

using namespace qvmremote;

TEST_CASE("a name belongs to one error") {
    constexpr std::string_view faults[] = {
#define QVMREMOTE_X(name, text) #name,
        QVMREMOTE_FAULTS(QVMREMOTE_X)
#undef QVMREMOTE_X
    };
    for (const std::string_view fault : faults) {
#define QVMREMOTE_X(name, value, text) CHECK(fault != std::string_view(#name));
        QVMREMOTE_ERRORS(QVMREMOTE_X)
#undef QVMREMOTE_X
    }
    CHECK(error_name(fault::key_missing).text() == "key_missing");
    CHECK(error_name(fault::local_failure).text() == "local_failure");
    CHECK(error_name(errc::denied).text() == "denied");
    CHECK(error_name(static_cast<errc>(60'000)).text() == "unknown");
}
