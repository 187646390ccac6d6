// SPDX-License-Identifier: GPL-2.0-or-later
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <qvmremote/config.hpp>
#include <qvmremote/escapes.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/request.hpp>
#include <qvmremote/sanitize.hpp>

#include "commands/commands.hpp"
#include "common/begin.hpp"
#include "common/cli.hpp"
#include "common/installed.hpp"
#include "common/qube_settings.hpp"
#include "home.hpp"
#include "run.hpp"

using namespace qvmremote;
using namespace qvmremote::qube;

namespace {

enum : int {
    opt_transport = 256,
    opt_exec,
    opt_script,
    opt_tty,
    opt_shell,
    opt_dry_run,
    opt_no_wait,
    opt_plugins,
    opt_version
};

constexpr cli::option options[] = {
    {'t', "timeout", "SEC", "end the command after SEC seconds (300)"},
    {'n', "no-stdin", nullptr, "the command reads /dev/null, not our standard input"},
    {opt_exec, "exec", nullptr, "COMMAND and ARGS are an argv, run without a shell"},
    {opt_script, "script", "FILE", "run FILE in dom0, with ARGS"},
    {opt_tty, "tty", nullptr, "run COMMAND in a terminal in dom0"},
    {opt_shell, "shell", nullptr, "a login shell in a terminal in dom0"},
    {'e', "escape", "CHAR", "the character of the escapes in a terminal (~), or none"},
    {opt_dry_run, "dry-run", nullptr, "ask what dom0 would decide; nothing is run"},
    {opt_no_wait, "no-wait", nullptr,
     "end with the command's first process, whatever it left running may still write"},
    {opt_transport, "transport", "TRANSPORT", "how to reach dom0: qvm-run, qrexec or mock"},
    {opt_plugins, "plugin-dir", "DIR", "where the transports are installed"},
    {'v', "verbose", nullptr, "say more on standard error"},
    {'q', "quiet", nullptr, "say nothing but errors"},
    {'h', "help", nullptr, "show this and end"},
    {opt_version, "version", nullptr, "show the version and end"},
};

int ping_command(const invocation &in) {
    return in.words.empty() ? ping(in.how, in.where) : fail_with(in.usage);
}
int status_command(const invocation &in) {
    return in.words.empty() ? status(in.how, in.where) : fail_with(in.usage);
}

using handler = int (*)(const invocation &);

constexpr cli::subcommand<handler> subcommands[] = {
    {"key", "gen | show | import [KEY]",
     "this qube's key: make one, print it, take one from elsewhere", key_command},
    {"ping", "", "does dom0 answer?", ping_command},
    {"status", "", "what dom0 says of itself and of this qube", status_command},
    {"queue", "[status|clean|debug]", "the file queue of protocol 1", queue_command},
    {"log", "[N]", "the last N lines of the log of this user's commands (20)", log_command},
    {"history", "[N] | show ID", "the last N commands (20), or all that is recorded of one",
     history_command},
};

constexpr cli::old_option old_options[] = {
    {"--gen-key", {"key", "gen"}},
    {"--show-key", {"key", "show"}},
    {"--import-key", {"key", "import"}},
};

void print_help(std::FILE *to) {
    std::fprintf(to,
                 "Usage: qvm-remote [OPTIONS] COMMAND [ARGS...]   run a command in dom0\n"
                 "       ... | qvm-remote [OPTIONS]              run a script from standard input\n"
                 "       qvm-remote [OPTIONS] SUBCOMMAND\n\n"
                 "Runs a command in dom0 of Qubes OS and gives back its output and exit code.\n"
                 "\"--\" ends options and subcommands: `qvm-remote -- log` runs dom0's `log`.\n\n"
                 "Options:\n");
    cli::print_options(to, options);
    std::fprintf(to, "\nSubcommands:\n");
    cli::print_subcommands<handler>(to, subcommands);
}

int usage(const std::string &what) {
    complain(what + "; see qvm-remote --help");
    return 1;
}

// Whether a command could read something from our stdin: it is not a terminal, and not /dev/null.
bool has_input() {
    struct stat st {};
    if (::fstat(STDIN_FILENO, &st) != 0)
        return false;
    if (S_ISCHR(st.st_mode))
        return !::isatty(STDIN_FILENO) && st.st_rdev != makedev(1, 3);
    return true;
}

// If our caller closed one of these, a file of ours could get its number, and the command's output
// would go into that file.
void fill_standard_descriptors() {
    for (int fd = 0; fd <= 2; ++fd)
        if (::fcntl(fd, F_GETFD) < 0 && ::open("/dev/null", O_RDWR) != fd)
            std::abort();
}

host::outcome<std::string> read_script(int fd) {
    auto text = host::read_all(fd, limits::command);
    if (!text && text.error().error_number == EFBIG)
        return host::failed(
            "the script exceeds the size limit of 1 MiB: send it to a file in dom0 by standard "
            "input (qvm-remote 'cat >FILE' <SCRIPT), and run that");
    return text;
}

// What dom0 is told of the terminal here and of its user's language. A value of no use is left out.
void add_terminal_variables(host::command &what) {
    constexpr std::size_t longest = 128;
    for (const char *const name :
         {"TERM", "COLORTERM", "LANG", "LANGUAGE", "LC_ALL", "LC_COLLATE", "LC_CTYPE",
          "LC_MESSAGES", "LC_MONETARY", "LC_NUMERIC", "LC_TIME"})
        if (const char *const value = std::getenv(name); value && *value != '\0')
            if (const std::string text = value; text.size() <= longest)
                what.environment.emplace_back(name, text);
}

int cannot_ask(const error &why, command_form form) {
    if (why.code == errc::command_empty)
        return usage(std::string(message(why.code)));
    if (why.code == errc::binary_content)
        complain("byte " + std::to_string(why.offset + 1) +
                 " of the command is NUL; run a binary with --script FILE");
    else if (why.code == errc::argument_too_large)
        complain("word " + std::to_string(why.offset + 1) + ": " + std::string(message(why.code)) +
                 "; send data by standard input");
    else if (form == command_form::line)
        complain(std::string(message(why.code)) +
                 "; put it into a file and use --script, or send data by standard input");
    else
        complain(std::string(message(why.code)) +
                 (why.code == errc::command_too_large && form == command_form::script
                      ? ", its arguments included"
                      : "") +
                 "; send data by standard input");
    return 1;
}

} // namespace

