// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Both ends of a stream and of the sessions on it, as state machines over bytes and a clock value
/// (doc/PROTOCOL.md, "Stream" and "Session"). No descriptor, thread, clock or log inside.
///
/// The caller reads into prepare()/commit(), asks next() for events until there is none, and writes
/// out what output() holds. Times are milliseconds of one clock that counts while suspended.

#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include <qvmremote/bytes.hpp>
#include <qvmremote/digest.hpp>
#include <qvmremote/envelope.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/frame.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/queue.hpp>
#include <qvmremote/secret.hpp>
#include <qvmremote/token.hpp>

namespace qvmremote {

/// How a session ended. Numbers are frozen.
enum class end_cause : std::uint8_t {
    exited = 1,      ///< value: exit code
    signalled = 2,   ///< value: signal
    timed_out = 3,   ///< value: the limit in seconds
    not_found = 4,   ///< the program does not exist
    not_started = 5, ///< value: errno
    cancelled = 6,   ///< dom0 ended it: value: an errc
};

[[nodiscard]] constexpr std::string_view name(end_cause cause) noexcept {
    switch (cause) {
    case end_cause::exited:
        return "exited";
    case end_cause::signalled:
        return "signalled";
    case end_cause::timed_out:
        return "timed_out";
    case end_cause::not_found:
        return "not_found";
    case end_cause::not_started:
        return "not_started";
    case end_cause::cancelled:
        return "cancelled";
    }
    return "unknown";
}

/// What END says: the cause, and how many bytes of each stream the sender sent.
struct run_end {
    end_cause cause{};
    std::uint32_t value = 0;
    std::uint64_t stdout_bytes = 0;
    std::uint64_t stderr_bytes = 0;
    std::string text{}; ///< for people, at most limits::reason_text; untrusted in the qube and
                        ///< cleaned there

    /// SPEC §1.2.
    [[nodiscard]] int exit_code() const noexcept {
        switch (cause) {
        case end_cause::exited:
            // Never cut to eight bits: 256 would become success.
            return value <= 255 ? static_cast<int>(value) : 255;
        case end_cause::signalled:
            return value <= 127 ? static_cast<int>(128 + value) : 255;
        case end_cause::timed_out:
            return 124;
        case end_cause::not_found:
            return 127;
        case end_cause::not_started:
            return 125;
        case end_cause::cancelled:
            return 126;
        }
        return 255;
    }
};

/// Signals that may cross: what a terminal or a supervisor sends, nothing that cannot be caught.
/// Numbers are Linux's (the same on every architecture that Qubes runs on).
[[nodiscard]] constexpr bool is_forwarded_signal(std::uint8_t number) noexcept {
    switch (number) {
    case 1:  // HUP
    case 2:  // INT
    case 3:  // QUIT
    case 10: // USR1
    case 12: // USR2
    case 15: // TERM
    case 18: // CONT
    case 20: // TSTP
        return true;
    default:
        return false;
    }
}

/// What both ends of a stream share: cutting the input into frames, and building the output.
class stream_end {
  public:
    /// Where to read to; never empty while next() has no event left to give.
    [[nodiscard]] std::span<std::uint8_t> prepare() { return reader_.prepare(); }
    void commit(std::size_t n) noexcept { reader_.commit(n); }
    /// The same for bytes that lie elsewhere already; returns how many were taken.
    [[nodiscard]] std::size_t push(bytes_view untrusted) { return reader_.push(untrusted); }

    [[nodiscard]] out_buffer &output() noexcept { return out_; }
    /// Too much is waiting to be written: read nothing more from this peer until it takes some.
    [[nodiscard]] bool congested() const noexcept { return out_.size() >= 2 * limits::frame; }

    /// Asks the other end for a sign of life.
    void ping(std::uint64_t cookie) {
        std::array<std::uint8_t, 8> payload;
        store_u64(payload.data(), cookie);
        put_plain(0, frame_type::ping, payload);
    }

    /// Gives buffers back while nothing happens.
    void release_idle_memory() {
        reader_.release_if_empty();
        out_.release_if_empty();
    }

  protected:
    explicit stream_end(std::size_t payload_limit) : reader_(payload_limit) {}

    void put_plain(std::uint32_t session, frame_type type, bytes_view payload) {
        const auto room = out_.prepare(frame_header::size + payload.size());
        frame_header{static_cast<std::uint32_t>(payload.size()), session, type}.encode(room.data());
        std::copy(payload.begin(), payload.end(), room.begin() + frame_header::size);
        out_.commit(frame_header::size + payload.size());
    }

    void put_tagged(frame_authenticator &keys, std::uint32_t session, frame_type type,
                    bytes_view payload) {
        assert(payload.size() <= max_tagged_payload);
        const auto room = prepare_tagged(payload.size());
        std::copy(payload.begin(), payload.end(), room.begin());
        commit_tagged(keys, session, type, payload.size());
    }

