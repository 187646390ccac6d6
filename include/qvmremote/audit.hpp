// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// dom0's audit log. Each record is one line of JSON, and holds a hash of itself and of the line
/// before it.
///
/// `{"n":SERIAL,"t":"TIME","kind":"KIND",...,"h":"HASH"}`, without blanks, where HASH is the
/// lower-case hex of SHA-256 over the previous line's HASH (64 characters; zeros before the first
/// line) and this line's bytes up to, not including, `,"h":`. So a line that was edited, removed or
/// moved does not follow from the line before it, unless somebody also rewrites all lines after it.
/// To show that, and to show that lines were cut off at the end, dom0 also writes the hash of the
/// last line, the head, to the system journal.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
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

/// The kinds of records: member, and the word in the file. A word is frozen once released.
/// - START: a request was allowed and will run. The record is on disk before the command starts.
/// - APPROVED: the operator approved the request of the START that follows.
/// - END: how the run of an earlier START ended.
/// - REFUSED: a request that does not run, and why.
/// - HEAD: the last serial before it (`of`). Each file except the first begins with a HEAD, which
///   holds the hash of the line before it (`prev`), so that the file can be checked after older
///   files have been removed.
/// - ADMIN: what dom0's administrator did: authorize, revoke, rotate, panic, resume, migrate.
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

/// A body, which a record holds only as its digest and size.
struct audit_script {
    digest256 sha256{};
    std::uint64_t bytes = 0;
};

/// What one line says. A member that is not set gets no field. The views are borrowed for the call
/// to append. Texts may hold any bytes: append writes them through for_json, and cuts them so that
/// the line fits in limits::audit_line. Numbers above 2^63-1 are written as 2^63-1.
struct audit_record {
    audit_kind kind = audit_kind::start;
    std::string_view time; ///< "t": when the record was made, ISO 8601 with the offset from UTC

    // The qube that asks. Every kind except HEAD has these fields; ADMIN has only the peer, if the
    // act concerns one qube.
    std::optional<std::string_view> peer;
    std::optional<std::string_view> id;
    std::optional<digest256> key; ///< START: which key signed it, by its SHA-256

    // What the qube asks for. START, APPROVED and REFUSED hold what was known at that time: a
    // request that did not authenticate has no request, argv or script.
    std::optional<std::uint32_t> proto;
    std::optional<std::string_view> body; ///< "unsigned": protocol 1's token covers the ID alone
    std::optional<std::string_view> transport;
    std::optional<std::string_view> request; ///< the request's kind: "exec", "shell", "script", ...
    /// At most limits::audit_argument bytes are recorded. If there are more, argv_count and
    /// argv_bytes say how many, and argv_sha256 is the digest of all words with a NUL after each,
    /// as `printf '%s\0' WORDS | sha256sum` prints it.
    std::optional<std::span<const std::string>> argv;
    std::optional<audit_script> script;
    bool tty = false; ///< the request asks for a terminal; false has no field

    // The decision. START, APPROVED and REFUSED have these fields.
    std::optional<std::string_view> verdict; ///< "allow", "ask", "deny"
    std::optional<std::string_view> policy;  ///< the deciding line, as FILE:LINE and its text
    std::optional<std::uint64_t> approval;   ///< serial of the approval, in APPROVED
    std::optional<digest256> digest;         ///< of what the operator saw and approved, in APPROVED
    std::optional<std::string_view> user;    ///< account of the command, or of the operator
    std::optional<std::uint32_t> timeout_s;

    // How the command ended. END has these fields.
    std::optional<std::uint64_t> of; ///< serial of its START; in HEAD, the last serial before
    std::optional<std::int32_t> exit;
    std::optional<std::string_view> cause; ///< "exited", "signal", "timeout", "cancelled", ...
                                           ///< "unknown": dom0 ended while it ran
    std::optional<std::uint64_t> stdin_bytes, stdout_bytes, stderr_bytes;
    std::optional<std::string_view> started, ended;
    std::optional<std::uint64_t> duration_ms;

    // A HEAD at the beginning of a file has these fields.
    std::optional<std::string_view> previous; ///< "prev": the hash of the line before
    std::optional<std::uint64_t> oldest;      ///< the first serial that still exists

    /// In REFUSED, name(errc), perhaps followed by text; in ADMIN, the act.
    std::optional<std::string_view> reason;
    /// In REFUSED: this record stands for so many refusals, and holds the reason of the last one.
    std::optional<std::uint64_t> count;
};

/// The hash from which the first line follows.
inline constexpr std::string_view audit_first_hash =
    "0000000000000000000000000000000000000000000000000000000000000000";

/// The writing end of a log. It keeps the next serial and the last hash.
///
/// append() moves on as if the line were already on disk. A caller whose write may fail copies the
/// chain first, and goes back to the copy after a failure.
class audit_chain {
  public:
    /// Begins a new log, or continues one after a line with the serial `next_serial` - 1 and the
    /// hash `previous`: 64 lower-case hexadecimal digits, as parse_audit returns them.
    explicit audit_chain(std::uint64_t next_serial = 1,
                         std::string_view previous = audit_first_hash);

    /// Returns the record's line with its newline, at most limits::audit_line bytes.
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

/// One line that parse_audit has read. The views borrow the line.
class audit_entry {
  public:
    std::uint64_t serial = 0;
    std::string_view kind; ///< a word of QVMREMOTE_AUDIT_KINDS, or of a newer version
    std::string_view hash; ///< "h", not checked: verify_link checks it

