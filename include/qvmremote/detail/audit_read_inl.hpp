// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of audit.hpp: reads lines and checks the chain.

#pragma once

#include <algorithm>
#include <utility>

#include <qvmremote/audit.hpp>
#include <qvmremote/detail/audit_write_inl.hpp>

namespace qvmremote {

namespace detail {

// Reads JSON as append writes it. After a call that fails, offset() is the error's offset.
class audit_scanner {
  public:
    explicit audit_scanner(std::string_view line) noexcept : line_(line) {}

    [[nodiscard]] std::size_t offset() const noexcept { return at_; }
    [[nodiscard]] bool at_end() const noexcept { return at_ == line_.size(); }
    [[nodiscard]] char peek() const noexcept { return at_end() ? '\0' : line_[at_]; }

    [[nodiscard]] bool skip(char c) noexcept {
        if (at_end() || line_[at_] != c)
            return false;
        ++at_;
        return true;
    }

    [[nodiscard]] bool key() noexcept {
        if (!skip('"'))
            return false;
        const std::size_t begin = at_;
        while (
            !at_end() && at_ - begin < audit_key &&
            ((line_[at_] >= 'a' && line_[at_] <= 'z') || is_digit(line_[at_]) || line_[at_] == '_'))
            ++at_;
        return at_ != begin && skip('"');
    }

    [[nodiscard]] bool value() noexcept {
        if (peek() == '"')
            return string();
        if (peek() == '[')
            return array();
        return number();
    }

  private:
    [[nodiscard]] bool string() noexcept {
        if (!skip('"'))
            return false;
        while (!at_end() && line_[at_] != '"') {
            if (line_[at_] == '\\') {
                if (!escape())
                    return false;
                continue;
            }
            const utf8_character next = decode_utf8(line_.substr(at_));
            if (next.length == 0 || is_json_escaped(next.code))
                return false;
            at_ += next.length;
        }
        return skip('"');
    }

    // Accepts only the spelling of for_json: a character with a short escape, or without need of
    // one, must not have a long escape. The exception is a byte that was not UTF-8, which for_json
    // writes as \u00NN.
    [[nodiscard]] bool escape() noexcept {
        const char kind = at_ + 1 < line_.size() ? line_[at_ + 1] : '\0';
        if (kind != 'u') {
            if (std::string_view("\"\\ntr").find(kind) == std::string_view::npos)
                return false;
            at_ += 2;
            return true;
        }
        const std::string_view digits = line_.substr(at_ + 2, 4);
        std::uint32_t code = 0;
        for (const char c : digits) {
            if (hex_value(c) < 0 || (c >= 'A' && c <= 'F'))
                return false;
            code = code << 4 | static_cast<std::uint32_t>(hex_value(c));
        }
        const bool shorter =
            code == '"' || code == '\\' || code == '\n' || code == '\t' || code == '\r';
        const bool byte = code >= 0x80 && code <= 0xff;
        if (digits.size() != 4 || shorter || !(is_json_escaped(code) || byte))
            return false;
        at_ += 6;
        return true;
    }

    [[nodiscard]] bool array() noexcept {
        if (!skip('['))
            return false;
        if (skip(']'))
            return true;
        do {
            if (!string())
                return false;
        } while (skip(','));
        return skip(']');
    }

    [[nodiscard]] bool number() noexcept {
        std::size_t end = at_;
        while (end < line_.size() && (is_digit(line_[end]) || (end == at_ && line_[end] == '-')))
            ++end;
        if (!parse_decimal<std::int64_t>(line_.substr(at_, end - at_)))
            return false;
        at_ = end;
        return true;
    }

