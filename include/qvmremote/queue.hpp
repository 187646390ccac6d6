// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Protocol 1 between a qube and dom0 (doc/PROTOCOL.md, "Queue"): both ends as state machines over
/// bytes. Other code checks tokens and handles files.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include <qvmremote/bytes.hpp>
#include <qvmremote/command_id.hpp>
#include <qvmremote/config.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/frame.hpp>
#include <qvmremote/limits.hpp>

namespace qvmremote {

/// The first bytes of a carrier that does not use frames, instead of `preamble`.
inline constexpr std::array<std::uint8_t, 16> queue_preamble = {
    0, 'q', 'v', 'm', '-', 'r', 'e', 'm', 'o', 't', 'e', ' ', '1', '\r', '\n', 0xff};

/// The text after an output that was cut at limits::recorded_output.
inline constexpr std::string_view queue_cut_mark = "\n[truncated at 10485760 bytes]\n";
static_assert(limits::recorded_output == 10485760);

/// What both ends share: cutting the input into lines and the bytes that a line announces, and
/// building the output.
class queue_end {
  public:
    /// Gives the next input, which is borrowed until next() has returned nothing.
    void feed(bytes_view untrusted) noexcept { untrusted_ = untrusted; }

    /// The bytes to send, directly into a stream or, in pieces of limits::queue_piece, in QUEUE
    /// frames.
    [[nodiscard]] out_buffer &output() noexcept { return out_; }

  protected:
    // Takes a whole line without its newline, borrowed until the next call; nothing when more is
    // needed. Fails with errc::bad_frame when a line exceeds limits::queue_line.
    [[nodiscard]] result<std::optional<std::string_view>> take_line() {
        if (whole_line_)
            held_.clear();
        const std::string_view input = as_text(untrusted_);
        const std::size_t end = input.find('\n');
        whole_line_ = end != input.npos;
        const std::string_view piece = input.substr(0, end);
        if (held_.size() + piece.size() >= limits::queue_line)
            return fail(errc::bad_frame);
        held_.append(piece);
        untrusted_ = untrusted_.subspan(piece.size() + (whole_line_ ? 1 : 0));
        if (!whole_line_)
            return std::nullopt;
        return std::string_view(held_);
    }
    // Takes the counted bytes that have come, at most `most`.
    [[nodiscard]] bytes_view take_bytes(std::size_t most) noexcept {
        const bytes_view out = untrusted_.first(std::min(most, untrusted_.size()));
        untrusted_ = untrusted_.subspan(out.size());
        return out;
    }

    template <class... Word>
    void put_line(std::string_view verb, const Word &...more) {
        std::string line(verb);
        ((line += ' ', line += more), ...);
        line += '\n';
        out_.put(as_bytes(line));
    }

    // The words of a line, with one blank between two words.
    class line_words {
      public:
        explicit line_words(std::string_view line) noexcept : left_(line) {}

        [[nodiscard]] std::string_view next() noexcept {
            const std::size_t end = std::min(left_.find(' '), left_.size());
            const std::string_view word = left_.substr(0, end);
            more_ = end < left_.size();
            left_.remove_prefix(end + (more_ ? 1 : 0));
            return word;
        }
        template <class T>
        [[nodiscard]] std::optional<T> number() noexcept {
            return parse_decimal<T>(next());
        }
        [[nodiscard]] bool at_end() const noexcept { return left_.empty() && !more_; }

      private:
        std::string_view left_;
        bool more_ = false;
    };

  private:
    bytes_view untrusted_;
    std::string held_; // a line that is not whole yet
    bool whole_line_ = false;
    out_buffer out_;
};

/// A message from a carrier, for dom0.
struct queue_event {
    enum class kind : std::uint8_t {
        entry,  ///< an entry waits: untrusted_token, length
        body,   ///< the body that was asked for: untrusted_body
        gone,   ///< the entry has vanished, or cannot be taken
        stale,  ///< the entry was running when the carrier started: a daemon died
        done,   ///< the files of the result are written
        failed, ///< the files of the result could not be written
        idle,   ///< every entry was announced, and dom0 has answered for each
        pong,   ///< the answer to ping(): number
    };
    kind what;
    std::optional<command_id> id{}; ///< of all but idle and pong
    std::string untrusted_token{};  ///< entry: 64 digits, or empty when there is none
    std::uint64_t length = 0;       ///< entry: bytes of the command
    std::string untrusted_body{};   ///< body: the bytes of the file
    std::uint64_t number = 0;       ///< pong
};

/// dom0's end. It holds at most one line, and one body that it asked for (I4).
class queue_server : public queue_end {
  public:
    /// The next event; nothing when more input is needed. An error ends the stream.
    [[nodiscard]] result<std::optional<queue_event>> next() {
        for (;;) {
            if (body_) {
                body_->untrusted_body.append(
                    as_text(take_bytes(body_left_ - body_->untrusted_body.size())));
                if (body_->untrusted_body.size() < body_left_)
                    return std::nullopt;
                return std::exchange(body_, std::nullopt);
            }
            auto line = take_line();
            if (!line)
                return tl::unexpected(line.error());
            if (!*line)
                return std::nullopt;
            auto event = parse(**line);
            if (!event)
                return tl::unexpected(event.error());
            if (event->what != queue_event::kind::body)
                return std::move(*event);
            body_left_ = static_cast<std::size_t>(event->length);
            body_.emplace(std::move(*event));
            body_->untrusted_body.reserve(body_left_);
        }
    }

