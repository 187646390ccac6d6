// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What a person at the terminal sees beside the command's own output.

#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote::qube {

/// One row that shows how long the user has waited, and for what. It is drawn only while this program
/// is in the foreground of the terminal on standard error, it is cut to the terminal's width, and it
/// never blocks: a terminal that takes no bytes (Ctrl-S) does not hold up the command.
class waiting_line {
  public:
    explicit waiting_line(bool wanted);
    waiting_line(const waiting_line &) = delete;
    waiting_line &operator=(const waiting_line &) = delete;
    ~waiting_line() { stop(); }

    void set(std::string text) { text_ = std::move(text); }
    /// Draws the row anew, from two seconds on.
    void tick();
    /// Removes the row for good. To be called before any other byte goes to the terminal.
    void stop();
    /// Something else is on the terminal now: a row that could not be removed stays.
    void forget() noexcept { terminal_.reset(); }

  private:
    host::unique_fd terminal_; // none: not wanted. Its own open file, so that O_NONBLOCK stays ours
    bool shown_ = false;
    std::uint64_t begin_ms_;
    std::string text_ = "waiting for dom0";
};

} // namespace qvmremote::qube
