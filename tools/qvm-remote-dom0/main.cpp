// SPDX-License-Identifier: GPL-2.0-or-later
#include <csignal>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include <sys/prctl.h>
#include <unistd.h>

#include <qvmremote/command_id.hpp>
#include <qvmremote/config.hpp>
#include <qvmremote/sanitize.hpp>

#include "administer/admin.hpp"
#include "administer/audit_commands.hpp"
#include "common/begin.hpp"
#include "common/cli.hpp"
#include "common/installed.hpp"
#include "execute/cgroups.hpp"
#include "serve/daemon.hpp"

using namespace qvmremote;
using namespace qvmremote::dom0;

namespace {

enum : int {
    opt_root = 256,
    opt_vm,
    opt_once,
    opt_wait,
    opt_dry_run,
    opt_transport,
    opt_plugins,
    opt_version
};

constexpr cli::option options[] = {
    {opt_vm, "vm", "VM", "serve this qube alone, whatever remote.conf lists"},
    {opt_once, "once", nullptr,
     "serve each qube that runs, then end; exit 1 if one was not reached"},
    {opt_wait, "wait", "SEC", "with --once: how long to wait for them (60)"},
    {opt_dry_run, "dry-run", nullptr, "decide and record, but run nothing"},
    {'v', "verbose", nullptr, "show the log on standard error too"},
    {opt_transport, "transport", "TRANSPORT", "mock, qvm-run or qrexec, whatever remote.conf says"},
    {opt_plugins, "plugin-dir", "DIR", "where the transports are installed"},
    {opt_root, "root", "DIR", "keep every file below DIR, which must be yours and closed (tests)"},
    {'h', "help", nullptr, "show this and end"},
    {opt_version, "version", nullptr, "show the version and end"},
};

using handler = int (*)(const invocation &);
constexpr cli::subcommand<handler> subcommands[] = {
    {"authorize", "VM [KEY] [--level LEVEL] [--until TIME] [--fetch]",
     "let a qube in; the key comes on standard input", authorize},
    {"revoke", "VM", "take a qube's key away and end what it runs", revoke},
    {"rotate", "VM", "give a running qube a new key; the one before is good for 24 hours more",
     rotate_key},
    {"connect", "VM [KEY] [--level LEVEL] [--until TIME] [--fetch]",
     "authorize, list it in remote.conf, reload the daemon", connect},
    {"disconnect", "VM", "revoke, take it off the list, empty its queue, reload the daemon",
     disconnect},
    {"keys", "[--json]", "list the qubes that have a key, with its fingerprint", keys},
    {"status", "", "what the running daemon is doing", status},
    {"approvals",
     "[list [--json]] | watch | show SERIAL [--json] | allow SERIAL [DIGEST] [--for MIN] | "
     "deny SERIAL",
     "requests that wait for your word", approvals_command},
    {"panic", "", "end everything now, and let nothing run", panic},
    {"resume", "", "let things run again after panic", resume},
    {"policy", "check [--exec | --script FILE] [--argument LEVEL] VM -- COMMAND [ARGS...] | lint",
     "what policy says of a command, and whether it is in order", policy_command},
    {"migrate", "", "once: level full for the qubes that have keys and no policy", migrate},
    {"queue", "[status|clean|recover|debug] [VM]", "the file queues in the running qubes", queue},
    {"log", "[N]", "the last N lines of the log (20)", log},
    {"audit",
     "verify [--heads FILE|-] | show SERIAL | export [--since SERIAL] [--format json|text] | "
     "rotate",
     "check the audit log, read it, or begin a new file of it", audit},
    {"enable", "", "start the daemon now and at every boot, after a typed yes", enable},
    {"disable", "", "stop it, now and for the boots to come", disable},
};

constexpr cli::old_option old_options[] = {
    {"--authorize", {"authorize", nullptr}},
    {"--revoke", {"revoke", nullptr}},
    {"--list-keys", {"keys", nullptr}},
};

// Subcommands for the user of the desktop too. The others read or write files of root.
constexpr std::string_view for_operators[] = {"status", "approvals", "panic", "policy"};

// Why this program cannot work here; empty when it can.
std::string out_of_place(std::string_view verb) {
    if (::access("/usr/share/qubes/marker-vm", F_OK) == 0)
        return "this is a qube: use qvm-remote here, and qvm-remote-dom0 in dom0";
    if (::geteuid() == 0 || verb.empty()) // the daemon checks for root itself
        return {};
    for (const std::string_view one : for_operators)
        if (one == verb)
            return {};
    return std::string(verb) + " needs root: sudo qvm-remote-dom0 " + std::string(verb);
}

void print_help() {
    std::printf(
        "Usage: qvm-remote-dom0 [OPTIONS]             run the daemon\n"
        "       qvm-remote-dom0 [OPTIONS] SUBCOMMAND  administer it\n\n"
        "Runs commands in dom0 for the qubes that have a key here, as far as policy allows. A\n"
        "qube with full access IS dom0.\n\nOptions:\n");
    cli::print_options(stdout, options);
    std::printf("\nSubcommands:\n");
    cli::print_subcommands<handler>(stdout, subcommands);
}

int usage(const std::string &what) {
    std::fprintf(stderr, "qvm-remote-dom0: %s; see qvm-remote-dom0 --help\n", what.c_str());
    return 1;
}

} // namespace

