// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// dom0's audit log: one line of JSON a record, each holding a hash over itself and the line
/// before.
///
/// `{"n":SERIAL,"t":"TIME","kind":"KIND",...,"h":"HASH"}`, without blanks, where HASH is the
/// lower-case hex of SHA-256 over the previous line's HASH (64 characters; zeros before the first
/// line) and this line's bytes up to, not including, `,"h":`. So a line edited, removed or moved no
/// longer follows from the one before it, until somebody rewrites all that comes after; against
/// that, and against a cut tail, the head stands in the system journal (SPEC 4).

#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <qvmremote/bytes.hpp>
#include <qvmremote/config.hpp>
#include <qvmremote/digest.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/sanitize.hpp>

namespace qvmremote {

/// What a record tells of: member, and the word in the file. A word is frozen once released.
/// - START: a request was let through and is about to run; durable before it does.
/// - APPROVED: the operator said yes to the request of the START that follows.
/// - END: how the run of an earlier START ended.
/// - REFUSED: a request that does not run, and why.
/// - HEAD: where the chain stands (`of`: a serial). The first line of each file but the first is one,
///   and names the hash it follows from (`prev`), so that older files can go.
/// - ADMIN: an act of dom0's administrator: authorize, revoke, rotate, panic, resume, migrate.
#define QVMREMOTE_AUDIT_KINDS(X)                                                                   \
    X(start, "START")                                                                              \
    X(approved, "APPROVED")                                                                        \
    X(end, "END")                                                                                  \
    X(refused, "REFUSED")                                                                          \
    X(head, "HEAD")                                                                                \
    X(admin, "ADMIN")

enum class audit_kind : std::uint8_t {
#define QVMREMOTE_X(member, word) member,
    QVMREMOTE_AUDIT_KINDS(QVMREMOTE_X)
#undef QVMREMOTE_X
};

/// The word in the file ("START").
[[nodiscard]] constexpr std::string_view name(audit_kind kind) noexcept {
    constexpr std::string_view words[] = {
#define QVMREMOTE_X(member, word) word,
        QVMREMOTE_AUDIT_KINDS(QVMREMOTE_X)
#undef QVMREMOTE_X
    };
    return words[static_cast<std::size_t>(kind)];
}

/// A body that stands in the record by its digest.
struct audit_script {
    digest256 sha256{};
    std::uint64_t bytes = 0;
};

/// What one line says; a member that is not set has no field. The views are borrowed for the call
/// to append. Texts may hold any bytes: they are written through for_json and cut where the line
/// would outgrow limits::audit_line. Numbers above 2^63-1 are written as 2^63-1.
struct audit_record {
    audit_kind kind = audit_kind::start;
    std::string_view time; ///< "t": when the record was made, ISO 8601 with the offset from UTC

    // Who asks. In every kind but HEAD; ADMIN has the peer alone where the act concerns one.
    std::optional<std::string_view> peer;
    std::optional<std::string_view> id;
    std::optional<digest256> key; ///< START: which key signed it, by its SHA-256

    // What is asked. In START, APPROVED and REFUSED, as far as it was known then: a request that
    // did not authenticate has no request, argv or script.
    std::optional<std::uint32_t> proto;
    std::optional<std::string_view> body; ///< "unsigned": protocol 1's token covers the ID alone
    std::optional<std::string_view> transport;
    std::optional<std::string_view> request; ///< the request's kind: "exec", "shell", "script", ...
    /// Recorded up to limits::audit_argument bytes. If there is more, argv_count and argv_bytes
    /// tell how much, and argv_sha256 is over all words, a NUL behind each, as
    /// `printf '%s\0' WORDS | sha256sum` has it.
    std::optional<std::span<const std::string>> argv;
    std::optional<audit_script> script;

    // What was decided. In START, APPROVED and REFUSED.
    std::optional<std::string_view> verdict; ///< "allow", "ask", "deny"
    std::optional<std::string_view> policy;  ///< the deciding line, as FILE:LINE and its text
    std::optional<std::uint64_t> approval;   ///< serial of the approval, in APPROVED
    std::optional<digest256> digest;         ///< of what was shown and approved, in APPROVED
    std::optional<std::string_view> user;    ///< whom it runs as; APPROVED, ADMIN: who said so
    std::optional<std::uint32_t> timeout_s;

    // How it ended. In END.
    std::optional<std::uint64_t> of; ///< serial of its START; in HEAD, the last serial before
    std::optional<std::int32_t> exit;
    std::optional<std::string_view> cause; ///< "exited", "signal", "timeout", "cancelled", ...
                                           ///< "unknown": dom0 ended while it ran
    std::optional<std::uint64_t> stdin_bytes, stdout_bytes, stderr_bytes;
    std::optional<std::string_view> started, ended;
    std::optional<std::uint64_t> duration_ms;

