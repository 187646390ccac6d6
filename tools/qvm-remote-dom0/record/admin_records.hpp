// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Records of what an administrator does, and the requests for them on the control socket.

#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "record/journal.hpp"

namespace qvmremote::dom0 {

/// The ADMIN record of one act: `act` is one word, `peer` the qube that it is about (may be empty),
/// `who` the administrator's account.
[[nodiscard]] journal_entry admin_entry(std::string_view act, std::string_view peer,
                                        std::string_view who, std::string_view words);

/// Carries out `audit rotate` and `admin<TAB>ACT<TAB>PEER<TAB>WHO<TAB>WORDS`, and returns the answer
/// for the control socket; nothing for any other request.
[[nodiscard]] std::optional<std::string> answer_audit(std::string_view request, journal &records);

} // namespace qvmremote::dom0
