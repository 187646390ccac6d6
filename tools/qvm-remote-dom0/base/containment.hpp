// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Within which bounds a command runs: what a verdict says, in the executor's words.

#pragma once

#include <algorithm>
#include <cstdint>

namespace qvmremote::dom0 {

/// What a command may use, all of it together. 0 is "as much as there is".
struct resources {
    std::uint64_t memory_bytes = 0; ///< no swap is given beside it
    std::uint32_t pids = 0;         ///< processes and threads at once
    std::uint32_t cpu_percent = 0;  ///< of one processor: 150 is one and a half

    [[nodiscard]] bool bounded() const noexcept {
        return memory_bytes != 0 || pids != 0 || cpu_percent != 0;
    }
};

struct containment {
    resources most;
    std::uint64_t output_bytes =
        0;                 ///< stdout and stderr together; beyond it the command ends. 0: any
    bool confined = false; ///< runs with no_new_privs and in the view of confinement.hpp
};

/// `what`, and no number of it above that of `ceiling`.
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