    // In a HEAD that begins a file.
    std::optional<std::string_view> previous; ///< "prev": the hash of the line before
    std::optional<std::uint64_t> oldest;      ///< the first serial that was kept

    /// REFUSED: name(errc), perhaps with words behind it; in ADMIN, the act.
    std::optional<std::string_view> reason;
    /// REFUSED: stands for so many, of which the reason is the last one's.
    std::optional<std::uint64_t> count;
};

/// The hash that stands before the first line.
inline constexpr std::string_view audit_first_hash =
    "0000000000000000000000000000000000000000000000000000000000000000";

/// The writing end of a log: knows the next serial and the last hash.
///
/// `append` moves on as if the line were on disk. A caller that may fail to write it keeps a copy
/// of the chain and goes back to that.
class audit_chain {
  public:
    /// A new log, or one that goes on behind a line whose serial was `next_serial` - 1 and whose
    /// hash was `previous`: 64 lower-case hex digits, out of parse_audit.
    explicit audit_chain(std::uint64_t next_serial = 1,
                         std::string_view previous = audit_first_hash);

    /// The record's line, with its newline: at most limits::audit_line bytes.
    [[nodiscard]] std::string append(const audit_record &record);

    [[nodiscard]] std::uint64_t next_serial() const noexcept { return next_serial_; }
    /// The hash of the last line.
    [[nodiscard]] std::string_view head() const noexcept {
        return {previous_.data(), previous_.size()};
    }

  private:
    std::uint64_t next_serial_;
    std::array<char, 64> previous_;
};

/// One line as it was read. The views borrow the line.
class audit_entry {
  public:
    std::uint64_t serial = 0;
    std::string_view kind; ///< a word of QVMREMOTE_AUDIT_KINDS, or of a newer version
    std::string_view hash; ///< "h", as it stands there: verify_link says whether it is true

    /// A field by its key ("peer", "argv", "t"); nothing where it lacks or is of another type.
    /// Texts come out as they went in, bytes outside UTF-8 as the characters that for_json made of
    /// them; they need the sanitizer of wherever they go next.
    [[nodiscard]] std::optional<std::string> text(std::string_view key) const;
    [[nodiscard]] std::optional<std::int64_t> number(std::string_view key) const;
    [[nodiscard]] std::optional<std::vector<std::string>> list(std::string_view key) const;

    [[nodiscard]] std::optional<std::string> peer() const { return text("peer"); }
    [[nodiscard]] std::optional<std::string> id() const { return text("id"); }
    [[nodiscard]] std::optional<std::string> time() const { return text("t"); }

    /// Every field in the line's order: key, and the value's JSON text.
    [[nodiscard]] const std::vector<std::pair<std::string_view, std::string_view>> &
    fields() const noexcept {
        return fields_;
    }

  private:
    friend result<audit_entry> parse_audit(std::string_view line);

    [[nodiscard]] std::optional<std::string_view> raw(std::string_view key) const noexcept;

    std::vector<std::pair<std::string_view, std::string_view>> fields_;
};

/// Reads one line, without its newline. Accepts the JSON that append writes and no other spelling
/// of it: no blanks, the fields n, t, kind first and h last, no key twice, in strings the escapes
/// of for_json alone, whole numbers of 64 bits, arrays of strings. Keys and kinds of newer versions
/// pass. errc::bad_json at the byte that does not fit (0: a field that every line has). Says
/// nothing of the chain.
[[nodiscard]] inline result<audit_entry> parse_audit(std::string_view line);

/// Whether a line, without its newline, follows from the line whose hash is `previous`; returns its
/// hash, to be handed to the next call. errc::chain_broken if not, or if it does not end in a hash.
[[nodiscard]] inline result<std::string> verify_link(std::string_view previous,
                                                     std::string_view line);

/// A place of the chain as it was noted elsewhere.
struct audit_head {
    std::uint64_t serial = 0;
    std::string hash;
};

/// A head as a line for people, which is how it stands in the system journal: "audit head SERIAL
/// HASH".
[[nodiscard]] inline std::string format_audit_head(std::uint64_t serial, std::string_view hash);

/// Finds that at the end of a line, whatever stands before it.
[[nodiscard]] inline std::optional<audit_head> parse_audit_head(std::string_view untrusted_line);

/// What can be wrong with a log: member, text for people.
// clang-format off
#define QVMREMOTE_AUDIT_FAULTS(X)                                                                   \
    X(malformed, "is no line that dom0 wrote")                                                      \
    X(misplaced, "does not have the next serial: lines before it were removed, added or moved")     \
    X(unlinked, "does not follow from the line before it: one of the two was edited")               \
    X(rewritten, "is not the line whose head was noted: it, or lines before it, were rewritten")    \
    X(cut, "is the last line, and the head of a later one was noted: lines were cut off behind it") \
    X(beheaded, "is the first line, and earlier ones were kept: they were removed since")
// clang-format on

enum class audit_fault : std::uint8_t {
#define QVMREMOTE_X(member, text) member,
    QVMREMOTE_AUDIT_FAULTS(QVMREMOTE_X)
#undef QVMREMOTE_X
};

/// The text for people; it goes on behind the name of the line.
[[nodiscard]] constexpr std::string_view message(audit_fault fault) noexcept {
    constexpr std::string_view texts[] = {
#define QVMREMOTE_X(member, text) text,
        QVMREMOTE_AUDIT_FAULTS(QVMREMOTE_X)
#undef QVMREMOTE_X
    };
    return texts[static_cast<std::size_t>(fault)];
}

/// Checks a log from its oldest line to its newest, one at a time. It begins with serial 1, or with
/// the HEAD that begins a file where older files have gone. What it cannot see is that everything
/// behind some line was written anew, or cut off: against that stand the heads.
class audit_verifier {
  public:
    /// In any order; those older than the log's first line say nothing.
    explicit audit_verifier(std::vector<audit_head> heads = {});

