// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The command line of qvm-remote, and the request that its words make.

#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/cli.hpp"
#include "home.hpp"
#include "reach.hpp"
#include "run.hpp"

namespace qvmremote::qube {

/// The name, the usage and the options, for the help.
extern const cli::program this_program;

/// What was typed.
struct arguments {
    cli::standard_options standard; ///< if one of them was typed, the rest is not checked
    settings how;
    run_request request; ///< only what the options set
    bool exec = false;
    bool no_stdin = false;
    std::string script;            ///< the file of --script
    std::vector<char *> typed;     ///< all words; `words` points into them
    std::span<char *> words;       ///< the command, or the subcommand with its arguments
    bool may_be_subcommand = true; ///< no option says that the words are a command

    /// Whether neither a command nor a script was given.
    [[nodiscard]] bool lacks_command() const;
};

/// Reads the command line. Returns nothing after it has printed what is wrong.
[[nodiscard]] std::optional<arguments> read_arguments(int argc, char **argv);

/// Adds the settings of the configuration files and the environment. Options override them. Returns
/// false after it has printed what is wrong.
[[nodiscard]] bool add_settings(settings &how, const home &where);

/// Makes the request from the words, or from the script. Returns nothing after it has printed what
/// is wrong.
[[nodiscard]] std::optional<run_request> request_of(const arguments &typed);

} // namespace qvmremote::qube
