// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The text records of protocol 1: a result's meta and exit files, the qube's audit.log, dom0's
/// log.
///
/// These functions only make and read text. The caller provides the time and handles the files. A
/// `timestamp` is local time to the second, `YYYY-MM-DDTHH:MM:SS`, and an `id` is a valid command
/// ID; both have passed their parsers. A function that returns a line of a file returns it with its
/// newline, ready for one write.

#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <qvmremote/command_id.hpp>
#include <qvmremote/config.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/sanitize.hpp>

namespace qvmremote {

/// How many bytes of a command a line of the qube and a line of dom0 show.
inline constexpr std::size_t client_preview = 100;
inline constexpr std::size_t dom0_preview = 200;
/// How many bytes of a line of output dom0's log shows.
inline constexpr std::size_t output_preview = 160;

/// What `results/ID.meta` says about a run.
struct run_meta {
    std::string id;
    std::string started; ///< the timestamp
    std::uint64_t duration_ms = 0;
    std::int32_t exit_code = 0; ///< negative: killed by that signal, as in Python

    friend bool operator==(const run_meta &, const run_meta &) = default;
};

/// The text of a meta file: four lines.
[[nodiscard]] inline std::string format_meta(std::string_view id, std::string_view started,
                                             std::uint64_t duration_ms, std::int32_t exit_code);

/// Reads a meta file. Accepts the four lines in any order, also with CR LF or without the last
/// newline, and skips `KEY=` lines of other names. Fails with errc::bad_value at a line or value
/// that does not have its form or comes twice, or at the limit of 4096 bytes; with errc::incomplete
/// when one of the four lines is missing.
[[nodiscard]] inline result<run_meta> parse_meta(std::string_view untrusted_text);

/// Reads an exit file: a whole number of 32 bits in decimal digits, with `-` before a negative one,
/// and nothing else. Fails with errc::bad_value otherwise, also for an empty file, since a Python
/// daemon creates the file a moment before it writes the digits.
[[nodiscard]] inline result<std::int32_t> parse_exit(std::string_view untrusted_text);

/// The lines that the client writes to the qube's audit.log: `[TS] SUBMIT id=ID size=NB
/// cmd=PREVIEW`, `[TS] DONE id=ID exit=N`, `[TS] TIMEOUT id=ID after=Ns`, `[TS] QUEUE-CLEAN
/// removed=N`.
[[nodiscard]] inline std::string line_submit(std::string_view timestamp, std::string_view id,
                                             std::string_view untrusted_command);
[[nodiscard]] inline std::string line_done(std::string_view timestamp, std::string_view id,
                                           std::int32_t exit_code);
[[nodiscard]] inline std::string line_timeout(std::string_view timestamp, std::string_view id,
                                              std::uint64_t after_s);
[[nodiscard]] inline std::string line_queue_clean(std::string_view timestamp,
                                                  std::uint64_t removed);

/// The line that dom0 writes to the qube's audit.log after the command has ended: `[STARTED] id=ID
/// exit=N duration=Nms cmd=PREVIEW`, where STARTED is the time of its start.
[[nodiscard]] inline std::string line_started(std::string_view started, std::string_view id,
                                              std::int32_t exit_code, std::uint64_t duration_ms,
                                              std::string_view untrusted_command);

enum class history_kind : std::uint8_t { submit, done, timeout, queue_clean, started };

/// One line of the qube's audit.log. The views borrow the line; a member that the kind does not have
/// is empty or 0.
struct history_line {
    history_kind kind;
    std::string_view timestamp;
    std::string_view id;                ///< all but queue_clean
    std::uint64_t size = 0;             ///< submit: bytes of the command
    std::int32_t exit_code = 0;         ///< done, started
    std::uint64_t duration_ms = 0;      ///< started
    std::uint64_t after_s = 0;          ///< timeout
    std::uint64_t removed = 0;          ///< queue_clean
    std::string_view untrusted_command; ///< submit, started: the preview, which may be cut

