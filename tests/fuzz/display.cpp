// SPDX-License-Identifier: GPL-2.0-or-later
// Checks that the rows that an operator reads can be turned back into the fields that the qube
// sent. A row holds only printable ASCII and is not longer than the width, and two different
// requests never have the same rows. The first byte of the input is the width; fields are divided
// by the byte 0xff, and the first byte of each says whether it is a word or a text.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <qvmremote/display.hpp>

#include "target.hpp"

using namespace qvmremote;

namespace {

using field = std::pair<char, std::string>; // mark and bytes

std::string bytes_of(std::string_view shown) {
    std::string out;
    for (std::size_t i = 0; i < shown.size(); ++i) {
        if (shown[i] != '\\') {
            out.push_back(shown[i]);
            continue;
        }
        require(++i < shown.size());
        const std::size_t at = std::string_view("ntr\\\"").find(shown[i]);
        if (at != std::string_view::npos) {
            out.push_back("\n\t\r\\\""[at]);
            continue;
        }
        require(shown[i] == 'x' && i + 2 < shown.size());
        out.push_back(static_cast<char>(hex_value(shown[i + 1]) * 16 + hex_value(shown[i + 2])));
        i += 2;
    }
    return out;
}

// Reads the fields from the rows by columns and marks only.
std::vector<field> read_rows(const std::vector<std::string> &rows, std::size_t width) {
    std::vector<field> out;
    std::string text;
    for (std::size_t i = 0; i < rows.size();) {
        const auto check_row = [&](const std::string &row) {
            require(row.size() <= std::max(width, field_rows::least_width));
            require(row.size() >= field_rows::text_column);
            require(std::all_of(row.begin(), row.end(), detail::is_printable));
        };
        check_row(rows[i]);
        const std::string label = rows[i].substr(0, rows[i].find(' '));
        const char mark = rows[i][field_rows::label_width + 1];
        std::string shown = rows[i].substr(field_rows::text_column);
        while (++i < rows.size() && rows[i][field_rows::label_width + 1] == field_rows::continued) {
            check_row(rows[i]);
            shown += rows[i].substr(field_rows::text_column);
        }
        if (mark == field_rows::word) {
            require(shown.size() >= 2 && shown.front() == '"' && shown.back() == '"');
            out.emplace_back(mark, bytes_of(std::string_view(shown).substr(1, shown.size() - 2)));
        } else if (mark == field_rows::line) {
            require(shown.empty() || shown.back() != ' ');
            text += bytes_of(shown) + "\n";
        } else {
            require(mark == field_rows::fact);
            if (shown.find(';') != std::string::npos)
                text.pop_back();
            out.emplace_back(field_rows::line, std::exchange(text, {}));
        }
    }
    return out;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    if (size == 0)
        return 0;
    const std::size_t width = data[0];
    std::string_view left(reinterpret_cast<const char *>(data) + 1, size - 1);
    std::vector<field> wanted;
    field_rows shown(width);
    while (!left.empty()) {
        const std::string_view one = left.substr(0, left.find('\xff'));
        left.remove_prefix(std::min(left.size(), one.size() + 1));
        const bool is_word = !one.empty() && (one[0] & 1) != 0;
        const std::string_view bytes = one.substr(std::min<std::size_t>(1, one.size()));
        is_word ? shown.add_word("word", bytes) : shown.add_text("text", bytes);
        wanted.emplace_back(is_word ? field_rows::word : field_rows::line, bytes);
    }
    require(read_rows(shown.rows(), width) == wanted);
    return 0;
}
