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
/// At a terminal, input that was typed before the prompt is discarded, since the person could not have
/// read the question. The prompt comes one second after the last output. From a pipe every line counts.
[[nodiscard]] std::optional<std::string> typed_line(std::FILE *to, const std::string &prompt);

/// Prints rows a screen at a time; Enter shows more. False when the reader answers with anything else,
/// or at the end of input.
[[nodiscard]] bool show_by_pages(const std::vector<std::string> &rows);

} // namespace qvmremote::dom0
