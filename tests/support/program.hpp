// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Reads a fuzzer's input as a program: numbers and runs of bytes, and zeros after its end.

#pragma once

#include <algorithm>
#include <cstdint>

#include <qvmremote/bytes.hpp>

namespace qvmremote::test {

class program {
  public:
    explicit program(bytes_view input) : left_(input) {}

    [[nodiscard]] bool done() const noexcept { return left_.empty(); }
    std::uint8_t u8() {
        const bytes_view one = take(1);
        return one.empty() ? std::uint8_t{0} : one[0];
    }
    std::uint16_t u16() { return static_cast<std::uint16_t>(u8() << 8 | u8()); }
    bytes_view take(std::size_t n) {
        const bytes_view out = left_.first(std::min(n, left_.size()));
        left_ = left_.subspan(out.size());
        return out;
    }

  private:
    bytes_view left_;
};

} // namespace qvmremote::test
