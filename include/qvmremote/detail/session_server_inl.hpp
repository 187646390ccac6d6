// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of session.hpp: dom0's end.

#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <utility>

#include <qvmremote/session.hpp>

namespace qvmremote {

inline server_stream::server_stream(std::string_view peer, std::uint32_t features,
                                    std::uint64_t now_ms, std::shared_ptr<window_pool> wider)
    : stream_end(token_size + limits::request_header),
      preamble_deadline_(now_ms + limits::preamble_ms), wider_(std::move(wider)) {
    assert(peer.size() <= 255);
    byte_writer w(hello_);
    w.u16(protocol_version);
    w.u32(features);
    w.u8(static_cast<std::uint8_t>(peer.size()));
    w.put(peer);
    features_ = features;
    t_ = sha256(hello_);
}

inline result<std::optional<server_event>> server_stream::next(std::uint64_t now_ms) {
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

inline std::uint32_t server_stream::issue_challenge(const challenge &fresh, std::uint64_t now_ms) {
    assert(open_unanswered_);
    open_unanswered_ = false;
    const std::uint32_t number = ++last_session_;
    sessions_.emplace(number, session{.fresh = fresh, .issued_ms = now_ms});
    put_plain(number, frame_type::challenge, fresh);
    return number;
}

inline void server_stream::reject_open(errc reason) {
    assert(open_unanswered_);
    open_unanswered_ = false;
    reject(0, reason, {});
}

inline result<server_stream::header_verified> server_stream::verify(const server_event &event,
                                                                    std::span<const secret> keys,
                                                                    std::uint64_t now_ms) {
    const auto at = sessions_.find(event.session);
    assert(at != sessions_.end() && at->second.stage == phase::requested);
    session &s = at->second;
    errc why = errc::bad_token;
    if (is_stale(s, now_ms)) {
        why = errc::challenge_stale;
    } else if (keys.empty()) {
        why = errc::no_key;
    } else if (auto header = request_verifier::verify(keys, t_, s.fresh, event.data)) {
        session_keys derived = request_signer(keys[(**header).key_index]).keys((**header).token);
        s.to_dom0.emplace(std::move(derived.to_dom0));
        s.to_qube.emplace(std::move(derived.to_qube));
        s.stage = phase::waiting;
        reader_.raise_limit(limits::frame);
        auto decoded = request_verifier::decode(*header);
        if (decoded && (**decoded).features & ~features_)
            decoded = fail(errc::unsupported, envelope::features_at);
        if (!decoded) {
            refuse(event.session, decoded.error().code, {});
            return tl::unexpected(decoded.error());
        }
        if ((**decoded).features & feature::gmac) {
            s.to_dom0->use_gmac();
            s.to_qube->use_gmac();
        }
        s.takes_notices = ((**decoded).features & feature::notices) != 0;
        s.may_detach = (**decoded).tty && ((**decoded).features & feature::jobs) != 0;
        s.body_left = (**decoded).body_follows ? (**decoded).body_length : 0;
        return header_verified{std::move(*decoded), (**header).key_index};
    }
    sessions_.erase(at);
    // Do not tell the qube whether dom0 has a key for it.
    reject(event.session, why == errc::no_key ? errc::bad_token : why, {});
    return fail(why);
}

inline bool server_stream::take_body(std::uint32_t number) {
    session &s = at(number);
    assert(s.stage == phase::waiting);
    if (s.body_left == 0)
        return false;
    s.stage = phase::body;
    s.body.reserve(s.body_left);
    put_u32(s, number, frame_type::credit, s.body_left);
    return true;
}

inline result<verified<request>> server_stream::complete(std::uint32_t number,
                                                         verified<envelope> header) {
    auto whole = request_verifier::complete(std::move(header), std::move(at(number).body));
    if (!whole)
        refuse(number, whole.error().code, {});
    return whole;
}

inline void server_stream::pend(std::uint32_t number, std::uint64_t serial, std::string_view text) {
    bytes payload;
    byte_writer w(payload);
    w.u64(serial);
    w.put(text.substr(0, limits::reason_text));
    put_tagged(authentic(number), number, frame_type::pending, payload);
}

inline void server_stream::notify(std::uint32_t number, std::string_view text) {
    const session &s = at(number);
    assert(s.stage == phase::running);
    if (s.takes_notices)
        pend(number, 0, text);
}

inline void server_stream::collect_stdin(std::uint32_t number, std::size_t more) {
    session &s = at(number);
    assert(s.stage == phase::waiting || s.stage == phase::collecting);
    assert(more > 0 && s.stdin_window.credit() + more <= limits::window);
    s.stage = phase::collecting;
    s.stdin_open = true;
    s.stdin_window.open(more);
    put_u32(s, number, frame_type::credit, static_cast<std::uint32_t>(more));
}

inline void server_stream::accept(std::uint32_t number, std::uint32_t timeout_s, bool stdin_live) {
    session &s = at(number);
    assert(s.stage == phase::waiting);
    s.stage = phase::running;
    s.stdin_open = stdin_live;
    s.stdin_window = receive_window(wider_);
    s.stdin_window.open(stdin_live ? limits::window : 0);
    bytes payload;
    byte_writer w(payload);
    w.u32(timeout_s);
    w.u32(static_cast<std::uint32_t>(s.stdin_window.credit()));
    put_tagged(*s.to_qube, number, frame_type::accepted, payload);
}

inline void server_stream::refuse(std::uint32_t number, errc reason, std::string_view text) {
    put_tagged(authentic(number), number, frame_type::refused, reason_payload(reason, text));
    sessions_.erase(number);
}

inline std::size_t server_stream::output_credit(std::uint32_t number) {
    return at(number).output_credit;
}

inline std::span<std::uint8_t> server_stream::prepare_output(std::uint32_t number,
                                                             std::size_t most) {
    return prepare_tagged(std::min({most, at(number).output_credit, max_tagged_payload}));
}

inline void server_stream::commit_output(std::uint32_t number, frame_type stream, std::size_t n) {
    session &s = at(number);
    assert(s.stage == phase::running && n > 0 && n <= s.output_credit);
    s.output_credit -= n;
    (stream == frame_type::stdout_data ? s.stdout_bytes : s.stderr_bytes) += n;
    commit_tagged(*s.to_qube, number, stream, n);
}

inline void server_stream::output_eof(std::uint32_t number, frame_type stream_eof) {
    put_tagged(authentic(number), number, stream_eof, {});
}

inline void server_stream::grant_stdin(std::uint32_t number, std::size_t n) {
    session &s = at(number);
    if (const std::size_t credit = s.stdin_window.pass_on(n); credit > 0 && s.stdin_open)
        put_u32(s, number, frame_type::credit, static_cast<std::uint32_t>(credit));
}

inline void server_stream::position(std::uint32_t number, const job_offsets &at) {
    std::array<std::uint8_t, 16> payload;
    store_u64(payload.data(), at.out);
    store_u64(payload.data() + 8, at.err);
    put_tagged(authentic(number), number, frame_type::position, payload);
}

inline void server_stream::put_queue(bytes_view data) {
    if (queue_only_)
        return out_.put(data);
    while (!data.empty()) {
        const bytes_view piece = data.first(std::min(data.size(), limits::queue_piece));
        put_plain(0, frame_type::queue, piece);
        data = data.subspan(piece.size());
    }
}

inline run_end server_stream::end(std::uint32_t number, run_end how) {
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

inline server_stream::session &server_stream::at(std::uint32_t number) {
    const auto found = sessions_.find(number);
    assert(found != sessions_.end());
    return found->second;
}

inline frame_authenticator &server_stream::authentic(std::uint32_t number) {
    session &s = at(number);
    assert(s.to_qube);
    return *s.to_qube;
}

inline void server_stream::put_u32(session &s, std::uint32_t number, frame_type type,
                                   std::uint32_t value) {
    std::array<std::uint8_t, 4> payload;
    store_u32(payload.data(), value);
    put_tagged(*s.to_qube, number, type, payload);
}

inline void server_stream::reject(std::uint32_t number, errc reason, std::string_view text) {
    put_plain(number, frame_type::rejected, reason_payload(reason, text));
}

inline result<bool> server_stream::find_preamble(std::uint64_t now_ms) {
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
        // Skip all bytes except the last ones, which could be the beginning of the preamble.
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

// Ends a session after a wrong frame: sends CLOSE with the reason, and returns an event if the caller
// knows the session.
inline std::optional<server_event> server_stream::drop(std::uint32_t number, errc reason) {
    const auto found = sessions_.find(number);
    const bool known_to_caller = found->second.stage >= phase::waiting;
    sessions_.erase(found);
    bytes payload;
    byte_writer(payload).u16(static_cast<std::uint16_t>(reason));
    put_plain(number, frame_type::close, payload);
    if (!known_to_caller)
        return std::nullopt;
    return server_event{.what = server_event::kind::closed, .session = number, .reason = reason};
}

inline result<std::optional<server_event>> server_stream::take(const frame_view &frame,
                                                               std::uint64_t now_ms) {
    using kind = server_event::kind;
    const frame_type type = frame.header.type;
    const std::uint32_t number = frame.header.session;
    if (rule_of(type)->from == sender::dom0)
        return fail(errc::unknown_frame);
    auto handled = take_stream_frame(frame);
    if (!handled)
        return tl::unexpected(handled.error());
    if (*handled) {
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
        // The client expects answers in the order of its OPENs, so the caller must have answered
        // the last one.
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
        // The client may not know yet that the session is over. Reject a request, because its
        // sender would otherwise wait forever. Ignore other frames.
        if (type == frame_type::request)
            reject(number, errc::challenge_stale, {});
        return std::nullopt;
    }
    session &s = found->second;
    if (type == frame_type::close) {
        const bool known_to_caller = s.stage >= phase::waiting;
        sessions_.erase(found);
        if (!known_to_caller)
            return std::nullopt;
        return server_event{.what = kind::closed, .session = number};
    }
    if (type == frame_type::request) {
        if (s.stage != phase::challenged)
            return drop(number, errc::challenge_stale);
        // The reader accepts larger frames after verify() has accepted a token on this stream, so
        // check the size of a request here.
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

inline result<std::optional<server_event>> server_stream::take_authentic(std::uint32_t number,
                                                                         session &s,
                                                                         frame_type type,
                                                                         bytes_view payload) {
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
        if (!s.stdin_window.take(payload.size()))
            return drop(number, errc::credit_exceeded);
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
    case frame_type::detach:
        if (!s.may_detach || !payload.empty())
            return drop(number, errc::unknown_frame);
        return server_event{.what = kind::detach, .session = number};
    case frame_type::credit: {
        const auto more = r.u32();
        if (!more || r.left() != 0 || *more == 0 || *more > limits::widest_window - s.output_credit)
            return drop(number, errc::credit_exceeded);
        s.output_credit += *more;
        return server_event{.what = kind::credit, .session = number};
    }
    default:
        return drop(number, errc::unknown_frame);
    }
}

inline bool server_stream::is_stale(const session &s, std::uint64_t now_ms) noexcept {
    return now_ms > s.issued_ms + limits::challenge_ms;
}

// Counts the challenges that can still be answered, and removes the stale ones. It walks over all
// sessions, which are few: at most limits::open_challenges and those that wait or run.
inline std::size_t server_stream::open_challenges(std::uint64_t now_ms) {
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

} // namespace qvmremote
