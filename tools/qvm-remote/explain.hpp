// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Tells the user how a run ended.

#pragma once

#include <qvmremote/host/client.hpp>

namespace qvmremote::qube {

/// Reports what happened, unless the command ended by itself. `sink_error` is the errno of an output
/// that broke; `needs_jobs`: an older dom0 does not take the request because it is about a job.
void explain(const host::run_result &r, int sink_error, bool needs_jobs = false);

} // namespace qvmremote::qube
