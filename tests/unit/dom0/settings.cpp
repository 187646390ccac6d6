// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/settings.hpp"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <sys/stat.h>

#include <doctest/doctest.h>

using namespace qvmremote::dom0;

namespace {
// A directory for --root, with a remote.conf.
struct root {
    root() {
        char name[] = "/tmp/qvm-remote-settings-XXXXXX";
        REQUIRE(::mkdtemp(name) != nullptr);
        directory = name;
        std::filesystem::create_directories(directory + "/etc/qubes");
    }
    ~root() {
        std::error_code ignored;
        std::filesystem::remove_all(directory, ignored);
    }
    root(const root &) = delete;
    root &operator=(const root &) = delete;

    [[nodiscard]] auto read(const std::string &text) const {
        const auto where = paths::below(directory).value();
        std::ofstream(where.config()) << text;
        ::chmod(where.config().c_str(), 0644);
        return load_settings(where, {}, {});
    }

    std::string directory;
};
} // namespace

TEST_CASE("a ceiling or a limit of the audit log that is out of range is refused") {
    struct row {
        const char *key, *text;
        bool good;
    };
    static constexpr row rows[] = {
        {"MAX_MEMORY", "1", true},           {"MAX_MEMORY", "1048576G", true},
        {"MAX_MEMORY", "1048577G", false},   {"MAX_MEMORY", "0", false},
        {"MAX_MEMORY", "-1G", false},        {"MAX_MEMORY", "+1G", false},
        {"MAX_MEMORY", "1GB", false},        {"MAX_MEMORY", "1k", false},
        {"MAX_MEMORY", "0x1G", false},       {"MAX_OUTPUT", "2147483647", true},
        {"MAX_OUTPUT", "2147483648", false}, {"MAX_OUTPUT", "1048577G", false},
        {"MAX_PROCESSES", "1000000", true},  {"MAX_PROCESSES", "1000001", false},
        {"MAX_PROCESSES", "1K", false},      {"MAX_CPU", "1000000", true},
        {"MAX_CPU", "1000001", false},       {"MAX_CPU", "50%", false},
        {"AUDIT_KEEP_DAYS", "36500", true},  {"AUDIT_KEEP_DAYS", "0", false},
        {"AUDIT_KEEP_DAYS", "7d", false},    {"AUDIT_FILE_MIB", "2147483648", false},
    };
    const root machine;
    for (const row &r : rows) {
        CAPTURE(r.key);
        CAPTURE(r.text);
        CHECK(machine.read(std::string("QVM_REMOTE_") + r.key + "=" + r.text + "\n").has_value() ==
              r.good);
    }
}

TEST_CASE("QVM_REMOTE_TRANSPORT: a default, then qubes by name") {
    struct row {
        std::string_view spec;
        std::vector<std::string> all;
        std::vector<std::string> work; // the transports that this qube may use
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
