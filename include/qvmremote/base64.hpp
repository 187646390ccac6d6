// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bytes as printable text, for JSON.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include <qvmremote/bytes.hpp>

namespace qvmremote {

/// Appends the base64 of RFC 4648, section 4. `=` stands at the end of data whose size is not a
/// multiple of 3, so only the last of several pieces may have such a size.
inline void append_base64(std::string &out, bytes_view data) {
    constexpr char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (std::size_t i = 0; i < data.size(); i += 3) {
        const std::size_t n = data.size() - i < 3 ? data.size() - i : 3;
        const std::uint32_t bits = std::uint32_t{data[i]} << 16 |
                                   (n > 1 ? std::uint32_t{data[i + 1]} << 8 : 0u) |
                                   (n > 2 ? std::uint32_t{data[i + 2]} : 0u);
        out.push_back(alphabet[bits >> 18]);
        out.push_back(alphabet[bits >> 12 & 63]);
        out.push_back(n > 1 ? alphabet[bits >> 6 & 63] : '=');
        out.push_back(n > 2 ? alphabet[bits & 63] : '=');
    }
}

} // namespace qvmremote
