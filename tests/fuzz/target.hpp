// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What every fuzz target needs: its entry, and a check that works in a release build too.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size);

/// Aborts if a property does not hold.
inline void require(bool ok) {
    if (!ok)
        std::abort();
}
