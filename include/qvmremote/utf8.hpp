// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Tells text in UTF-8 from other bytes, also where a stream is cut into pieces.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include <qvmremote/sanitize.hpp>

namespace qvmremote {

/// Whether all of it is valid UTF-8: no overlong form, no surrogate, nothing above U+10FFFF.
[[nodiscard]] constexpr bool is_utf8(std::string_view untrusted_text) noexcept {
    for (std::size_t i = 0; i < untrusted_text.size();) {
        const std::size_t n = detail::decode_utf8(untrusted_text.substr(i)).length;
        if (n == 0)
            return false;
        i += n;
    }
    return true;
}

/// The length of the text without a character of UTF-8 at its end whose last bytes are missing.
[[nodiscard]] constexpr std::size_t whole_characters(std::string_view untrusted_text) noexcept {
    const std::size_t size = untrusted_text.size();
    for (std::size_t back = 1; back <= 3 && back <= size; ++back) {
        const auto byte = static_cast<std::uint8_t>(untrusted_text[size - back]);
        if ((byte & 0xc0) == 0x80)
            continue;
        const std::size_t length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
        return length > back ? size - back : size;
    }
    return size;
}

} // namespace qvmremote
