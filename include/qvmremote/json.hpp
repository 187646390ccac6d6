// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Writes JSON (RFC 8259) for programs that read our output. Its texts may hold any bytes.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <qvmremote/base64.hpp>
#include <qvmremote/bytes.hpp>
#include <qvmremote/sanitize.hpp>
#include <qvmremote/utf8.hpp>

namespace qvmremote {

/// Appends JSON without blanks to a string. The outermost value is an object. The caller ends each
/// begin() and begin_array() with end(). It takes the names of members from [a-z0-9_], since they
/// are not escaped, and gives a name only once in an object.
class json_writer {
  public:
    /// May empty `out`.
    using spill_function = void (*)(std::string &out);
    /// `out` must outlive the writer. text() and content() write in pieces and, after a piece, call
    /// `spill` if `out` holds 64 KiB or more. So the JSON of a large value is never in memory as a
    /// whole. `spill` may be null.
    explicit json_writer(std::string &out, spill_function spill = nullptr) noexcept
        : out_(out), spill_(spill) {}

    /// Begins the outermost object, or an object in an array.
    void begin() { open('{', '}'); }
    void begin(std::string_view own_name) {
        name(own_name);
        begin_value('{', '}');
    }
    void begin_array(std::string_view own_name) {
        name(own_name);
        begin_value('[', ']');
    }
    /// Ends the innermost object or array.
    void end() {
        out_.push_back(closers_.back());
        closers_.pop_back();
        needs_comma_ = true;
    }

    /// Writes a text. A byte that is not part of valid UTF-8 becomes the character with the same number,
    /// as in for_json(). For exact bytes, use content().
    void text(std::string_view own_name, std::string_view untrusted_text) {
        name(own_name);
        quoted(untrusted_text);
    }
    /// The same, as an element of an array.
    void text(std::string_view untrusted_text) {
        comma();
        quoted(untrusted_text);
    }
    void number(std::string_view own_name, std::int64_t value) {
        name(own_name);
        out_ += std::to_string(value);
        needs_comma_ = true;
    }
    void flag(std::string_view own_name, bool value) {
        name(own_name);
        out_ += value ? "true" : "false";
        needs_comma_ = true;
    }
    /// Writes any bytes so that a reader gets them back: as the member "text" if they are valid UTF-8,
    /// otherwise as the member "base64".
    void content(std::string_view untrusted_bytes) {
        if (is_utf8(untrusted_bytes))
            return text("text", untrusted_bytes);
        name("base64");
        out_.push_back('"');
        while (!untrusted_bytes.empty()) {
            const std::string_view piece = untrusted_bytes.substr(0, piece_size);
            append_base64(out_, as_bytes(piece));
            untrusted_bytes.remove_prefix(piece.size());
            spill_if_large();
        }
        out_.push_back('"');
        needs_comma_ = true;
    }

  private:
    static constexpr std::size_t piece_size = 3 * 8192; // a multiple of 3, for base64
    static constexpr std::size_t spill_size = 64 * 1024;

    void comma() {
        if (needs_comma_)
            out_.push_back(',');
    }
    void name(std::string_view own_name) {
        comma();
        out_.push_back('"');
        out_ += own_name;
        out_ += "\":";
    }
    void open(char opener, char closer) {
        comma();
        begin_value(opener, closer);
    }
    void begin_value(char opener, char closer) {
        out_.push_back(opener);
        closers_.push_back(closer);
        needs_comma_ = false;
    }
    void quoted(std::string_view untrusted_text) {
        out_.push_back('"');
        while (!untrusted_text.empty()) {
            std::string_view piece = untrusted_text.substr(0, piece_size);
            if (piece.size() < untrusted_text.size())
                piece = piece.substr(0, whole_characters(piece));
            static_cast<void>(detail::append_json(out_, piece, std::string_view::npos));
            untrusted_text.remove_prefix(piece.size());
            spill_if_large();
        }
        out_.push_back('"');
        needs_comma_ = true;
    }
    void spill_if_large() {
        if (spill_ && out_.size() >= spill_size)
            spill_(out_);
    }

    std::string &out_;
    spill_function spill_;
    std::string closers_; // what ends the values that are open
    bool needs_comma_ = false;
};

} // namespace qvmremote
