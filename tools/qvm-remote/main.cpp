// SPDX-License-Identifier: GPL-2.0-or-later
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "arguments.hpp"
#include "commands/commands.hpp"
#include "common/begin.hpp"
#include "common/cli.hpp"
#include "home.hpp"
#include "report.hpp"
#include "run.hpp"

using namespace qvmremote;
using namespace qvmremote::qube;

namespace {

using handler = int (*)(const invocation &);

constexpr cli::subcommand<handler> subcommands[] = {
    {"key", "gen | show | import [KEY]",
     "this qube's key: make one, print it, take one from elsewhere", key_command},
    {"ping", "", "does dom0 answer?", ping_command},
    {"status", "", "what dom0 says of itself and of this qube", status_command},
    {"job", "[list] | attach ID | logs [-f] ID | wait ID | cancel ID",
     "this qube's jobs in dom0 (--detach): list them, read one, type into it, end it", job_command},
    {"queue", "[status|clean|debug]", "the file queue of protocol 1", queue_command},
    {"log", "[N]", "the last N lines of the log of this user's commands (20)", log_command},
    {"history", "[N] | show ID", "the last N commands (20), or all that is recorded of one",
     history_command},
    {"doctor", "[--fix] [--json]", "check every link of the way to dom0: the cause and the remedy",
     doctor_command},
};

const cli::subcommand<handler> *subcommand_of(const arguments &typed) {
    if (typed.may_be_subcommand && !typed.words.empty())
        for (const auto &c : subcommands)
            if (c.name == std::string_view(typed.words[0]))
                return &c;
    return nullptr;
}

void print_help(std::FILE *to) { cli::print_help<handler>(to, this_program, subcommands); }

// If our caller closed one of these, a file of ours could get its number, and the command's output
// would go into that file.
void fill_standard_descriptors() {
    for (int fd = 0; fd <= 2; ++fd)
        if (::fcntl(fd, F_GETFD) < 0 && ::open("/dev/null", O_RDWR) != fd)
            std::abort();
}

// A subcommand takes --json after its words too, as those of qvm-remote-dom0 do.
std::span<char *> without_json(std::span<char *> words) {
    if (words.empty() || words.back() != std::string_view("--json"))
        return words;
    report::instance().set_form(report_form::object);
    return words.first(words.size() - 1);
}

int run(int argc, char **argv) {
    auto typed = read_arguments(argc, argv);
    if (!typed)
        return 1;
    if (typed->standard.help) {
        report::instance().set_form(report_form::text);
        print_help(stdout);
        return 0;
    }
    if (typed->standard.version) {
        if (report::instance().is_json())
            report::instance().result().text("version", QVMREMOTE_VERSION);
        else
            cli::print_version(this_program);
        return 0;
    }
    const auto where = home::find();
    if (!where)
        return fail_with(fault::no_home, where.error().what);
    const auto *const subcommand = subcommand_of(*typed);
    if (!(subcommand && subcommand->run == doctor_command) && !add_settings(typed->how, *where))
        return 1;
    if (subcommand)
        return subcommand->run({typed->how, *where, without_json(typed->words.subspan(1)),
                                cli::usage_of(this_program.name, *subcommand)});
    if (typed->lacks_command() && report::instance().is_json())
        return fail_with(errc::command_empty, "there is no command; see qvm-remote --help");
    if (typed->lacks_command()) {
        print_help(typed->exec ? stderr : stdout);
        return typed->exec ? 1 : 0;
    }
    auto request = request_of(*typed);
    return request ? run_remote(typed->how, *where, std::move(*request)) : 1;
}

} // namespace

int main(int argc, char **argv) {
    fill_standard_descriptors();
    begin_with_own_signals({SIGHUP, SIGINT, SIGQUIT}); // as ssh does: nohup and `&` ignore these
    ::prctl(PR_SET_DUMPABLE, 0); // a key passes through this memory: no core dump holds it
    return report::instance().end(run(argc, argv));
}
