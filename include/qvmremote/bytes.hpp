// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bytes with explicit order: views, a cursor that cannot overrun, a writer, hexadecimal digits.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <qvmremote/error.hpp>

namespace qvmremote {

using bytes_view = std::span<const std::uint8_t>;
using bytes = std::vector<std::uint8_t>;

/// The same bytes, as numbers or as text. The view borrows them.
[[nodiscard]] inline bytes_view as_bytes(std::string_view text) noexcept {
    return {reinterpret_cast<const std::uint8_t *>(text.data()), text.size()};
}
[[nodiscard]] inline std::string_view as_text(bytes_view data) noexcept {
    return {reinterpret_cast<const char *>(data.data()), data.size()};
}

/// Reads big-endian fields from the front of a view. Each call either takes a whole field and moves
/// on, or fails with errc::incomplete at the field's offset. Errors are sticky: after one failure
/// all further calls fail too, so a caller may read several fields and check only the last one.
class byte_reader {
  public:
    explicit constexpr byte_reader(bytes_view data) noexcept : data_(data) {}

    [[nodiscard]] std::size_t offset() const noexcept { return offset_; }
    [[nodiscard]] std::size_t left() const noexcept { return data_.size() - offset_; }

    [[nodiscard]] result<std::uint8_t> u8() { return number<std::uint8_t>(); }
    [[nodiscard]] result<std::uint16_t> u16() { return number<std::uint16_t>(); }
    [[nodiscard]] result<std::uint32_t> u32() { return number<std::uint32_t>(); }
    [[nodiscard]] result<std::uint64_t> u64() { return number<std::uint64_t>(); }

    /// The next n bytes, borrowed from the input.
    [[nodiscard]] result<bytes_view> take(std::size_t n) {
        if (failed_ || n > left()) {
            failed_ = true;
            return fail(errc::incomplete, offset_);
        }
        const bytes_view out = data_.subspan(offset_, n);
        offset_ += n;
        return out;
    }

    /// Copies exactly N bytes.
    template <std::size_t N>
    [[nodiscard]] result<std::array<std::uint8_t, N>> array() {
        auto view = take(N);
        if (!view)
            return tl::unexpected(view.error());
        std::array<std::uint8_t, N> out;
        std::memcpy(out.data(), view->data(), N);
        return out;
    }

  private:
    template <class T>
    [[nodiscard]] result<T> number() {
        auto view = take(sizeof(T));
        if (!view)
            return tl::unexpected(view.error());
        std::uint64_t value = 0;
        for (const std::uint8_t b : *view)
            value = value << 8 | b;
        return static_cast<T>(value);
    }

    bytes_view data_;
    std::size_t offset_ = 0;
    bool failed_ = false;
};

/// Appends big-endian fields to a buffer that the caller owns.
class byte_writer {
  public:
    explicit byte_writer(bytes &out) noexcept : out_(out) {}

    void u8(std::uint8_t v) { number(v); }
    void u16(std::uint16_t v) { number(v); }
    void u32(std::uint32_t v) { number(v); }
    void u64(std::uint64_t v) { number(v); }
    void put(bytes_view v) { out_.insert(out_.end(), v.begin(), v.end()); }
    void put(std::string_view v) { put(as_bytes(v)); }

  private:
    template <class T>
    void number(T v) {
        for (std::size_t i = sizeof(T); i-- > 0;)
            out_.push_back(static_cast<std::uint8_t>(v >> (8 * i)));
    }

    bytes &out_;
};

/// Store and load big-endian numbers in place, for fixed headers. The caller provides 4 or 8 bytes
/// at `at`.
inline void store_u32(std::uint8_t *at, std::uint32_t v) noexcept {
    for (int i = 3; i >= 0; --i, v >>= 8)
        at[i] = static_cast<std::uint8_t>(v);
}
inline void store_u64(std::uint8_t *at, std::uint64_t v) noexcept {
    for (int i = 7; i >= 0; --i, v >>= 8)
        at[i] = static_cast<std::uint8_t>(v);
}
[[nodiscard]] inline std::uint32_t load_u32(const std::uint8_t *at) noexcept {
    return std::uint32_t{at[0]} << 24 | std::uint32_t{at[1]} << 16 | std::uint32_t{at[2]} << 8 |
           at[3];
}

/// Lower-case hexadecimal digits, two for each byte.
[[nodiscard]] inline std::string to_hex(bytes_view data) {
    constexpr char digits[] = "0123456789abcdef";
    std::string out;
    out.reserve(data.size() * 2);
    for (const std::uint8_t b : data) {
        out.push_back(digits[b >> 4]);
        out.push_back(digits[b & 15]);
    }
    return out;
}

/// The value of a hexadecimal digit, 0 to 15; -1 for any other character. Like the functions below,
/// and unlike std::isxdigit, it does not depend on the locale.
[[nodiscard]] constexpr int hex_value(char c) noexcept {
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/// The bytes of hexadecimal digits, two digits for each byte: the inverse of to_hex, in upper or
/// lower case. Returns nothing for an odd number of digits or any other character, and no bytes for
/// an empty text.
[[nodiscard]] inline std::optional<bytes> from_hex(std::string_view untrusted_text) {
    if (untrusted_text.size() % 2 != 0)
        return std::nullopt;
    bytes out;
    out.reserve(untrusted_text.size() / 2);
    for (std::size_t i = 0; i < untrusted_text.size(); i += 2) {
        const int high = hex_value(untrusted_text[i]), low = hex_value(untrusted_text[i + 1]);
        if (high < 0 || low < 0)
            return std::nullopt;
        out.push_back(static_cast<std::uint8_t>(high << 4 | low));
    }
    return out;
}

[[nodiscard]] constexpr bool is_digit(char c) noexcept { return c >= '0' && c <= '9'; }
[[nodiscard]] constexpr bool is_alpha(char c) noexcept {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
[[nodiscard]] constexpr bool is_alnum(char c) noexcept { return is_digit(c) || is_alpha(c); }

} // namespace qvmremote
