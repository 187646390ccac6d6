// SPDX-License-Identifier: GPL-2.0-or-later
#include "administer/doctor/facts.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/host/files.hpp>
#include <qvmremote/sanitize.hpp>

namespace qvmremote::dom0 {

namespace {

using found = std::optional<finding>;

constexpr const char *start_daemon = "systemctl start qvm-remote-dom0";
constexpr const char *restart_daemon = "systemctl restart qvm-remote-dom0";
constexpr mode_t of_others = 077, written_by_others = 022;
constexpr std::int64_t clock_tolerance_s = 120;

std::string joined(const std::vector<std::string> &all) {
    std::string out;
    for (const std::string &one : all)
        out += (out.empty() ? "" : ", ") + one;
    return out;
}

found program(const machine_facts &f) {
    if (!f.program_is_ours)
        return broken(f.program_is_ours.error(), "install the package qvm-remote-dom0 again");
    return good("qvm-remote-dom0 " + f.version + " at " + for_terminal(f.program));
}

found daemon_check(const machine_facts &f) {
    if (!f.daemon) {
        const int error = f.daemon.error().error_number;
        if (error == ENOENT || error == ECONNREFUSED)
            return broken("no daemon listens at " + f.where.control_socket() + ": " +
                              std::strerror(error),
                          start_daemon);
        return broken(f.daemon.error(), restart_daemon);
    }
    if (f.daemon->draining)
        return doubtful("the daemon is ending: it takes no new request", start_daemon);
    if (f.daemon->dry_run)
        return doubtful("the daemon runs nothing, since it was started with --dry-run",
                        restart_daemon);
    if (f.daemon->version != f.version)
        return doubtful("the daemon that runs is version " + f.daemon->version +
                            ", and this program is " + f.version,
                        restart_daemon);
    return good("the daemon answers, version " + f.daemon->version);
}

found panic(const machine_facts &f) {
    return f.panic ? broken("nothing runs: panic is in force", "qvm-remote-dom0 resume")
                   : good("no panic is in force");
}

found settings_check(const machine_facts &f) {
    if (!f.settings_read)
        return broken(f.settings_read.error(), "correct it: no request is let in before that");
    if (!f.settings_warnings.empty())
        return doubtful(joined(f.settings_warnings), "correct the names, or remove the lines");
    return good(f.where.config() + " can be read");
}

found policy_check(const machine_facts &f) {
    if (!f.rules)
        return broken(f.rules.error(), "qvm-remote-dom0 policy lint lists all mistakes");
    if (f.daemon && !f.daemon->policy_trouble.empty())
        return broken(joined(f.daemon->policy_trouble),
                      "qvm-remote-dom0 policy lint, then systemctl reload qvm-remote-dom0");
    if (f.policy_doubts > 0)
        return doubtful(std::to_string(f.policy_doubts) +
                            " lines probably do not mean what they say",
                        "qvm-remote-dom0 policy lint");
    return good(std::to_string(f.rules->rules().size()) + " rules in " + f.where.policy());
}

found keys(const machine_facts &f) {
    if (!f.keys_read)
        return broken(f.keys_read.error(), "see who may write there, and authorize the qubes anew");
    if (f.key_count == 0)
        return doubtful("no qube has a key", "qvm-remote-dom0 authorize VM");
    if (f.keys.has(of_others))
        return fixable(doubtful("others can look into " + f.keys.path, "chmod 700 " + f.keys.path));
    return good(std::to_string(f.key_count) + " keys in " + f.keys.path);
}

found audit(const machine_facts &f) {
    if (!f.audit)
        return broken(f.audit.error(), "nothing runs that is not recorded: see who changed it");
    if (f.daemon && !f.daemon->trouble.empty())
        return broken("nothing can be recorded, so nothing runs: " + f.daemon->trouble,
                      "make that possible again; the daemon then tries with the next request");
    if (f.audit_directory.exists() && f.audit_directory.has(of_others))
        return fixable(doubtful("others can look into " + f.audit_directory.path,
                                "chmod 700 " + f.audit_directory.path));
    return good("the audit log can be written; audit verify reads all of it");
}

found log_check(const machine_facts &f) {
    if (!f.log)
        return doubtful(f.log.error().what, "see who changed it");
    return good(f.where.log() + " can be written");
}

found disk(const machine_facts &f) {
    found out;
    for (const room_facts &room : f.rooms)
        if (finding one = judge_room(room); !out || one.state > out->state)
            out = std::move(one);
    return out;
}

found transport(const machine_facts &f) {
    std::string all;
    for (const transport_facts &one : f.transports) {
        if (!one.plugin)
            return broken(one.plugin.error(), "install its package again");
        if (one.socket_error && *one.socket_error != 0)
            return broken("nobody listens for calls of qrexec: " +
                              std::string(std::strerror(*one.socket_error)),
                          restart_daemon);
        all += (all.empty() ? "" : ", ") + *one.plugin;
    }
    return f.transports.empty() ? found() : good(for_terminal(all));
}

found programs(const machine_facts &f) {
    if (f.programs.empty())
        return {};
    if (!f.missing.empty())
        return broken("these programs are missing or cannot be run: " + joined(f.missing),
                      "install the packages of Qubes that they belong to, or correct remote.conf");
    return good(joined(f.programs));
}

found qubesd(const machine_facts &f) {
    if (f.qubesd.empty())
        return {};
    if (!f.qubesd_answers)
        return broken(f.qubesd_answers.error(), "systemctl status qubesd");
    return good("qubesd answers at " + f.qubesd);
}

found cgroups(const machine_facts &f) {
    if (!f.daemon)
        return {};
    if (!f.daemon->cgroups)
        return doubtful(f.daemon->containment,
                        "start the daemon by its unit, which has Delegate=yes");
    return good(f.daemon->containment);
}

found system_journal(const machine_facts &f) {
    if (!f.system_journal_error)
        return {};
    if (*f.system_journal_error != 0)
        return doubtful("the system journal cannot be reached, so a cut end of the audit log would "
                        "not show: " +
                            std::string(std::strerror(*f.system_journal_error)),
                        "systemctl status systemd-journald");
    return good("the system journal takes the heads of the audit log");
}

found clock(const machine_facts &f) {
    if (f.audit_is_ahead_s > clock_tolerance_s)
        return doubtful("the clock of dom0 is " + std::to_string(f.audit_is_ahead_s) +
                            " s behind the last record of the audit log",
                        "set it: qvm-sync-clock");
    return good("the clock is not behind the audit log");
}

host::outcome<void> fix_keys(const machine_facts &f) { return narrow_mode(f.keys.path, 07700); }
host::outcome<void> fix_audit(const machine_facts &f) {
    return narrow_mode(f.audit_directory.path, 07700);
}

found key(const qube_facts &f) {
    constexpr std::int64_t soon_s = 24 * 3600;
    if (f.key_problem && f.key_problem->error_number == ENOENT)
        return broken("it is listed and has no key", "qvm-remote-dom0 authorize " + f.name.text());
    if (f.key_problem && f.key_problem->error_number == EKEYEXPIRED)
        return broken("its key has expired", "qvm-remote-dom0 authorize " + f.name.text());
    if (f.key_problem) {
        finding out = broken(*f.key_problem, "qvm-remote-dom0 authorize " + f.name.text());
        // What others could only read is not changed. What they could write may be theirs.
        out.fixable = S_ISREG(f.key_file.mode) && f.key_file.owner == ::geteuid() &&
                      f.key_file.has(of_others) && !f.key_file.has(written_by_others);
        return out;
    }
    if (f.expires_in_s && *f.expires_in_s < soon_s)
        return doubtful("its key expires in " + std::to_string(*f.expires_in_s / 60) + " minutes",
                        "qvm-remote-dom0 authorize " + f.name.text());
    return good(f.fingerprint);
}

found served(const qube_facts &f) {
    if (!f.listed)
        return doubtful("it has a key and is not served: QVM_REMOTE_VMS does not list it",
                        "qvm-remote-dom0 connect or revoke " + f.name.text());
    return {};
}

found level(const qube_facts &f) {
    if (f.level == "none")
        return broken("it has a key, and no rule allows it anything",
                      "qvm-remote-dom0 authorize " + f.name.text() + " --level LEVEL");
    if (f.level == "deny")
        return doubtful("policy denies it everything", "qvm-remote-dom0 authorize " +
                                                           f.name.text() +
                                                           " --level LEVEL, or revoke it");
    return f.level.empty() ? found() : good("level " + f.level);
}

found call(const qube_facts &f) {
    if (f.runs == false)
        return good("it does not run");
    if (!f.by_qvm_run || !f.runs || !f.machine->daemon || f.key_problem || !f.listed)
        return {};
    if (f.connected)
        return good("connected");
    if (f.probe && !*f.probe)
        return broken("it runs and cannot be called: " + for_terminal(f.probe->error().what),
                      "qvm-run " + f.name.text() + " true");
    return broken("it runs and is not connected: no agent of it answers",
                  "qvm-remote-dom0 log says why; the next try is within a minute");
}

// The word of a qube that was asked and answered.
const probe_facts *said_by(const qube_facts &f) {
    return f.probe && *f.probe ? &**f.probe : nullptr;
}

found agent(const qube_facts &f) {
    const probe_facts *const said = said_by(f);
    if (!said || (said->agent.empty() && !f.by_qvm_run))
        return {};
    if (said->agent.empty())
        return doubtful("it has no agent, so it can use only protocol 1",
                        "install the package qvm-remote in its template");
    if (said->agent != f.machine->version)
        return doubtful("its agent is version " + said->agent + ", and dom0 has " +
                            f.machine->version,
                        "update qvm-remote where it is older");
    return good("agent " + said->agent);
}

found qube_key(const qube_facts &f) {
    const probe_facts *const said = said_by(f);
    if (!said || f.key_problem)
        return {};
    if (said->key_mode == "none")
        return broken("there is no key in the qube", "call qvm-remote key gen there, then "
                                                     "qvm-remote-dom0 authorize " +
                                                         f.name.text() + " --fetch here");
    if (said->key_is_ours == false)
        return broken("the qube has another key than the one registered here",
                      "qvm-remote-dom0 authorize " + f.name.text() + " --fetch, if that is right");
    if (said->key_mode != "600" && said->key_mode != "400")
        return broken("the key in the qube has mode " + said->key_mode,
                      "call qvm-remote doctor --fix in the qube");
    return good("the qube has this key");
}

found qube_files(const qube_facts &f) {
    const probe_facts *const said = said_by(f);
    constexpr std::uint64_t little_kib = 16 * 1024;
    if (!said)
        return {};
    if (!said->links.empty())
        return broken("symbolic links in its ~/.qvm-remote: " + joined(said->links),
                      "remove them in the qube");
    if (said->free_kib && *said->free_kib < little_kib)
        return doubtful("its home has " + std::to_string(*said->free_kib) + " KiB free",
                        "make room there");
    return {};
}

found qube_clock(const qube_facts &f) {
    const probe_facts *const said = said_by(f);
    if (!said || !said->time)
        return {};
    const std::int64_t ahead = *said->time - said->answered_at,
                       behind = said->asked_at - *said->time;
    if (ahead > clock_tolerance_s || behind > clock_tolerance_s)
        return doubtful("its clock is " + std::to_string(std::max(ahead, behind)) + " s " +
                            (ahead > 0 ? "ahead of" : "behind") + " dom0's",
                        "set it there: sudo qvm-sync-clock");
    return good("its clock agrees with dom0's");
}

host::outcome<void> fix_key(const qube_facts &f) { return narrow_mode(f.key_file.path, 0600); }

} // namespace

std::span<const health_check<machine_facts>> machine_checks() {
    static constexpr health_check<machine_facts> table[] = {
        {"program", program},     {"daemon", daemon_check},
        {"panic", panic},         {"settings", settings_check},
        {"transport", transport}, {"programs", programs},
        {"qubesd", qubesd},       {"keys", keys, fix_keys},
        {"policy", policy_check}, {"audit", audit, fix_audit},
        {"log", log_check},       {"journal", system_journal},
        {"disk", disk},           {"clock", clock},
        {"cgroups", cgroups},
    };
    return table;
}

std::span<const health_check<qube_facts>> qube_checks() {
    static constexpr health_check<qube_facts> table[] = {
        {"key", key, fix_key}, {"served", served},     {"policy", level},     {"call", call},
        {"agent", agent},      {"qube-key", qube_key}, {"files", qube_files}, {"clock", qube_clock},
    };
    return table;
}

} // namespace qvmremote::dom0
