// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Finds, kills and waits for the processes below a process.

#pragma once

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <poll.h>
#include <sys/types.h>
#include <time.h>

namespace qvmremote::dom0 {

/// How the children of a process are found. The first way reads its list of children. The second way
/// reads the parent of every process of the machine; it is for kernels without CONFIG_PROC_CHILDREN.
enum class listing { children_files, whole_proc };

/// The processes below `root`, parents before their children.
[[nodiscard]] std::vector<pid_t> processes_below(pid_t root, listing kind);
/// The same, in the first way if the kernel has it.
[[nodiscard]] std::vector<pid_t> processes_below(pid_t root);

/// Kills the processes below us, in one pass. Returns whether there were any. Does not touch the
/// children in `spare`, or the processes below them.
bool kill_all_below_us(const std::function<bool(pid_t)> &spare = {});

/// Milliseconds of the monotonic clock.
[[nodiscard]] inline std::uint64_t now_ms() noexcept {
    timespec t{};
    ::clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<std::uint64_t>(t.tv_sec) * 1000 +
           static_cast<std::uint64_t>(t.tv_nsec) / 1'000'000;
}
inline constexpr std::uint64_t never = ~std::uint64_t{0};

/// When to kill again: soon, then less and less often. A process may not die at once (in a write to a
/// broken disk), or never (when another user owns it).
class kill_clock {
  public:
    void start() noexcept { interval_ = 1; }
    [[nodiscard]] bool due() noexcept {
        const std::uint64_t now = now_ms();
        if (now < next_)
            return false;
        next_ = now + interval_;
        interval_ = std::min(interval_ * 2, longest_interval_ms);
        return true;
    }
    [[nodiscard]] std::uint64_t next() const noexcept { return next_; }

  private:
    static constexpr std::uint64_t longest_interval_ms = 64;

    std::uint64_t next_ = 0;
    std::uint64_t interval_ = 1;
};

/// The handler of SIGCHLD, and the flag that it sets.
void on_child_ended(int);
extern volatile std::sig_atomic_t child_ended;

/// Waits until a descriptor (-1: none) is ready, a child has ended, or the time has come. All signals
/// are blocked outside this function, so no end of a child is missed between checking and waiting.
void wait_for(std::span<pollfd> watched, std::uint64_t until_ms) noexcept;

/// Reaps one child that has ended; 0 when none has, -1 when there is no child. __WALL: also children
/// that send another signal than SIGCHLD at their end.
[[nodiscard]] pid_t reap(int &status) noexcept;

} // namespace qvmremote::dom0
