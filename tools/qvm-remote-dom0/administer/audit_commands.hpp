// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The commands that check, show and export the audit log, and the records of what the
/// administrator does.

#pragma once

#include <string>
#include <string_view>

#include <qvmremote/host/failure.hpp>

#include "administer/admin.hpp"

namespace qvmremote::dom0 {

/// `audit verify|show|export|rotate`, whether the daemon runs or not.
int audit(const invocation &);

/// Records an act of the administrator, durably, or by passing it to the running daemon. `act` is
/// one word; `peer` may be empty. The record names the account that logged in, if the kernel knows
/// it, else the caller's account.
[[nodiscard]] host::outcome<void> record_admin(const paths &where, std::string_view act,
                                               std::string_view peer, std::string_view words);

} // namespace qvmremote::dom0
