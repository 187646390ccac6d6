// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Writes JSON (RFC 8259) from bytes that can be anything, for programs that read what we print.

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

/// Appends JSON without blanks to a string. Calls begin() and end() in pairs; the outermost value is
/// an object. Names of members are our own words of [a-z0-9_]; each is written once.
class json_writer {
  public:
    /// `out` must outlive this. `spill` (may be null) is called when `out` holds much; it may take
    /// the text away, so that a large value never is in memory as a whole.
    using spill_function = void (*)(std::string &out);
    explicit json_writer(std::string &out, spill_function spill = nullptr) noexcept
        : out_(out), spill_(spill) {}

    /// The outermost object, or one in an array.
    void begin() { open('{', '}'); }
    void begin(std::string_view own_name) {
        name(own_name);
        begin_value('{', '}');
    }
    void begin_array(std::string_view own_name) {
        name(own_name);
        begin_value('[', ']');
    }
    void end() {
        out_.push_back(closers_.back());
        closers_.pop_back();
        needs_comma_ = true;
    }

    /// A text that people read, or a word of ours. A byte that is not UTF-8 becomes the character
    /// with its number, as in for_json(): content() carries bytes.
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
    /// Bytes that are not lost: the member "text" when they are UTF-8, otherwise "base64".
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
