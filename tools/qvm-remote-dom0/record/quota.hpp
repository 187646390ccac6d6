// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// How much one qube may have written into the audit log, so that it does not fill the disk for all.

#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>

namespace qvmremote::dom0 {

/// Bytes per day and qube, flowing back evenly: no midnight at which all is allowed again. Who has
/// room may begin; what began is written in any case and may overdraw by its own few lines.
class daily_quota {
  public:
    explicit daily_quota(std::uint64_t bytes_per_day) : most_(bytes_per_day) {}

    [[nodiscard]] bool has_room(const std::string &qube, std::uint64_t now_ms) const {
        const auto at = spent_.find(qube);
        return at == spent_.end() || at->second.left(now_ms, most_) < most_;
    }
    void charge(const std::string &qube, std::uint64_t bytes, std::uint64_t now_ms) {
        account &a = spent_[qube];
        a = {a.left(now_ms, most_) + bytes, now_ms};
    }
    [[nodiscard]] std::uint64_t bytes_per_day() const noexcept { return most_; }

  private:
    struct account {
        std::uint64_t bytes = 0, at_ms = 0;

        // What of it has not flowed back.
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

} // namespace qvmremote::dom0
