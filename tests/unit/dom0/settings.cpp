// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/settings.hpp"

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

using namespace qvmremote::dom0;

TEST_CASE("QVM_REMOTE_TRANSPORT: a default, then qubes by name") {
    struct row {
        std::string_view spec;
        std::vector<std::string> all;
        std::vector<std::string> work; // through which this qube may come
    };
    const row rows[] = {
        {"", {"qvm-run"}, {"qvm-run"}},
        {"qrexec", {"qrexec"}, {"qrexec"}},
        {"both", {"qvm-run", "qrexec"}, {"qvm-run", "qrexec"}},
        {"qvm-run qrexec", {"qvm-run", "qrexec"}, {"qvm-run", "qrexec"}},
        {"qvm-run+qrexec", {"qvm-run", "qrexec"}, {"qvm-run", "qrexec"}},
        {"work=qrexec", {"qvm-run", "qrexec"}, {"qrexec"}},
        {"qvm-run work=qrexec", {"qvm-run", "qrexec"}, {"qrexec"}},
        {"qvm-run dev=qrexec", {"qvm-run", "qrexec"}, {"qvm-run"}},
        {"qrexec work=both", {"qrexec", "qvm-run"}, {"qrexec", "qvm-run"}},
        {"qvm-run work=qrexec work=qvm-run", {"qvm-run"}, {"qvm-run"}},
        {"qvm-run workshop=qrexec", {"qvm-run", "qrexec"}, {"qvm-run"}},
        {"mock =qrexec work= + x=+", {"mock"}, {"mock"}},
    };
    for (const row &r : rows) {
        CAPTURE(r.spec);
        const transport_choice got = transport_choice::parse(r.spec);
        CHECK(got.all() == r.all);
        for (const std::string_view name : {"mock", "qrexec", "qvm-run"})
            CHECK(got.serves(name, "work") ==
                  (std::find(r.work.begin(), r.work.end(), name) != r.work.end()));
        CHECK_FALSE(got.serves("", "work"));
    }
    CHECK(transport_choice::parse("both").text() == "qvm-run, qrexec");
}
