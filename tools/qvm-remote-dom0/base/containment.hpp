// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The limits of a command: from the verdict of policy, as the executor takes them.

#pragma once

#include <algorithm>
#include <cstdint>

namespace qvmremote::dom0 {

/// What all processes of a command may use together. 0 means no limit.
struct resources {
    std::uint64_t memory_bytes = 0; ///< and no swap
    std::uint32_t pids = 0;         ///< processes and threads at once
    std::uint32_t cpu_percent = 0;  ///< of one processor: 150 is one and a half

    [[nodiscard]] bool bounded() const noexcept {
        return memory_bytes != 0 || pids != 0 || cpu_percent != 0;
    }
};

struct containment {
    resources most;
    /// Of stdout and stderr together; beyond it the command ends. 0 means no limit.
    std::uint64_t output_bytes = 0;
    bool confined = false; ///< with no_new_privs and confine() of confinement.hpp
};

/// `what`, with each limit lowered to that of `ceiling`.
[[nodiscard]] inline containment within(containment what, const containment &ceiling) {
    const auto lower = [](auto &to, auto most) {
        if (most != 0)
            to = to == 0 ? most : std::min(to, most);
    };
    lower(what.most.memory_bytes, ceiling.most.memory_bytes);
    lower(what.most.pids, ceiling.most.pids);
    lower(what.most.cpu_percent, ceiling.most.cpu_percent);
    lower(what.output_bytes, ceiling.output_bytes);
    return what;
}

} // namespace qvmremote::dom0
