// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Decides how often a failure is reported, and keeps the last line of a child. Times are arguments, in
/// milliseconds of a clock that only goes forward.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace plugins {

using ms = std::uint64_t;
inline constexpr ms never = UINT64_MAX;

inline constexpr ms least_between_words = 60'000;
inline constexpr ms words_fade_after = 3'600'000;

/// Decides whether to report a failure: when it differs from the last one, or the last report is an
/// hour old. Never two reports within a minute, even if a qube causes a different failure each
/// time.
class telling {
  public:
    [[nodiscard]] bool is_new(int failure, ms now) noexcept {
        if (has_reported_ && now - at_ < least_between_words)
            return false;
        if (is_remembered_ && last_ == failure && now - at_ < words_fade_after)
            return false;
        last_ = failure;
        has_reported_ = is_remembered_ = true;
        at_ = now;
        return true;
    }
    /// Call it after a success: then the same failure is reported again.
    void forget() noexcept { is_remembered_ = false; }

  private:
    int last_ = 0;
    bool has_reported_ = false;
    bool is_remembered_ = false; ///< `last_` was reported and has not been forgotten
    ms at_ = 0;
};

/// Keeps the last line of what a child writes to stderr, without empty lines, in printable ASCII.
class last_line {
  public:
    static constexpr std::size_t most = 256;

    void feed(std::string_view untrusted) {
        for (const char c : untrusted) {
            if (c == '\n' || c == '\r')
                is_over_ = true;
            else {
                if (is_over_)
                    text_.clear();
                is_over_ = false;
                if (text_.size() < most)
                    text_ += c >= 0x20 && c <= 0x7e ? c : '?';
            }
        }
    }
    [[nodiscard]] const std::string &text() const noexcept { return text_; }

  private:
    std::string text_;
    bool is_over_ = false;
};

} // namespace plugins
