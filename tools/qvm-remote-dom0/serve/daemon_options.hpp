// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The command line of qvm-remote-dom0: options for the daemon, or a subcommand.

#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/settings.hpp"
#include "common/cli.hpp"

namespace qvmremote::dom0 {

struct daemon_options {
    paths where;
    std::string plugin_directory;
    std::string vm;            ///< --vm; empty: from the configuration
    std::string transport;     ///< --transport; empty: from the configuration
    bool once = false;         ///< serve each qube that runs, then end
    unsigned once_wait_s = 60; ///< with `once`: how long to wait for these qubes
    bool dry_run = false;      ///< run nothing
    bool verbose = false;      ///< the log on stderr as well
};

/// The name, the usage and the options, for the help.
extern const cli::program this_program;

/// What was typed.
struct command_line {
    cli::standard_options standard; ///< if one of them was typed, the rest is not checked
    daemon_options how;
    bool json = false;         ///< for a subcommand
    std::vector<char *> typed; ///< all words; `words` points into them
    std::span<char *> words;   ///< a subcommand with its arguments; empty: run the daemon
};

/// Reads the command line. Returns nothing after it has printed what is wrong.
[[nodiscard]] std::optional<command_line> read_command_line(int argc, char **argv);

} // namespace qvmremote::dom0
