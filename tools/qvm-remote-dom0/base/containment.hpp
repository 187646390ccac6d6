// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The limits of a command, as policy sets them and the executor applies them.

#pragma once

#include <algorithm>
#include <cstdint>

namespace qvmremote::dom0 {

/// What all processes of a command may use together. 0 means no limit.
struct resources {
    std::uint64_t memory_bytes = 0; ///< without swap
    std::uint32_t pids = 0;         ///< processes and threads at once
    std::uint32_t cpu_percent = 0;  ///< of one processor: 150 is one and a half

    [[nodiscard]] bool bounded() const noexcept {
        return memory_bytes != 0 || pids != 0 || cpu_percent != 0;
    }
};

struct containment {
    resources most;
    /// How many bytes stdout and stderr may have together. A command that writes more is ended. 0
    /// means no limit.
    std::uint64_t output_bytes = 0;
    bool confined = false; ///< runs with no_new_privs, after confine() (confinement.hpp)
};

/// Returns `wanted`, with each limit lowered to that of `ceiling`.
[[nodiscard]] inline containment within(containment wanted, const containment &ceiling) {
    const auto lower = [](auto &to, auto most) {
        if (most != 0)
            to = to == 0 ? most : std::min(to, most);
    };
    lower(wanted.most.memory_bytes, ceiling.most.memory_bytes);
    lower(wanted.most.pids, ceiling.most.pids);
    lower(wanted.most.cpu_percent, ceiling.most.cpu_percent);
    lower(wanted.output_bytes, ceiling.output_bytes);
    return wanted;
}

} // namespace qvmremote::dom0
