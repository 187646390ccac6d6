// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// How much of the audit log one qube may fill, so that no qube fills the disk.

#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>

namespace qvmremote {

/// Counts the bytes of each qube. A qube gets its bytes of a day back evenly, not all at midnight.
/// A request may begin while there is room; its own few lines are written in any case, even beyond
/// the limit.
class daily_quota {
  public:
    explicit daily_quota(std::uint64_t bytes_per_day) : most_(bytes_per_day) {}

    [[nodiscard]] bool has_room(const std::string &qube, std::uint64_t now_ms) const {
        const auto at = spent_.find(qube);
        return at == spent_.end() || at->second.left(now_ms, most_) < most_;
    }
    void charge(const std::string &qube, std::uint64_t added, std::uint64_t now_ms) {
        account &a = spent_[qube];
        a = {a.left(now_ms, most_) + added, now_ms};
    }
    [[nodiscard]] std::uint64_t bytes_per_day() const noexcept { return most_; }

  private:
    struct account {
        std::uint64_t bytes = 0, at_ms = 0;

        // The bytes that the qube has not got back yet.
        [[nodiscard]] std::uint64_t left(std::uint64_t now_ms, std::uint64_t most) const {
            constexpr std::uint64_t day_ms = 86'400'000;
            const std::uint64_t ms = std::min(now_ms - at_ms, 30 * day_ms); // keeps it in 64 bits
            const std::uint64_t back = most / day_ms * ms + most % day_ms * ms / day_ms;
            return bytes - std::min(bytes, back);
        }
    };

    std::uint64_t most_;
    std::map<std::string, account> spent_;
};

} // namespace qvmremote
