// SPDX-License-Identifier: GPL-2.0-or-later
// Checks that what a terminal gets is printable and valid UTF-8, is the same in whatever pieces the
// output comes, keeps every newline, and that text passes as it is.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include <qvmremote/terminal_filter.hpp>
#include <qvmremote/utf8.hpp>

#include "target.hpp"

using namespace qvmremote;

namespace {

std::string shown(std::string_view output, std::size_t piece, bool utf8) {
    terminal_filter filter(utf8);
    std::string out;
    while (!output.empty()) {
        const std::string_view next = output.substr(0, piece);
        filter.push(out, next);
        output.remove_prefix(next.size());
    }
    filter.end(out);
    return out;
}

bool is_harmless(std::string_view text) {
    for (std::size_t i = 0; i < text.size(); ++i) {
        const auto byte = static_cast<std::uint8_t>(text[i]);
        const bool before_newline = i + 1 < text.size() && text[i + 1] == '\n';
        if (byte == 0x7f ||
            (byte < 0x20 && byte != '\n' && byte != '\t' && !(byte == '\r' && before_newline)))
            return false;
        if (byte == 0xc2 && static_cast<std::uint8_t>(text[i + 1]) < 0xa0) // a C1 control
            return false;
    }
    return true;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    if (size == 0)
        return 0;
    const std::string_view output(reinterpret_cast<const char *>(data) + 1, size - 1);
    const std::size_t piece = 1 + data[0] % 16;
    for (const bool utf8 : {true, false}) {
        const std::string whole = shown(output, std::max<std::size_t>(output.size(), 1), utf8);
        require(shown(output, piece, utf8) == whole);
        require(is_utf8(whole) && is_harmless(whole));
        require(utf8 || std::all_of(whole.begin(), whole.end(),
                                    [](char c) { return static_cast<std::uint8_t>(c) < 0x80; }));
        require(std::count(whole.begin(), whole.end(), '\n') ==
                std::count(output.begin(), output.end(), '\n'));
        require(whole.size() >= output.size() && whole.size() <= 4 * output.size());
        require(shown(whole, piece, utf8) == whole); // what is shown needs no escape
    }
    return 0;
}
