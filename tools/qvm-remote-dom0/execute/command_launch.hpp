// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Makes the launch of an admitted request: its program, argv, environment and limits.

#pragma once

#include <string>

#include <qvmremote/host/failure.hpp>

#include "decide/admission.hpp"
#include "execute/execution_context.hpp"
#include "execute/launch.hpp"
#include "execute/script_file.hpp"

namespace qvmremote::dom0 {

struct command_launch {
    launch what; ///< complete except for its descriptors and its job, which the caller sets
    /// The file that the command runs from; its path is empty if there is none. The destructor removes
    /// the file, so keep this while the command runs.
    script_file script;
};

/// `bounds` are the limits of the command, with the context's ceiling already applied. A script, or a
/// command line too long for an argv, is written to the new file `script_name` in
/// `context.scripts`. Fails only as script_file::make does.
[[nodiscard]] host::outcome<command_launch> launch_of(const admitted &what,
                                                      const execution_context &context,
                                                      const containment &bounds,
                                                      const std::string &script_name);

} // namespace qvmremote::dom0
