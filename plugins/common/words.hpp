// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What is said of a failure, and how often; on clock values that come in, milliseconds of a clock
/// that only goes forward.

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

/// Whether a failure is worth a line: when it is another than the last one, or the last line is an
/// hour old; and never two within a minute, whatever a qube does to look different each time.
class telling {
  public:
    [[nodiscard]] bool is_new(int failure, ms now) noexcept {
        if (said_ && now - at_ < least_between_words)
            return false;
        if (stands_ && last_ == failure && now - at_ < words_fade_after)
            return false;
        last_ = failure;
        said_ = stands_ = true;
        at_ = now;
        return true;
    }
    /// It works: the same failure is news again.
    void forget() noexcept { stands_ = false; }

  private:
    int last_ = 0;
    bool said_ = false;
    bool stands_ = false; ///< `last_` is what stands in the log
    ms at_ = 0;
};

/// The last line that is not empty of what a child writes to stderr, in printable ASCII.
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
