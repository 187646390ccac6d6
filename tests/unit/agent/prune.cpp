// SPDX-License-Identifier: GPL-2.0-or-later
#include "prune.hpp"

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <string>

#include <sys/wait.h>

#include <doctest/doctest.h>

using namespace qvmremote;
using namespace qvmremote::agent;
namespace fs = std::filesystem;

namespace {

struct history {
    history() {
        char name[] = "/tmp/qvm-remote-prune-XXXXXX";
        REQUIRE(::mkdtemp(name) != nullptr);
        base = name;
    }
    ~history() {
        std::error_code ignored;
        fs::remove_all(base, ignored);
    }
    history(const history &) = delete;
    history &operator=(const history &) = delete;

    // Adds an entry that is `days` days old, with 2 MiB of output. Returns its directory.
    [[nodiscard]] fs::path add(int days, const char *name = "id") const {
        const time_t then = ::time(nullptr) - static_cast<time_t>(days) * 24 * 3600;
        tm fields{};
        ::localtime_r(&then, &fields);
        char day[16];
        REQUIRE(::strftime(day, sizeof day, "%Y-%m-%d", &fields) == 10);
        fs::path out = base / "history" / day / name;
        fs::create_directories(out);
        std::ofstream(out / "out") << std::string(2 * 1024 * 1024, 'x');
        return out;
    }

    // prune_history() removes entries in a child process; wait for it.
    void prune(const history_limits &most) const {
        static_cast<void>(prune_history(base, 0, most));
        while (::waitpid(-1, nullptr, 0) > 0) {
        }
    }

    fs::path base;
};

} // namespace

TEST_CASE("only entries beyond a limit that the user has set are removed") {
    struct row {
        const char *name;
        history_limits most;
        bool old_stays, new_stays;
    };
    const row rows[] = {
        {"no limit", {}, true, true},
        {"an age that no entry has", {1000, {}}, true, true},
        {"an age", {90, {}}, false, true},
        {"a size that holds both", {{}, 100}, true, true},
        {"a size that holds one", {{}, 3}, false, true},
        {"a size that holds none", {{}, 1}, false, false},
        {"both limits, of which one is exceeded", {1000, 3}, false, true},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        const history h;
        const fs::path old_entry = h.add(400), new_entry = h.add(1);
        h.prune(r.most);
        CHECK(fs::exists(old_entry / "out") == r.old_stays);
        CHECK(fs::exists(new_entry / "out") == r.new_stays);
    }
}

TEST_CASE("a directory whose name is not a day of the calendar stays") {
    const history h;
    const fs::path strange = h.base / "history/2001-02-31/id";
    fs::create_directories(strange);
    std::ofstream(strange / "out") << "x";
    const fs::path old_entry = h.add(400);
    h.prune({90, {}});
    CHECK(fs::exists(strange / "out"));
    CHECK_FALSE(fs::exists(old_entry / "out"));
}

TEST_CASE("without a limit nothing is written, and pruning is never due") {
    const history h;
    static_cast<void>(h.add(400));
    CHECK(prune_history(h.base, 0, {}) == UINT64_MAX);
    CHECK_FALSE(fs::exists(h.base / "history/.pruned"));
}

TEST_CASE("a limit that is not a whole number of its range is named") {
    struct row {
        const char *text;
        bool is_good;
    };
    const row rows[] = {
        {"1", true},   {"90", true},  {"0", false},   {"-1", false},
        {"x", false},  {"9x", false}, {"1.5", false}, {"99999999999999999999", false},
        {"+1", false}, {" 1", false}, {"01", false},  {"0x1", false}};
    for (const char *const name : {"QVM_REMOTE_HISTORY_DAYS", "QVM_REMOTE_HISTORY_MIB"})
        for (const row &r : rows) {
            CAPTURE(name);
            CAPTURE(r.text);
            config settings;
            settings.set(name, r.text);
            const auto got = history_limits_of(settings);
            CHECK(got.has_value() == r.is_good);
            if (!got)
                CHECK(got.error().what.starts_with(name));
        }
    const auto none = history_limits_of({});
    REQUIRE(none.has_value());
    CHECK_FALSE(none->days);
    CHECK_FALSE(none->mebibytes);
}

TEST_CASE("what a killed client has left is removed for its age, and never for its size") {
    for (const history_limits &most : {history_limits{{}, 1}, history_limits{90, {}}}) {
        const history h;
        const fs::path killed = h.add(400, ".killed"), running = h.add(1, ".running");
        h.prune(most);
        CHECK(fs::exists(killed.parent_path()) != most.days.has_value());
        CHECK(fs::exists(running / "out"));
    }
}