    /// A field by its key ("peer", "argv", "t"); nothing if it is missing or has another type.
    /// Texts come back as they were given to append, except that a byte that was not UTF-8 is the
    /// character that for_json wrote. Pass them through the function of sanitize.hpp for their
    /// sink.
    [[nodiscard]] std::optional<std::string> text(std::string_view key) const;
    [[nodiscard]] std::optional<std::int64_t> number(std::string_view key) const;
    [[nodiscard]] std::optional<std::vector<std::string>> list(std::string_view key) const;

    [[nodiscard]] std::optional<std::string> peer() const { return text("peer"); }
    [[nodiscard]] std::optional<std::string> id() const { return text("id"); }
    [[nodiscard]] std::optional<std::string> time() const { return text("t"); }

    /// All fields in the order of the line: the key, and the JSON text of the value.
    [[nodiscard]] const std::vector<std::pair<std::string_view, std::string_view>> &
    fields() const noexcept {
        return fields_;
    }

  private:
    friend result<audit_entry> parse_audit(std::string_view line);

    [[nodiscard]] std::optional<std::string_view> raw(std::string_view key) const noexcept;

    std::vector<std::pair<std::string_view, std::string_view>> fields_;
};

/// Reads one line, without its newline. Accepts only the spelling that append writes: no blanks; n,
/// t and kind are the first fields, and h is the last; no key occurs twice; strings hold only the
/// escapes of for_json; values are strings, whole numbers of 64 bits and arrays of strings. Keys
/// and kinds that this version does not know are accepted. Fails with errc::bad_json at the byte
/// that does not fit, or at 0 if a field is missing or wrong that every line has. Does not check
/// the chain.
[[nodiscard]] inline result<audit_entry> parse_audit(std::string_view line);

/// Checks that a line, without its newline, follows from the line with the hash `previous`. Returns
/// the line's own hash, for the next call. Fails with errc::chain_broken if it does not follow, or
/// does not end in a hash.
[[nodiscard]] inline result<std::string> verify_link(std::string_view previous,
                                                     std::string_view line);

/// A place in the chain, as the system journal has it.
struct audit_head {
    std::uint64_t serial = 0;
    std::string hash;
};

/// The text of a head, as dom0 writes it to the system journal: "audit head SERIAL HASH".
[[nodiscard]] inline std::string format_audit_head(std::uint64_t serial, std::string_view hash);

/// Reads such a text from the end of a line, with any text before it; nothing if there is none.
[[nodiscard]] inline std::optional<audit_head> parse_audit_head(std::string_view untrusted_line);

/// What can be wrong with a log: member, text for people.
// clang-format off
#define QVMREMOTE_AUDIT_FAULTS(X)                                                                   \
    X(malformed, "is not a line that dom0 wrote")                                                      \
    X(misplaced, "does not have the next serial: lines before it were removed, added or moved")     \
    X(unlinked, "does not follow from the line before it: one of the two was edited")               \
    X(rewritten, "is not the line whose head was noted: it, or lines before it, were rewritten")    \
    X(cut, "is the last line, and the head of a later one was noted: lines were cut off after it") \
    X(beheaded, "is the first line, and earlier ones were kept: they were removed since")
// clang-format on

enum class audit_fault : std::uint8_t {
#define QVMREMOTE_X(member, text) member,
    QVMREMOTE_AUDIT_FAULTS(QVMREMOTE_X)
#undef QVMREMOTE_X
};

/// The text for people, to be written after the name of the line.
[[nodiscard]] constexpr std::string_view message(audit_fault fault) noexcept {
    constexpr std::string_view texts[] = {
#define QVMREMOTE_X(member, text) text,
        QVMREMOTE_AUDIT_FAULTS(QVMREMOTE_X)
#undef QVMREMOTE_X
    };
    return texts[static_cast<std::size_t>(fault)];
}

/// Checks a log from its oldest line to its newest, one at a time. The log begins with serial 1 or,
/// after older files were removed, with the HEAD that begins a file. The lines alone cannot show
/// that all lines after some line were rewritten or cut off; the heads from the system journal show
/// it.
class audit_verifier {
  public:
    /// `heads` may have any order. Heads older than the log's first line are ignored.
    explicit audit_verifier(std::vector<audit_head> heads = {});

    /// Checks the next line, without its newline; nothing if it is right. After a fault the results
    /// for later lines mean nothing.
    [[nodiscard]] std::optional<audit_fault> push(std::string_view untrusted_line);

    /// Call this after the last line. It finds the faults `cut` and `beheaded`.
    [[nodiscard]] std::optional<audit_fault> finish() const noexcept;

    [[nodiscard]] std::uint64_t first() const noexcept { return first_; } ///< 0: no line yet
    [[nodiscard]] std::uint64_t last() const noexcept { return last_; }
    [[nodiscard]] std::string_view hash() const noexcept { return hash_; }    ///< of the last line
    [[nodiscard]] std::size_t compared() const noexcept { return compared_; } ///< heads that agreed
    /// The serial of the newest head that was given; 0 without heads.
    [[nodiscard]] std::uint64_t noted() const noexcept {
        return heads_.empty() ? 0 : heads_.back().serial;
    }

  private:
    std::vector<audit_head> heads_; // by serial
    std::size_t next_head_ = 0, compared_ = 0;
    std::uint64_t first_ = 0, last_ = 0, oldest_ = 0;
    std::string hash_{audit_first_hash};
};

} // namespace qvmremote

#include <qvmremote/detail/audit_read_inl.hpp>
#include <qvmremote/detail/audit_write_inl.hpp>
