// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of policy.hpp: what is known of programs and variables by their names.

#pragma once

#include <qvmremote/policy.hpp>

namespace qvmremote {

inline bool interprets(std::span<const std::string> argv) {
    static constexpr std::string_view programs[] = {
        "ansible",
        "ansible-playbook",
        "ash",
        "at",
        "awk",
        "bash",
        "batch",
        "busybox",
        "capsh",
        "chroot",
        "chrt",
        "cpio",
        "crontab",
        "csh",
        "dash",
        "dbus-run-session",
        "dbus-send",
        "doas",
        "ed",
        "emacs",
        "env",
        "ex",
        "expect",
        "fish",
        "flock",
        "gawk",
        "gdb",
        "gdbus",
        "git",
        "gcc",
        "guile",
        "ionice",
        "java",
        "ksh",
        "less",
        "logrotate",
        "ltrace",
        "machinectl",
        "make",
        "man",
        "mawk",
        "mksh",
        "more",
        "nano",
        "nawk",
        "newgrp",
        "nice",
        "node",
        "nodejs",
        "nohup",
        "nsenter",
        "openssl",
        "osascript",
        "parallel",
        "pkexec",
        "prlimit",
        "qrexec-client",
        "qubesctl",
        "qvm-console-dispvm",
        "qvm-run",
        "qvm-run-vm",
        "rbash",
        "rpm",
        "rsync",
        "run-parts",
        "runcon",
        "runuser",
        "salt-call",
        "salt-ssh",
        "scp",
        "script",
        "sed",
        "setarch",
        "setpriv",
        "setsid",
        "sftp",
        "sg",
        "sh",
        "socat",
        "source",
        "ssh",
        "start-stop-daemon",
        "stdbuf",
        "strace",
        "su",
        "sudo",
        "systemd-cat",
        "systemd-inhibit",
        "systemd-nspawn",
        "systemd-run",
        "tar",
        "taskset",
        "tcsh",
        "tclsh",
        "time",
        "timeout",
        "toybox",
        "unshare",
        "vi",
        "view",
        "vim",
        "vimdiff",
        "watch",
        "wish",
        "xargs",
        "xterm",
        "yash",
        "zip",
        "zsh",
    };
    // With any version behind: python3.11, perl5.36, ld-linux-x86-64.so.2.
    static constexpr std::string_view families[] = {"ipython", "ld-linux", "ld.so",  "lua", "perl",
                                                    "php",     "pypy",     "python", "ruby"};
    if (argv.empty())
        return true;
    const std::string &path = argv[0];
    const std::string_view program = std::string_view(path).substr(path.rfind('/') + 1);
    if (std::find(std::begin(programs), std::end(programs), program) != std::end(programs))
        return true;
    if (std::any_of(std::begin(families), std::end(families),
                    [&](std::string_view f) { return program.starts_with(f); }))
        return true;
    return program == "find" &&
           std::any_of(argv.begin() + 1, argv.end(), [](const std::string &word) {
               return word.starts_with("-exec") || word.starts_with("-ok");
           });
}

namespace detail {

// Variables by which the one who sets them chooses what a program runs. Not all that exist: those
// that every program, shell and usual interpreter heeds.
[[nodiscard]] inline bool steers_programs(std::string_view variable) {
    for (const std::string_view prefix : {"LD_", "BASH_", "PYTHON", "PERL", "RUBY", "LUA_", "NODE_",
                                          "GIT_", "GCONV_", "GLIBC_", "MALLOC_", "QVM_REMOTE_"})
        if (variable.starts_with(prefix))
            return true;
    for (const std::string_view name : {"PATH",
                                        "ENV",
                                        "IFS",
                                        "SHELLOPTS",
                                        "BASHOPTS",
                                        "PS4",
                                        "PROMPT_COMMAND",
                                        "HOME",
                                        "SHELL",
                                        "PAGER",
                                        "SYSTEMD_PAGER",
                                        "SYSTEMD_EDITOR",
                                        "MANPAGER",
                                        "EDITOR",
                                        "VISUAL",
                                        "BROWSER",
                                        "LESS",
                                        "LESSOPEN",
                                        "LESSCLOSE",
                                        "TERMINFO",
                                        "TERMCAP",
                                        "HOSTALIASES",
                                        "LOCPATH",
                                        "NLSPATH",
                                        "OPENSSL_CONF",
                                        "XDG_CONFIG_HOME",
                                        "XDG_CONFIG_DIRS",
                                        "XDG_DATA_DIRS"})
        if (variable == name)
            return true;
    return false;
}

} // namespace detail

} // namespace qvmremote
