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

/// The user's terminal while a command uses it. At most one exists. When this program is ended (not
/// by SIGKILL) or stopped (not by SIGSTOP), it restores the modes of the terminal. If standard
/// input is not a terminal, no modes are changed.
class terminal_session final : public host::input_filter {
  public:
    /// The loop of host::client reads the other end of `signals`. Without `escape`, no escapes are
    /// recognized.
    terminal_session(int signals, std::optional<std::uint8_t> escape);
    terminal_session(const terminal_session &) = delete;
    terminal_session &operator=(const terminal_session &) = delete;
    ~terminal_session() override;

    /// From now on each key goes to dom0.
    void begin();

    /// Returns the terminal's size. Also makes the terminal raw again after this program was
    /// stopped, since other programs set its modes meanwhile.
    [[nodiscard]] host::terminal_size size();

    /// Carries out the escapes in what was typed. The rest is to be sent.
    [[nodiscard]] passed pass(std::span<std::uint8_t> data, std::size_t n) override;

  private:
    void show_help() const;

    escape_scanner scanner_;
    std::uint8_t escape_;
    bool begun_ = false;
    std::string typed_;
};

} // namespace qvmremote::qube
