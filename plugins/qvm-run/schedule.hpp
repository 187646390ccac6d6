// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// When: pauses between calls, how a child is brought to its end, how often a failure is said. All
/// on clock values that come in; milliseconds of a clock that only goes forward.

#pragma once

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace qvm_run {

using ms = std::uint64_t;
inline constexpr ms never = UINT64_MAX;

inline constexpr ms first_pause = 1'000;
inline constexpr ms longest_pause = 60'000;
inline constexpr ms proven_after = 10'000; ///< a call that lived so long was a good one
inline constexpr ms answer_limit = 15'000; ///< a start can stall for 10 s (qubes-issues 9951)
inline constexpr ms grace = 2'000;
inline constexpr ms check_interval = 15'000;
inline constexpr ms stderr_rest = 100;
inline constexpr ms least_between_words = 60'000;
inline constexpr ms words_fade_after = 3'600'000;

/// Pauses that double from first_pause to longest_pause, each 20 % shorter or longer by chance, so
/// that what failed together is not tried together for ever.
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

/// A child's end: a grace, SIGTERM, a grace, SIGKILL.
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
    /// The signal that is due, 0 for none.
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

} // namespace qvm_run