int main(int argument_count, char **arguments) {
    // Keys pass through this memory: no core dump, and no other process of the user can read it.
    ::prctl(PR_SET_DUMPABLE, 0);
    begin_with_own_signals({SIGHUP, SIGINT, SIGQUIT});
    ::signal(SIGPIPE, SIG_DFL); // `audit export | head` ends as any program would
    daemon_options how;
    how.plugin_directory = QVMREMOTE_PLUGIN_DIR;
    std::string root, wait;
    std::optional<std::string> vm;
    bool help = false, version = false;
    auto modern = cli::modernized(old_options, argument_count, arguments, "qvm-remote-dom0");
    const int argc = static_cast<int>(modern.size()) - 1;
    char **const argv = modern.data();
    const int first = cli::parse(options, argc, argv, [&](int key, const char *value) {
        switch (key) {
        case opt_vm:
            vm = value;
            break;
        case opt_once:
            how.once = true;
            break;
        case opt_wait:
            wait = value;
            break;
        case opt_dry_run:
            how.dry_run = true;
            break;
        case 'v':
            how.verbose = true;
            break;
        case opt_transport:
            how.transport = value;
            break;
        case opt_plugins:
            how.plugin_directory = value;
            break;
        case opt_root:
            root = value;
            break;
        case 'h':
            help = true;
            break;
        case opt_version:
            version = true;
            break;
        default:
            return false;
        }
        return true;
    });
    if (first < 0)
        return 1;
    if (help) {
        print_help();
        return 0;
    }
    if (version) {
        std::printf("qvm-remote-dom0 " QVMREMOTE_VERSION "\n");
        return 0;
    }
    if (!wait.empty()) {
        const auto seconds = parse_positive(wait);
        if (!seconds || !how.once)
            return usage("--wait takes a number of seconds, 1 or more, and only with --once");
        how.once_wait_s = *seconds;
    }
    if (!root.empty()) {
        auto below = paths::below(root);
        if (!below)
            return usage(below.error().what);
        how.where = *below;
    }
    if (vm && !qube_name::parse(*vm))
        return usage("--vm '" + for_terminal(*vm, 64) + "' is " +
                     std::string(message(errc::bad_qube_name)));
    how.vm = vm.value_or("");
    const auto fits = [&](std::string_view verb) {
        const std::string why = how.where.is_real() ? out_of_place(verb) : std::string();
        if (!why.empty())
            std::fprintf(stderr, "qvm-remote-dom0: %s\n", why.c_str());
        return why.empty();
    };
    if (first < argc) {
        for (const auto &c : subcommands)
            if (std::strcmp(c.name, argv[first]) == 0)
                return fits(c.name) ? c.run({how.where,
                                             {argv + first + 1, argv + argc},
                                             cli::usage_of("qvm-remote-dom0", c)})
                                    : 1;
        return usage("there is no subcommand '" + for_terminal(argv[first], 64) + "'");
    }
    if (!fits({}))
        return 1;
    // First of all, while this process is small and has no threads: each command starts as a copy of it.
    const cgroup_home home = claim_cgroup();
    auto children = warden::start(home);
    if (!children)
        return usage(children.error().what);
    return run_daemon(how, home, std::move(*children));
}
