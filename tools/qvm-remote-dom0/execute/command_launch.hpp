// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// How an admitted request becomes a program, its words, its environment and its limits.

#pragma once

#include <string>

#include <qvmremote/host/failure.hpp>

#include "decide/admission.hpp"
#include "execute/execution_context.hpp"
#include "execute/launch.hpp"
#include "execute/script_file.hpp"

namespace qvmremote::dom0 {

struct command_launch {
    launch what;        ///< without descriptors
    script_file script; ///< the file that it runs from, if there is one
};

/// `script_name` is the name of that file.
[[nodiscard]] host::outcome<command_launch> launch_of(const admitted &what,
                                                      const execution_context &context,
                                                      const containment &bounds,
                                                      const std::string &script_name);

} // namespace qvmremote::dom0