    // In place: room for the payload, with the header before and the tag behind it. The output must
    // not be touched between the two calls; were it, the frame would begin elsewhere and seal
    // whatever lies there.
    [[nodiscard]] std::span<std::uint8_t> prepare_tagged(std::size_t payload) {
        const auto room = out_.prepare(frame_header::size + payload + tag_size);
        prepared_ = room.data();
        return room.subspan(frame_header::size, payload);
    }
    void commit_tagged(frame_authenticator &keys, std::uint32_t session, frame_type type,
                       std::size_t payload) {
        const auto room = out_.prepare(frame_header::size + payload + tag_size);
        assert(room.data() == prepared_);
        out_.commit(keys.seal(room.data(), session, type, payload));
    }

    [[nodiscard]] static bytes reason_payload(errc reason, std::string_view text) {
        bytes payload;
        byte_writer w(payload);
        w.u16(static_cast<std::uint16_t>(reason));
        w.put(text.substr(0, limits::reason_text));
        return payload;
    }

    // A frame of the stream itself that both ends treat alike; true when it was one.
    [[nodiscard]] result<bool> take_stream_frame(const frame_view &frame) {
        const frame_type type = frame.header.type;
        if (type != frame_type::ping && type != frame_type::pong)
            return false;
        if (frame.header.session != 0 || frame.untrusted_payload.size() != 8)
            return fail(errc::bad_frame);
        if (type == frame_type::ping)
            put_plain(0, frame_type::pong, frame.untrusted_payload);
        return true;
    }

    frame_reader reader_;
    out_buffer out_;

  private:
    const std::uint8_t *prepared_ = nullptr;
};

/// What happened on a stream, for dom0. `data` is borrowed until the next prepare() or push().
struct server_event {
    enum class kind : std::uint8_t {
        open,       ///< answer with issue_challenge or reject_open before reading on
        request,    ///< answer with server_stream::verify before reading on
        body,       ///< the body that take_body asked for is here: server_stream::complete
        stdin_data, ///< data: for the command; give credit back when it is written
        stdin_eof,  ///< nothing more will come on stdin
        signal,     ///< number: one of is_forwarded_signal
        resize,     ///< columns, rows
        credit,     ///< more output may be sent
        closed,     ///< the session is over on the qube's side: reason says why
        pong,       ///< a sign of life
        queue,      ///< data: a piece of the queue's bytes, for a queue_server
    };
    kind what;
    std::uint32_t session = 0;
    bytes_view data{};
    std::uint8_t number = 0;
    std::uint16_t columns = 0, rows = 0;
    errc reason = errc::session_over;
};

/// dom0's end of a stream. Behind queue_preamble it has no frames and no sessions: all of it is the
/// queue's bytes, as events and by put_queue.
///
/// Until a token has verified on it, it holds one frame of a header's size and at most
/// limits::open_challenges challenges (I4), and reads frame headers and lengths only (I5).
class server_stream : public stream_end {
  public:
    /// `peer` is the qube's name as the transport proves it.
    server_stream(std::string_view peer, std::uint32_t features, std::uint64_t now_ms)
        : stream_end(token_size + limits::request_header),
          preamble_deadline_(now_ms + limits::preamble_ms) {
        assert(peer.size() <= 255);
        byte_writer w(hello_);
        w.u16(protocol_version);
        w.u32(features);
        w.u8(static_cast<std::uint8_t>(peer.size()));
        w.put(peer);
        features_ = features;
        t_ = sha256(hello_);
    }

    /// The next event; nothing when more bytes are needed. An error is the stream's: close it, and
    /// treat all its sessions as closed. To be called at times without new bytes too, until the
    /// preamble has come: that is how its deadline passes.
    [[nodiscard]] result<std::optional<server_event>> next(std::uint64_t now_ms) {
        if (!announced_) {
            auto found = find_preamble(now_ms);
            if (!found || !*found)
                return found.map([](bool) { return std::optional<server_event>(); });
        }
        if (queue_only_) {
            const bytes_view untrusted = reader_.unread();
            if (untrusted.empty())
                return std::nullopt;
            reader_.skip(untrusted.size());
            return server_event{.what = server_event::kind::queue, .data = untrusted};
        }
        for (;;) {
            auto frame = reader_.next();
            if (!frame)
                return tl::unexpected(frame.error());
            if (!*frame)
                return std::nullopt;
            auto event = take(**frame, now_ms);
            if (!event || *event)
                return event;
        }
    }

    /// Answers OPEN. Returns the session's number.
    std::uint32_t issue_challenge(const challenge &fresh, std::uint64_t now_ms) {
        assert(open_unanswered_);
        open_unanswered_ = false;
        const std::uint32_t number = ++last_session_;
        sessions_.emplace(number, session{.fresh = fresh, .issued_ms = now_ms});
        put_plain(number, frame_type::challenge, fresh);
        return number;
    }
    /// Answers OPEN with a refusal.
    void reject_open(errc reason) {
        assert(open_unanswered_);
        open_unanswered_ = false;
        reject(0, reason, {});
    }

