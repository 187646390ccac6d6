// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The mark that nothing may run: a file, so that it outlives the daemon and the boot (I7).

#pragma once

#include <string>

#include <qvmremote/host/failure.hpp>

#include "base/settings.hpp"

namespace qvmremote::dom0 {

/// Whether the mark is set. Where that cannot be known, it is.
[[nodiscard]] bool is_panic(const paths &where) noexcept;

/// Sets it, durably; `words` say who and when. One that is set stays as it is.
[[nodiscard]] host::outcome<void> set_panic(const paths &where, const std::string &words);

/// Takes it away, durably.
[[nodiscard]] host::outcome<void> clear_panic(const paths &where);

} // namespace qvmremote::dom0
