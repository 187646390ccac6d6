// SPDX-License-Identifier: GPL-2.0-or-later
#include "arguments.hpp"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <qvmremote/config.hpp>
#include <qvmremote/escapes.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/request.hpp>
#include <qvmremote/sanitize.hpp>

#include "common/qube_settings.hpp"
#include "report.hpp"

namespace qvmremote::qube {

namespace {

enum : int {
    opt_transport = cli::own_options,
    opt_exec,
    opt_script,
    opt_tty,
    opt_shell,
    opt_dry_run,
    opt_no_wait,
    opt_detach,
    opt_input,
    opt_json,
    opt_plugins
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
    {opt_detach, "detach", nullptr, "run COMMAND as a job: print its ID and return"},
    {opt_input, "input", nullptr, "with --detach: job attach can type into it"},
    {opt_json, "json", "[=lines]",
     "print one JSON object at the end, or one for each piece of output"},
    {opt_transport, "transport", "TRANSPORT", "how to reach dom0: qvm-run, qrexec or mock"},
    {opt_plugins, "plugin-dir", "DIR", "where the transports are installed"},
    {'v', "verbose", nullptr, "say more on standard error"},
    {'q', "quiet", nullptr, "say nothing but errors"},
    {'h', "help", nullptr, "show this and end"},
    {cli::opt_version, "version", nullptr, "show the version and end"},
};

constexpr cli::old_option old_options[] = {
    {"--gen-key", {"key", "gen"}},
    {"--show-key", {"key", "show"}},
    {"--import-key", {"key", "import"}},
};

int wrong_call(const std::string &what) { return cli::wrong_call(this_program.name, what); }

void report_wrong_call(const std::string &what) { complain(fault::usage, what); }

// The values of options, as text, until all options are known.
struct option_texts {
    std::string timeout;
    std::string escape;
    bool shell = false;
    int refused = 0; // the letter of an option that only ssh has
};

// Takes one option. False when there is no such option.
bool take(int key, const char *value, arguments &out, option_texts &texts) {
    if (out.standard.take(key))
        return true;
    switch (key) {
    case 't':
        texts.timeout = value;
        return true;
    case 'n':
        return out.no_stdin = true;
    case opt_exec:
        return out.exec = true;
    case opt_script:
        out.script = value;
        return true;
    case opt_shell:
        return texts.shell = out.request.what.tty = true;
    case opt_tty:
        return out.request.what.tty = true;
    case 'e':
        texts.escape = value;
        return true;
    case 'L':
    case 'R':
    case 'D':
        texts.refused = key;
        return true;
    case opt_dry_run:
        return out.request.what.dry_run = true;
    case opt_no_wait:
        return out.request.what.no_wait = true;
    case opt_detach:
        return out.request.what.detach = true;
    case opt_input:
        return out.request.what.job_input = true;
    case opt_json:
        if (*value != '\0' && value != std::string_view("lines"))
            return false;
        report::instance().set_form(*value != '\0' ? report_form::lines : report_form::object);
        return true;
    case opt_transport:
        out.how.transport = value;
        return true;
    case opt_plugins:
        out.how.plugin_directory = value;
        return true;
    case 'v':
        return out.how.verbose = true;
    case 'q':
        return out.how.quiet = true;
    default:
        return false;
    }
}

// Reads the values, and checks which options exclude each other. Returns what is wrong; empty when
// all is right.
std::string check(arguments &out, const option_texts &texts) {
    if (!texts.timeout.empty()) {
        const auto seconds = parse_positive(texts.timeout);
        if (!seconds)
            return "'" + for_terminal(texts.timeout, 64) +
                   "' is not a time-out: use a number of seconds, 1 or more";
        out.request.what.timeout_s = *seconds;
    } else if (out.request.what.tty || out.request.what.detach) {
        out.request.what.timeout_s = 0;
    }
    if (out.request.what.job_input && !out.request.what.detach)
        return "--input belongs to --detach: without it, a command reads standard input anyway";
    if (out.request.what.detach && out.request.what.dry_run)
        return "--detach and --dry-run exclude each other: leave out --detach";
    if (out.exec && !out.script.empty())
        return "--exec and --script exclude each other: give one of them";
    if (!texts.escape.empty()) {
        const auto chosen = parse_escape(texts.escape);
        if (!chosen)
            return "'" + for_terminal(texts.escape, 64) +
                   "' is not an escape character: use one character, ^X or none";
        out.request.escape = chosen->character;
    }
    if (out.request.what.tty && report::instance().is_json())
        return "--json and a terminal exclude each other: leave one of them out";
    if (texts.shell && (out.exec || !out.script.empty() || !out.words.empty()))
        return "--shell takes no command: use --tty with one";
    if (out.request.what.tty && !texts.shell && out.words.empty() && out.script.empty())
        return "--tty needs a command: use --shell for a shell";
    return {};
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

// The script in the file, or on standard input when there is no file.
host::outcome<std::string> read_script(const std::string &path) {
    host::unique_fd file;
    if (!path.empty()) {
        file = host::unique_fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
        if (!file)
            return host::failed("cannot open the script " + for_terminal(path), errno);
    }
    auto text = host::read_all(path.empty() ? STDIN_FILENO : file.get(), limits::command);
    if (!text && text.error().error_number == EFBIG)
        return tl::unexpected(host::failure{
            "the script exceeds the size limit of 1 MiB: send it to a file in dom0 by standard "
            "input (qvm-remote 'cat >FILE' <SCRIPT), and run that",
            EFBIG});
    return text;
}

// Adds the variables that describe this terminal and its user's language, for dom0. An empty or
// very long value is left out.
void add_terminal_variables(host::command &command) {
    constexpr std::size_t longest = 128;
    for (const char *const name :
         {"TERM", "COLORTERM", "LANG", "LANGUAGE", "LC_ALL", "LC_COLLATE", "LC_CTYPE",
          "LC_MESSAGES", "LC_MONETARY", "LC_NUMERIC", "LC_TIME"})
        if (const char *const value = std::getenv(name); value && *value != '\0')
            if (const std::string text = value; text.size() <= longest)
                command.environment.emplace_back(name, text);
}

// Prints why the request is not sent to dom0.
void say_why_not(const error &why, command_form form) {
    if (why.code == errc::command_empty)
        complain(why.code, std::string(message(why.code)) + "; see qvm-remote --help");
    else if (why.code == errc::binary_content)
        complain(why.code, "byte " + std::to_string(why.offset + 1) +
                               " of the command is NUL; run a binary with --script FILE");
    else if (why.code == errc::argument_too_large)
        complain(why.code, "word " + std::to_string(why.offset + 1) + ": " +
                               std::string(message(why.code)) + "; send data by standard input");
    else if (form == command_form::line)
        complain(why.code,
                 std::string(message(why.code)) +
                     "; put it into a file and use --script, or send data by standard input");
    else
        complain(why.code, std::string(message(why.code)) +
                               (why.code == errc::command_too_large && form == command_form::script
                                    ? ", its arguments included"
                                    : "") +
                               "; send data by standard input");
}

} // namespace

const cli::program this_program = {
    "qvm-remote",
    "Usage: qvm-remote [OPTIONS] COMMAND [ARGS...]   run a command in dom0\n"
    "       ... | qvm-remote [OPTIONS]              run a script from standard input\n"
    "       qvm-remote [OPTIONS] SUBCOMMAND\n\n"
    "Runs a command in dom0 of Qubes OS and gives back its output and exit code.\n"
    "\"--\" ends options and subcommands: `qvm-remote -- log` runs dom0's `log`.\n",
    options};

bool arguments::lacks_command() const {
    return words.empty() && (exec || (script.empty() && ::isatty(STDIN_FILENO)));
}

std::optional<arguments> read_arguments(int argument_count, char **argument_values) {
    arguments out;
    option_texts texts;
    cli::report_wrong_call = report_wrong_call;
    out.typed = cli::modernized(old_options, argument_count, argument_values, this_program.name);
    const int argc = static_cast<int>(out.typed.size()) - 1;
    char **const argv = out.typed.data();
    const int first = cli::parse(
        options, argc, argv,
        [&](int key, const char *value) { return take(key, value, out, texts); }, "LRD");
    if (texts.refused != 0) {
        complain(fault::usage,
                 std::string("there is no -") + static_cast<char>(texts.refused) +
                     ": dom0 has no network, so no port is forwarded to it or from it");
        return std::nullopt;
    }
    if (first < 0)
        return std::nullopt;
    if (out.standard.any())
        return out;
    out.words = std::span(argv + first, argv + argc);
    if (const std::string wrong = check(out, texts); !wrong.empty()) {
        wrong_call(wrong);
        return std::nullopt;
    }
    out.may_be_subcommand = !out.exec && out.script.empty() && !out.request.what.tty &&
                            !out.request.what.detach && std::strcmp(argv[first - 1], "--") != 0;
    if (texts.shell) {
        static char login_shell[] = "bash", login[] = "-l";
        static char *shell_words[] = {login_shell, login};
        out.words = shell_words;
        out.exec = true;
    }
    return out;
}

bool add_settings(settings &how, const home &where) {
    auto values = read_qube_settings(where.config_file(), [&](const std::string &warning) {
        if (!how.quiet)
            warn(warning);
    });
    if (!values) {
        complain(fault::bad_settings, values.error().what);
        return false;
    }
    how.values = std::move(*values);
    if (how.transport.empty())
        how.transport = how.values.get("QVM_REMOTE_TRANSPORT").value_or("qvm-run");
    const std::string version(how.values.get("QVM_REMOTE_PROTOCOL").value_or("auto"));
    if (version == "1" || version == "2") {
        how.version = version == "1" ? allowed_protocol::one : allowed_protocol::two;
    } else if (version != "auto") {
        complain(fault::bad_settings, "QVM_REMOTE_PROTOCOL is '" + for_terminal(version, 64) +
                                          "': use auto, 1 or 2; see qvm-remote --help");
        return false;
    }
    if (how.plugin_directory.empty())
        how.plugin_directory = how.values.get("QVM_REMOTE_PLUGIN_DIR").value_or("");
    return true;
}

std::optional<run_request> request_of(const arguments &typed) {
    typed_command command;
    command.form = !typed.script.empty() ? command_form::script
                   : typed.exec          ? command_form::argv
                                         : command_form::line;
    command.words.assign(typed.words.begin(), typed.words.end());
    if (!typed.script.empty() || typed.words.empty()) {
        auto text = read_script(typed.script);
        if (!text) {
            complain(text.error().error_number == EFBIG ? error_name(errc::command_too_large)
                                                        : fault::bad_script,
                     text.error().what);
            return std::nullopt;
        }
        command.text = std::move(*text);
    }
    run_request out = typed.request;
    if (out.what.tty)
        add_terminal_variables(out.what);
    command.has_input = !typed.no_stdin && !out.what.detach && (out.what.tty || has_input());
    out.what.job_input = out.what.detach && (out.what.job_input || out.what.tty);
    const command_form form = command.form;
    auto asked = request_of(std::move(command));
    if (!asked) {
        say_why_not(asked.error(), form);
        return std::nullopt;
    }
    out.shown = asked->shown();
    out.stdin_live = asked->stdin_live;
    out.what.kind = asked->kind;
    out.what.arguments = std::move(asked->arguments);
    out.what.body = std::move(asked->body);
    return out;
}

} // namespace qvmremote::qube
