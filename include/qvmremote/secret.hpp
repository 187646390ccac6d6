// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Key material: moved, never copied, wiped when it is destroyed, compared in constant time.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <openssl/crypto.h>

#include <qvmremote/base64.hpp>
#include <qvmremote/bytes.hpp>
#include <qvmremote/digest.hpp>
#include <qvmremote/error.hpp>

namespace qvmremote {

/// N secret bytes. Move-only; the source of a move and a destroyed object hold zeros.
template <std::size_t N>
class secret_bytes {
  public:
    secret_bytes() noexcept = default;
    /// Takes the value over and wipes its source, which is often a temporary.
    explicit secret_bytes(std::array<std::uint8_t, N> &&value) noexcept : value_(value) {
        OPENSSL_cleanse(value.data(), value.size());
    }
    secret_bytes(secret_bytes &&other) noexcept : value_(other.value_) { other.wipe(); }
    secret_bytes &operator=(secret_bytes &&other) noexcept {
        if (this != &other) {
            value_ = other.value_;
            other.wipe();
        }
        return *this;
    }
    secret_bytes(const secret_bytes &) = delete;
    secret_bytes &operator=(const secret_bytes &) = delete;
    ~secret_bytes() { wipe(); }

    [[nodiscard]] bytes_view view() const noexcept { return value_; }
    [[nodiscard]] const std::array<std::uint8_t, N> &value() const noexcept { return value_; }
    [[nodiscard]] std::array<std::uint8_t, N> &value() noexcept { return value_; }

    [[nodiscard]] bool equals(bytes_view other) const noexcept {
        return equal_constant_time(value_, other);
    }
    void wipe() noexcept { OPENSSL_cleanse(value_.data(), value_.size()); }

  private:
    std::array<std::uint8_t, N> value_{};
};

/// A key as it is registered: the text of 64 hexadecimal digits, in the case that was typed. The
/// HMAC key of both protocols is this text, not the 32 bytes that it spells (COMPAT-V1.md).
class secret {
  public:
    /// Takes 64 digits of [0-9a-fA-F], with blanks and newlines around them allowed, and no prefix,
    /// sign or separator. Fails with errc::bad_key at the first bad byte. The caller wipes the text
    /// that it passed.
    [[nodiscard]] static result<secret> parse(std::string_view untrusted_text) {
        std::size_t begin = 0;
        std::size_t end = untrusted_text.size();
        while (begin < end && is_blank(untrusted_text[begin]))
            ++begin;
        while (end > begin && is_blank(untrusted_text[end - 1]))
            --end;
        secret out;
        for (std::size_t i = begin; i < end; ++i) {
            if (i - begin == digits || hex_value(untrusted_text[i]) < 0)
                return fail(errc::bad_key, i);
            out.text_.value()[i - begin] = static_cast<std::uint8_t>(untrusted_text[i]);
        }
        if (end - begin != digits)
            return fail(errc::bad_key, end);
        return out;
    }

    /// A new key from 32 random bytes.
    [[nodiscard]] static secret from_random(const secret_bytes<32> &random) {
        constexpr char hex[] = "0123456789abcdef";
        secret out;
        for (std::size_t i = 0; i < digits; ++i) {
            const std::uint8_t byte = random.value()[i / 2];
            out.text_.value()[i] = static_cast<std::uint8_t>(hex[i % 2 ? byte & 15 : byte >> 4]);
        }
        return out;
    }

    /// The digits as stored, borrowed. Pass them only to a MAC or into a key file.
    [[nodiscard]] bytes_view text() const noexcept { return text_.view(); }

    /// A second copy of the key, where a caller needs one on purpose.
    [[nodiscard]] secret duplicate() const {
        secret out;
        out.text_.value() = text_.value();
        return out;
    }

    [[nodiscard]] bool equals(const secret &other) const noexcept {
        return text_.equals(other.text_.view());
    }

    /// "SHA256:" and the base64 of the text's SHA-256 without padding, as ssh-keygen -l prints it.
    /// People compare it at both ends. It is a hash, so it shows no digit of the key.
    [[nodiscard]] std::string fingerprint() const {
        std::string out = "SHA256:";
        append_base64(out, sha256(text_.view()));
        out.pop_back(); // 32 bytes have one '=' of padding
        return out;
    }

    static constexpr std::size_t digits = 64;

  private:
    secret() noexcept = default;
    static constexpr bool is_blank(char c) noexcept {
        return c == ' ' || c == '\t' || c == '\n' || c == '\r';
    }

    secret_bytes<digits> text_;
};

} // namespace qvmremote
