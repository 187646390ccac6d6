// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// How much of the audit log one qube may fill, so that no qube fills the disk.

#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>

namespace qvmremote {

/// Counts the bytes that each qube has written. A qube gets `bytes_per_day` of them back in a day,
/// evenly over the day. A request may begin while fewer than `bytes_per_day` bytes are counted. Its own
/// few lines are written in any case, even beyond the limit.
///
/// `now_ms` is CLOCK_BOOTTIME in milliseconds.
class daily_quota {
  public:
    explicit daily_quota(std::uint64_t bytes_per_day) : most_(bytes_per_day) {}

    /// Whether a request of this qube may begin.
    [[nodiscard]] bool has_room(const std::string &qube, std::uint64_t now_ms) const {
        const auto at = spent_.find(qube);
        return at == spent_.end() || at->second.left(now_ms, most_) < most_;
    }
    /// Counts bytes that were written for this qube.
    void charge(const std::string &qube, std::uint64_t added, std::uint64_t now_ms) {
        account &a = spent_[qube];
        a = {a.left(now_ms, most_) + added, now_ms};
    }

  private:
    struct account {
        std::uint64_t bytes = 0, at_ms = 0;

        // The bytes that the qube has not got back yet.
        [[nodiscard]] std::uint64_t left(std::uint64_t now_ms, std::uint64_t most) const {
            constexpr std::uint64_t day_ms = 86'400'000;
            // At most so much that the product below fits in 64 bits.
            const std::uint64_t ms = now_ms > at_ms ? std::min(now_ms - at_ms, 30 * day_ms) : 0;
            const std::uint64_t back = most / day_ms * ms + most % day_ms * ms / day_ms;
            return bytes - std::min(bytes, back);
        }
    };

    std::uint64_t most_;
    std::map<std::string, account> spent_;
};

} // namespace qvmremote
