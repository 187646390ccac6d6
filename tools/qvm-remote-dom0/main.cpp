// SPDX-License-Identifier: GPL-2.0-or-later
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <sys/prctl.h>
#include <unistd.h>

#include <qvmremote/sanitize.hpp>

#include "administer/admin.hpp"
#include "administer/audit_commands.hpp"
#include "administer/report.hpp"
#include "common/begin.hpp"
#include "common/cli.hpp"
#include "execute/cgroups.hpp"
#include "serve/daemon.hpp"
#include "serve/daemon_options.hpp"

using namespace qvmremote;
using namespace qvmremote::dom0;

namespace {

using handler = int (*)(const invocation &);
constexpr cli::subcommand<handler> subcommands[] = {
    {"authorize", "VM [KEY] [-l|--level LEVEL] [-u|--until TIME] [-f|--fetch]",
     "let a qube in; the key comes on standard input", authorize},
    {"revoke", "VM", "take a qube's key away and end what it runs", revoke},
    {"rotate", "VM", "give a running qube a new key; the one before is good for 24 hours more",
     rotate_key},
    {"connect", "VM [KEY] [-l|--level LEVEL] [-u|--until TIME] [-f|--fetch]",
     "authorize, list it in remote.conf, reload the daemon", connect},
    {"disconnect", "VM", "revoke, take it off the list, empty its queue, reload the daemon",
     disconnect},
    {"keys", "", "list the qubes that have a key, with its fingerprint", keys},
    {"status", "", "what the running daemon is doing", status},
    {"approvals", "[list] | watch | show SERIAL | allow SERIAL [DIGEST] [--for MIN] | deny SERIAL",
     "requests that wait for your word", approvals_command},
    {"jobs", "[list] | attach VM ID | logs [-f] VM ID | wait VM ID | cancel VM ID",
     "the jobs of all qubes: list them, read one, type into it, end it", jobs_command},
    {"panic", "", "end everything now, and let nothing run", panic},
    {"resume", "", "let things run again after panic", resume},
    {"policy",
     "check [--exec | --script FILE] [--tty] [--argument LEVEL] VM -- COMMAND [ARGS...] | lint",
     "what policy says of a command, and whether it is in order", policy_command},
    {"migrate", "", "once: level full for the qubes that have keys and no policy", migrate},
    {"queue", "[status|clean|recover|debug] [VM]", "the file queues in the running qubes", queue},
    {"log", "[N]", "the last N lines of the log (20)", log},
    {"audit",
     "verify [--heads FILE|-] | show SERIAL | export [--since SERIAL] [--format json|text] | "
     "rotate",
     "check the audit log, read it, or begin a new file of it", audit},
    {"doctor", "[--fix]",
     "check every part and every qube that has a key: the cause and the remedy", doctor},
    {"enable", "", "start the daemon now and at every boot, after a typed yes", enable},
    {"disable", "", "stop it, now and for the boots to come", disable},
};

// Subcommands for the user of the desktop too. The others read or write files of root.
constexpr std::string_view for_operators[] = {"status", "approvals", "jobs", "panic", "policy"};

// Returns why this program cannot do that here; empty when it can. An empty verb stands for the
// daemon.
std::string out_of_place(const paths &where, std::string_view verb) {
    if (!where.is_real())
        return {};
    if (::access("/usr/share/qubes/marker-vm", F_OK) == 0)
        return "this is a qube: use qvm-remote here, and qvm-remote-dom0 in dom0";
    if (::geteuid() == 0 || verb.empty()) // the daemon checks for root itself
        return {};
    for (const std::string_view one : for_operators)
        if (one == verb)
            return {};
    return std::string(verb) + " needs root: sudo qvm-remote-dom0 " + std::string(verb);
}

// Whether the last word is --json, which may stand there too. After "--" a word is a command's.
bool ends_with_json(std::span<char *> words) {
    const auto is = [](const char *wanted) {
        return [wanted](std::string_view word) { return word == wanted; };
    };
    return is("--json")(words.back()) && std::none_of(words.begin(), words.end(), is("--"));
}

// Runs the subcommand that the words begin with.
int administer(const daemon_options &how, std::span<char *> words) {
    if (!words.empty() && ends_with_json(words)) {
        words = words.first(words.size() - 1);
        report::instance().use_json();
    }
    if (words.empty())
        return cli::wrong_call(this_program.name, "--json needs a subcommand");
    for (const auto &c : subcommands) {
        if (c.name != std::string_view(words[0]))
            continue;
        if (const std::string why = out_of_place(how.where, c.name); !why.empty())
            return fail_with(why);
        return c.run({how.where, words.subspan(1), cli::usage_of(this_program.name, c), how});
    }
    return cli::wrong_call(this_program.name,
                           "there is no subcommand '" + for_terminal(words[0], 64) + "'");
}

int serve(const daemon_options &how) {
    if (const std::string why = out_of_place(how.where, {}); !why.empty())
        return fail_with(why);
    // Do this first, while this process is small and has no threads: each command starts as a copy
    // of it.
    const cgroup_home home = claim_cgroup();
    const char *const of_jobs = std::getenv("QVM_REMOTE_JOBS_CGROUP");
    cgroup_home jobs = claim_jobs_cgroup(of_jobs ? of_jobs : "");
    auto children = warden::start(home);
    if (!children)
        return cli::wrong_call(this_program.name, children.error().what);
    return run_daemon(how, home, std::move(jobs), std::move(*children));
}

} // namespace

int main(int argc, char **argv) {
    // Keys pass through this memory: no core dump, and no other process of the user can read it.
    ::prctl(PR_SET_DUMPABLE, 0);
    begin_with_own_signals({SIGHUP, SIGINT, SIGQUIT});
    ::signal(SIGPIPE, SIG_DFL); // `audit export | head` ends as any program would
    cli::report_wrong_call = [](const std::string &what) { fail_with(fault::usage, what); };
    const auto typed = read_command_line(argc, argv);
    if (!typed)
        return report::instance().end(1);
    if (typed->json)
        report::instance().use_json();
    if (typed->standard.help || typed->standard.version) {
        report::instance().has_own_form();
        if (typed->standard.help)
            cli::print_help<handler>(stdout, this_program, subcommands);
        else
            cli::print_version(this_program);
        return report::instance().end(0);
    }
    if (typed->words.empty() && !typed->json)
        return serve(typed->how);
    return report::instance().end(administer(typed->how, typed->words));
}