    /// Verifies the REQUEST that `event` announced, under any of `keys`. The challenge is spent
    /// whatever comes of it. On failure the refusal has been sent and the session is gone; the
    /// reason is returned for the log: errc::no_key, bad_token, challenge_stale, or what was wrong
    /// with a header that did verify.
    struct header_verified {
        verified<envelope> header;
        std::size_t key_index;
    };
    [[nodiscard]] result<header_verified>
    verify(const server_event &event, std::span<const secret> keys, std::uint64_t now_ms) {
        const auto at = sessions_.find(event.session);
        assert(at != sessions_.end() && at->second.stage == phase::requested);
        session &s = at->second;
        errc why = errc::bad_token;
        if (is_stale(s, now_ms)) {
            why = errc::challenge_stale;
        } else if (keys.empty()) {
            why = errc::no_key;
        } else if (auto header = request_verifier::verify(keys, t_, s.fresh, event.data)) {
            session_keys derived =
                request_signer(keys[(**header).key_index]).keys((**header).token);
            s.to_dom0.emplace(std::move(derived.to_dom0));
            s.to_qube.emplace(std::move(derived.to_qube));
            s.stage = phase::waiting;
            reader_.raise_limit(limits::frame);
            auto decoded = request_verifier::decode(*header);
            if (decoded && (**decoded).features & ~features_)
                decoded = fail(errc::unsupported, 24);
            if (!decoded) {
                refuse(event.session, decoded.error().code, {});
                return tl::unexpected(decoded.error());
            }
            if ((**decoded).features & feature::gmac) {
                s.to_dom0->use_gmac();
                s.to_qube->use_gmac();
            }
            s.body_left = (**decoded).body_follows ? (**decoded).body_length : 0;
            return header_verified{std::move(*decoded), (**header).key_index};
        }
        sessions_.erase(at);
        // The qube learns that it was refused, not whether it has a key here.
        reject(event.session, why == errc::no_key ? errc::bad_token : why, {});
        return fail(why);
    }

    /// Asks for a body that follows: event `body` comes when it is whole. For one that came with
    /// its header there is nothing to ask: returns false, and complete() can be called at once.
    [[nodiscard]] bool take_body(std::uint32_t number) {
        session &s = at(number);
        assert(s.stage == phase::waiting);
        if (s.body_left == 0)
            return false;
        s.stage = phase::body;
        s.body.reserve(s.body_left);
        put_u32(s, number, frame_type::credit, s.body_left);
        return true;
    }

    /// Joins header and body. On failure the refusal has been sent and the session is gone.
    [[nodiscard]] result<verified<request>> complete(std::uint32_t number,
                                                     verified<envelope> header) {
        auto whole = request_verifier::complete(std::move(header), std::move(at(number).body));
        if (!whole)
            refuse(number, whole.error().code, {});
        return whole;
    }

    /// The request waits for an operator's word (or for a slot): tells the client.
    void pend(std::uint32_t number, std::uint64_t serial, std::string_view text) {
        bytes payload;
        byte_writer w(payload);
        w.u64(serial);
        w.put(text.substr(0, limits::reason_text));
        put_tagged(authentic(number), number, frame_type::pending, payload);
    }

    /// Takes stdin before the command is accepted, since it is part of what an operator is asked
    /// about: so many bytes more, at most limits::window at a time. They come as stdin_data; after
    /// stdin_eof the session waits as before, and is to be accepted without stdin.
    void collect_stdin(std::uint32_t number, std::size_t more) {
        session &s = at(number);
        assert(s.stage == phase::waiting || s.stage == phase::collecting);
        assert(more > 0 && s.stdin_credit + more <= limits::window);
        s.stage = phase::collecting;
        s.stdin_open = true;
        s.stdin_credit += more;
        put_u32(s, number, frame_type::credit, static_cast<std::uint32_t>(more));
    }

    /// The command runs. `stdin_live` opens the window for stdin.
    void accept(std::uint32_t number, std::uint32_t timeout_s, bool stdin_live) {
        session &s = at(number);
        assert(s.stage == phase::waiting);
        s.stage = phase::running;
        s.stdin_open = stdin_live;
        s.stdin_credit = stdin_live ? limits::window : 0;
        bytes payload;
        byte_writer w(payload);
        w.u32(timeout_s);
        w.u32(static_cast<std::uint32_t>(s.stdin_credit));
        put_tagged(*s.to_qube, number, frame_type::accepted, payload);
    }

    /// Ends a session that has not been accepted, with a tagged reason.
    void refuse(std::uint32_t number, errc reason, std::string_view text) {
        put_tagged(authentic(number), number, frame_type::refused, reason_payload(reason, text));
        sessions_.erase(number);
    }

    /// How many bytes of output the client will take now, both streams together.
    [[nodiscard]] std::size_t output_credit(std::uint32_t number) {
        return at(number).output_credit;
    }

    /// Room to read output into, at most `most` bytes and never more than a frame or the credit
    /// allows; commit_output sends what was put there.
    [[nodiscard]] std::span<std::uint8_t> prepare_output(std::uint32_t number, std::size_t most) {
        return prepare_tagged(std::min({most, at(number).output_credit, max_tagged_payload}));
    }
    void commit_output(std::uint32_t number, frame_type stream, std::size_t n) {
        session &s = at(number);
        assert(s.stage == phase::running && n > 0 && n <= s.output_credit);
        s.output_credit -= n;
        (stream == frame_type::stdout_data ? s.stdout_bytes : s.stderr_bytes) += n;
        commit_tagged(*s.to_qube, number, stream, n);
    }
    /// The command closed one of its streams and goes on.
    void output_eof(std::uint32_t number, frame_type stream_eof) {
        put_tagged(authentic(number), number, stream_eof, {});
    }

