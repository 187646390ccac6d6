// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The processes of one command, as the keeper above them sees them.

#pragma once

#include <cstdint>
#include <optional>

#include <sys/types.h>

#include "execute/become.hpp"
#include "execute/cgroups.hpp"
#include "execute/process_tree.hpp"

namespace qvmremote::dom0 {

/// Starts a command, notices its end, and ends it. The process that uses it is a subreaper and has no
/// other children.
class command_tree {
  public:
    /// How long the processes have between SIGTERM and SIGKILL.
    static constexpr std::uint64_t grace_ms = 2000;

    /// Borrows the group.
    explicit command_tree(const command_cgroup &group) noexcept : group_(&group) {}

    /// Starts the command in its group, within its limits. Returns 0, or errno; ENOENT only means
    /// that the program does not exist. Closing our copies of its descriptors is left to the caller.
    [[nodiscard]] int start(preparation &p, const cgroup_home &home) noexcept;

    [[nodiscard]] pid_t first() const noexcept { return first_; }

    struct first_end {
        int wait_status; ///< from waitpid
        bool tree_empty; ///< no other process is left
        bool out_of_memory;
    };
    /// Reaps what has ended. Returns the end of the first process, once.
    [[nodiscard]] std::optional<first_end> reap_ended();

    /// Sends a signal to the command's process group or, after the first process has ended, to all
    /// processes that are left.
    void signal(int number);
    /// Sends TERM to all processes now, and KILL from grace_ms later until nothing is left.
    void terminate();
    /// Sends KILL until nothing is left.
    void kill() noexcept;

    /// Does what is due. Call it after each wait, and wait until wake_ms at most.
    void act();
    [[nodiscard]] std::uint64_t wake_ms() const noexcept {
        return killing_ ? clock_.next() : kill_at_ms_;
    }

    /// Moves all processes to another group, which exists, and removes the group that they were in.
    /// Borrows the new one. Returns false when that is not possible; then they are to be killed.
    [[nodiscard]] bool move_to(const command_cgroup &group);

    /// Whether no process is left and the group is removed.
    [[nodiscard]] bool is_over() const noexcept { return over_; }
    [[nodiscard]] bool was_killed() const noexcept { return killing_; }

  private:
    void kill_all();

    const command_cgroup *group_;
    pid_t first_ = 0; // 0 once it is reaped
    bool memory_is_bounded_ = false;
    bool childless_ = false;
    bool over_ = false;
    std::uint64_t kill_at_ms_ = never;
    bool killing_ = false;
    kill_clock clock_;
};

} // namespace qvmremote::dom0
