// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of audit.hpp: writes records as lines of the chain.

#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <charconv>
#include <limits>
#include <utility>

#include <qvmremote/audit.hpp>

namespace qvmremote {

namespace detail {

inline constexpr std::size_t hash_digits = 64;
inline constexpr std::string_view hash_key = ",\"h\":\"";
inline constexpr std::string_view line_end = "\"}";
inline constexpr std::size_t hash_field = hash_key.size() + hash_digits + line_end.size();

// How many bytes a value may take in a line, after escaping. Escapes can make a text six times as
// long (`\u00NN`), so the limits apply to the escaped text.
inline constexpr std::size_t audit_short_text = 256;
inline constexpr std::size_t audit_long_text = 2048;
inline constexpr std::size_t audit_argv_text = 2 * limits::audit_argument;
inline constexpr std::size_t audit_fields = 40;        // more than audit_record can set
inline constexpr std::size_t audit_parsed_fields = 64; // room for newer versions
inline constexpr std::size_t audit_key = 32;
static_assert(audit_fields * (audit_key + audit_short_text) + 2 * audit_long_text +
                  audit_argv_text + hash_field <
              limits::audit_line);

[[nodiscard]] inline std::string chain_hash(std::string_view previous, std::string_view covered) {
    return to_hex(sha256_hash().update(previous).update(covered).finish());
}

[[nodiscard]] inline std::string hash_tail(std::string_view hash) {
    return std::string(hash_key).append(hash).append(line_end);
}

[[nodiscard]] constexpr bool is_hash(std::string_view text) noexcept {
    return text.size() == hash_digits && std::all_of(text.begin(), text.end(), [](char c) {
               return is_digit(c) || (c >= 'a' && c <= 'f');
           });
}

// Writes the fields of a line, in the order of the calls.
class audit_writer {
  public:
    explicit audit_writer(std::string &out) noexcept : out_(out) {}

    void text(std::string_view key, const std::optional<std::string_view> &value,
              std::size_t limit = audit_short_text) {
        if (!value)
            return;
        begin(key);
        out_.push_back('"');
        static_cast<void>(append_json(out_, *value, limit)); // a text that was cut ends in dots
        out_.push_back('"');
    }

    template <class T>
    void number(std::string_view key, const std::optional<T> &value) {
        if (!value)
            return;
        constexpr auto most = std::numeric_limits<std::int64_t>::max();
        begin(key);
        char digits[24];
        const std::int64_t shown =
            std::in_range<std::int64_t>(*value) ? static_cast<std::int64_t>(*value) : most;
        const auto end = std::to_chars(std::begin(digits), std::end(digits), shown).ptr;
        out_.append(digits, end);
    }

    void argv(std::span<const std::string> words) {
        begin("argv");
        out_.push_back('[');
        const std::size_t start = out_.size();
        std::size_t taken = 0;
        bool whole = true;
        for (const std::string &word : words) {
            const std::size_t used = out_.size() - start;
            // 16 bytes are enough for a comma, two quotes, three dots and one escape.
            whole = taken < limits::audit_argument && used + 16 <= audit_argv_text;
            if (!whole)
                break;
            std::size_t take = std::min(word.size(), limits::audit_argument - taken);
            if (take < word.size()) // do not cut between the bytes of one character
                for (int i = 0; i < 3 && take > 0 && (word[take] & 0xc0) == 0x80; ++i)
                    --take;
            out_.append(used == 0 ? "\"" : ",\"");
            whole = append_json(out_, std::string_view(word).substr(0, take),
                                audit_argv_text - used - 8);
            if (whole && take < word.size()) {
                out_.append("...");
                whole = false;
            }
            out_.push_back('"');
            if (!whole)
                break;
            taken += take;
        }
        out_.push_back(']');
        if (!whole)
            argv_digest(words);
    }

    void digest(std::string_view key, const digest256 &value) { text(key, to_hex(value)); }

  private:
    void begin(std::string_view key) { out_.append(",\"").append(key).append("\":"); }

    void argv_digest(std::span<const std::string> words) {
        sha256_hash hash;
        std::uint64_t bytes = 0;
        for (const std::string &word : words) {
            hash.update(std::string_view(word.c_str(), word.size() + 1));
            bytes += word.size();
        }
        number<std::uint64_t>("argv_count", words.size());
        number<std::uint64_t>("argv_bytes", bytes);
        digest("argv_sha256", hash.finish());
    }

    std::string &out_;
};

} // namespace detail

inline audit_chain::audit_chain(std::uint64_t next_serial, std::string_view previous)
    : next_serial_(next_serial) {
    assert(next_serial != 0 && detail::is_hash(previous));
    std::copy_n(previous.begin(), previous_.size(), previous_.begin());
}

inline std::string audit_chain::append(const audit_record &record) {
    std::string line;
    line.reserve(1024);
    line.append("{\"n\":").append(std::to_string(next_serial_));
    detail::audit_writer out(line);
    out.text("t", record.time);
    out.text("kind", name(record.kind));
    out.text("peer", record.peer);
    out.text("id", record.id);
    if (record.key)
        out.digest("key", *record.key);
    out.number("proto", record.proto);
    out.text("body", record.body);
    out.text("transport", record.transport);
    out.text("request", record.request);
    if (record.argv)
        out.argv(*record.argv);
    if (record.script) {
        out.digest("script_sha256", record.script->sha256);
        out.number<std::uint64_t>("script_bytes", record.script->bytes);
    }
    if (record.tty)
        out.number<std::uint64_t>("tty", 1);
    out.text("verdict", record.verdict);
    out.text("policy", record.policy, detail::audit_long_text);
    out.number("approval", record.approval);
    if (record.digest)
        out.digest("digest", *record.digest);
    out.text("user", record.user);
    out.number("timeout_s", record.timeout_s);
    out.number("of", record.of);
    out.text("prev", record.previous);
    out.number("oldest", record.oldest);
    out.number("exit", record.exit);
    out.text("cause", record.cause);
    out.number("stdin_bytes", record.stdin_bytes);
    out.number("stdout_bytes", record.stdout_bytes);
    out.number("stderr_bytes", record.stderr_bytes);
    out.text("started", record.started);
    out.text("ended", record.ended);
    out.number("duration_ms", record.duration_ms);
    out.text("reason", record.reason, detail::audit_long_text);
    out.number("count", record.count);

    const std::string hash = detail::chain_hash(head(), line);
    line.append(detail::hash_tail(hash)).append("\n");
    assert(line.size() <= limits::audit_line);
    std::copy(hash.begin(), hash.end(), previous_.begin());
    ++next_serial_;
    return line;
}

} // namespace qvmremote
