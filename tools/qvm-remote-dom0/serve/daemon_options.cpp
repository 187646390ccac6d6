// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/daemon_options.hpp"

#include <utility>

#include <qvmremote/command_id.hpp>
#include <qvmremote/config.hpp>
#include <qvmremote/sanitize.hpp>

#include "common/installed.hpp"

namespace qvmremote::dom0 {

namespace {

enum : int {
    opt_root = cli::own_options,
    opt_vm,
    opt_once,
    opt_wait,
    opt_dry_run,
    opt_transport,
    opt_plugins,
    opt_json
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
    {opt_json, "json", nullptr, "with a subcommand: print one JSON object, for programs"},
    {'h', "help", nullptr, "show this and end"},
    {cli::opt_version, "version", nullptr, "show the version and end"},
};

constexpr cli::old_option old_options[] = {
    {"--authorize", {"authorize", nullptr}},
    {"--revoke", {"revoke", nullptr}},
    {"--list-keys", {"keys", nullptr}},
};

// The values of options, as text, until all options are known.
struct option_texts {
    std::string root;
    std::string wait;
    std::optional<std::string> vm;
};

// Takes one option. False when there is no such option.
bool take(int key, const char *value, command_line &out, option_texts &texts) {
    if (out.standard.take(key))
        return true;
    switch (key) {
    case opt_vm:
        texts.vm = value;
        return true;
    case opt_once:
        return out.how.once = true;
    case opt_wait:
        texts.wait = value;
        return true;
    case opt_dry_run:
        return out.how.dry_run = true;
    case 'v':
        return out.how.verbose = true;
    case opt_transport:
        out.how.transport = value;
        return true;
    case opt_plugins:
        out.how.plugin_directory = value;
        return true;
    case opt_json:
        return out.json = true;
    case opt_root:
        texts.root = value;
        return true;
    default:
        return false;
    }
}

// Reads the values. Returns what is wrong; empty when all is right.
std::string check(daemon_options &out, const option_texts &texts) {
    if (!texts.wait.empty()) {
        const auto seconds = parse_positive(texts.wait);
        if (!seconds || !out.once)
            return "--wait takes a number of seconds, 1 or more, and only with --once";
        out.once_wait_s = *seconds;
    }
    if (!texts.root.empty()) {
        auto below = paths::below(texts.root);
        if (!below)
            return below.error().what;
        out.where = *below;
    }
    if (texts.vm && !qube_name::parse(*texts.vm))
        return "--vm '" + for_terminal(*texts.vm, 64) + "' is " +
               std::string(message(errc::bad_qube_name));
    out.vm = texts.vm.value_or("");
    return {};
}

} // namespace

const cli::program this_program = {
    "qvm-remote-dom0",
    "Usage: qvm-remote-dom0 [OPTIONS]             run the daemon\n"
    "       qvm-remote-dom0 [OPTIONS] SUBCOMMAND  administer it\n\n"
    "Runs commands in dom0 for the qubes that have a key here, as far as policy allows. A\n"
    "qube with full access IS dom0.\n",
    options};

std::optional<command_line> read_command_line(int argument_count, char **arguments) {
    command_line out;
    option_texts texts;
    out.how.plugin_directory = QVMREMOTE_PLUGIN_DIR;
    out.typed = cli::modernized(old_options, argument_count, arguments, this_program.name);
    const int argc = static_cast<int>(out.typed.size()) - 1;
    char **const argv = out.typed.data();
    const int first = cli::parse(options, argc, argv, [&](int key, const char *value) {
        return take(key, value, out, texts);
    });
    if (first < 0)
        return std::nullopt;
    if (out.standard.any())
        return out;
    if (const std::string wrong = check(out.how, texts); !wrong.empty()) {
        cli::wrong_call(this_program.name, wrong);
        return std::nullopt;
    }
    out.words = std::span(argv + first, argv + argc);
    return out;
}

} // namespace qvmremote::dom0
