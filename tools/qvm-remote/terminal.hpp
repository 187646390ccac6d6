// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What a person at the terminal sees in addition to the command's output.

#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote::qube {

/// Whether this user's terminals show UTF-8, as the locale says.
[[nodiscard]] bool shows_utf8();

/// One row that shows how long the user has waited, and for what. It is drawn only while this program
/// is in the foreground of the terminal on standard error. It is cut to the terminal's width. It never
/// blocks: a stopped terminal (Ctrl-S) does not delay the command.
class waiting_line {
  public:
    explicit waiting_line(bool wanted);
    waiting_line(const waiting_line &) = delete;
    waiting_line &operator=(const waiting_line &) = delete;
    ~waiting_line() { stop(); }

    void set(std::string text) { text_ = std::move(text); }
    /// Draws the row again, after the first two seconds.
    void tick();
    /// Removes the row. Call it before anything else is written to the terminal.
    void stop();
    /// Forgets the row, since something else is on the terminal now.
    void forget() noexcept { terminal_.reset(); }

  private:
    // Invalid: there is no row. It is a separate open file, so that O_NONBLOCK affects only us.
    host::unique_fd terminal_;
    bool shown_ = false;
    std::uint64_t begin_ms_;
    std::string text_ = "waiting for dom0";
};

} // namespace qvmremote::qube
