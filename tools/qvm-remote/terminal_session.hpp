// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// This side of a terminal in dom0: raw mode, size, escapes (--tty, --shell).

#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include <qvmremote/escapes.hpp>
#include <qvmremote/host/client.hpp>

namespace qvmremote::qube {

/// The user's terminal while a command uses it. At most one exists. Whatever ends this program but
/// SIGKILL, and whatever stops it but SIGSTOP, the terminal's modes are what they were before. Where
/// standard input is no terminal nothing changes its modes.
class terminal_session final : public host::input_filter {
  public:
    /// The loop of host::client reads the other end of `signals`. Without `escape` there are none.
    terminal_session(int signals, std::optional<std::uint8_t> escape);
    terminal_session(const terminal_session &) = delete;
    terminal_session &operator=(const terminal_session &) = delete;
    ~terminal_session() override;

    /// From now on each key goes to dom0.
    void begin();

    /// The terminal's size. It also sees to the modes after this program was stopped: in the background
    /// a terminal is another's.
    [[nodiscard]] host::terminal_size size();

    [[nodiscard]] std::size_t pass(std::span<std::uint8_t> data, std::size_t n) override;

  private:
    void show_help() const;

    escape_scanner scanner_;
    std::uint8_t escape_;
    bool begun_ = false;
    std::string typed_;
};

} // namespace qvmremote::qube
