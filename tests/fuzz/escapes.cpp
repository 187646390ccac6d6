// SPDX-License-Identifier: GPL-2.0-or-later
// Checks the scanner of escapes: what it sends and does is the same for the keys in any pieces, it
// sends no more than was typed, and without an escape character it sends everything as typed.

#include <algorithm>
#include <optional>
#include <string>

#include <qvmremote/escapes.hpp>

#include "target.hpp"

using namespace qvmremote;

namespace {

std::string sent(bytes_view keys, std::size_t piece, std::optional<std::uint8_t> character) {
    escape_scanner scanner(character);
    std::string out;
    bytes room(piece + 1);
    while (!keys.empty()) {
        bytes_view typed = keys.first(std::min(piece, keys.size()));
        keys = keys.subspan(typed.size());
        while (!typed.empty()) {
            const auto step = scanner.push(typed, room);
            require(step.used > 0 && step.used <= typed.size());
            require(step.written <= step.used + 1);
            out.append(as_text(bytes_view(room).first(step.written)));
            if (step.what != escape_scanner::action::none)
                out.append(1, '\0').append(std::to_string(static_cast<int>(step.what)));
            typed = typed.subspan(step.used);
        }
    }
    return out;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    if (size == 0)
        return 0;
    const bytes_view keys(data + 1, size - 1);
    const std::size_t piece = 1 + data[0] % 16;
    require(sent(keys, piece, std::nullopt) == as_text(keys));
    const std::string whole = sent(keys, std::max<std::size_t>(keys.size(), 1), '~');
    require(sent(keys, piece, '~') == whole);
    require(whole.size() <= keys.size());
    return 0;
}
