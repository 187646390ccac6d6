// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The messages between the keeper of a job and whoever controls it. The keeper may be older than the
/// other end, since a job outlives an upgrade. So the numbers and structs here are frozen; a new
/// meaning is a new number, and an unknown number is ignored.

#pragma once

#include <array>
#include <cstdint>

namespace qvmremote::dom0 {

/// The keeper's first message to each process that connects.
struct job_hello {
    std::uint32_t version = 1;
    std::array<std::uint8_t, 32> secret{};
};

/// To the keeper.
struct job_order {
    enum order_kind : std::int32_t {
        signal = 1,    ///< number: to the process group, or to all that are left
        terminate = 2, ///< TERM now, KILL 2 s later
        kill = 3,      ///< KILL now. number: the errc that the end names, or 0
        watch = 4,     ///< report `more` once, when there is more output
        borrow = 5,    ///< report `input`. Only one process at a time has it
        end_input = 6, ///< the input ends
        interrupt = 7, ///< number: INT or QUIT, to the job in the terminal's foreground
        give_back = 8, ///< another process may have the input now
    };
    std::int32_t kind;
    std::int32_t number;
};

/// From the keeper.
struct job_report {
    enum report_kind : std::int32_t {
        more = 1,  ///< something was written since the order `watch`
        ended = 2, ///< the file `end` is complete; the keeper ends too
        input = 3, ///< with a descriptor to write to. number: 0, EBUSY, or EPIPE when there is none
    };
    std::int32_t kind;
    std::int32_t number;
};

} // namespace qvmremote::dom0
