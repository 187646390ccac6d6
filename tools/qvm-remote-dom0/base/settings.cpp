// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/settings.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/host/environment.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/sanitize.hpp>

extern char **environ;

namespace qvmremote::dom0 {

namespace {

// Reads QVM_REMOTE_AUDIT_*: whole numbers of mebibytes and days.
host::outcome<audit_limits> audit_limits_of(const config &values) {
    audit_limits out;
    std::uint64_t kept_days = static_cast<std::uint64_t>(out.kept_s) / 86400;
    const struct {
        std::string_view key;
        std::uint64_t &value;
        std::uint64_t unit;
    } rows[] = {
        {"QVM_REMOTE_AUDIT_FILE_MIB", out.file_bytes, 1024 * 1024},
        {"QVM_REMOTE_AUDIT_KEEP_MIB", out.kept_bytes, 1024 * 1024},
        {"QVM_REMOTE_AUDIT_KEEP_DAYS", kept_days, 1},
        {"QVM_REMOTE_AUDIT_QUBE_MIB", out.qube_bytes_per_day, 1024 * 1024},
    };
    for (const auto &row : rows) {
        const auto text = values.get(row.key);
        if (!text)
            continue;
        const auto number = parse_positive(*text);
        if (!number)
            return host::failed(std::string(row.key) + ": '" + for_terminal(*text, 32) +
                                "' is not a whole number above 0");
        row.value = std::uint64_t{*number} * row.unit;
    }
    out.kept_s = static_cast<std::int64_t>(kept_days) * 86400;
    return out;
}

} // namespace

host::outcome<paths> paths::below(const std::string &dir) {
    if (dir.empty() || dir[0] != '/')
        return host::failed("--root takes an absolute path, not '" + for_terminal(dir) + "'");
    std::string root = dir;
    while (root.size() > 1 && root.back() == '/')
        root.pop_back();
    if (root == "/")
        return host::failed("--root / is the real thing: leave --root out");
    auto opened = host::open_trusted(root, host::trusted::directory);
    if (!opened)
        return tl::unexpected(opened.error());
    struct stat st {};
    if (::fstat(opened->get(), &st) != 0)
        return host::failed("cannot look at " + root, errno);
    if (st.st_uid != ::geteuid() || (st.st_mode & 077) != 0)
        return host::failed(root + " must be yours and closed to others: chmod 700 " + root);
    paths out;
    out.root_ = std::move(root);
    return out;
}

namespace {

void add_once(std::vector<std::string> &to, std::string_view name) {
    if (std::find(to.begin(), to.end(), name) == to.end())
        to.emplace_back(name);
}

void add_names(std::vector<std::string> &to, std::string_view list) {
    while (!list.empty()) {
        const std::size_t end = std::min(list.find('+'), list.size());
        const std::string_view name = list.substr(0, end);
        list.remove_prefix(std::min(end + 1, list.size()));
        if (name == "both") {
            add_once(to, "qvm-run");
            add_once(to, "qrexec");
        } else if (!name.empty()) {
            add_once(to, name);
        }
    }
}

} // namespace

transport_choice transport_choice::parse(std::string_view spec) {
    transport_choice out;
    const std::vector<std::string_view> words = split_words(spec);
    for (const std::string_view word : words)
        if (word.find('=') == word.npos)
            add_names(out.common_, word);
    if (out.common_.empty())
        out.common_.emplace_back("qvm-run");
    out.all_ = out.common_;
    for (const std::string_view word : words) {
        const std::size_t equals = word.find('=');
        if (equals == word.npos || equals == 0)
            continue;
        std::vector<std::string> names;
        add_names(names, word.substr(equals + 1));
        if (!names.empty())
            out.own_[std::string(word.substr(0, equals))] = std::move(names);
    }
    for (const auto &[qube, names] : out.own_)
        for (const std::string &name : names)
            add_once(out.all_, name);
    return out;
}

bool transport_choice::serves(std::string_view transport, std::string_view qube) const {
    const auto own = own_.find(qube);
    const std::vector<std::string> &names = own == own_.end() ? common_ : own->second;
    return std::find(names.begin(), names.end(), transport) != names.end();
}

std::string transport_choice::text() const {
    std::string out;
    for (const std::string &name : all_)
        out += (out.empty() ? "" : ", ") + name;
    return out;
}

namespace {

// The settings of the programs before 1.0. For those programs an empty value meant none.
constexpr std::string_view old_keys[] = {
    "QVM_REMOTE_VMS", "QVM_REMOTE_VM_USER", "QVM_REMOTE_VM", "QUBES_REMOTE_VMS", "QUBES_REMOTE_VM",
};
constexpr std::string_view new_keys[] = {
    "QVM_REMOTE_PROTOCOL",        "QVM_REMOTE_TRANSPORT",      "QVM_REMOTE_QVM_TAGS",
    "QVM_REMOTE_NOTIFY",          "QVM_REMOTE_AUDIT_FILE_MIB", "QVM_REMOTE_AUDIT_KEEP_MIB",
    "QVM_REMOTE_AUDIT_KEEP_DAYS", "QVM_REMOTE_AUDIT_QUBE_MIB", "QVM_REMOTE_MAX_MEMORY",
    "QVM_REMOTE_MAX_PROCESSES",   "QVM_REMOTE_MAX_CPU",        "QVM_REMOTE_MAX_OUTPUT",
    "QVM_REMOTE_JOB_OUTPUT",      "QVM_REMOTE_JOBS_OUTPUT",    "QVM_REMOTE_JOBS_KEEP_DAYS",
    "QVM_REMOTE_JOBS_CGROUP",
};

[[nodiscard]] bool is_one_of(std::span<const std::string_view> keys, std::string_view key) {
    return std::find(keys.begin(), keys.end(), key) != keys.end();
}
[[nodiscard]] bool is_new(std::string_view key) {
    return is_one_of(new_keys, key) || key.starts_with("QVM_REMOTE_MOCK_") ||
           key.starts_with("QVM_REMOTE_QVM_RUN_") || key.starts_with("QVM_REMOTE_QREXEC_");
}

// A setting that has no effect, though somebody wanted one, is a failure. A key of another program,
// or an old name, is a warning.
host::outcome<void> check_keys(const std::string &path, const config &values,
                               std::vector<std::string> &warnings) {
    for (const auto &[key, value] : values.entries()) {
        const bool is_exported = key.starts_with("export") && key.find_first_of(" \t") != key.npos;
        const std::string_view name =
            is_exported ? std::string_view(key).substr(key.find_last_of(" \t") + 1) : key;
        if (is_new(name) && is_exported)
            return host::failed(path + ": write " + std::string(name) + "=... without 'export'");
        if (is_new(name) && value.empty())
            return host::failed(path + ": " + key +
                                " is empty: give it a value, or remove the line");
        if (!is_new(key) && !is_one_of(old_keys, key))
            warnings.push_back(path + ": " + for_terminal(key) +
                               " is not a setting of ours and is ignored");
    }
    for (const std::string_view key : {"QUBES_REMOTE_VMS", "QUBES_REMOTE_VM"})
        if (values.get(key))
            warnings.push_back(path + ": " + std::string(key) +
                               " is used; its name is QVM_REMOTE_VMS now");
    return {};
}

} // namespace

host::outcome<settings> load_settings(const paths &where, const std::string &vm,
                                      const std::string &transport) {
    settings out;
    auto text = host::read_trusted(where.config(), host::trusted::file, limits::config_file);
    if (text) {
        auto parsed = config::parse(*text);
        if (!parsed)
            return host::failed(where.config() + ":" +
                                std::to_string(config::line_of(*text, parsed.error().offset)) +
                                ": " + std::string(message(parsed.error().code)));
        out.values = std::move(*parsed);
    } else if (text.error().error_number != ENOENT) {
        return tl::unexpected(text.error());
    }
    if (auto good = check_keys(where.config(), out.values, out.warnings); !good)
        return tl::unexpected(good.error());
    host::overlay_environment(out.values, environ);
    // The name that the Python daemon used for the user in a qube whose home has the queue. Its
    // default was `user`.
    if (const auto user = out.values.get("QVM_REMOTE_VM_USER");
        user && *user != "user" && !out.values.get("QVM_REMOTE_QVM_RUN_USER"))
        out.values.set("QVM_REMOTE_QVM_RUN_USER", *user);

    if (auto audit = audit_limits_of(out.values))
        out.audit = *audit;
    else
        return tl::unexpected(audit.error());
    if (!vm.empty())
        out.values.set("QVM_REMOTE_VMS", vm);
    for (const std::string_view listed : listed_qubes(out.values)) {
        if (!out.qubes)
            out.qubes.emplace();
        if (auto qube = qube_name::parse(listed))
            out.qubes->push_back(std::move(*qube));
        else
            out.ignored.emplace_back(listed);
    }
    // A ceiling that cannot be parsed is a failure: without it, commands would have no limit.
    const auto ceiling = [&](const char *key, bool is_size) -> host::outcome<std::uint64_t> {
        const auto value = out.values.get(key);
        if (!value)
            return 0;
        if (is_size)
            if (const auto size = parse_size(*value))
                return *size;
        if (!is_size)
            if (const auto count = parse_count(*value))
                return *count;
        return host::failed(std::string(key) + "='" + for_terminal(*value, 64) + "' is not a " +
                            (is_size ? "size: a number, which K, M or G may follow; 1 PiB at most"
                                     : "number from 1 to 1000000"));
    };
    const auto memory = ceiling("QVM_REMOTE_MAX_MEMORY", true);
    const auto pids = ceiling("QVM_REMOTE_MAX_PROCESSES", false);
    const auto cpu = ceiling("QVM_REMOTE_MAX_CPU", false);
    const auto output = ceiling("QVM_REMOTE_MAX_OUTPUT", true);
    for (const auto *one : {&memory, &pids, &cpu, &output})
        if (!*one)
            return tl::unexpected(one->error());
    out.ceiling.most = {*memory, static_cast<std::uint32_t>(*pids),
                        static_cast<std::uint32_t>(*cpu)};
    out.ceiling.output_bytes = *output;

    const auto job_output = ceiling("QVM_REMOTE_JOB_OUTPUT", true);
    const auto jobs_output = ceiling("QVM_REMOTE_JOBS_OUTPUT", true);
    const auto job_days = ceiling("QVM_REMOTE_JOBS_KEEP_DAYS", false);
    for (const auto *one : {&job_output, &jobs_output, &job_days})
        if (!*one)
            return tl::unexpected(one->error());
    if (*job_output != 0)
        out.jobs.job_bytes = *job_output;
    if (*jobs_output != 0)
        out.jobs.qube_bytes = *jobs_output;
    if (*job_days != 0)
        out.jobs.kept_s = static_cast<std::int64_t>(*job_days) * 86400;

    out.transports = transport_choice::parse(
        transport.empty() ? out.values.get("QVM_REMOTE_TRANSPORT").value_or("") : transport);
    return out;
}

} // namespace qvmremote::dom0
