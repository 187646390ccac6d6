// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Time limits, and the steps that end a child. Times are arguments.

#pragma once

#include <csignal>
#include <cstdint>

#include "../common/back_off.hpp"
#include "../common/words.hpp"

namespace qvm_run {

using plugins::back_off;
using plugins::first_pause;
using plugins::last_line;
using plugins::least_between_words;
using plugins::longest_pause;
using plugins::ms;
using plugins::never;
using plugins::telling;
using plugins::words_fade_after;

inline constexpr ms proven_after = 10'000; ///< a call that lasted this long has worked
inline constexpr ms answer_limit = 15'000; ///< a start can stall for 10 s (qubes-issues 9951)
inline constexpr ms grace = 2'000;
inline constexpr ms check_interval = 15'000;
inline constexpr ms stderr_rest = 100;

/// Ends a child: waits, sends SIGTERM, waits, sends SIGKILL.
class ending {
  public:
    [[nodiscard]] bool has_begun() const noexcept { return next_ != 0; }
    [[nodiscard]] ms due() const noexcept { return due_; }

    void begin(ms now) noexcept {
        if (has_begun())
            return;
        next_ = SIGTERM;
        due_ = now + grace;
    }
    /// Returns the signal that is due, or 0 when none is.
    [[nodiscard]] int step(ms now) noexcept {
        if (now < due_)
            return 0;
        const int out = next_;
        due_ = out == SIGTERM ? now + grace : never;
        next_ = SIGKILL;
        return out;
    }

  private:
    int next_ = 0;
    ms due_ = never;
};

} // namespace qvm_run
