// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The parts of the daemon that all executions share.

#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>

#include <boost/asio/io_context.hpp>

#include "base/containment.hpp"
#include "base/log.hpp"
#include "decide/account.hpp"
#include "execute/warden.hpp"
#include "record/journal.hpp"

namespace qvmremote::dom0 {

class execution;

/// The daemon owns one, and it outlives every execution. Only the loop's thread touches it.
struct execution_context {
    boost::asio::io_context &loop;
    event_log &log;
    journal &records;
    warden &children;

    std::string scripts{};  ///< the directory of script_file
    bool dry_run = false;   ///< decide and record, but start nothing
    account self{};         ///< the account of commands, unless policy names another
    std::string language{}; ///< the LANG of every command
    containment ceiling{};  ///< no command gets more than this, whatever policy says

    /// The running executions. An execution removes itself when it is over, and then calls `on_end`.
    std::set<std::shared_ptr<execution>> running{};
    std::function<void()> on_end{};
};

} // namespace qvmremote::dom0
