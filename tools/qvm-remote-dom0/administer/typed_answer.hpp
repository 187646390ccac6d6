// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What an operator types to confirm something.

#pragma once

#include <cstddef>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

namespace qvmremote::dom0 {

/// Whether a person reads standard output and answers on standard input.
[[nodiscard]] bool is_interactive();

/// The columns of the terminal at standard output, or 80.
[[nodiscard]] std::size_t terminal_width();

/// Prints the prompt and reads a line, without its newline; nothing at the end of input.
///
/// At a terminal what was typed earlier does not count: it was typed before the question could be
/// read. The prompt comes a second after whatever was printed last, and what arrived until then is
/// thrown away. From a pipe every line counts.
[[nodiscard]] std::optional<std::string> typed_line(std::FILE *to, const std::string &prompt);

/// Prints rows a screen at a time. False as soon as the reader answers with anything but Enter, which
/// shows more; the end of input is such an answer.
[[nodiscard]] bool show_by_pages(const std::vector<std::string> &rows);

} // namespace qvmremote::dom0