    /// Asks the carrier for the body of an entry. The event `body` or `gone` answers.
    void fetch(const command_id &id) {
        if (asked_.size() >= most_asked) // a carrier that does not answer must not make it grow
            asked_.erase(asked_.begin());
        asked_.insert(id.text());
        put_line("fetch", id.text());
    }
    /// Tells the carrier to remove an entry and what there is of its output, without a result.
    void drop(const command_id &id) { put_line("drop", id.text()); }
    /// Tells the carrier to announce an entry again later.
    void later(const command_id &id) { put_line("later", id.text()); }
    /// Asks for an answer; the event `pong` brings the same number.
    void ping(std::uint64_t number) { put_line("ping", std::to_string(number)); }

    /// Room for a piece of output, at most `most` bytes and limits::queue_output. commit_output
    /// sends the first `n` bytes of it, 1 or more. Do not send anything else between the two calls.
    [[nodiscard]] std::span<std::uint8_t> prepare_output(std::size_t most) {
        return output()
            .prepare(line_room + std::min(most, limits::queue_output))
            .subspan(line_room);
    }
    void commit_output(const command_id &id, bool is_stdout, std::size_t n) {
        // The line's length depends on n, so the piece is moved up to the line, once.
        const std::string line =
            std::string(is_stdout ? "out " : "err ") + id.text() + ' ' + std::to_string(n) + '\n';
        const auto room = output().prepare(line_room + n);
        std::copy(line.begin(), line.end(), room.begin());
        std::copy_n(room.begin() + line_room, n,
                    room.begin() + static_cast<std::ptrdiff_t>(line.size()));
        output().commit(line.size() + n);
    }

    /// Sends the result of an entry. `exit_code` is negative for a signal. `meta` and `audit` are
    /// at most limits::queue_text bytes each.
    void result_of(const command_id &id, int exit_code, std::string_view meta,
                   std::string_view audit) {
        put_line("result", id.text(), std::to_string(exit_code), std::to_string(meta.size()),
                 std::to_string(audit.size()));
        output().put(as_bytes(meta));
        output().put(as_bytes(audit));
    }

  private:
    static constexpr std::size_t line_room = limits::command_id + 16;

    [[nodiscard]] result<queue_event> parse(std::string_view line) {
        using kind = queue_event::kind;
        line_words w(line);
        const std::string_view verb = w.next();
        queue_event out{};
        if (verb == "idle") {
            out.what = kind::idle;
        } else if (verb == "pong") {
            const auto number = w.number<std::uint64_t>();
            if (!number)
                return fail(errc::bad_frame);
            out.what = kind::pong;
            out.number = *number;
        } else {
            auto id = command_id::parse(w.next());
            if (!id)
                return tl::unexpected(id.error());
            out.id = std::move(*id);
            if (verb == "entry") {
                out.what = kind::entry;
                const std::string_view token = w.next();
                const auto length = w.number<std::uint64_t>();
                if (!length || (token != "-" && !is_token(token)))
                    return fail(errc::bad_frame);
                if (token != "-")
                    out.untrusted_token = token;
                out.length = *length;
            } else if (verb == "body") {
                out.what = kind::body;
                const auto length = w.number<std::uint64_t>();
                if (!length || *length > limits::command || asked_.erase(out.id->text()) == 0)
                    return fail(errc::bad_frame);
                out.length = *length;
            } else if (verb == "gone") {
                out.what = kind::gone;
                asked_.erase(out.id->text());
            } else if (verb == "stale") {
                out.what = kind::stale;
            } else if (verb == "done") {
                out.what = kind::done;
            } else if (verb == "failed") {
                out.what = kind::failed;
            } else {
                return fail(errc::unknown_frame);
            }
        }
        if (!w.at_end())
            return fail(errc::bad_frame);
        return out;
    }

    [[nodiscard]] static bool is_token(std::string_view word) noexcept {
        return word.size() == 64 && std::all_of(word.begin(), word.end(), [](char c) {
                   return is_digit(c) || (c >= 'a' && c <= 'f');
               });
    }