    std::string_view line_;
    std::size_t at_ = 0;
};

// Takes a string that the scanner has accepted from the front of `raw`, with its quotes. Returns
// its bytes without the escapes.
[[nodiscard]] inline std::string take_json_string(std::string_view &raw) {
    std::string out;
    raw.remove_prefix(1);
    while (raw[0] != '"') {
        if (raw[0] != '\\') {
            out.push_back(raw[0]);
            raw.remove_prefix(1);
            continue;
        }
        if (raw[1] != 'u') {
            out.push_back(raw[1] == 'n'   ? '\n'
                          : raw[1] == 't' ? '\t'
                          : raw[1] == 'r' ? '\r'
                                          : raw[1]);
            raw.remove_prefix(2);
            continue;
        }
        std::uint32_t code = 0;
        for (const char c : raw.substr(2, 4))
            code = code << 4 | static_cast<std::uint32_t>(hex_value(c));
        if (code < 0x80) {
            out.push_back(static_cast<char>(code));
        } else if (code < 0x800) {
            out.push_back(static_cast<char>(0xc0 | code >> 6));
            out.push_back(static_cast<char>(0x80 | (code & 0x3f)));
        } else {
            out.push_back(static_cast<char>(0xe0 | code >> 12));
            out.push_back(static_cast<char>(0x80 | (code >> 6 & 0x3f)));
            out.push_back(static_cast<char>(0x80 | (code & 0x3f)));
        }
        raw.remove_prefix(6);
    }
    raw.remove_prefix(1);
    return out;
}

} // namespace detail

inline std::optional<std::string_view> audit_entry::raw(std::string_view key) const noexcept {
    for (const auto &[name, value] : fields_)
        if (name == key)
            return value;
    return std::nullopt;
}

inline std::optional<std::string> audit_entry::text(std::string_view key) const {
    auto value = raw(key);
    if (!value || value->front() != '"')
        return std::nullopt;
    return detail::take_json_string(*value);
}

inline std::optional<std::int64_t> audit_entry::number(std::string_view key) const {
    const auto value = raw(key);
    return value ? parse_decimal<std::int64_t>(*value) : std::nullopt;
}

inline std::optional<std::vector<std::string>> audit_entry::list(std::string_view key) const {
    auto value = raw(key);
    if (!value || value->front() != '[')
        return std::nullopt;
    std::vector<std::string> out;
    value->remove_prefix(1);
    while (value->front() != ']') {
        if (value->front() == ',')
            value->remove_prefix(1);
        out.push_back(detail::take_json_string(*value));
    }
    return out;
}

inline result<audit_entry> parse_audit(std::string_view line) {
    if (line.size() > limits::audit_line)
        return fail(errc::bad_json, limits::audit_line);
    detail::audit_scanner at(line);
    audit_entry out;
    if (!at.skip('{'))
        return fail(errc::bad_json, at.offset());
    do {
        const std::size_t begin = at.offset();
        if (!at.key())
            return fail(errc::bad_json, at.offset());
        const std::string_view key = line.substr(begin + 1, at.offset() - begin - 2);
        if (out.raw(key) || out.raw("h") || out.fields_.size() == detail::audit_parsed_fields)
            return fail(errc::bad_json, begin);
        if (!at.skip(':'))
            return fail(errc::bad_json, at.offset());
        const std::size_t value = at.offset();
        if (!at.value())
            return fail(errc::bad_json, at.offset());
        out.fields_.emplace_back(key, line.substr(value, at.offset() - value));
    } while (at.skip(','));
    const std::size_t end = at.offset();
    if (!at.skip('}') || !at.at_end())
        return fail(errc::bad_json, at.offset());

    // Every line has these fields.
    const auto has = [&](std::size_t place, std::string_view key) {
        return place < out.fields_.size() && out.fields_[place].first == key;
    };
    const auto unquoted = [](std::string_view value) {
        return value.front() == '"' ? value.substr(1, value.size() - 2) : std::string_view();
    };
    if (!has(0, "n") || !has(1, "t") || !has(2, "kind") || out.fields_.back().first != "h")
        return fail(errc::bad_json);
    const auto serial = parse_decimal<std::uint64_t>(out.fields_[0].second);
    out.kind = unquoted(out.fields_[2].second);
    out.hash = unquoted(out.fields_.back().second);
    const bool kind_is_word =
        !out.kind.empty() && std::all_of(out.kind.begin(), out.kind.end(),
                                         [](char c) { return (c >= 'A' && c <= 'Z') || c == '-'; });
    if (!serial || *serial == 0 || !out.text("t") || !kind_is_word)
        return fail(errc::bad_json);
    if (!detail::is_hash(out.hash))
        return fail(errc::bad_json, end);
    out.serial = *serial;
    return out;
}

inline result<std::string> verify_link(std::string_view previous, std::string_view line) {
    if (!detail::is_hash(previous) || line.size() < detail::hash_field)
        return fail(errc::chain_broken);
    const std::size_t covered = line.size() - detail::hash_field;
    std::string hash = detail::chain_hash(previous, line.substr(0, covered));
    if (line.substr(covered) != detail::hash_tail(hash))
        return fail(errc::chain_broken, covered);
    return hash;
}

inline std::string format_audit_head(std::uint64_t serial, std::string_view hash) {
    return "audit head " + std::to_string(serial) + " " + std::string(hash);
}

inline std::optional<audit_head> parse_audit_head(std::string_view untrusted_line) {
    constexpr std::string_view words = "audit head ";
    const std::size_t at = untrusted_line.rfind(words);
    if (at == untrusted_line.npos)
        return std::nullopt;
    untrusted_line.remove_prefix(at + words.size());
    const std::size_t blank = untrusted_line.find(' ');
    const auto serial = parse_decimal<std::uint64_t>(untrusted_line.substr(0, blank));
    if (!serial || *serial == 0 || blank == untrusted_line.npos ||
        !detail::is_hash(untrusted_line.substr(blank + 1)))
        return std::nullopt;
    return audit_head{*serial, std::string(untrusted_line.substr(blank + 1))};
}

inline audit_verifier::audit_verifier(std::vector<audit_head> heads) : heads_(std::move(heads)) {
    std::sort(heads_.begin(), heads_.end(),
              [](const audit_head &a, const audit_head &b) { return a.serial < b.serial; });
}

inline std::optional<audit_fault> audit_verifier::push(std::string_view untrusted_line) {
    const auto entry = parse_audit(untrusted_line);
    if (!entry)
        return audit_fault::malformed;
    const bool is_head = entry->kind == name(audit_kind::head);
    const auto previous = is_head ? entry->text("prev") : std::nullopt;
    if (last_ == 0 && entry->serial != 1) {
        // Older files were removed, so this line must say which hash it follows from.
        const auto of = entry->number("of");
        if (!previous || !of || !std::cmp_equal(*of, entry->serial - 1))
            return audit_fault::misplaced;
        hash_ = *previous;
    } else if (entry->serial != last_ + 1) {
        return audit_fault::misplaced;
    }
    auto hash = verify_link(hash_, untrusted_line);
    if (!hash || (previous && *previous != hash_))
        return audit_fault::unlinked;
    hash_ = std::move(*hash);
    last_ = entry->serial;
    if (first_ == 0)
        first_ = last_;
    if (const auto oldest = is_head ? entry->number("oldest") : std::nullopt; oldest && *oldest > 0)
        oldest_ = static_cast<std::uint64_t>(*oldest);
    for (; next_head_ < heads_.size() && heads_[next_head_].serial <= last_; ++next_head_) {
        if (heads_[next_head_].serial < last_)
            continue; // older than the first line
        if (heads_[next_head_].hash != hash_)
            return audit_fault::rewritten;
        ++compared_;
    }
    return std::nullopt;
}

inline std::optional<audit_fault> audit_verifier::finish() const noexcept {
    if (next_head_ < heads_.size())
        return audit_fault::cut;
    if (oldest_ != 0 && first_ > oldest_)
        return audit_fault::beheaded;
    return std::nullopt;
}

} // namespace qvmremote
