// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The time by which used IDs are forgotten. It never goes back, and it does not jump.

#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include <qvmremote/limits.hpp>

#include "base/dom0_limits.hpp"

namespace qvmremote::dom0 {

/// dom0's clock is set from outside (by the clock qube), so it can be days off for some hours. This
/// clock follows it with two bounds:
///  - It never goes back.
///  - It goes forward at most `rate` times as fast as the time that the machine has run. A clock
///    that is far ahead for an hour takes it eight hours ahead, which is less than IDs are kept.
///
/// While it is behind (the machine was off, or its clock was years behind at first), IDs are remembered
/// longer. On a machine that runs three hours a day it catches up.
class memory_clock {
  public:
    static constexpr std::int64_t rate = 8;

    /// `stored_s` is what was stored last; without it, the clock begins at `wall_s`.
    memory_clock(std::optional<std::int64_t> stored_s, std::int64_t wall_s,
                 std::uint64_t boottime_ms) noexcept
        : now_s_(stored_s.value_or(wall_s)), counted_ms_(boottime_ms) {}

    /// Counts the time that has passed. Returns the new time, in seconds since 1970.
    std::int64_t advance(std::int64_t wall_s, std::uint64_t boottime_ms) noexcept {
        const std::uint64_t ran_s = (boottime_ms - std::min(boottime_ms, counted_ms_)) / 1000;
        counted_ms_ += ran_s * 1000;
        const auto most = static_cast<std::int64_t>(ran_s) * rate;
        if (wall_s > now_s_)
            now_s_ += std::min(most, wall_s - now_s_);
        return now_s_;
    }
    [[nodiscard]] std::int64_t now_s() const noexcept { return now_s_; }

    /// When an ID that is used now may be forgotten. `claimed_s` is the time that the ID shows.
    [[nodiscard]] std::int64_t expiry(std::int64_t wall_s, std::int64_t claimed_s) const noexcept {
        return std::max({wall_s, now_s_, claimed_s - limits::id_clock_skew_s}) +
               limits::id_remembered_s;
    }
    /// Every ID that may be forgotten by now has an earlier time than this. So IDs with an earlier time
    /// are refused for ever, even when dom0's clock goes back.
    [[nodiscard]] std::int64_t forgotten_before() const noexcept {
        return now_s_ - limits::id_remembered_s + limits::id_clock_skew_s;
    }

  private:
    std::int64_t now_s_;
    std::uint64_t counted_ms_; // of the time since boot
};

} // namespace qvmremote::dom0