    /// Stdin that was written to the command (or thrown away, when it no longer reads): the client
    /// may send as much again. Small amounts are saved up.
    void grant_stdin(std::uint32_t number, std::size_t n) {
        session &s = at(number);
        s.stdin_owed += n;
        assert(s.stdin_credit + s.stdin_owed <= limits::window);
        if (s.stdin_owed < limits::window / 4 || !s.stdin_open)
            return;
        s.stdin_credit += s.stdin_owed;
        put_u32(s, number, frame_type::credit, static_cast<std::uint32_t>(s.stdin_owed));
        s.stdin_owed = 0;
    }

    /// Sends bytes of the queue.
    void put_queue(bytes_view data) {
        if (queue_only_)
            return out_.put(data);
        while (!data.empty()) {
            const bytes_view piece = data.first(std::min(data.size(), limits::queue_piece));
            put_plain(0, frame_type::queue, piece);
            data = data.subspan(piece.size());
        }
    }

    /// The last word on a session that was accepted; byte counts are filled in here.
    run_end end(std::uint32_t number, run_end how) {
        session &s = at(number);
        assert(s.stage == phase::running);
        how.stdout_bytes = s.stdout_bytes;
        how.stderr_bytes = s.stderr_bytes;
        bytes payload;
        byte_writer w(payload);
        w.u8(static_cast<std::uint8_t>(how.cause));
        w.u32(how.value);
        w.u64(how.stdout_bytes);
        w.u64(how.stderr_bytes);
        w.put(std::string_view(how.text).substr(0, limits::reason_text));
        put_tagged(*s.to_qube, number, frame_type::end, payload);
        sessions_.erase(number);
        return how;
    }

    [[nodiscard]] bool has(std::uint32_t number) const { return sessions_.contains(number); }
    [[nodiscard]] std::size_t session_count() const noexcept { return sessions_.size(); }
    [[nodiscard]] bool announced() const noexcept { return announced_; }
    /// Announced by queue_preamble: ping() is not understood there.
    [[nodiscard]] bool queue_only() const noexcept { return queue_only_; }

  private:
    enum class phase : std::uint8_t { challenged, requested, waiting, body, collecting, running };
    struct session {
        challenge fresh{};
        std::uint64_t issued_ms = 0;
        phase stage = phase::challenged;
        std::optional<frame_authenticator> to_dom0{}, to_qube{};
        std::string body{};
        std::uint32_t body_left = 0;
        std::size_t stdin_credit = 0;
        std::size_t stdin_owed = 0;
        std::size_t output_credit = limits::window;
        std::uint64_t stdout_bytes = 0, stderr_bytes = 0;
        bool stdin_open = false;
    };

    [[nodiscard]] session &at(std::uint32_t number) {
        const auto found = sessions_.find(number);
        assert(found != sessions_.end());
        return found->second;
    }
    [[nodiscard]] frame_authenticator &authentic(std::uint32_t number) {
        session &s = at(number);
        assert(s.to_qube);
        return *s.to_qube;
    }

    void put_u32(session &s, std::uint32_t number, frame_type type, std::uint32_t value) {
        std::array<std::uint8_t, 4> payload;
        store_u32(payload.data(), value);
        put_tagged(*s.to_qube, number, type, payload);
    }

    void reject(std::uint32_t number, errc reason, std::string_view text) {
        put_plain(number, frame_type::rejected, reason_payload(reason, text));
    }

    [[nodiscard]] result<bool> find_preamble(std::uint64_t now_ms) {
        if (now_ms > preamble_deadline_)
            return fail(errc::bad_preamble);
        const bytes_view held = reader_.unread();
        auto found = std::search(held.begin(), held.end(), preamble.begin(), preamble.end());
        const auto queue =
            std::search(held.begin(), found, queue_preamble.begin(), queue_preamble.end());
        queue_only_ = queue != found;
        if (queue_only_)
            found = queue;
        const auto before = static_cast<std::size_t>(found - held.begin());
        if (found == held.end()) {
            // All but what could be the beginning of the preamble is done with.
            const std::size_t done = held.size() - std::min(held.size(), preamble.size() - 1);
            reader_.skip(done);
            skipped_ += done;
            if (skipped_ > limits::preamble_skip)
                return fail(errc::bad_preamble);
            return false;
        }
        if (skipped_ + before > limits::preamble_skip)
            return fail(errc::bad_preamble);
        reader_.skip(before + preamble.size());
        announced_ = true;
        if (!queue_only_)
            put_plain(0, frame_type::hello, hello_);
        return true;
    }

    // Ends a session whose frames do not hold what they must.
    [[nodiscard]] std::optional<server_event> drop(std::uint32_t number, errc reason) {
        const auto found = sessions_.find(number);
        const bool known_to_host = found->second.stage >= phase::waiting;
        sessions_.erase(found);
        bytes payload;
        byte_writer(payload).u16(static_cast<std::uint16_t>(reason));
        put_plain(number, frame_type::close, payload);
        if (!known_to_host)
            return std::nullopt;
        return server_event{
            .what = server_event::kind::closed, .session = number, .reason = reason};
    }

