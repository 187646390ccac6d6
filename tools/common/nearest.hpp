// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Finds the known name that a misspelt name probably means.

#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <span>
#include <string_view>
#include <vector>

namespace qvmremote {

/// How many letters must be added, removed or replaced to turn one word into the other.
[[nodiscard]] inline std::size_t edit_distance(std::string_view a, std::string_view b) {
    // row[j] is the distance from the part of `a` seen so far to the first j letters of `b`.
    std::vector<std::size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 0; i < a.size(); ++i) {
        std::size_t diagonal = row[0]++;
        for (std::size_t j = 0; j < b.size(); ++j) {
            const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
            diagonal = row[j + 1];
            row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
        }
    }
    return row.back();
}

/// The name that is nearest to `word`; empty when none is near.
[[nodiscard]] inline std::string_view nearest(std::string_view word,
                                              std::span<const std::string_view> names) {
    constexpr std::size_t near = 4;
    std::string_view best;
    std::size_t least = near + 1;
    for (const std::string_view name : names)
        if (const std::size_t distance = edit_distance(word, name); distance < least) {
            best = name;
            least = distance;
        }
    return best;
}

} // namespace qvmremote