    friend bool operator==(const history_line &, const history_line &) = default;
};

/// Reads one line of the qube's audit.log, without its newline. The Python programs wrote previews
/// raw, and any program of the qube can write the file, so the preview can hold any bytes: pass it
/// through for_terminal before you show it. Fails with errc::bad_value at the byte where the line
/// does not have its form.
[[nodiscard]] inline result<history_line> parse_audit_line(std::string_view untrusted_line);

/// The last `n` lines of a block, oldest first, without line ends. If the block begins in the
/// middle of a file, its first line may be half a line, so ignore the first line that is returned
/// or read a larger block.
[[nodiscard]] inline std::vector<std::string_view> tail_lines(std::string_view block,
                                                              std::size_t n);

/// The categories of `/var/log/qubes/qvm-remote.log`: member, and the word in the file.
#define QVMREMOTE_LOG_CATEGORIES(X)                                                                \
    X(info, "INFO")                                                                                \
    X(exec, "EXEC")                                                                                \
    X(cmd, "CMD")                                                                                  \
    X(auth_ok, "AUTH-OK")                                                                          \
    X(auth_fail, "AUTH-FAIL")                                                                      \
    X(auth_deny, "AUTH-DENY")                                                                      \
    X(reject, "REJECT")                                                                            \
    X(out, "OUT")                                                                                  \
    X(err, "ERR")                                                                                  \
    X(done, "DONE")                                                                                \
    X(done_fail, "DONE-FAIL")                                                                      \
    X(error, "ERROR")                                                                              \
    X(timeout, "TIMEOUT")                                                                          \
    X(trunc, "TRUNC")                                                                              \
    X(dry, "DRY")

enum class log_category : std::uint8_t {
#define QVMREMOTE_X(member, word) member,
    QVMREMOTE_LOG_CATEGORIES(QVMREMOTE_X)
#undef QVMREMOTE_X
};

/// The word in the file ("AUTH-OK").
[[nodiscard]] constexpr std::string_view name(log_category category) noexcept {
    constexpr std::string_view words[] = {
#define QVMREMOTE_X(member, word) word,
        QVMREMOTE_LOG_CATEGORIES(QVMREMOTE_X)
#undef QVMREMOTE_X
    };
    return words[static_cast<std::size_t>(category)];
}

/// A line of dom0's log: `[TS] CATEGORY text`. The caller passes untrusted bytes of the text
/// through for_log or preview first; an assertion checks that the text is printable.
[[nodiscard]] inline std::string log_line(std::string_view timestamp, log_category category,
                                          std::string_view text);

/// Collects what dom0's log shows of a command's output. Its memory is small, however long the
/// output is.
class output_lines {
  public:
    /// Takes the next piece of the output.
    void feed(std::string_view untrusted_output);

    /// The texts of the OUT or ERR lines, each beginning with `prefix` ("  stdout: ",
    /// "  stderr: "): all lines if there are at most three, else the first, `... (N more lines)`
    /// with N = lines - 2, and the last. Each shows output_preview bytes of its line, as preview()
    /// does. Returns nothing when there was no output.
    [[nodiscard]] std::vector<std::string> show(std::string_view prefix) const;

  private:
    void extend(std::string_view untrusted_piece) {
        untrusted_current_.append(untrusted_piece.substr(
            0, output_preview - std::min(output_preview, untrusted_current_.size())));
    }

    std::vector<std::string> untrusted_first_; // three at most
    std::string untrusted_last_, untrusted_current_;
    std::uint64_t ended_ = 0; // lines with a newline
    bool open_ = false;       // there are bytes after the last newline
};

namespace detail {

inline constexpr std::size_t meta_file = 4096;

[[nodiscard]] constexpr bool is_timestamp(std::string_view text) noexcept {
    return parse_calendar_time(text, "YYYY-MM-DDThh:mm:ss").has_value();
}

// A text, and the offset where its next field begins. A call that fails does not move the offset,
// which is then the error's offset.
class line_cursor {
  public:
    explicit line_cursor(std::string_view line) noexcept : line_(line) {}

    [[nodiscard]] std::size_t offset() const noexcept { return at_; }
    [[nodiscard]] bool at_end() const noexcept { return at_ == line_.size(); }

    [[nodiscard]] bool skip(std::string_view literal) noexcept {
        if (!line_.substr(at_).starts_with(literal))
            return false;
        at_ += literal.size();
        return true;
    }

    [[nodiscard]] bool timestamp(std::string_view &out) noexcept {
        const std::string_view text = line_.substr(at_, 19);
        if (!is_timestamp(text))
            return false;
        out = text;
        at_ += text.size();
        return true;
    }

    [[nodiscard]] bool id(std::string_view &out) {
        const std::string_view word = until_blank();
        if (!command_id::parse(word))
            return false;
        out = word;
        at_ += word.size();
        return true;
    }

    // A number with its unit after it.
    template <class T>
    [[nodiscard]] bool number(T &out, std::string_view unit = {}) noexcept {
        const std::string_view word = until_blank();
        if (!word.ends_with(unit))
            return false;
        const auto value = parse_decimal<T>(word.substr(0, word.size() - unit.size()));
        if (!value)
            return false;
        out = *value;
        at_ += word.size();
        return true;
    }

