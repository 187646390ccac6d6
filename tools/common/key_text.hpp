// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Reads a key that a person typed, piped in or keeps in a file.

#pragma once

#include <string>
#include <string_view>

#include <openssl/crypto.h>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/secret.hpp>

namespace qvmremote {

namespace detail {

// What is wrong with a text that is not a key, at the offset that secret::parse names. The text itself
// is not shown: it may be most of a key.
[[nodiscard]] inline std::string why_not_a_key(std::string_view text, std::size_t offset) {
    const std::size_t begin = text.find_first_not_of(" \t\r\n");
    if (begin == text.npos)
        return "it is empty";
    if (offset - begin == secret::digits)
        return "it goes on after " + std::to_string(secret::digits) + " digits";
    if (offset > text.find_last_not_of(" \t\r\n"))
        return "it ends after " + std::to_string(offset - begin) + " digits";
    return "byte " + std::to_string(offset + 1) + " is not a digit";
}

} // namespace detail

/// Parses a key and wipes `text`. The failure says what is wrong with it and what a key is.
[[nodiscard]] inline host::outcome<secret> read_key(std::string text) {
    auto key = secret::parse(text);
    const std::string why = key ? std::string() : detail::why_not_a_key(text, key.error().offset);
    OPENSSL_cleanse(text.data(), text.size());
    if (!key)
        return host::failed("this is not a key: " + why + "; a key is " +
                            std::to_string(secret::digits) +
                            " digits of 0-9 and a-f, without 0x, sign or separators");
    return std::move(*key);
}

} // namespace qvmremote
