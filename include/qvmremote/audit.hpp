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
    bool tty = false; ///< a terminal was asked for; no field where it was not

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

} // namespace qvmremote

#include <qvmremote/detail/audit_read_inl.hpp>
#include <qvmremote/detail/audit_write_inl.hpp>
