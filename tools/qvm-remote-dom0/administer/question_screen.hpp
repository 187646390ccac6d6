// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A request that waits for an operator, as rows of a screen.

#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace qvmremote::dom0 {

/// `question` comes from to_json() (decide/approvals.hpp). Every field has its own rows. When
/// "complete" is false, the last row says how to read the rest.
[[nodiscard]] std::vector<std::string> rows_of(const nlohmann::ordered_json &question,
                                               std::size_t width);

} // namespace qvmremote::dom0
