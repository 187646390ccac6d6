// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The terminal that a command runs in.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <sys/types.h>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/policy.hpp>

namespace qvmremote::dom0 {

/// Both ends of a pseudo-terminal. The daemon keeps the command's end open too, so that a command
/// that closes its descriptors can open /dev/tty again, and we do not take that for the end of its
/// output.
class terminal {
  public:
    /// `owner`: the user that the command runs as, if that is not the daemon's user.
    [[nodiscard]] static host::outcome<terminal> open(std::uint16_t columns, std::uint16_t rows,
                                                      std::optional<uid_t> owner);

    /// From both ends.
    [[nodiscard]] static terminal of(host::unique_fd ours, host::unique_fd command) {
        return {std::move(ours), std::move(command)};
    }

    /// Makes another descriptor of our end, which does not block.
    [[nodiscard]] host::outcome<host::unique_fd> end() const;
    /// Borrowed: our end, which blocks.
    [[nodiscard]] int ours() const noexcept { return ours_.get(); }
    /// Borrowed: the command's end.
    [[nodiscard]] int of_command() const noexcept { return command_.get(); }

    /// Closes what this holds.
    void hang_up() noexcept {
        ours_.reset();
        command_.reset();
    }

    void resize(std::uint16_t columns, std::uint16_t rows) noexcept;
    /// Does what Ctrl-C or Ctrl-\ does: sends SIGINT or SIGQUIT to the job in the foreground. False
    /// for other signals.
    [[nodiscard]] bool interrupt(int signal) noexcept;
    /// The bytes to type so that a program that reads lines sees the end of its input. Empty for a
    /// program that reads single keys. `in_line`: something was typed since the last newline.
    [[nodiscard]] std::string end_of_input(bool in_line) const;

  private:
    terminal(host::unique_fd ours, host::unique_fd command)
        : ours_(std::move(ours)), command_(std::move(command)) {}

    host::unique_fd ours_, command_;
};

/// The same for a descriptor of our end.
[[nodiscard]] std::string end_of_input(int terminal, bool in_line);
void resize_terminal(int terminal, std::uint16_t columns, std::uint16_t rows) noexcept;

/// Adds the type of the terminal and the user's locale to a command's environment. Below full
/// access, it also makes programs print instead of starting a pager, and keeps less from starting
/// other programs.
void describe_terminal(const run_terms &terms, std::vector<std::string> &environment);

} // namespace qvmremote::dom0
