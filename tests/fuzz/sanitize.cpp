// SPDX-License-Identifier: GPL-2.0-or-later
// Checks that the output for terminal, log and markup is printable ASCII, that a text for the
// terminal that was not cut can be turned back, that JSON holds no control character and is valid
// UTF-8, and that limits are kept. The first two bytes of the input are the limit.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include <qvmremote/sanitize.hpp>

#include "target.hpp"

using namespace qvmremote;

namespace {

bool printable(std::string_view text) {
    return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c <= 0x7e; });
}

std::string bytes_of(std::string_view text) {
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '\\') {
            out.push_back(text[i]);
            continue;
        }
        switch (text[++i]) {
        case 'n':
            out.push_back('\n');
            break;
        case 't':
            out.push_back('\t');
            break;
        case 'r':
            out.push_back('\r');
            break;
        case '\\':
            out.push_back('\\');
            break;
        case 'x':
            out.push_back(static_cast<char>(hex_value(text[i + 1]) * 16 + hex_value(text[i + 2])));
            i += 2;
            break;
        default:
            std::abort();
        }
    }
    return out;
}

// The length of the first character, or 0 if it is malformed or a C1 control. It uses the byte
// ranges of RFC 3629, which is another method than the library's.
std::size_t utf8_length(std::string_view text) {
    const auto byte = [&](std::size_t i) {
        return i < text.size() ? static_cast<std::uint8_t>(text[i]) : 0;
    };
    const auto in = [&](std::size_t i, int low, int high) {
        return byte(i) >= low && byte(i) <= high;
    };
    const auto tail = [&](std::size_t i) { return in(i, 0x80, 0xbf); };
    if (in(0, 0x00, 0x7f))
        return 1;
    if (in(0, 0xc2, 0xdf))
        return tail(1) && !(byte(0) == 0xc2 && byte(1) < 0xa0) ? 2 : 0;
    if (in(0, 0xe0, 0xef))
        return in(1, byte(0) == 0xe0 ? 0xa0 : 0x80, byte(0) == 0xed ? 0x9f : 0xbf) && tail(2) ? 3
                                                                                              : 0;
    if (in(0, 0xf0, 0xf4))
        return in(1, byte(0) == 0xf0 ? 0x90 : 0x80, byte(0) == 0xf4 ? 0x8f : 0xbf) && tail(2) &&
                       tail(3)
                   ? 4
                   : 0;
    return 0;
}

void check_json(std::string_view text) {
    for (std::size_t i = 0; i < text.size();) {
        const std::size_t length = utf8_length(text.substr(i));
        require(length != 0 && text[i] != '"' && text[i] != 0x7f);
        require(length > 1 || text[i] >= 0x20);
        if (text[i] != '\\') {
            i += length;
            continue;
        }
        require(i + 1 < text.size());
        const bool u = text[i + 1] == 'u';
        require(u || std::string_view("\"\\nrt").find(text[i + 1]) != std::string_view::npos);
        require(i + (u ? 6 : 2) <= text.size());
        i += u ? 6 : 2;
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    if (size < 2)
        return 0;
    const std::size_t limit = data[0] | std::size_t{data[1]} << 8;
    const std::string_view text(reinterpret_cast<const char *>(data) + 2, size - 2);

    for (const std::string &out : {for_terminal(text, limit), for_log(text, limit),
                                   for_markup(text, limit), preview(text, limit)})
        require(printable(out));
    require(for_terminal(text, limit).size() <= limit);
    require(for_log(text, limit).size() <= limit);
    require(for_markup(text, limit).size() <= limit);
    require(for_json(text, limit).size() <= limit);
    require(preview(text, limit).size() <= 4 * limit);
    require(bytes_of(for_terminal(text, std::string_view::npos)) == text);
    require(from_terminal(for_terminal(text, std::string_view::npos)) == std::string(text));
    if (const auto bytes = from_terminal(text))
        require(for_terminal(*bytes, std::string_view::npos) == text);
    require(for_markup(text, limit).find_first_of("<>\"'") == std::string::npos);
    check_json(for_json(text));
    check_json(for_json(text, limit));

    if (const auto name = for_file_name(text)) {
        require(*name == text && printable(text) && text.size() <= 128);
        require(text.find('/') == std::string_view::npos && text[0] != '.' && text[0] != '-');
    }
    return 0;
}
