// SPDX-License-Identifier: GPL-2.0-or-later
// Looks at the machine for the checks, so this needs Boost, for the plug-in's symbols.
#include "doctor/facts.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <utility>

#include <fcntl.h>
#include <limits.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/host/files.hpp>
#include <qvmremote/host/plugin.hpp>
#include <qvmremote/host/unix_socket.hpp>
#include <qvmremote/sanitize.hpp>

#include "arguments.hpp"
#include "common/installed.hpp"
#include "report.hpp"

namespace qvmremote::qube {

namespace {

constexpr std::int64_t stuck_after_s = 60; // dom0 takes an entry within a second

std::string own_path() {
    char path[PATH_MAX];
    const ssize_t size = ::readlink("/proc/self/exe", path, sizeof path);
    return {path, size > 0 ? static_cast<std::size_t>(size) : 0};
}

// The agent that dom0 would start: the first one in the PATH, else that of the package.
std::string installed_agent() {
    constexpr std::string_view name = "/qvm-remote-agent";
    std::string places(std::getenv("PATH") ? std::getenv("PATH") : "");
    places += ":" QVMREMOTE_LIBEXEC_DIR ":/usr/lib/qvm-remote";
    if (const std::string built = build_directory(); !built.empty())
        places += ":" + built + "/tools/qvm-remote-agent";
    for (std::string_view left = places; !left.empty();) {
        const std::size_t end = std::min(left.find(':'), left.size());
        const std::string path = std::string(left.substr(0, end)) + std::string(name);
        left.remove_prefix(std::min(end + 1, left.size()));
        if (path.front() == '/' && ::access(path.c_str(), X_OK) == 0)
            return path;
    }
    return {};
}

agent_facts look_at_agent(const settings &how, const home &where) {
    agent_facts out;
    out.socket = how.values.get("QVM_REMOTE_QVM_RUN_SOCKET").value_or(where.agent_socket());
    const auto connected = host::connect_unix(out.socket, SOCK_STREAM | SOCK_NONBLOCK);
    ucred who{};
    socklen_t size = sizeof who;
    if (!connected)
        out.error = connected.error().error_number;
    else if (::getsockopt(connected->get(), SOL_SOCKET, SO_PEERCRED, &who, &size) == 0)
        out.pid = who.pid;
    if (out.pid > 0) // works for a program that an upgrade has removed, too
        out.running = ask_version("/proc/" + std::to_string(out.pid) + "/exe");
    if (const std::string path = installed_agent(); !path.empty())
        out.installed = ask_version(path);
    else
        out.installed.version = host::failed("there is none", ENOENT);
    return out;
}

std::size_t count_old(const std::string &directory) {
    std::size_t out = 0;
    const std::int64_t now = ::time(nullptr);
    for (const std::string &name : host::names_in(directory).value_or(std::vector<std::string>{}))
        if (struct stat at{};
            !name.starts_with('.') && ::lstat((directory + "/" + name).c_str(), &at) == 0)
            out += now - at.st_mtime > stuck_after_s;
    return out;
}

void look_at_home(const home &where, facts &out) {
    out.directory = look_at(where.directory());
    out.key_file = look_at(where.key_file());
    if (S_ISDIR(out.directory.mode))
        out.room = room_in(where.directory());
    if (const auto key = where.load_key())
        out.fingerprint = key->fingerprint();
    else
        out.key_problem = for_terminal(key.error().what);
    for (const char *part : {"", "/pending", "/running", "/results"})
        out.queue.push_back(look_at(where.queue() + part));
    out.old_entries = count_old(where.queue() + "/pending");
    for (const std::string &path : {where.audit_log(), where.history()}) {
        out.own_records.push_back(look_at(path));
        if (out.own_records.back().exists() && out.unwritable_record.empty() &&
            ::access(path.c_str(), W_OK) != 0)
            out.unwritable_record = path;
    }
}

// Whether it makes sense to ask: every link before dom0 holds. Without an agent, dom0 may still
// serve the queue of protocol 1.
bool may_ask(const facts &so_far, const settings &how, const home &where) {
    if (so_far.plugin_problem || so_far.is_dom0 ||
        (!so_far.key_problem.empty() && !so_far.has_private_daemon))
        return false;
    return !so_far.agent || so_far.agent->error == 0 ||
           (how.version != allowed_protocol::two && !where.is_pinned());
}

} // namespace

std::string dom0_facts::value(std::string_view key) const {
    return for_terminal(answer.value(key).value_or(""), 256);
}

facts gather(const settings &typed, const home &where) {
    facts out;
    out.version = QVMREMOTE_VERSION;
    out.program = own_path();
    if (const auto ours = host::open_trusted(out.program, host::trusted::file); !ours)
        out.program_is_ours = tl::unexpected(ours.error());
    out.is_dom0 = ::access("/etc/qubes-release", F_OK) == 0;
    out.user = ::geteuid();
    settings how = typed;
    how.quiet = false;
    {
        const held_complaints said;
        const bool is_read = add_settings(how, where);
        (is_read ? out.settings_warning : out.settings_problem) = said.text();
    }
    const bool ready = out.settings_problem.empty();
    out.transport = how.transport;
    out.has_private_daemon = ready && how.transport == "mock" && !has_daemon(how);
    look_at_home(where, out);
    if (!ready)
        return out;
    out.has_queue = how.transport == "qvm-run";
    if (!has_compiled_in_transport(how)) {
        if (auto path = host::trusted_plugin(plugin_directory(how), how.transport))
            out.plugin = std::move(*path);
        else
            out.plugin_problem = path.error();
    }
    if (how.transport == "qrexec")
        out.call_program = look_at(std::string(
            how.values.get("QVM_REMOTE_QREXEC_CLIENT").value_or("/usr/bin/qrexec-client-vm")));
    if (how.transport == "qvm-run")
        out.agent = look_at_agent(how, where);
    if (!may_ask(out, how, where))
        return out;
    dom0_facts &dom0 = out.dom0.emplace();
    dom0.asked_at = ::time(nullptr);
    const held_complaints said;
    if (auto answer = converse(how, where, request_kind::status)) {
        dom0.answer = std::move(*answer);
        dom0.over = dom0.answer.over(how);
    } else {
        dom0.failure = said.text().empty() ? "dom0 did not answer" : said.text();
    }
    dom0.answered_at = ::time(nullptr);
    return out;
}

} // namespace qvmremote::qube
