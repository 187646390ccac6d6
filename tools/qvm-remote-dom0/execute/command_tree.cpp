// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/command_tree.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <utility>
#include <vector>

#include <sys/resource.h>
#include <unistd.h>

#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote::dom0 {

namespace {
[[nodiscard]] bool now_is(std::uint64_t at_ms) noexcept {
    return at_ms != never && now_ms() >= at_ms;
}
} // namespace

int command_tree::start(preparation &p, const cgroup_home &home) noexcept {
    host::unique_fd group;
    if (*group_) {
        auto opened = group_->limit(p.most, home).and_then([&] { return group_->open(); });
        if (!opened) {
            const int why = opened.error().error_number;
            return why == ENOENT ? EIO : why; // ENOENT must mean that the program does not exist
        }
        group = std::move(*opened);
    }
    p.cgroup = group.get();
    memory_is_bounded_ = p.most.memory_bytes != 0 && home.memory;
    first_ = group ? start_process_in_group(p) : start_process(p);
    return p.error;
}

// Without a child there is no descendant: a process that loses its parent becomes our child.
std::optional<command_tree::first_end> command_tree::reap_ended() {
    if (childless_)
        return {};
    int status = 0;
    std::optional<first_end> out;
    pid_t pid;
    while ((pid = reap(status)) > 0)
        if (pid == first_) {
            first_ = 0; // another process or group may get this number now
            out = first_end{status, false, memory_is_bounded_ && group_->out_of_memory()};
        }
    childless_ = pid < 0;
    if (out)
        out->tree_empty = childless_;
    if (childless_ && !(over_ = group_->remove()))
        kill(); // processes in the group that were never below us
    return out;
}

void command_tree::signal(int number) {
    if (first_ != 0)
        ::kill(-first_, number);
    else
        for (const pid_t pid : processes_below(::getpid()))
            ::kill(pid, number);
}

void command_tree::terminate() {
    if (killing_ || kill_at_ms_ != never)
        return;
    kill_at_ms_ = now_ms() + grace_ms;
    for (const pid_t pid : processes_below(::getpid())) {
        ::kill(pid, SIGTERM);
        ::kill(pid, SIGCONT); // so that a stopped process gets the signal
    }
}

void command_tree::kill() noexcept {
    kill_at_ms_ = never;
    if (killing_)
        return;
    killing_ = true;
    clock_.start();
    // Raise our priority, so that a fork bomb cannot starve the process that kills it. Only root
    // may do this; without it we go on.
    ::setpriority(PRIO_PROCESS, 0, -20);
}

void command_tree::act() {
    if (over_)
        return;
    if (now_is(kill_at_ms_))
        kill();
    if (!killing_ || !clock_.due())
        return;
    kill_all();
    over_ = childless_ && group_->remove();
}

bool command_tree::move_to(const command_cgroup &group) {
    const command_cgroup &old = *std::exchange(group_, &group);
    if (old)
        return group.take_all_from(old) && old.remove();
    // Without a group, a process that was started meanwhile is found in the next pass.
    std::vector<pid_t> moved;
    for (bool more = true; std::exchange(more, false);)
        for (const pid_t pid : processes_below(::getpid()))
            if (std::find(moved.begin(), moved.end(), pid) == moved.end()) {
                moved.push_back(pid);
                more = group.take(pid) || more;
            }
    return true;
}

void command_tree::kill_all() {
    group_->kill();
    // A signal to a group is atomic with respect to fork, so this alone ends most trees, however
    // fast they grow.
    if (first_ != 0)
        ::kill(-first_, SIGKILL);
    kill_all_below_us();
}

} // namespace qvmremote::dom0
