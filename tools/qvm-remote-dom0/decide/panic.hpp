// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The mark that nothing may run. It is a file, so that it stays after the daemon ends and after a
/// reboot (I7).

#pragma once

#include <string>

#include <qvmremote/host/failure.hpp>

#include "base/settings.hpp"

namespace qvmremote::dom0 {

/// Whether the mark is set. When that is unknown, it counts as set.
[[nodiscard]] bool is_panic(const paths &where) noexcept;

/// Sets it, durably; `words` say who did this and when. A mark that is set already is not changed.
[[nodiscard]] host::outcome<void> set_panic(const paths &where, const std::string &words);

/// Removes it, durably.
[[nodiscard]] host::outcome<void> clear_panic(const paths &where);

} // namespace qvmremote::dom0
