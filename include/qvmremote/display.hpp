// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Shows fields of untrusted text as rows of a screen, so that one field never looks like two.
///
/// Each row is a label of fixed width, a mark, and a piece of text in printable ASCII:
///
///     argv[0]       : "sh"
///     argv[1]       : "a word with a \n newline, which goes on in the nex
///                   + t row"
///     script 1      | #!/bin/sh
///     script 2      | exit 0
///     script        . 16 bytes; its last line does not end with a newline
///
/// The mark is always in the same column, and text begins after it, so no text can look like the
/// beginning of another field.

#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <qvmremote/sanitize.hpp>

namespace qvmremote {

/// Collects the rows of some fields, for a screen of a given width.
class field_rows {
  public:
    static constexpr std::size_t label_width = 13; ///< so that 80 columns hold a SHA-256
    static constexpr std::size_t text_column =
        label_width + 3;                           ///< after a space, the mark and a space
    static constexpr std::size_t least_width = 40; ///< in columns

    /// What the mark before a piece of text says about it.
    enum mark : char {
        fact = '.',      ///< a text that this program wrote
        word = ':',      ///< one value, in quotation marks
        line = '|',      ///< one line of a text
        continued = '+', ///< the rest of the row before
    };

    /// No row is longer than the larger of `width` and least_width.
    explicit field_rows(std::size_t width)
        : room_((width < least_width ? least_width : width) - text_column) {}

    /// Adds a text that this program wrote.
    void add_fact(std::string_view label, std::string_view text) {
        add(label, fact, for_terminal(text, std::string_view::npos));
    }

    /// Adds one value, with any bytes.
    void add_word(std::string_view label, std::string_view untrusted_word) {
        add(label, word, quoted(untrusted_word));
    }

    /// Adds a text, line by line. Blanks at the end of a line are escaped. The last row says how
    /// many bytes the text has, and whether its last line lacks a newline.
    void add_text(std::string_view label, std::string_view untrusted_text) {
        const std::size_t size = untrusted_text.size();
        const bool is_ended = size == 0 || untrusted_text.back() == '\n';
        for (std::size_t number = 1; !untrusted_text.empty(); ++number) {
            const std::size_t end = untrusted_text.find('\n');
            add(std::string(label) + " " + std::to_string(number), line,
                line_of(untrusted_text.substr(0, end)));
            untrusted_text.remove_prefix(end == std::string_view::npos ? untrusted_text.size()
                                                                       : end + 1);
        }
        add_fact(label, std::to_string(size) + " bytes" +
                            (is_ended ? "" : "; its last line does not end with a newline"));
    }

    [[nodiscard]] const std::vector<std::string> &rows() const noexcept { return rows_; }

    /// A value between quotation marks. Quotation marks inside it are escaped, so the text can be
    /// turned back into the value.
    [[nodiscard]] static std::string quoted(std::string_view untrusted_word) {
        return '"' +
               detail::escape_bytes(untrusted_word, std::string_view::npos,
                                    [](char c) -> std::string_view {
                                        return c == '\\'  ? std::string_view("\\\\")
                                               : c == '"' ? std::string_view("\\\"")
                                                          : std::string_view();
                                    }) +
               '"';
    }

  private:
    // Blanks at the end of a line are invisible, so they are escaped.
    static std::string line_of(std::string_view untrusted_line) {
        const std::size_t last = untrusted_line.find_last_not_of(' ');
        const std::size_t blanks =
            untrusted_line.size() - (last == std::string_view::npos ? 0 : last + 1);
        std::string out = for_terminal(untrusted_line.substr(0, untrusted_line.size() - blanks),
                                       std::string_view::npos);
        for (std::size_t i = 0; i < blanks; ++i)
            out += "\\x20";
        return out;
    }

    // How many bytes of the escaped text fit in one row; no escape is cut in two. for_terminal() escapes
    // each backslash, so that a backslash is never the last byte.
    [[nodiscard]] std::size_t bytes_that_fit(std::string_view escaped) const {
        std::size_t end = 0;
        while (end < escaped.size()) {
            const std::size_t step = escaped[end] != '\\' ? 1 : escaped[end + 1] == 'x' ? 4 : 2;
            if (end + step > room_)
                break;
            end += step;
        }
        return end;
    }

    void add(std::string_view label, mark first, std::string_view escaped) {
        std::string left = for_terminal(label, label_width);
        mark now = first;
        do {
            left.resize(label_width, ' ');
            const std::size_t size = bytes_that_fit(escaped);
            std::string row = left + ' ' + static_cast<char>(now) + ' ';
            rows_.push_back(row.append(escaped.substr(0, size)));
            escaped.remove_prefix(size);
            left.clear();
            now = continued;
        } while (!escaped.empty());
    }

    std::size_t room_;
    std::vector<std::string> rows_;
};

} // namespace qvmremote