    [[nodiscard]] result<std::optional<server_event>> take(const frame_view &frame,
                                                           std::uint64_t now_ms) {
        using kind = server_event::kind;
        const frame_type type = frame.header.type;
        const std::uint32_t number = frame.header.session;
        if (rule_of(type)->from == sender::dom0)
            return fail(errc::unknown_frame);
        auto of_stream = take_stream_frame(frame);
        if (!of_stream)
            return tl::unexpected(of_stream.error());
        if (*of_stream) {
            if (type == frame_type::pong)
                return server_event{.what = kind::pong};
            return std::nullopt;
        }
        if (type == frame_type::queue) {
            if (number != 0 || frame.untrusted_payload.empty() ||
                frame.untrusted_payload.size() > limits::queue_piece)
                return fail(errc::bad_frame);
            return server_event{.what = kind::queue, .data = frame.untrusted_payload};
        }
        if (type == frame_type::open) {
            if (number != 0 || !frame.untrusted_payload.empty())
                return fail(errc::bad_frame);
            // Answers come in the order of the OPENs, so this one's must not overtake another's.
            assert(!open_unanswered_);
            if (open_challenges(now_ms) >= limits::open_challenges) {
                reject(0, errc::busy, {});
                return std::nullopt;
            }
            if (last_session_ == UINT32_MAX)
                return fail(errc::session_over); // a number is never used twice
            open_unanswered_ = true;
            return server_event{.what = kind::open};
        }
        if (number == 0 || number > last_session_)
            return fail(errc::bad_frame);
        const auto found = sessions_.find(number);
        if (found == sessions_.end()) {
            // The client could not know yet that the session is over. A request for one that is
            // gone is told so, or its client would wait for ever.
            if (type == frame_type::request)
                reject(number, errc::challenge_stale, {});
            return std::nullopt;
        }
        session &s = found->second;
        if (type == frame_type::close) {
            const bool known_to_host = s.stage >= phase::waiting;
            sessions_.erase(found);
            if (!known_to_host)
                return std::nullopt;
            return server_event{.what = kind::closed, .session = number};
        }
        if (type == frame_type::request) {
            if (s.stage != phase::challenged)
                return drop(number, errc::challenge_stale);
            // On a stream that has proven itself, frames may be larger than a header.
            if (frame.untrusted_payload.size() > token_size + limits::request_header)
                return drop(number, errc::frame_too_large);
            s.stage = phase::requested;
            return server_event{
                .what = kind::request, .session = number, .data = frame.untrusted_payload};
        }
        if (!s.to_dom0)
            return drop(number, errc::unknown_frame);
        auto opened = s.to_dom0->open(frame);
        if (!opened)
            return drop(number, opened.error().code);
        return take_authentic(number, s, type, *opened);
    }

    [[nodiscard]] result<std::optional<server_event>>
    take_authentic(std::uint32_t number, session &s, frame_type type, bytes_view payload) {
        using kind = server_event::kind;
        byte_reader r(payload);
        if (type == frame_type::body) {
            if (s.stage != phase::body || payload.empty())
                return drop(number, errc::unknown_frame);
            if (payload.size() > s.body_left)
                return drop(number, errc::credit_exceeded);
            s.body.append(as_text(payload));
            s.body_left -= static_cast<std::uint32_t>(payload.size());
            if (s.body_left > 0)
                return std::nullopt;
            s.stage = phase::waiting;
            return server_event{.what = kind::body, .session = number};
        }
        const bool is_stdin = type == frame_type::stdin_data || type == frame_type::stdin_eof;
        if (s.stage != phase::running && !(s.stage == phase::collecting && is_stdin))
            return drop(number, errc::unknown_frame);
        switch (type) {
        case frame_type::stdin_data:
            if (!s.stdin_open || payload.empty())
                return drop(number, errc::unknown_frame);
            if (payload.size() > s.stdin_credit)
                return drop(number, errc::credit_exceeded);
            s.stdin_credit -= payload.size();
            return server_event{.what = kind::stdin_data, .session = number, .data = payload};
        case frame_type::stdin_eof:
            if (!s.stdin_open || !payload.empty())
                return drop(number, errc::unknown_frame);
            s.stdin_open = false;
            if (s.stage == phase::collecting)
                s.stage = phase::waiting;
            return server_event{.what = kind::stdin_eof, .session = number};
        case frame_type::signal: {
            const auto value = r.u8();
            if (!value || r.left() != 0 || !is_forwarded_signal(*value))
                return drop(number, errc::bad_value);
            return server_event{.what = kind::signal, .session = number, .number = *value};
        }
        case frame_type::resize: {
            const auto columns = r.u16();
            const auto rows = r.u16();
            if (!rows || r.left() != 0)
                return drop(number, errc::bad_value);
            return server_event{
                .what = kind::resize, .session = number, .columns = *columns, .rows = *rows};
        }
        case frame_type::credit: {
            const auto more = r.u32();
            if (!more || r.left() != 0 || *more == 0 || *more > limits::window - s.output_credit)
                return drop(number, errc::credit_exceeded);
            s.output_credit += *more;
            return server_event{.what = kind::credit, .session = number};
        }
        default:
            return drop(number, errc::unknown_frame);
        }
    }

