// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of policy.hpp: known names of programs and variables.

#pragma once

#include <qvmremote/policy.hpp>

namespace qvmremote {

namespace detail {

template <std::size_t Size>
[[nodiscard]] constexpr bool is_one_of(const std::string_view (&list)[Size],
                                       std::string_view word) noexcept {
    return std::find(std::begin(list), std::end(list), word) != std::end(list);
}

// Whether a program's argv shows what it does: the program runs nothing that its arguments or its
// input name, and does not write a file that another program could run. The list holds the programs
// that are known to be harmless, since a list of all others would never be complete.
[[nodiscard]] inline bool is_plain_program(std::string_view program) noexcept {
    // clang-format off
    static constexpr std::string_view known[] = {
        // The tools of Qubes. qvm-run, qvm-template and the backup tools run programs, and qvm-volume
        // writes what a qube boots, so they are not here.
        "qubes-prefs", "qvm-block", "qvm-check", "qvm-clone", "qvm-create", "qvm-device", "qvm-features",
        "qvm-firewall", "qvm-kill", "qvm-ls", "qvm-pause", "qvm-pci", "qvm-pool", "qvm-prefs",
        "qvm-remove", "qvm-restart", "qvm-service", "qvm-shutdown", "qvm-start", "qvm-tags",
        "qvm-unpause", "qvm-usb",
        // The programs of any system. cp, tee, uniq and others can write what another program runs, and
        // sort starts a program to compress, so they are not here.
        "arch", "b2sum", "basename", "blkid", "cal", "cat", "cksum", "cmp", "comm", "cut", "date", "df",
        "dirname", "dmesg", "du", "echo", "expand", "expr", "factor", "false", "findmnt", "fold",
        "free", "getent", "grep", "groups", "head", "hostname", "id", "journalctl", "kill", "last",
        "locale", "logname", "ls", "lsblk", "lscpu", "lsmod", "lspci", "lsusb", "md5sum",
        "mkdir", "mountpoint", "nl", "nproc", "numfmt", "od", "paste", "pgrep", "pidof", "pinky",
        "printenv", "printf", "ps", "pwd", "readlink", "realpath", "rm", "rmdir", "sensors",
        "seq", "sha1sum", "sha256sum", "sha512sum", "sleep", "stat", "strings", "sum", "sync", "tac",
        "tail", "test", "touch", "tr", "true", "tty", "uname", "uptime", "users",
        "vmstat", "wc", "who", "whoami", "xentop",
    };
    // clang-format on
    return is_one_of(known, program);
}

// The same for a program whose first argument is a verb.
[[nodiscard]] inline bool is_plain_verb(std::string_view program, std::string_view verb) noexcept {
    static constexpr std::string_view of_systemctl[] = {
        "is-active",
        "is-enabled",
        "is-failed",
        "is-system-running",
        "list-jobs",
        "list-units",
        "list-unit-files",
        "list-sockets",
        "list-timers",
        "reload",
        "restart",
        "show",
        "start",
        "status",
        "stop",
    };
    static constexpr std::string_view of_xl[] = {
        "destroy", "dmesg",  "domid",    "domname", "info",   "list",
        "pause",   "reboot", "shutdown", "unpause", "uptime", "vcpu-list",
    };
    static constexpr std::string_view of_volumes[] = {"info", "list"};
    return (program == "systemctl" && is_one_of(of_systemctl, verb)) ||
           (program == "qvm-volume" && is_one_of(of_volumes, verb)) ||
           (program == "xl" && is_one_of(of_xl, verb));
}

// Actions of find that run programs, write files or delete them.
[[nodiscard]] inline bool is_find_action(std::string_view word) noexcept {
    return word.starts_with("-exec") || word.starts_with("-ok") || word.starts_with("-fprint") ||
           word.starts_with("-fls") || word == "-delete";
}

// Whether a variable with a plain value (is_plain_value) changes only how a program prints, and not
// what the program runs, reads or writes.
[[nodiscard]] inline bool is_plain_variable(std::string_view variable) noexcept {
    static constexpr std::string_view known[] = {
        "CLICOLOR", "CLICOLOR_FORCE", "COLORTERM", "COLUMNS",  "FORCE_COLOR", "GREP_COLORS", "LANG",
        "LANGUAGE", "LINES",          "LS_COLORS", "NO_COLOR", "TERM",        "TZ",
    };
    if (variable.starts_with("LC_"))
        return variable.size() > 3 && std::all_of(variable.begin() + 3, variable.end(),
                                                  [](char c) { return c >= 'A' && c <= 'Z'; });
    return is_one_of(known, variable);
}

// Whether a value holds no control character and is not a path: if LANGUAGE, TERM or TZ is a path, a
// library reads that file. A time zone may hold '/', but must stay in the directory of time zones:
// it has no "..", and does not begin with '/' or with ':', after which a path may follow.
[[nodiscard]] inline bool is_plain_value(std::string_view variable,
                                         std::string_view value) noexcept {
    if (std::any_of(value.begin(), value.end(), [](char c) { return is_control(c); }))
        return false;
    if (variable == "TZ")
        return value.find("..") == std::string_view::npos && !value.starts_with('/') &&
               !value.starts_with(':');
    return value.find('/') == std::string_view::npos;
}

// Whether a variable describes the terminal and has a plain value. Such a variable does not change
// what runs, so it passes with every terminal that the policy allows.
[[nodiscard]] inline bool describes_terminal(std::string_view variable,
                                             std::string_view value) noexcept {
    return (variable == "TERM" || variable == "COLORTERM") && is_plain_value(variable, value);
}

} // namespace detail

inline bool interprets(std::span<const std::string> argv) {
    // A path may lead to another program that has the name of a known one.
    if (argv.empty() || argv[0].find('/') != std::string::npos)
        return true;
    if (argv[0] == "find")
        return std::any_of(argv.begin() + 1, argv.end(),
                           [](const std::string &word) { return detail::is_find_action(word); });
    // systemctl goes to another machine through ssh, or to a container.
    if (argv[0] == "systemctl" &&
        std::any_of(argv.begin() + 1, argv.end(), [](const std::string &word) {
            return word.starts_with("-H") || word.starts_with("--h") || word.starts_with("-M") ||
                   word.starts_with("--m");
        }))
        return true;
    return !detail::is_plain_program(argv[0]) &&
           !(argv.size() > 1 && detail::is_plain_verb(argv[0], argv[1]));
}

} // namespace qvmremote
