// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Limits how many lines one peer may cause in a log that all peers share.

#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <utility>

namespace qvmremote::dom0 {

/// Lets `burst` lines of each peer through at once, then `per_second`. It counts the others, so that
/// one line can say how many there were. The lines of one peer do not use up the limit of another.
///
/// At most most_peers have an account of their own; peers beyond these share one, whose name
/// is empty.
class line_gate {
  public:
    line_gate(std::uint64_t burst, std::uint64_t per_second)
        : most_(burst * 1000), per_second_(per_second) {}

    static constexpr std::size_t most_peers = 256;

    struct sum {
        std::uint64_t count = 0;
        std::string reason; ///< of the last one
    };

    /// Whether to write this line. If not, it has been counted.
    [[nodiscard]] bool take(const std::string &peer, const std::string &reason, bool has_room,
                            std::uint64_t now_ms) {
        account &a = account_of(peer, now_ms);
        a.level = level(a, now_ms);
        a.at_ms = now_ms;
        if (has_room && a.level >= 1000) {
            a.level -= 1000;
            return true;
        }
        ++a.counted.count;
        a.counted.reason = reason;
        return false;
    }

    /// When a sum is due, at most once a minute; nothing while nothing was counted.
    [[nodiscard]] std::optional<std::uint64_t> due_ms() const {
        std::optional<std::uint64_t> out;
        for (const auto &[peer, a] : of_)
            if (a.counted.count > 0)
                out = std::min(out.value_or(UINT64_MAX), a.summed_ms + sum_interval_ms);
        return out;
    }

    /// Takes a sum that is due; with `all`, any sum.
    [[nodiscard]] std::optional<std::pair<std::string, sum>> next_sum(std::uint64_t now_ms,
                                                                      bool all) {
        for (auto &[peer, a] : of_)
            if (a.counted.count > 0 && (all || now_ms >= a.summed_ms + sum_interval_ms)) {
                a.summed_ms = now_ms;
                return std::pair{peer, std::exchange(a.counted, {})};
            }
        return std::nullopt;
    }

    [[nodiscard]] std::size_t accounts() const noexcept { return of_.size(); }

  private:
    static constexpr std::uint64_t sum_interval_ms = 60'000;

    struct account {
        std::uint64_t level = 0; // in thousandths of a line
        std::uint64_t at_ms = 0, summed_ms = 0;
        sum counted;
    };

    [[nodiscard]] std::uint64_t level(const account &a, std::uint64_t now_ms) const {
        return std::min(most_, a.level + (now_ms - a.at_ms) * per_second_);
    }

    account &account_of(const std::string &peer, std::uint64_t now_ms) {
        if (const auto at = of_.find(peer); at != of_.end())
            return at->second;
        // An account that looks like a new one can be removed.
        if (of_.size() >= most_peers)
            std::erase_if(of_, [&](const auto &entry) {
                return entry.second.counted.count == 0 && level(entry.second, now_ms) == most_;
            });
        const bool is_full = of_.size() >= most_peers;
        const auto [at, is_new] = of_.try_emplace(is_full ? std::string() : peer);
        if (is_new)
            at->second = {most_, now_ms, 0, {}};
        return at->second;
    }

    std::uint64_t most_, per_second_;
    std::map<std::string, account> of_;
};

} // namespace qvmremote::dom0
