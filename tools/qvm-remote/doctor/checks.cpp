// SPDX-License-Identifier: GPL-2.0-or-later
#include "doctor/facts.hpp"

#include <cerrno>
#include <cstring>
#include <utility>

#include <sys/stat.h>

#include <qvmremote/config.hpp>
#include <qvmremote/sanitize.hpp>

#include "common/queue_files.hpp"

namespace qvmremote::qube {

namespace {

using found = std::optional<finding>;

constexpr const char *look_in_dom0 = "in dom0: qvm-remote-dom0 doctor";
constexpr mode_t of_others = 077;

std::string shown(const file_facts &file) { return for_terminal(file.path); }

found program(const facts &f) {
    if (f.is_dom0)
        return broken("this is dom0", "qvm-remote is for qubes: use qvm-remote-dom0 doctor");
    if (!f.program_is_ours) {
        finding out = broken(f.program_is_ours.error(), "install the package qvm-remote again");
        out.state = health::warning;
        return out;
    }
    return good("qvm-remote " + f.version + " at " + for_terminal(f.program));
}

found settings_check(const facts &f) {
    if (!f.settings_problem.empty())
        return broken(f.settings_problem, "correct it: no command runs before that");
    if (!f.settings_warning.empty())
        return doubtful(f.settings_warning, "correct the name, or remove the line");
    return good("the settings can be read; the transport is " + for_terminal(f.transport, 64));
}

found directory(const facts &f) {
    const std::string path = shown(f.directory);
    if (f.directory.error == ENOENT)
        return f.has_private_daemon ? found()
                                    : broken(path + " does not exist", "qvm-remote key gen");
    if (!f.directory.exists())
        return broken("cannot look at " + path + ": " + std::strerror(f.directory.error),
                      "see who owns the directories above it");
    if (!S_ISDIR(f.directory.mode))
        return broken(path + " is not a directory", "move it away, then qvm-remote key gen");
    if (f.directory.owner != f.user)
        return broken(path + " belongs to uid " + std::to_string(f.directory.owner),
                      "chown it to your user");
    if (f.directory.has(022))
        return fixable(broken("others can write in " + path + ", so they can replace the key",
                              "chmod 700 " + path));
    if (f.directory.has(of_others))
        return fixable(doubtful("others can look into " + path, "chmod 700 " + path));
    return good(path);
}

found disk(const facts &f) { return f.room ? found(judge_room(*f.room)) : found(); }

found key(const facts &f) {
    const std::string path = shown(f.key_file);
    if (f.has_private_daemon)
        return good("the mock transport makes a key for each command");
    if (f.key_problem.empty())
        return good("key " + f.fingerprint);
    if (f.key_file.error == ENOENT)
        return broken("there is no key at " + path,
                      "qvm-remote key gen; then, in dom0: qvm-remote-dom0 authorize");
    if (S_ISLNK(f.key_file.mode))
        return broken("the key file " + path + " is a symbolic link",
                      "replace it by a file with the key");
    if (f.key_file.exists() && f.key_file.owner == f.user && f.key_file.has(of_others))
        return fixable(broken("others have access to the key " + path, "chmod 600 " + path));
    return broken(f.key_problem, "remove the file, then qvm-remote key gen");
}

found queue(const facts &f) {
    if (!f.has_queue || !S_ISDIR(f.directory.mode))
        return {};
    found out;
    for (const file_facts &part : f.queue) {
        if (S_ISLNK(part.mode))
            return broken(shown(part) + " is a symbolic link", "rm " + shown(part));
        if (part.exists() && !S_ISDIR(part.mode))
            return broken(shown(part) + " is not a directory", "rm " + shown(part));
        if (part.exists() && part.owner != f.user)
            return broken(shown(part) + " belongs to uid " + std::to_string(part.owner),
                          "chown it to your user");
        if (out)
            continue;
        if (part.error == ENOENT)
            out = fixable(doubtful(shown(part) + " does not exist", "mkdir -m 700 " + shown(part)));
        else if (!part.exists())
            out = broken("cannot look at " + shown(part) + ": " + std::strerror(part.error),
                         "chmod 700 the directory above it");
        else if (part.has(of_others))
            out = fixable(
                doubtful("others have access to " + shown(part), "chmod 700 " + shown(part)));
    }
    if (out)
        return out;
    if (f.old_entries > 0)
        return doubtful(std::to_string(f.old_entries) + " files wait in " + shown(f.queue[1]) +
                            " for more than a minute",
                        "is qvm-remote-dom0 running in dom0? qvm-remote queue clean removes them");
    return good("the directories of the file queue");
}

found records(const facts &f) {
    found out;
    for (const file_facts &one : f.own_records) {
        if (!one.exists())
            continue; // the next command makes it
        if (S_ISLNK(one.mode) || one.owner != f.user)
            return doubtful(shown(one) + " is a symbolic link or belongs to another user",
                            "move it away");
        if (one.has(of_others) && !out)
            out = fixable(
                doubtful("others have access to " + shown(one), "chmod go-rwx " + shown(one)));
    }
    if (!f.unwritable_record.empty())
        return doubtful("commands are not recorded: " + for_terminal(f.unwritable_record) +
                            " cannot be written",
                        "chmod u+rwX " + for_terminal(f.unwritable_record));
    if (out)
        return out;
    return S_ISDIR(f.directory.mode) ? found(good("history and audit.log can be written"))
                                     : found();
}

found transport(const facts &f) {
    if (!f.settings_problem.empty())
        return {};
    if (f.plugin_problem)
        return broken(*f.plugin_problem, "install the package qvm-remote again");
    if (f.call_program && !f.call_program->exists())
        return broken("there is no " + shown(*f.call_program),
                      "the transport qrexec needs the packages of Qubes in this qube");
    const std::string name = for_terminal(f.transport, 64);
    return good(f.plugin.empty() ? name + ", compiled in"
                                 : name + " from " + for_terminal(f.plugin));
}

found agent(const facts &f) {
    if (!f.agent)
        return {};
    const agent_facts &a = *f.agent;
    const std::string socket = for_terminal(a.socket);
    if (a.error == 0)
        return good("process " + std::to_string(a.pid) + " listens at " + socket);
    finding out =
        broken("no agent listens at " + socket + ": " + std::strerror(a.error),
               std::string("dom0 starts the agent of a qube that it serves; ") + look_in_dom0);
    if (a.installed.path.empty())
        out = broken("no agent is installed here, and none listens at " + socket,
                     "install the package qvm-remote in the template of this qube");
    else if (a.error == EACCES)
        out.remedy = "run this as the user whose agent it is";
    else if (a.error == EAGAIN)
        out.remedy = "the agent hangs: end it, and dom0 starts another";
    if (f.dom0 && f.dom0->failure.empty())
        out.state = health::warning; // protocol 1 works
    return out;
}

found versions(const facts &f) {
    std::string all = "qvm-remote " + f.version;
    std::string other;
    const auto add = [&](const std::string &what, const std::string &version) {
        all += ", " + what + " " + version;
        if (version != f.version && other.empty())
            other = what;
    };
    if (f.agent && !f.agent->running.path.empty() && f.agent->running.version)
        add("the agent that runs", *f.agent->running.version);
    if (f.agent && f.agent->installed.version)
        add("the installed agent", *f.agent->installed.version);
    if (const std::string there = f.dom0 ? f.dom0->value("version") : ""; !there.empty())
        add("qvm-remote-dom0", there);
    if (other.empty())
        return good(all);
    return doubtful("the versions differ: " + all,
                    other == "the agent that runs"
                        ? "end process " + std::to_string(f.agent->pid) +
                              " when no command runs: dom0 then starts the installed agent"
                        : "update the older one");
}

found dom0(const facts &f) {
    if (!f.dom0)
        return {};
    if (!f.dom0->failure.empty())
        return broken(f.dom0->failure, look_in_dom0);
    if (f.dom0->over == "protocol 1")
        return doubtful("dom0 answers by protocol 1 only, which does not protect commands",
                        f.agent && f.agent->installed.path.empty()
                            ? "install the package qvm-remote in the template of this qube"
                            : "update qvm-remote-dom0 in dom0");
    return good("dom0 answers over " + f.dom0->over + " in " +
                std::to_string(f.dom0->answer.took_ms) + " ms; this qube is " +
                f.dom0->value("qube"));
}

found clock(const facts &f) {
    constexpr std::int64_t most_s = 120;
    const auto there = qvmremote::parse_decimal<std::int64_t>(f.dom0 ? f.dom0->value("time") : "");
    if (!there)
        return {};
    const std::int64_t ahead = f.dom0->asked_at - *there, behind = *there - f.dom0->answered_at;
    if (ahead > most_s || behind > most_s)
        return doubtful("the clock of this qube is " + std::to_string(std::max(ahead, behind)) +
                            " s " + (ahead > 0 ? "ahead of" : "behind") +
                            " dom0's; dom0 refuses a command from 26 hours on",
                        "set it: sudo qvm-sync-clock");
    return good("the clock agrees with dom0's");
}

found policy(const facts &f) {
    const std::string level = f.dom0 ? f.dom0->value("level") : "";
    if (level.empty())
        return {};
    if (const std::string why = f.dom0->value("refuses"); !why.empty())
        return broken("dom0 refuses every command of this qube: " + why, look_in_dom0);
    if (level == "none" || level == "deny")
        return broken(level == "none" ? "no rule of dom0's policy allows this qube anything"
                                      : "dom0's policy denies this qube everything",
                      "in dom0: qvm-remote-dom0 authorize " + f.dom0->value("qube") +
                          " --level LEVEL");
    return good("level " + level);
}

host::outcome<void> fix_directory(const facts &f) { return narrow_mode(f.directory.path, 07700); }
host::outcome<void> fix_key(const facts &f) { return narrow_mode(f.key_file.path, 0600); }

host::outcome<void> fix_queue(const facts &f) {
    for (const file_facts &part : f.queue)
        if (part.exists())
            if (auto done = narrow_mode(part.path, 07700); !done)
                return done;
    const auto made = queue_directories::open(f.directory.path);
    return made ? host::outcome<void>() : tl::unexpected(made.error());
}

host::outcome<void> fix_records(const facts &f) {
    for (const file_facts &one : f.own_records)
        if (one.exists())
            if (auto done = narrow_mode(one.path, 07700); !done)
                return done;
    return {};
}

} // namespace

std::span<const health_check<facts>> checks() {
    static constexpr health_check<facts> table[] = {
        {"program", program},
        {"settings", settings_check},
        {"directory", directory, fix_directory},
        {"disk", disk},
        {"key", key, fix_key},
        {"records", records, fix_records},
        {"queue", queue, fix_queue},
        {"transport", transport},
        {"agent", agent},
        {"dom0", dom0},
        {"versions", versions},
        {"clock", clock},
        {"policy", policy},
    };
    return table;
}

} // namespace qvmremote::qube
