// SPDX-License-Identifier: GPL-2.0-or-later
#include "administer/doctor/facts.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <ctime>
#include <iterator>
#include <utility>

#include <fcntl.h>
#include <limits.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include <qvmremote/amounts.hpp>
#include <qvmremote/digest.hpp>
#include <qvmremote/history.hpp>
#include <qvmremote/host/environment.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/host/plugin.hpp>
#include <qvmremote/host/unix_socket.hpp>
#include <qvmremote/sanitize.hpp>

#include "base/qubesd.hpp"
#include "common/helper.hpp"
#include "common/installed.hpp"
#include "decide/keyring.hpp"
#include "decide/panic.hpp"
#include "decide/policy_files.hpp"
#include "decide/tags.hpp"
#include "serve/control.hpp"

namespace qvmremote::dom0 {

namespace {

using nlohmann::json;
using namespace std::string_literals;

constexpr int daemon_answers_within_s = 5;
constexpr std::chrono::seconds probe_limit{15};
constexpr std::size_t longest_probe = 4096;

// Fixed text for the shell in a qube. Each line that it prints is a word and a value. It reads no
// stdin, since that is the rest of the shell's input.
constexpr const char *probe =
    "{ a=$(command -v qvm-remote-agent || echo /usr/lib/qvm-remote/qvm-remote-agent)\n"
    "v=$(\"$a\" --version 2>/dev/null </dev/null) && echo \"agent ${v##* }\"\n"
    "echo \"time $(date +%s)\"\n"
    "df -Pk ~ | { read -r x; read -r x x x free x; echo \"free $free\"; }\n"
    "cd ~/.qvm-remote 2>/dev/null && for p in . auth.key queue queue/pending queue/running "
    "queue/results; do [ ! -L \"$p\" ] || echo \"link $p\"; done\n"
    "if [ -f auth.key ]; then echo \"mode $(stat -c %a auth.key)\"\n"
    "echo \"mark $(tr -d ' \\t\\r\\n' <auth.key | sha256sum)\"; else echo mode none; fi\n"
    "echo end\n}";

host::outcome<void> without_value(const host::outcome<host::unique_fd> &opened) {
    return opened ? host::outcome<void>() : tl::unexpected(opened.error());
}

// Whether lines can be appended to a file. A file that is not there can be made.
host::outcome<void> appendable(const std::string &path) {
    const host::unique_fd fd(
        ::open(path.c_str(), O_WRONLY | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    if (fd || errno == ENOENT)
        return {};
    return host::failed("cannot write to " + for_terminal(path), errno);
}

host::outcome<daemon_facts> ask_for_facts(const paths &where) {
    const auto answer = ask_daemon(where, "status json", daemon_answers_within_s);
    if (!answer)
        return tl::unexpected(answer.error());
    const json said = json::parse(*answer, nullptr, false);
    if (!said.is_object())
        return tl::unexpected(host::failure{"the daemon that runs is of an older version", EPROTO});
    daemon_facts out;
    out.version = for_terminal(said.value("version", ""), 64);
    out.trouble = said.value("trouble", "");
    out.policy_trouble = said.value("policy", std::vector<std::string>{});
    for (const json &qube : said.value("qubes", json::array()))
        if (qube.value("connected", false))
            out.connected.push_back(qube.value("qube", ""));
    out.cgroups = said.value("cgroups", false);
    out.containment = said.value("containment", "");
    out.draining = said.value("draining", false);
    out.dry_run = said.value("dry_run", false);
    return out;
}

void look_at_records(const paths &where, machine_facts &out) {
    out.audit_directory = look_at(where.audit_directory());
    if (out.audit_directory.error != ENOENT) {
        out.audit =
            without_value(host::open_trusted(where.audit_directory(), host::trusted::directory));
        const auto file = host::open_trusted(where.audit(), host::trusted::secret);
        if (out.audit && !file && file.error().error_number != ENOENT)
            out.audit = tl::unexpected(file.error());
        for (const std::string &path : {where.audit(), where.audit_lock()})
            if (out.audit)
                out.audit = appendable(path);
        if (struct stat at{}; file && ::fstat(file->get(), &at) == 0)
            out.audit_is_ahead_s = at.st_mtime - ::time(nullptr);
    }
    out.log = appendable(where.log());
    for (const std::string &directory : {where.audit_directory(), where.state_directory()})
        if (::access(directory.c_str(), F_OK) == 0)
            out.rooms.push_back(room_in(directory));
}

// What a transport's option says, or the other value.
std::string option_of(const settings &values, const std::string &transport, const std::string &key,
                      const std::string &otherwise) {
    for (const auto &[name, value] : host::options_of(values.values, transport))
        if (name == key)
            return value;
    return otherwise;
}

bool has(const std::vector<std::string> &all, const std::string &one) {
    return std::find(all.begin(), all.end(), one) != all.end();
}

void look_at_settings(const daemon_options &how, const settings &values, machine_facts &out) {
    out.settings_warnings = values.warnings;
    for (const std::string &name : values.ignored)
        if (name != "-")
            out.settings_warnings.push_back("'" + for_terminal(name, 64) +
                                            "' in QVM_REMOTE_VMS is not the name of a qube");
    const std::vector<std::string> &names = values.transports.all();
    for (const std::string &name : names) {
        transport_facts one{name, host::trusted_plugin(how.plugin_directory, name), {}};
        if (name == "qrexec") {
            const auto connected =
                host::connect_unix(option_of(values, name, "socket", how.where.qrexec_socket()));
            one.socket_error = connected ? 0 : connected.error().error_number;
        }
        out.transports.push_back(std::move(one));
    }
    out.programs = {"/usr/bin/bash"};
    if (how.where.is_real())
        out.programs.insert(out.programs.end(), {"/usr/bin/systemctl", "/usr/bin/journalctl"});
    if (has(names, "qvm-run")) {
        out.programs.push_back(option_of(values, "qvm-run", "qvm-run", "/usr/bin/qvm-run"));
        out.programs.push_back(option_of(values, "qvm-run", "qvm-check", "/usr/bin/qvm-check"));
        if (const auto client = option_of(values, "qvm-run", "qrexec-client", "none");
            client != "none")
            out.programs.push_back(client);
    }
    for (const std::string &program : out.programs)
        if (::access(program.c_str(), X_OK) != 0)
            out.missing.push_back(program);
    if (has(names, "qvm-run") || has(names, "qrexec"))
        out.qubesd = tag_origin::of(values, how.where).qubesd;
    if (out.qubesd.empty())
        return;
    const auto answer = ask_qubesd(out.qubesd, "admin.vm.List", "dom0");
    if (!answer)
        out.qubesd_answers = tl::unexpected(answer.error());
    else if (!*answer)
        out.qubesd_answers = host::failed("qubesd does not answer at " + out.qubesd);
    else if (!(*answer)->starts_with("0\0"s))
        out.qubesd_answers = host::failed("qubesd does not list the qubes");
}

} // namespace

machine_facts gather_machine(const daemon_options &how) {
    machine_facts out;
    out.where = how.where;
    out.version = QVMREMOTE_VERSION;
    char path[PATH_MAX];
    const ssize_t size = ::readlink("/proc/self/exe", path, sizeof path);
    out.program.assign(path, size > 0 ? static_cast<std::size_t>(size) : 0);
    out.program_is_ours = without_value(host::open_trusted(out.program, host::trusted::file));
    out.daemon = ask_for_facts(how.where);
    out.panic = is_panic(how.where);
    if (const auto values = load_settings(how.where, how.vm, how.transport))
        look_at_settings(how, *values, out);
    else
        out.settings_read = tl::unexpected(values.error());
    out.rules = policy_files(how.where.policy()).load();
    if (out.rules)
        out.policy_doubts = out.rules->doubts().size();
    out.keys = look_at(how.where.keys());
    if (const auto qubes = keyring(how.where.keys()).list())
        out.key_count = qubes->size();
    else
        out.keys_read = tl::unexpected(qubes.error());
    look_at_records(how.where, out);
    if (how.where.is_real()) {
        const auto journal = host::connect_unix(how.where.system_journal(), SOCK_DGRAM);
        out.system_journal_error = journal ? 0 : journal.error().error_number;
    }
    return out;
}

namespace {

std::optional<bool> runs(const machine_facts &machine, const settings &values,
                         const qube_name &qube) {
    if (!machine.qubesd.empty() && machine.qubesd_answers) {
        const auto answer = ask_qubesd(machine.qubesd, "admin.vm.CurrentState", qube.text());
        if (answer && *answer)
            return qubesd_word(**answer, "power_state") == "Running";
    }
    if (!has(values.transports.all(), "qvm-run"))
        return std::nullopt;
    const std::string check = option_of(values, "qvm-run", "qvm-check", "/usr/bin/qvm-check");
    const auto checked = run_helper({check, "--quiet", "--running", qube.text()}, longest_probe,
                                    probe_limit, helper_messages::dropped);
    return checked ? std::optional(checked->exit_code == 0) : std::nullopt;
}

probe_facts parse_probe(std::string_view untrusted, const std::vector<std::string> &marks) {
    probe_facts out;
    for (const std::string_view line : tail_lines(untrusted, SIZE_MAX)) {
        const std::size_t blank = std::min(line.find(' '), line.size());
        const std::string_view key = line.substr(0, blank);
        const std::string_view value = line.substr(std::min(blank + 1, line.size()));
        if (key == "agent")
            out.agent = for_terminal(value, 64);
        else if (key == "time")
            out.time = qvmremote::parse_decimal<std::int64_t>(value);
        else if (key == "free")
            out.free_kib = qvmremote::parse_decimal<std::uint64_t>(value);
        else if (key == "mode")
            out.key_mode = for_terminal(value, 16);
        else if (key == "link")
            out.links.push_back(for_terminal(value, 64));
        else if (key == "mark" && !marks.empty())
            out.key_is_ours = has(marks, std::string(value.substr(0, value.find(' '))));
    }
    return out;
}

host::outcome<probe_facts> ask_qube(const settings &values, const qube_name &qube,
                                    const std::vector<std::string> &marks) {
    const std::string program = option_of(values, "qvm-run", "qvm-run", "/usr/bin/qvm-run");
    const std::int64_t asked_at = ::time(nullptr);
    const auto said =
        run_helper({program, "--no-gui", "--no-autostart", "--pass-io", qube.text(), probe},
                   longest_probe, probe_limit, helper_messages::dropped);
    if (!said)
        return tl::unexpected(said.error());
    if (said->exit_code != 0)
        return host::failed(program + " ended with " + std::to_string(said->exit_code));
    probe_facts out = parse_probe(said->untrusted_output, marks);
    out.asked_at = asked_at;
    out.answered_at = ::time(nullptr);
    return out;
}

} // namespace

std::vector<qube_facts> gather_qubes(const daemon_options &how, const machine_facts &machine) {
    const keyring ring(how.where.keys());
    auto names = ring.list().value_or(std::vector<qube_name>{});
    const auto values = load_settings(how.where, how.vm, how.transport);
    const std::int64_t now = ::time(nullptr);
    if (values && values->qubes)
        for (const qube_name &listed : *values->qubes)
            if (std::find(names.begin(), names.end(), listed) == names.end())
                names.push_back(listed);
    std::vector<qube_facts> out;
    for (const qube_name &name : names) {
        qube_facts one{.machine = &machine, .name = name};
        one.key_file = look_at(how.where.keys() + "/" + name.text() + ".key");
        std::vector<std::string> marks;
        if (const auto keys = ring.usable(name, now)) {
            one.fingerprint = keys->front().fingerprint();
            for (const secret &key : *keys)
                marks.push_back(to_hex(sha256(key.text())));
        } else {
            one.key_problem = keys.error();
        }
        if (const auto until = ring.until(name); until && !one.key_problem)
            one.expires_in_s = *until - now;
        if (machine.rules)
            one.level = level_word(*machine.rules, name);
        if (values) {
            one.listed = !values->qubes || std::find(values->qubes->begin(), values->qubes->end(),
                                                     name) != values->qubes->end();
            one.by_qvm_run = values->transports.serves("qvm-run", name.text());
            if (one.by_qvm_run || values->transports.serves("qrexec", name.text()))
                one.runs = runs(machine, *values, name);
            if (one.runs == true)
                one.probe = ask_qube(*values, name, marks);
        }
        one.connected = machine.daemon && has(machine.daemon->connected, name.text());
        out.push_back(std::move(one));
    }
    return out;
}

} // namespace qvmremote::dom0