    /// The next line, without its newline. After a fault the rest says nothing.
    [[nodiscard]] std::optional<audit_fault> push(std::string_view untrusted_line);

    /// Behind the last line: cut, or beheaded.
    [[nodiscard]] std::optional<audit_fault> finish() const noexcept;

    [[nodiscard]] std::uint64_t first() const noexcept { return first_; } ///< 0: no line yet
    [[nodiscard]] std::uint64_t last() const noexcept { return last_; }
    [[nodiscard]] std::string_view hash() const noexcept { return hash_; }    ///< of the last line
    [[nodiscard]] std::size_t compared() const noexcept { return compared_; } ///< heads that agreed
    /// The last serial of which a head was noted; 0 without one.
    [[nodiscard]] std::uint64_t noted() const noexcept {
        return heads_.empty() ? 0 : heads_.back().serial;
    }

  private:
    std::vector<audit_head> heads_; // by serial
    std::size_t next_head_ = 0, compared_ = 0;
    std::uint64_t first_ = 0, last_ = 0, oldest_ = 0;
    std::string hash_{audit_first_hash};
};

namespace detail {

inline constexpr std::size_t hash_digits = 64;
inline constexpr std::string_view hash_key = ",\"h\":\"";
inline constexpr std::string_view line_end = "\"}";
inline constexpr std::size_t hash_field = hash_key.size() + hash_digits + line_end.size();

// Bytes that values may take in a line, escaped. One text may become six times as long (`\u00NN`),
// so it is this side of the escaping that keeps a line within its limit.
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
        static_cast<void>(append_json(out_, *value, limit)); // a cut shows by its dots
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
            // 16: a comma, two quotes, the dots of a cut, and one escape at least.
            whole = taken < limits::audit_argument && used + 16 <= audit_argv_text;
            if (!whole)
                break;
            std::size_t take = std::min(word.size(), limits::audit_argument - taken);
            if (take < word.size()) // not between the bytes of one character
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

// Reads JSON as append writes it. A call that fails leaves the place, which is the error's offset.
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

    // The spelling of for_json: a code that has a short escape, or that passes as it is, has no
    // long one, except where for_json shows a byte that was no UTF-8.
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

// The bytes of a string that the scanner has passed, from behind its opening quote to the closing
// one; `raw` is left behind that.
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

[[nodiscard]] constexpr bool is_hash(std::string_view text) noexcept {
    return text.size() == hash_digits && std::all_of(text.begin(), text.end(), [](char c) {
               return is_digit(c) || (c >= 'a' && c <= 'f');
           });
}

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
    return value ? detail::parse_decimal<std::int64_t>(*value) : std::nullopt;
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

    // The fields that every line has.
    const auto has = [&](std::size_t place, std::string_view key) {
        return place < out.fields_.size() && out.fields_[place].first == key;
    };
    const auto unquoted = [](std::string_view value) {
        return value.front() == '"' ? value.substr(1, value.size() - 2) : std::string_view();
    };
    if (!has(0, "n") || !has(1, "t") || !has(2, "kind") || out.fields_.back().first != "h")
        return fail(errc::bad_json);
    const auto serial = detail::parse_decimal<std::uint64_t>(out.fields_[0].second);
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
    const auto serial = detail::parse_decimal<std::uint64_t>(untrusted_line.substr(0, blank));
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
        // Older files have gone: this line says itself what it follows from.
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
            continue; // only before the first line
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
