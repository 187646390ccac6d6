// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/helper.hpp"

#include <cerrno>
#include <chrono>
#include <csignal>
#include <string>
#include <vector>

#include <sys/wait.h>

#include <doctest/doctest.h>

using namespace qvmremote;
using namespace std::chrono_literals;

namespace {

constexpr std::chrono::milliseconds hang_guard = 60s;

std::vector<std::string> shell(std::string script) { return {"sh", "-c", std::move(script)}; }

} // namespace

TEST_CASE("run_helper: returns output and exit code") {
    struct row {
        const char *name;
        std::vector<std::string> argv;
        int exit_code;
        std::string output;
    };
    const row rows[] = {
        {"a program in PATH", {"printf", "%s\n", "$HOME"}, 0, "$HOME\n"},
        {"a path", {"/bin/echo"}, 0, "\n"},
        {"an exit code", shell("exit 3"), 3, ""},
        {"a signal", shell("echo first; kill -TERM $$"), 128 + SIGTERM, "first\n"},
        {"as much output as allowed", shell("printf 0123456789"), 0, "0123456789"},
        {"no input", shell("cat; echo end"), 0, "end\n"},
        {"output that is closed before the end", shell("echo x; exec >&-; sleep 0.1; exit 4"), 4,
         "x\n"},
        {"clean signals", {"grep", "-hc", "SigBlk:.0*$", "/proc/self/status"}, 0, "1\n"},
    };
    sigset_t some, old;
    ::sigemptyset(&some);
    ::sigaddset(&some, SIGTERM);
    REQUIRE(::sigprocmask(SIG_BLOCK, &some, &old) == 0);
    for (const row &r : rows) {
        CAPTURE(r.name);
        const auto made = run_helper(r.argv, 10, hang_guard);
        REQUIRE(made);
        CHECK(made->exit_code == r.exit_code);
        CHECK(made->untrusted_output == r.output);
        CHECK(::waitpid(-1, nullptr, WNOHANG) == -1);
    }
    REQUIRE(::sigprocmask(SIG_SETMASK, &old, nullptr) == 0);
}

TEST_CASE("run_helper: a failure leaves no process") {
    struct row {
        const char *name;
        std::vector<std::string> argv;
        std::chrono::milliseconds limit;
        int want;
        std::string text;
    };
    const row rows[] = {
        {"no such program",
         {"qvm-remote-no-such-program"},
         hang_guard,
         ENOENT,
         "cannot run qvm-remote-no-such-program (not found in PATH): No such file or directory"},
        {"one byte too much from a program that does not end",
         shell("printf 0123456789x; exec sleep 1000"), hang_guard, EFBIG,
         "sh prints more than 10 bytes: File too large"},
        {"no end", shell("exec sleep 1000"), 1000ms, ETIMEDOUT,
         "sh did not end within 1 s: Connection timed out"},
        {"no end, and a closed output", shell("exec >&-; exec sleep 1000"), 1000ms, ETIMEDOUT,
         "sh did not end within 1 s: Connection timed out"},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        const auto made = run_helper(r.argv, 10, r.limit);
        REQUIRE_FALSE(made);
        CHECK(made.error().error_number == r.want);
        CHECK(made.error().what == r.text);
        CHECK(::waitpid(-1, nullptr, WNOHANG) == -1);
    }
}