    [[nodiscard]] static bool is_stale(const session &s, std::uint64_t now_ms) noexcept {
        return now_ms > s.issued_ms + limits::challenge_ms;
    }
    // How many challenges can still be answered; forgets those that cannot. One walk over at most
    // limits::open_challenges and what the caller lets wait and run.
    [[nodiscard]] std::size_t open_challenges(std::uint64_t now_ms) {
        std::size_t count = 0;
        for (auto i = sessions_.begin(); i != sessions_.end();) {
            if (i->second.stage == phase::challenged && is_stale(i->second, now_ms)) {
                i = sessions_.erase(i);
                continue;
            }
            count += i->second.stage == phase::challenged;
            ++i;
        }
        return count;
    }

    std::uint64_t preamble_deadline_;
    std::size_t skipped_ = 0;
    bool announced_ = false;
    bool queue_only_ = false;
    std::uint32_t features_;
    bytes hello_;
    digest256 t_;
    std::uint32_t last_session_ = 0;
    bool open_unanswered_ = false;
    std::map<std::uint32_t, session> sessions_;
};

/// What happened on a stream, for the qube. Texts and names are untrusted: clean them for their
/// sink. `data` is borrowed until the next prepare() or push().
struct client_event {
    enum class kind : std::uint8_t {
        hello,      ///< text: the name that dom0 knows this qube by
        challenged, ///< answers the oldest open(): call client_stream::send_request
        rejected, ///< refused, and nobody vouches for it: reason, text; session 0 answers an open()
        refused,  ///< refused by dom0: reason, text
        pending,  ///< serial, text: waits in dom0
        accepted, ///< number: the time-out in seconds, 0 for none
        stdin_ready, ///< more stdin may be sent
        stdout_data,
        stderr_data,
        stdout_eof,
        stderr_eof,
        ended,  ///< end: authentic, and the byte counts are those that arrived
        closed, ///< over without END: reason says why; what arrived is incomplete
        pong,
    };
    kind what;
    std::uint32_t session = 0;
    bytes_view data{};
    std::string text{};
    std::uint64_t number = 0;
    errc reason = errc::session_over;
    run_end end{};
};

/// A qube's end of a stream, for any number of sessions one beside the other.
class client_stream : public stream_end {
  public:
    client_stream() : stream_end(limits::frame) { out_.put(preamble); }

    /// Asks for a session: a challenge or a rejection comes, in the order of the calls.
    void open() {
        put_plain(0, frame_type::open, {});
        ++opens_;
    }

    /// What dom0 announced; nothing before HELLO.
    [[nodiscard]] std::optional<std::uint32_t> features() const noexcept { return features_; }

    [[nodiscard]] result<std::optional<client_event>> next() {
        for (;;) {
            auto frame = reader_.next();
            if (!frame)
                return tl::unexpected(frame.error());
            if (!*frame)
                return std::nullopt;
            auto event = take(**frame);
            if (!event || *event)
                return event;
        }
    }

    /// Sends the request of a session whose challenge has come. Features that dom0 does not have
    /// are taken out. Fails as envelope::encode does, and then nothing was sent.
    [[nodiscard]] result<std::monostate> send_request(std::uint32_t number, envelope what,
                                                      const secret &key) {
        session &s = at(number);
        assert(s.stage == phase::challenged);
        what.features &= features_.value_or(0);
        auto header = what.encode();
        if (!header)
            return tl::unexpected(header.error());
        request_signer signer(key);
        const digest256 token = signer.token(t_, s.fresh, *header);
        session_keys derived = signer.keys(token);
        if (what.features & feature::gmac)
            derived.use_gmac();
        s.to_dom0.emplace(std::move(derived.to_dom0));
        s.to_qube.emplace(std::move(derived.to_qube));
        s.stage = phase::requested;
        if (what.body_follows)
            s.body = std::move(what.body);
        s.stdin_live = what.stdin_live;
        bytes payload(token.begin(), token.end());
        payload.insert(payload.end(), header->begin(), header->end());
        put_plain(number, frame_type::request, payload);
        return std::monostate{};
    }

    /// How much stdin dom0 will take now; 0 before it accepts, unless it asks for it earlier, to show
    /// it to an operator.
    [[nodiscard]] std::size_t stdin_credit(std::uint32_t number) { return at(number).stdin_credit; }

    // What follows is for sessions that dom0 has accepted, and stdin for those that asked for it
    // live and have credit: dom0 ends a session that sends it any of this otherwise.

    /// Room to read stdin into, never more than a frame or the credit allows.
    [[nodiscard]] std::span<std::uint8_t> prepare_stdin(std::uint32_t number) {
        return prepare_tagged(std::min(at(number).stdin_credit, max_tagged_payload));
    }
    void commit_stdin(std::uint32_t number, std::size_t n) {
        session &s = at(number);
        assert(n > 0 && n <= s.stdin_credit);
        s.stdin_credit -= n;
        commit_tagged(*s.to_dom0, number, frame_type::stdin_data, n);
    }
    void stdin_eof(std::uint32_t number) {
        put_tagged(authentic(number), number, frame_type::stdin_eof, {});
    }
    /// `signal` is one of is_forwarded_signal.
    void send_signal(std::uint32_t number, std::uint8_t signal) {
        assert(is_forwarded_signal(signal));
        put_tagged(authentic(number), number, frame_type::signal, {{signal}});
    }

