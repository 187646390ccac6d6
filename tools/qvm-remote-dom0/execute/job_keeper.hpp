// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The keeper of a job: it alone starts the command, records its output and writes its end, so the
/// daemon may end and start again meanwhile.

#pragma once

#include <vector>

#include <qvmremote/host/unique_fd.hpp>

#include "execute/become.hpp"

namespace qvmremote::dom0 {

/// Runs a job to its end, in the keeper's process. `received` is what came with the message
/// (launch_message.hpp).
void keep_job(std::vector<host::unique_fd> received, preparation &p) noexcept;

} // namespace qvmremote::dom0
