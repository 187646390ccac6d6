// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// How long to wait before a call is tried again.

#pragma once

#include <algorithm>
#include <cstdint>

#include "words.hpp"

namespace plugins {

inline constexpr ms first_pause = 1'000;
inline constexpr ms longest_pause = 60'000;

/// Pauses that double from first_pause to longest_pause. Each is up to 20 % shorter or longer at
/// random, so that calls that failed together are not always tried together.
class back_off {
  public:
    [[nodiscard]] ms next(std::uint32_t random) noexcept {
        const ms base = step_;
        step_ = std::min(2 * step_, longest_pause);
        return base - base / 5 + (base / 5 * 2 * random >> 32);
    }
    void reset() noexcept { step_ = first_pause; }

  private:
    ms step_ = first_pause;
};

} // namespace plugins