    /// Output that was passed on: dom0 may send as much again. Small amounts are saved up.
    void grant_output(std::uint32_t number, std::size_t n) {
        const auto found = sessions_.find(number);
        if (found == sessions_.end())
            return;
        session &s = found->second;
        s.output_owed += n;
        assert(s.output_window + s.output_owed <= limits::window);
        if (s.output_owed < limits::window / 4)
            return;
        std::array<std::uint8_t, 4> payload;
        store_u32(payload.data(), static_cast<std::uint32_t>(s.output_owed));
        put_tagged(*s.to_dom0, number, frame_type::credit, payload);
        s.output_window += s.output_owed;
        s.output_owed = 0;
    }

    /// Gives a session up; dom0 ends the command.
    void close(std::uint32_t number) {
        if (sessions_.erase(number) == 0)
            return;
        bytes payload;
        byte_writer(payload).u16(static_cast<std::uint16_t>(errc::session_over));
        put_plain(number, frame_type::close, payload);
    }

    [[nodiscard]] bool has(std::uint32_t number) const { return sessions_.contains(number); }
    /// Whether dom0 has accepted the session: from then on it may have run.
    [[nodiscard]] bool accepted(std::uint32_t number) const {
        const auto found = sessions_.find(number);
        return found != sessions_.end() && found->second.stage == phase::running;
    }

  private:
    enum class phase : std::uint8_t { challenged, requested, running };
    struct session {
        challenge fresh{};
        phase stage = phase::challenged;
        std::optional<frame_authenticator> to_dom0{}, to_qube{};
        std::string body{};
        bool stdin_live = false, pending = false;
        std::size_t stdin_credit = 0;
        std::size_t output_window = limits::window;
        std::size_t output_owed = 0;
        std::uint64_t stdout_bytes = 0, stderr_bytes = 0;
    };

    [[nodiscard]] session &at(std::uint32_t number) {
        const auto found = sessions_.find(number);
        assert(found != sessions_.end());
        return found->second;
    }
    [[nodiscard]] frame_authenticator &authentic(std::uint32_t number) {
        session &s = at(number);
        assert(s.to_dom0);
        return *s.to_dom0;
    }

    [[nodiscard]] result<std::optional<client_event>> take(const frame_view &frame) {
        using kind = client_event::kind;
        const frame_type type = frame.header.type;
        const std::uint32_t number = frame.header.session;
        const bytes_view untrusted = frame.untrusted_payload;
        if (rule_of(type)->from == sender::qube)
            return fail(errc::unknown_frame);
        auto of_stream = take_stream_frame(frame);
        if (!of_stream)
            return tl::unexpected(of_stream.error());
        if (*of_stream) {
            if (type == frame_type::pong)
                return client_event{.what = kind::pong};
            return std::nullopt;
        }
        if (type == frame_type::hello)
            return take_hello(number, untrusted);
        if (type == frame_type::queue) // the agent keeps these to itself
            return fail(errc::unknown_frame);
        if (!features_)
            return fail(errc::bad_version);
        if (type == frame_type::challenge) {
            if (opens_ == 0 || number == 0 || untrusted.size() != std::tuple_size_v<challenge> ||
                sessions_.contains(number))
                return fail(errc::bad_frame);
            --opens_;
            session s;
            std::copy(untrusted.begin(), untrusted.end(), s.fresh.begin());
            sessions_.emplace(number, std::move(s));
            return client_event{.what = kind::challenged, .session = number};
        }
        if (type == frame_type::rejected && number == 0) {
            if (opens_ == 0)
                return fail(errc::bad_frame);
            --opens_;
            return take_reason(kind::rejected, 0, untrusted);
        }
        const auto found = sessions_.find(number);
        if (found == sessions_.end())
            return std::nullopt; // given up here, and dom0 does not know yet
        session &s = found->second;
        if (type == frame_type::rejected || type == frame_type::close) {
            // Nobody vouches for these. Before dom0 accepted they say "no"; after it they can only
            // mean that the rest is lost.
            const bool started = s.stage == phase::running;
            sessions_.erase(found);
            if (type == frame_type::rejected && !started)
                return take_reason(kind::rejected, number, untrusted);
            const auto reason = byte_reader(untrusted).u16();
            return client_event{.what = kind::closed,
                                .session = number,
                                .reason = reason ? static_cast<errc>(*reason) : errc::session_over};
        }
        if (!s.to_qube)
            return fail(errc::bad_frame);
        auto payload = s.to_qube->open(frame);
        if (!payload)
            return broken(number, payload.error().code);
        return take_authentic(number, s, type, *payload);
    }