int main(int argument_count, char **arguments) {
    fill_standard_descriptors();
    begin_with_own_signals({SIGHUP, SIGINT, SIGQUIT}); // as ssh does: nohup and `&` ignore these
    ::prctl(PR_SET_DUMPABLE, 0); // a key passes through this memory: no core dump holds it
    settings how;
    run_request request;
    std::string script, timeout, transport, escape;
    bool shell = false;
    int refused = 0;
    bool exec = false, no_stdin = false, help = false, version = false;
    auto modern = cli::modernized(old_options, argument_count, arguments, "qvm-remote");
    const int argc = static_cast<int>(modern.size()) - 1;
    char **const argv = modern.data();
    const int first = cli::parse(
        options, argc, argv,
        [&](int key, const char *value) {
            switch (key) {
            case 't':
                timeout = value;
                break;
            case 'n':
                no_stdin = true;
                break;
            case opt_exec:
                exec = true;
                break;
            case opt_script:
                script = value;
                break;
            case opt_shell:
                shell = request.what.tty = true;
                break;
            case opt_tty:
                request.what.tty = true;
                break;
            case 'e':
                escape = value;
                break;
            case 'L':
            case 'R':
            case 'D':
                refused = key;
                break;
            case opt_dry_run:
                request.what.dry_run = true;
                break;
            case opt_no_wait:
                request.what.no_wait = true;
                break;
            case opt_transport:
                transport = value;
                break;
            case opt_plugins:
                how.plugin_directory = value;
                break;
            case 'v':
                how.verbose = true;
                break;
            case 'q':
                how.quiet = true;
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
        },
        "LRD");
    if (refused != 0) {
        complain(std::string("there is no -") + static_cast<char>(refused) +
                 ": dom0 has no network, so no port is forwarded to it or from it");
        return 1;
    }
    if (first < 0)
        return 1;
    if (help) {
        print_help(stdout);
        return 0;
    }
    if (version) {
        std::printf("qvm-remote " QVMREMOTE_VERSION "\n");
        return 0;
    }
    if (!timeout.empty()) {
        const auto seconds = parse_positive(timeout);
        if (!seconds)
            return usage("'" + for_terminal(timeout, 64) +
                         "' is not a time-out: use a number of seconds, 1 or more");
        request.what.timeout_s = *seconds;
    } else if (request.what.tty) {
        request.what.timeout_s = 0;
    }
    if (exec && !script.empty())
        return usage("--exec and --script exclude each other: give one of them");
    if (!escape.empty()) {
        const auto chosen = parse_escape(escape);
        if (!chosen)
            return usage("'" + for_terminal(escape, 64) +
                         "' is not an escape character: use one character, ^X or none");
        request.escape = chosen->character;
    }

    const auto where = home::find();
    if (!where) {
        complain(where.error().what);
        return 1;
    }
    auto values = read_qube_settings(where->config_file(), [&](const std::string &warning) {
        if (!how.quiet)
            complain(warning);
    });
    if (!values) {
        complain(values.error().what);
        return 1;
    }
    how.values = std::move(*values);
    how.transport = transport;
    if (how.transport.empty())
        how.transport = how.values.get("QVM_REMOTE_TRANSPORT").value_or("qvm-run");
    const std::string version_word(how.values.get("QVM_REMOTE_PROTOCOL").value_or("auto"));
    if (version_word == "1" || version_word == "2")
        how.version = version_word == "1" ? protocol::one : protocol::two;
    else if (version_word != "auto")
        return usage("QVM_REMOTE_PROTOCOL is '" + for_terminal(version_word, 64) +
                     "': use auto, 1 or 2");
    if (how.plugin_directory.empty())
        how.plugin_directory = how.values.get("QVM_REMOTE_PLUGIN_DIR").value_or("");

    std::span<char *> words(argv + first, argv + argc);
    const bool plain = std::strcmp(argv[first - 1], "--") == 0;
    if (shell && (exec || !script.empty() || !words.empty()))
        return usage("--shell takes no command: use --tty with one");
    if (request.what.tty && !shell && words.empty() && script.empty())
        return usage("--tty needs a command: use --shell for a shell");
    static char login_shell[] = "bash", login[] = "-l";
    static char *shell_words[] = {login_shell, login};
    if (shell) {
        words = shell_words;
        exec = true;
    }
    if (request.what.tty)
        add_terminal_variables(request.what);
    if (!words.empty() && !plain && !exec && script.empty() && !request.what.tty)
        for (const auto &c : subcommands)
            if (std::strcmp(c.name, words[0]) == 0)
                return c.run({how, *where, words.subspan(1), cli::usage_of("qvm-remote", c)});

    typed_command typed;
    typed.form = !script.empty() ? command_form::script
                 : exec          ? command_form::argv
                                 : command_form::line;
    typed.words.assign(words.begin(), words.end());
    if (words.empty() && (exec || (script.empty() && ::isatty(STDIN_FILENO)))) {
        print_help(exec ? stderr : stdout);
        return exec ? 1 : 0;
    }
    if (!script.empty() || words.empty()) {
        const host::unique_fd file(script.empty() ? -1
                                                  : ::open(script.c_str(), O_RDONLY | O_CLOEXEC));
        auto text = script.empty() ? read_script(STDIN_FILENO)
                    : file         ? read_script(file.get())
                           : host::failed("cannot open the script " + for_terminal(script), errno);
        if (!text) {
            complain(text.error().what);
            return 1;
        }
        typed.text = std::move(*text);
    }
    typed.has_input = !no_stdin && (request.what.tty || has_input());
    const command_form form = typed.form;
    auto asked = request_of(std::move(typed));
    if (!asked)
        return cannot_ask(asked.error(), form);
    request.shown = asked->shown();
    request.stdin_live = asked->stdin_live;
    request.what.kind = asked->kind;
    request.what.arguments = std::move(asked->arguments);
    request.what.body = std::move(asked->body);
    return run_remote(how, *where, std::move(request));
}
