// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/cgroups.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <qvmremote/amounts.hpp>
#include <qvmremote/host/files.hpp>

#include "execute/process_tree.hpp"

namespace qvmremote::dom0 {
namespace {

using host::unique_fd;

constexpr std::string_view own_group = "/daemon";
constexpr std::string_view command_prefix = "/command-";
constexpr std::string_view job_prefix = "/job-";
constexpr std::string_view keepers_group = "/keepers", holder_group = "/holder";
constexpr int cpu_period_us = 100'000;

[[nodiscard]] std::optional<std::string> text_of(const std::string &path) {
    const unique_fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd)
        return {};
    std::string out;
    char piece[4096];
    for (;;) {
        const ssize_t n = ::read(fd.get(), piece, sizeof piece);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return {};
        if (n == 0)
            return out;
        out.append(piece, static_cast<std::size_t>(n));
    }
}

// Writes one word to a file of a group. False, with errno, when the kernel refuses it.
[[nodiscard]] bool put(const std::string &path, std::string_view word) noexcept {
    const unique_fd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    ssize_t n = -1;
    do
        if (fd)
            n = ::write(fd.get(), word.data(), word.size());
    while (fd && n < 0 && errno == EINTR);
    return n == static_cast<ssize_t>(word.size());
}

template <class Take>
void for_each_line(std::string_view text, Take take) {
    while (!text.empty()) {
        const std::size_t end = std::min(text.find('\n'), text.size());
        take(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
}

// The name in the v2 hierarchy: the line "0::/NAME".
[[nodiscard]] std::optional<std::string> group_of(const std::string &process) {
    const auto text = text_of("/proc/" + process + "/cgroup");
    std::optional<std::string> out;
    if (text)
        for_each_line(*text, [&](std::string_view line) {
            if (line.starts_with("0::/"))
                out = line.substr(3);
        });
    return out;
}

// Where cgroup v2 is mounted: at /sys/fs/cgroup, or beside v1. A mount of only a part of the hierarchy
// does not count.
[[nodiscard]] std::optional<std::string> mount_point() {
    const auto text = text_of("/proc/self/mountinfo");
    std::optional<std::string> out;
    // ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [FIELD...] - TYPE SOURCE OPTIONS
    for_each_line(text.value_or(std::string()), [&](std::string_view line) {
        const std::size_t type = line.find(" - cgroup2 ");
        if (out || type == line.npos)
            return;
        std::vector<std::string_view> words;
        for (std::string_view left = line.substr(0, type); !left.empty();) {
            const std::size_t end = std::min(left.find(' '), left.size());
            words.push_back(left.substr(0, end));
            left.remove_prefix(std::min(end + 1, left.size()));
        }
        if (words.size() > 4 && words[3] == "/" && words[4].find('\\') == words[4].npos)
            out = words[4];
    });
    return out;
}

[[nodiscard]] bool is_delegated(const std::string &directory) {
    // systemd marks a group that it delegates; only root can read the first mark. To a user it
    // delegates a group by making the user its owner.
    for (const char *name : {"trusted.delegate", "user.delegate"}) {
        char value = 0;
        if (::getxattr(directory.c_str(), name, &value, 1) == 1 && value == '1')
            return true;
    }
    struct stat at {};
    return ::geteuid() != 0 && ::stat(directory.c_str(), &at) == 0 && at.st_uid == ::geteuid();
}

template <class Take>
void for_each_group_below(const std::string &directory, Take take) {
    for (const std::string &name :
         host::names_in(directory, host::listed::directories).value_or(std::vector<std::string>{}))
        take(directory + "/" + name);
}

// The processes in a group and in the groups below it, one a line.
[[nodiscard]] std::string processes_in(const std::string &directory) {
    std::string out = text_of(directory + "/cgroup.procs").value_or(std::string());
    for_each_group_below(directory, [&](const std::string &below) { out += processes_in(below); });
    return out;
}

[[nodiscard]] bool remove_group(const std::string &directory) {
    if (::rmdir(directory.c_str()) == 0 || errno == ENOENT)
        return true;
    for_each_group_below(directory, [](const std::string &below) { (void)remove_group(below); });
    return ::rmdir(directory.c_str()) == 0 || errno == ENOENT;
}

[[nodiscard]] cgroup_home none(std::string why) {
    cgroup_home out;
    out.why_none = std::move(why);
    return out;
}

[[nodiscard]] bool make_group(const std::string &directory, std::string_view name) {
    return ::mkdir((directory + std::string(name)).c_str(), 0755) == 0 || errno == EEXIST;
}

void enable_controllers(cgroup_home &home) {
    const auto enable = [&](const char *controller) {
        return put(home.directory + "/cgroup.subtree_control", controller);
    };
    home.memory = enable("+memory");
    home.pids = enable("+pids");
    home.cpu = enable("+cpu");
}

struct process_stat {
    pid_t parent = 0;
    int terminal = 0; // 0: none
};

[[nodiscard]] std::optional<process_stat> stat_of(pid_t pid) {
    const auto text = text_of("/proc/" + std::to_string(pid) + "/stat");
    // "PID (NAME) STATE PARENT GROUP SESSION TERMINAL ...": the name may hold any byte, also ")".
    const std::size_t name_end = text ? text->rfind(')') : std::string::npos;
    if (name_end == std::string::npos || text->size() < name_end + 5)
        return {};
    std::string_view left = std::string_view(*text).substr(name_end + 4);
    int fields[4] = {}; // parent, group, session, terminal
    for (int &field : fields) {
        const std::size_t end = left.find(' ');
        const auto number = parse_decimal<int>(left.substr(0, end));
        if (!number || end == left.npos)
            return {};
        field = *number;
        left.remove_prefix(end + 1);
    }
    return process_stat{fields[0], fields[3]};
}

} // namespace

std::string cgroup_home::describe() const {
    std::string unbounded;
    const auto add = [&](const char *resource) {
        unbounded += (unbounded.empty() ? "" : ", ") + std::string(resource);
    };
    if (!memory)
        add("memory (except of each process alone)");
    if (!pids)
        add("processes (except of a dedicated account)");
    if (!cpu)
        add("processor time");
    return (directory.empty() ? "commands have no cgroups: " + why_none
                              : "a cgroup for each command below " + name) +
           "; " +
           (unbounded.empty() ? "memory, processes and processor time can be limited"
                              : "cannot be limited: " + unbounded);
}

cgroup_home claim_cgroup() {
#if !defined(__x86_64__)
    return none("only on x86-64 can we start a process in one");
#endif
    const auto point = mount_point();
    if (!point)
        return none("cgroup v2 is not mounted");
    const auto name = group_of("self");
    if (!name)
        return none("this process is in no group of cgroup v2");
    if (*name == "/")
        return none("this process is in the root group");
    cgroup_home out;
    out.name = *name;
    out.directory = *point + *name;
    if (!is_delegated(out.directory))
        return none(*name + " is not delegated (Delegate=yes in the unit)");
    // The group of a terminal or a session also belongs to the user, but we must not divide it.
    if (text_of(out.directory + "/cgroup.procs") != std::to_string(::getpid()) + "\n")
        return none(*name + " holds other processes");
    for_each_group_below(out.directory, [&](const std::string &below) {
        if (std::string_view(below).substr(out.directory.size()).starts_with(command_prefix)) {
            (void)put(below + "/cgroup.kill", "1");
            (void)remove_group(below);
        }
    });
    // A kernel with this (5.14 or later) has everything else that is used here.
    if (::access((out.directory + "/cgroup.kill").c_str(), W_OK) != 0)
        return none("the kernel is too old");
    // A group with limits for the groups below it must not hold processes itself.
    if (!make_group(out.directory, own_group) ||
        !put(out.directory + std::string(own_group) + "/cgroup.procs", "0"))
        return none(*name + " cannot be divided: " + std::strerror(errno));
    enable_controllers(out);
    return out;
}

cgroup_home claim_jobs_cgroup(const std::string &name) {
    const auto not_now = [&](std::string why) {
        cgroup_home out = none(std::move(why));
        out.name = name; // for claim_jobs_cgroup_again
        return out;
    };
    if (name.empty())
        return none("QVM_REMOTE_JOBS_CGROUP names none");
#if !defined(__x86_64__)
    return none("only on x86-64 can we start a process in one");
#endif
    const auto point = mount_point();
    if (!point)
        return not_now("cgroup v2 is not mounted");
    cgroup_home out;
    out.name = name;
    out.directory = *point + name;
    if (name[0] != '/' || name.find("/.") != name.npos)
        return none(name + " is not the name of a group");
    if (!is_delegated(out.directory))
        return not_now(name + " is not there, or not delegated: systemctl start qvm-remote-jobs");
    if (::access((out.directory + "/cgroup.kill").c_str(), W_OK) != 0)
        return none("the kernel is too old");
    if (!make_group(out.directory, keepers_group) || !make_group(out.directory, holder_group))
        return not_now(name + " cannot be divided: " + std::strerror(errno));
    for_each_line(text_of(out.directory + "/cgroup.procs").value_or(std::string()),
                  [&](std::string_view pid) {
                      (void)put(out.directory + std::string(holder_group) + "/cgroup.procs", pid);
                  });
    enable_controllers(out);
    return out;
}

void claim_jobs_cgroup_again(cgroup_home &jobs) {
    const bool is_as_claimed =
        jobs && ::access((jobs.directory + std::string(keepers_group)).c_str(), F_OK) == 0;
    if (!is_as_claimed && !jobs.name.empty())
        jobs = claim_jobs_cgroup(std::string(jobs.name));
}

host::outcome<void> join_keepers(const cgroup_home &jobs) {
    if (!put(jobs.directory + std::string(keepers_group) + "/cgroup.procs", "0"))
        return host::failed("cannot join " + jobs.name, errno);
    return {};
}

bool is_keeper_of_jobs(pid_t pid, const cgroup_home &jobs) {
    return jobs && group_of(std::to_string(pid)) == jobs.name + std::string(keepers_group);
}

void end_other_jobs(const cgroup_home &jobs,
                    const std::function<bool(std::string_view)> &is_known) {
    if (!jobs)
        return;
    for_each_group_below(jobs.directory, [&](const std::string &below) {
        const std::string_view name = std::string_view(below).substr(jobs.directory.size());
        if (!name.starts_with(job_prefix) || is_known(name.substr(job_prefix.size())))
            return;
        (void)put(below + "/cgroup.kill", "1");
        (void)remove_group(below);
    });
}

command_cgroup::command_cgroup(const cgroup_home &home, std::uint64_t number) {
    if (home)
        path_ = home.directory + std::string(command_prefix) + std::to_string(number);
}

command_cgroup::command_cgroup(const cgroup_home &jobs, const std::string &name) {
    if (jobs)
        path_ = jobs.directory + std::string(job_prefix) + name;
}

host::outcome<void> command_cgroup::make() const {
    if (path_.empty() || ::mkdir(path_.c_str(), 0755) == 0)
        return {};
    // An earlier daemon left it, and its last process did not die at once.
    if (errno == EEXIST && remove() && ::mkdir(path_.c_str(), 0755) == 0)
        return {};
    return host::failed("cannot make " + path_, errno);
}

host::outcome<void> command_cgroup::limit(const resources &most, const cgroup_home &home) const {
    if (path_.empty())
        return {};
    const auto set = [&](bool can, std::uint64_t wanted, const char *file,
                         const std::string &value) {
        return !can || wanted == 0 || put(path_ + file, value);
    };
    const std::string quota =
        std::to_string(std::uint64_t{most.cpu_percent} * cpu_period_us / 100) + " " +
        std::to_string(cpu_period_us);
    if (!set(home.memory, most.memory_bytes, "/memory.max", std::to_string(most.memory_bytes)) ||
        !set(home.pids, most.pids, "/pids.max", std::to_string(most.pids)) ||
        !set(home.cpu, most.cpu_percent, "/cpu.max", quota))
        return host::failed("cannot set the limits of " + path_, errno);
    // Not every kernel has these. If one process of a command is out of memory, all of it ends.
    (void)set(home.memory, most.memory_bytes, "/memory.swap.max", "0");
    (void)set(home.memory, most.memory_bytes, "/memory.oom.group", "1");
    return {};
}

host::outcome<unique_fd> command_cgroup::open() const {
    if (path_.empty())
        return unique_fd();
    unique_fd out(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!out)
        return host::failed("cannot open " + path_, errno);
    return out;
}

bool command_cgroup::out_of_memory() const {
    bool out = false;
    if (!path_.empty())
        for_each_line(text_of(path_ + "/memory.events").value_or(std::string()),
                      [&](std::string_view line) {
                          out = out || (line.starts_with("oom_kill ") && line != "oom_kill 0");
                      });
    return out;
}

void command_cgroup::kill() const noexcept {
    if (!path_.empty())
        (void)put(path_ + "/cgroup.kill", "1");
}

bool command_cgroup::take(pid_t pid) const noexcept {
    return put(path_ + "/cgroup.procs", std::to_string(pid));
}

bool command_cgroup::take_all_from(const command_cgroup &other) const {
    constexpr int most_passes = 100; // a process may fork while we look
    for (int pass = 0; pass < most_passes; ++pass) {
        const std::string left = processes_in(other.path_);
        if (left.empty())
            return true;
        for_each_line(left, [&](std::string_view pid) { (void)put(path_ + "/cgroup.procs", pid); });
    }
    return false;
}

bool command_cgroup::remove() const { return path_.empty() || remove_group(path_); }

bool is_inside_our_command(pid_t pid, const cgroup_home &home, const cgroup_home &jobs,
                           std::span<const pid_t> roots) {
    if (home || jobs) {
        const auto group = group_of(std::to_string(pid));
        if (!group || (home && group->starts_with(home.name + std::string(command_prefix))) ||
            (jobs && group->starts_with(jobs.name + std::string(job_prefix))))
            return true;
    }
    const auto is_root = [&](pid_t at) {
        return std::find(roots.begin(), roots.end(), at) != roots.end();
    };
    // From child to parent. When a parent ends meanwhile, the keeper becomes the parent, if the process
    // is ours.
    for (int tries = 0; tries < 5; ++tries) {
        pid_t at = pid;
        // A limit, since a process ID that is reused between two reads could make this an endless loop.
        for (int steps = 0; steps < 4096; ++steps) {
            if (is_root(at))
                return true;
            if (at == 0 || at == 1)
                return false;
            const auto found = stat_of(at);
            if (!found)
                break;
            at = found->parent;
        }
    }
    return true;
}

bool has_terminal_of_its_own(pid_t pid, std::span<const pid_t> roots) {
    const auto found = stat_of(pid);
    if (!found || found->terminal == 0)
        return false;
    const auto has_it = [&](pid_t one) {
        const auto other = stat_of(one);
        return other && other->terminal == found->terminal;
    };
    return std::none_of(roots.begin(), roots.end(), [&](pid_t root) {
        const auto below = processes_below(root);
        return std::any_of(below.begin(), below.end(), has_it);
    });
}

} // namespace qvmremote::dom0
