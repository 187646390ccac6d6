// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What a person at the terminal sees beside the command's own output.

#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

#include <qvmremote/host/clock.hpp>

namespace qvmremote::qube {

/// Elapsed time for a person who waits, on a line that goes away again.
class waiting_line {
  public:
    explicit waiting_line(bool wanted) : wanted_(wanted), begin_ms_(host::boottime_ms()) {}
    ~waiting_line() { clear(); }

    void set(std::string text) { text_ = std::move(text); }
    void tick() {
        const std::uint64_t seconds = (host::boottime_ms() - begin_ms_) / 1000;
        if (!wanted_ || seconds < 2)
            return;
        std::fprintf(stderr, "\r\033[K[%llu s] %s", static_cast<unsigned long long>(seconds),
                     text_.c_str());
        std::fflush(stderr);
        shown_ = true;
    }
    // Before anything else is written, and once output has come.
    void clear() {
        if (std::exchange(shown_, false)) {
            std::fprintf(stderr, "\r\033[K");
            std::fflush(stderr);
        }
    }
    void stop() {
        clear();
        wanted_ = false;
    }

  private:
    bool wanted_;
    bool shown_ = false;
    std::uint64_t begin_ms_;
    std::string text_ = "waiting for dom0";
};

} // namespace qvmremote::qube
