// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The keeper of a job: it alone starts the command, records its output and writes its end, so the
/// daemon may end and start again meanwhile.

#pragma once

#include <vector>

#include <qvmremote/host/unique_fd.hpp>

#include "execute/become.hpp"
#include "execute/command_tree.hpp"

namespace qvmremote::dom0 {

/// Runs a job to its end, in the keeper's process. `received` is what came with the message
/// (launch_message.hpp).
void keep_job(std::vector<host::unique_fd> received, preparation &p) noexcept;

/// Goes on with a command that runs in a terminal, as a job, to its end. `received` is what came with
/// the message of send_job.
void go_on_as_job(std::vector<host::unique_fd> received, const job_launch &job,
                  command_tree tree) noexcept;

} // namespace qvmremote::dom0
