// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The audit log for the administrator: checked, shown, exported; and the records of what he does.

#pragma once

#include <string>
#include <string_view>

#include <qvmremote/host/failure.hpp>

#include "administer/admin.hpp"

namespace qvmremote::dom0 {

/// `audit verify|show|export|rotate`, whether the daemon runs or not.
int audit(const invocation &);

/// Records an act of the administrator's (`act` is one word; `peer` may be empty), durably or into
/// the hands of the running daemon. Who did it is the account that logged in, as the kernel kept it,
/// else the caller's.
[[nodiscard]] host::outcome<void> record_admin(const paths &where, std::string_view act,
                                               std::string_view peer, std::string_view words);

} // namespace qvmremote::dom0