    [[nodiscard]] result<std::optional<client_event>> take_hello(std::uint32_t number,
                                                                 bytes_view untrusted) {
        byte_reader r(untrusted);
        const auto version = r.u16();
        if (features_ || number != 0 || !version)
            return fail(errc::bad_frame);
        if (*version != protocol_version)
            return fail(errc::bad_version);
        const auto features = r.u32();
        const auto length = r.u8();
        if (!length)
            return fail(errc::bad_frame);
        const auto peer = r.take(*length);
        if (!peer || r.left() != 0)
            return fail(errc::bad_frame);
        features_ = *features;
        t_ = sha256(untrusted);
        return client_event{.what = client_event::kind::hello, .text = std::string(as_text(*peer))};
    }

    [[nodiscard]] result<std::optional<client_event>>
    take_reason(client_event::kind what, std::uint32_t number, bytes_view payload) {
        byte_reader r(payload);
        const auto reason = r.u16();
        if (!reason || r.left() > limits::reason_text)
            return fail(errc::bad_frame);
        return client_event{.what = what,
                            .session = number,
                            .text = std::string(as_text(payload.subspan(2))),
                            .reason = static_cast<errc>(*reason)};
    }

    [[nodiscard]] client_event broken(std::uint32_t number, errc reason) {
        close(number);
        return client_event{
            .what = client_event::kind::closed, .session = number, .reason = reason};
    }

    [[nodiscard]] result<std::optional<client_event>>
    take_authentic(std::uint32_t number, session &s, frame_type type, bytes_view payload) {
        using kind = client_event::kind;
        byte_reader r(payload);
        const bool running = s.stage == phase::running;
        switch (type) {
        case frame_type::pending: {
            const auto serial = r.u64();
            if (running || !serial || r.left() > limits::reason_text)
                return broken(number, errc::bad_frame);
            s.pending = true;
            return client_event{.what = kind::pending,
                                .session = number,
                                .text = std::string(as_text(payload.subspan(8))),
                                .number = *serial};
        }
        case frame_type::accepted: {
            const auto timeout = r.u32();
            const auto credit = r.u32();
            if (running || !credit || r.left() != 0 || *credit > limits::window)
                return broken(number, errc::bad_frame);
            s.stage = phase::running;
            s.stdin_credit = *credit;
            return client_event{.what = kind::accepted, .session = number, .number = *timeout};
        }
        case frame_type::refused: {
            if (running)
                return broken(number, errc::bad_frame);
            sessions_.erase(number);
            return take_reason(kind::refused, number, payload);
        }
        case frame_type::credit: {
            const auto more = r.u32();
            if (!more || r.left() != 0 || *more == 0)
                return broken(number, errc::bad_frame);
            if (!running && !s.body.empty())
                return send_body(number, s, *more);
            if ((!running && !(s.pending && s.stdin_live)) ||
                *more > limits::window - s.stdin_credit)
                return broken(number, errc::credit_exceeded);
            s.stdin_credit += *more;
            return client_event{.what = kind::stdin_ready, .session = number};
        }
        case frame_type::stdout_data:
        case frame_type::stderr_data: {
            if (!running || payload.empty())
                return broken(number, errc::bad_frame);
            if (payload.size() > s.output_window)
                return broken(number, errc::credit_exceeded);
            s.output_window -= payload.size();
            const bool is_stdout = type == frame_type::stdout_data;
            (is_stdout ? s.stdout_bytes : s.stderr_bytes) += payload.size();
            return client_event{.what = is_stdout ? kind::stdout_data : kind::stderr_data,
                                .session = number,
                                .data = payload};
        }
        case frame_type::stdout_eof:
        case frame_type::stderr_eof:
            if (!running || !payload.empty())
                return broken(number, errc::bad_frame);
            return client_event{.what = type == frame_type::stdout_eof ? kind::stdout_eof
                                                                       : kind::stderr_eof,
                                .session = number};
        case frame_type::end: {
            const auto cause = r.u8();
            const auto value = r.u32();
            const auto out = r.u64();
            const auto err = r.u64();
            if (!running || !err || r.left() > limits::reason_text)
                return broken(number, errc::bad_frame);
            run_end end{static_cast<end_cause>(*cause), *value, *out, *err,
                        std::string(as_text(payload.subspan(r.offset())))};
            // A result is complete or it is an error (I10).
            if (end.stdout_bytes != s.stdout_bytes || end.stderr_bytes != s.stderr_bytes ||
                name(end.cause) == "unknown")
                return broken(number, errc::incomplete);
            sessions_.erase(number);
            return client_event{.what = kind::ended, .session = number, .end = std::move(end)};
        }
        default:
            return broken(number, errc::unknown_frame);
        }
    }

    [[nodiscard]] result<std::optional<client_event>> send_body(std::uint32_t number, session &s,
                                                                std::uint32_t credit) {
        if (credit != s.body.size())
            return broken(number, errc::credit_exceeded);
        bytes_view left = as_bytes(s.body);
        while (!left.empty()) {
            const bytes_view piece = left.first(std::min(left.size(), max_tagged_payload));
            put_tagged(*s.to_dom0, number, frame_type::body, piece);
            left = left.subspan(piece.size());
        }
        s.body = {};
        return std::nullopt;
    }

    std::optional<std::uint32_t> features_;
    digest256 t_{};
    std::size_t opens_ = 0;
    std::map<std::uint32_t, session> sessions_;
};

} // namespace qvmremote
