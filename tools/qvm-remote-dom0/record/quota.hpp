// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// How much one qube may have written into the audit log, so that it does not fill the disk for all.

#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include <qvmremote/limits.hpp>

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

/// Which refusals stand in the log one by one. The others are counted, and summed in one line.
class refusal_gate {
  public:
    struct sum {
        std::uint64_t count = 0;
        std::string reason; ///< the last one's
    };

    /// Whether this one is written. If not, it has been counted.
    [[nodiscard]] bool take(const std::string &qube, const std::string &reason, bool has_room,
                            std::uint64_t now_ms) {
        account &a = of_[qube];
        constexpr std::uint64_t most = limits::refused_lines_burst * 1000;
        a.level = std::min(most, a.level + (now_ms - a.at_ms) * limits::refused_lines_per_second);
        a.at_ms = now_ms;
        if (has_room && a.level >= 1000) {
            a.level -= 1000;
            return true;
        }
        ++a.counted.count;
        a.counted.reason = reason;
        return false;
    }

    /// When a sum is due, once a minute; nothing while nothing was counted.
    [[nodiscard]] std::optional<std::uint64_t> due_ms() const {
        std::optional<std::uint64_t> out;
        for (const auto &[qube, a] : of_)
            if (a.counted.count > 0)
                out = std::min(out.value_or(UINT64_MAX), a.summed_ms + sum_interval_ms);
        return out;
    }

    /// Takes a sum that is due, or any with `all`.
    [[nodiscard]] std::optional<std::pair<std::string, sum>> next_sum(std::uint64_t now_ms,
                                                                      bool all) {
        for (auto &[qube, a] : of_)
            if (a.counted.count > 0 && (all || now_ms >= a.summed_ms + sum_interval_ms)) {
                a.summed_ms = now_ms;
                return std::pair{qube, std::exchange(a.counted, {})};
            }
        return std::nullopt;
    }

  private:
    static constexpr std::uint64_t sum_interval_ms = 60'000;

    struct account {
        std::uint64_t level = limits::refused_lines_burst * 1000; // in thousandths of a line
        std::uint64_t at_ms = 0, summed_ms = 0;
        sum counted;
    };

    std::map<std::string, account> of_;
};

} // namespace qvmremote::dom0