    static constexpr std::size_t most_asked = 1024;
    std::set<std::string> asked_; // entries whose body was asked for and has not come yet
    std::optional<queue_event> body_;
    std::size_t body_left_ = 0;
};

/// A message from dom0, for a carrier.
struct queue_order {
    enum class kind : std::uint8_t { fetch, drop, later, output, result, ping };
    kind what;
    std::optional<command_id> id{}; ///< of all but ping
    bool is_stdout = false;         ///< output
    bytes_view data{};              ///< output: borrowed until the next feed()
    int exit_code = 0;              ///< result: negative for a signal, as in Python
    std::string meta{}, audit{};    ///< result: one text, one line with its newline
    std::uint64_t number = 0;       ///< ping
};

/// The carrier's end, for a carrier that is written in C++.
class queue_client : public queue_end {
  public:
    /// The next order; nothing when more input is needed. An error ends the stream.
    [[nodiscard]] result<std::optional<queue_order>> next() {
        for (;;) {
            if (left_ > 0) {
                if (order_.what == queue_order::kind::output) {
                    const bytes_view piece = take_bytes(left_);
                    if (piece.empty())
                        return std::nullopt;
                    left_ -= piece.size();
                    queue_order out = order_;
                    out.data = piece;
                    return out;
                }
                const bytes_view piece = take_bytes(left_);
                text_.append(as_text(piece));
                left_ -= piece.size();
                if (left_ > 0)
                    return std::nullopt;
                return result_order();
            }
            auto line = take_line();
            if (!line)
                return tl::unexpected(line.error());
            if (!*line)
                return std::nullopt;
            auto order = parse(**line);
            if (!order)
                return tl::unexpected(order.error());
            if (left_ == 0)
                return order_.what == queue_order::kind::result ? result_order() : order_;
        }
    }

    /// Announces an entry of `length` bytes. An empty `token` means that it has none.
    void entry(const command_id &id, std::string_view token, std::uint64_t length) {
        put_line("entry", id.text(), token.empty() ? "-" : token, std::to_string(length));
    }
    /// Sends the body that dom0 asked for.
    void body(const command_id &id, bytes_view command) {
        put_line("body", id.text(), std::to_string(command.size()));
        output().put(command);
    }
    void gone(const command_id &id) { put_line("gone", id.text()); }
    void stale(const command_id &id) { put_line("stale", id.text()); }
    void done(const command_id &id) { put_line("done", id.text()); }
    void failed(const command_id &id) { put_line("failed", id.text()); }
    void idle() { put_line("idle"); }
    void pong(std::uint64_t number) { put_line("pong", std::to_string(number)); }

  private:
    [[nodiscard]] result<std::monostate> parse(std::string_view line) {
        using kind = queue_order::kind;
        line_words w(line);
        const std::string_view verb = w.next();
        order_ = {};
        if (verb == "ping") {
            const auto number = w.number<std::uint64_t>();
            if (!number)
                return fail(errc::bad_frame);
            order_.what = kind::ping;
            order_.number = *number;
        } else {
            auto id = command_id::parse(w.next());
            if (!id)
                return tl::unexpected(id.error());
            order_.id = std::move(*id);
            if (verb == "fetch") {
                order_.what = kind::fetch;
            } else if (verb == "drop") {
                order_.what = kind::drop;
            } else if (verb == "later") {
                order_.what = kind::later;
            } else if (verb == "out" || verb == "err") {
                order_.what = kind::output;
                order_.is_stdout = verb == "out";
                const auto length = w.number<std::size_t>();
                if (!length || *length == 0 || *length > limits::queue_output)
                    return fail(errc::bad_frame);
                left_ = *length;
            } else if (verb == "result") {
                order_.what = kind::result;
                const auto code = w.number<std::int32_t>();
                const auto meta = w.number<std::size_t>();
                const auto audit = w.number<std::size_t>();
                if (!code || *code < -64 || *code > 255 || !meta || !audit ||
                    *meta > limits::queue_text || *audit > limits::queue_text)
                    return fail(errc::bad_frame);
                order_.exit_code = *code;
                meta_size_ = *meta;
                left_ = *meta + *audit;
                text_.clear();
            } else {
                return fail(errc::unknown_frame);
            }
        }
        if (!w.at_end())
            return fail(errc::bad_frame);
        return std::monostate{};
    }

    [[nodiscard]] queue_order result_order() {
        order_.meta = text_.substr(0, meta_size_);
        order_.audit = text_.substr(meta_size_);
        return order_;
    }

    queue_order order_{};
    std::size_t left_ = 0; // bytes still to come after the order's line
    std::size_t meta_size_ = 0;
    std::string text_;
};

} // namespace qvmremote