    [[nodiscard]] std::string_view rest() noexcept {
        const std::string_view out = line_.substr(at_);
        at_ = line_.size();
        return out;
    }

  private:
    [[nodiscard]] std::string_view until_blank() const noexcept {
        const std::string_view left = line_.substr(at_);
        return left.substr(0, left.find(' '));
    }

    std::string_view line_;
    std::size_t at_ = 0;
};

// Joins the pieces with one allocation.
template <class... Piece>
[[nodiscard]] std::string join(const Piece &...pieces) {
    std::string out;
    out.reserve((std::string_view(pieces).size() + ...));
    (out.append(std::string_view(pieces)), ...);
    return out;
}

} // namespace detail

inline std::string format_meta(std::string_view id, std::string_view started,
                               std::uint64_t duration_ms, std::int32_t exit_code) {
    assert(detail::is_timestamp(started) && command_id::parse(id));
    return detail::join("id=", id, "\nstarted=", started,
                        "\nduration_ms=", std::to_string(duration_ms),
                        "\nexit_code=", std::to_string(exit_code), "\n");
}

inline result<run_meta> parse_meta(std::string_view untrusted_text) {
    if (untrusted_text.size() > detail::meta_file)
        return fail(errc::bad_value, detail::meta_file);
    std::optional<std::string_view> id, started, duration, exit_code;
    const auto known = [&](std::string_view key) -> std::optional<std::string_view> * {
        return key == "id"            ? &id
               : key == "started"     ? &started
               : key == "duration_ms" ? &duration
               : key == "exit_code"   ? &exit_code
                                      : nullptr;
    };
    for (std::size_t at = 0; at < untrusted_text.size();) {
        const std::size_t begin = at;
        const std::string_view line = detail::next_line(untrusted_text, at);
        const std::size_t equals = line.find('=');
        if (equals == std::string_view::npos)
            return fail(errc::bad_value, begin);
        if (std::optional<std::string_view> *const field = known(line.substr(0, equals))) {
            if (*field)
                return fail(errc::bad_value, begin);
            *field = line.substr(equals + 1);
        }
    }
    if (!id || !started || !duration || !exit_code)
        return fail(errc::incomplete, untrusted_text.size());

    const auto bad = [&](std::string_view value) {
        return fail(errc::bad_value,
                    static_cast<std::size_t>(value.data() - untrusted_text.data()));
    };
    if (!command_id::parse(*id))
        return bad(*id);
    if (!detail::is_timestamp(*started))
        return bad(*started);
    const auto duration_ms = parse_decimal<std::uint64_t>(*duration);
    if (!duration_ms)
        return bad(*duration);
    const auto code = parse_decimal<std::int32_t>(*exit_code);
    if (!code)
        return bad(*exit_code);
    return run_meta{std::string(*id), std::string(*started), *duration_ms, *code};
}

inline result<std::int32_t> parse_exit(std::string_view untrusted_text) {
    const auto code = parse_decimal<std::int32_t>(untrusted_text);
    if (!code)
        return fail(errc::bad_value);
    return *code;
}

inline std::string line_submit(std::string_view timestamp, std::string_view id,
                               std::string_view untrusted_command) {
    return detail::join("[", timestamp, "] SUBMIT id=", id,
                        " size=", std::to_string(untrusted_command.size()),
                        "B cmd=", preview(untrusted_command, client_preview), "\n");
}

inline std::string line_done(std::string_view timestamp, std::string_view id,
                             std::int32_t exit_code) {
    return detail::join("[", timestamp, "] DONE id=", id, " exit=", std::to_string(exit_code),
                        "\n");
}

inline std::string line_timeout(std::string_view timestamp, std::string_view id,
                                std::uint64_t after_s) {
    return detail::join("[", timestamp, "] TIMEOUT id=", id, " after=", std::to_string(after_s),
                        "s\n");
}

inline std::string line_queue_clean(std::string_view timestamp, std::uint64_t removed) {
    return detail::join("[", timestamp, "] QUEUE-CLEAN removed=", std::to_string(removed), "\n");
}

inline std::string line_started(std::string_view started, std::string_view id,
                                std::int32_t exit_code, std::uint64_t duration_ms,
                                std::string_view untrusted_command) {
    return detail::join("[", started, "] id=", id, " exit=", std::to_string(exit_code),
                        " duration=", std::to_string(duration_ms),
                        "ms cmd=", preview(untrusted_command, dom0_preview), "\n");
}

inline result<history_line> parse_audit_line(std::string_view untrusted_line) {
    detail::line_cursor at(untrusted_line);
    history_line line{};
    bool ok = at.skip("[") && at.timestamp(line.timestamp) && at.skip("] ");
    if (!ok)
        return fail(errc::bad_value, at.offset());
    if (at.skip("SUBMIT ")) {
        line.kind = history_kind::submit;
        ok = at.skip("id=") && at.id(line.id) && at.skip(" size=") && at.number(line.size, "B") &&
             at.skip(" cmd=");
        if (ok)
            line.untrusted_command = at.rest();
    } else if (at.skip("DONE ")) {
        line.kind = history_kind::done;
        ok = at.skip("id=") && at.id(line.id) && at.skip(" exit=") && at.number(line.exit_code);
    } else if (at.skip("TIMEOUT ")) {
        line.kind = history_kind::timeout;
        ok = at.skip("id=") && at.id(line.id) && at.skip(" after=") && at.number(line.after_s, "s");
    } else if (at.skip("QUEUE-CLEAN ")) {
        line.kind = history_kind::queue_clean;
        ok = at.skip("removed=") && at.number(line.removed);
    } else {
        line.kind = history_kind::started;
        ok = at.skip("id=") && at.id(line.id) && at.skip(" exit=") && at.number(line.exit_code) &&
             at.skip(" duration=") && at.number(line.duration_ms, "ms") && at.skip(" cmd=");
        if (ok)
            line.untrusted_command = at.rest();
    }
    if (!ok || !at.at_end())
        return fail(errc::bad_value, at.offset());
    return line;
}

inline std::vector<std::string_view> tail_lines(std::string_view block, std::size_t n) {
    if (block.ends_with('\n'))
        block.remove_suffix(1);
    else if (block.empty())
        n = 0;
    std::vector<std::string_view> out;
    for (bool more = true; more && out.size() < n;) {
        const std::size_t newline = block.rfind('\n');
        more = newline != std::string_view::npos;
        std::string_view line = more ? block.substr(newline + 1) : block;
        if (line.ends_with('\r'))
            line.remove_suffix(1);
        out.push_back(line);
        block = block.substr(0, more ? newline : 0);
    }
    std::reverse(out.begin(), out.end());
    return out;
}

inline std::string log_line(std::string_view timestamp, log_category category,
                            std::string_view text) {
    assert(std::all_of(text.begin(), text.end(), detail::is_printable));
    return detail::join("[", timestamp, "] ", name(category), " ", text, "\n");
}

inline void output_lines::feed(std::string_view untrusted_output) {
    while (!untrusted_output.empty()) {
        // After the third line, only the number of lines and the last line are kept.
        const std::size_t end =
            ended_ < 3 ? untrusted_output.find('\n') : untrusted_output.rfind('\n');
        if (end == untrusted_output.npos) {
            extend(untrusted_output);
            open_ = true;
            return;
        }
        const std::string_view whole = untrusted_output.substr(0, end);
        const std::size_t before = ended_ < 3 ? whole.npos : whole.rfind('\n');
        if (before != whole.npos)
            untrusted_current_.clear();
        extend(whole.substr(before == whole.npos ? 0 : before + 1));
        ended_ +=
            1 + (ended_ < 3
                     ? 0
                     : static_cast<std::uint64_t>(std::count(whole.begin(), whole.end(), '\n')));
        if (untrusted_first_.size() < 3)
            untrusted_first_.push_back(untrusted_current_);
        untrusted_last_ = std::exchange(untrusted_current_, {});
        open_ = false;
        untrusted_output.remove_prefix(end + 1);
    }
}

inline std::vector<std::string> output_lines::show(std::string_view prefix) const {
    std::vector<std::string> out;
    const auto add = [&](const std::string &untrusted_line) {
        out.push_back(detail::join(prefix, preview(untrusted_line, output_preview)));
    };
    const std::uint64_t lines = ended_ + (open_ ? 1 : 0);
    if (lines > 3) {
        add(untrusted_first_[0]);
        out.push_back(detail::join(prefix, "... (", std::to_string(lines - 2), " more lines)"));
        add(open_ ? untrusted_current_ : untrusted_last_);
        return out;
    }
    for (const std::string &untrusted_line : untrusted_first_)
        add(untrusted_line);
    if (open_)
        add(untrusted_current_);
    return out;
}

} // namespace qvmremote
