// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of session.hpp: the qube's end.

#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <tuple>
#include <utility>

#include <qvmremote/session.hpp>

namespace qvmremote {

inline void client_stream::open() {
    put_plain(0, frame_type::open, {});
    ++opens_;
}

inline result<std::optional<client_event>> client_stream::next() {
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

inline result<std::monostate> client_stream::send_request(std::uint32_t number, envelope what,
                                                          const secret &key) {
    session &s = at(number);
    assert(s.stage == phase::challenged);
    // Other features can be dropped, but without this one the request would mean something else.
    if (what.has_packed_arguments() && !(features_.value_or(0) & feature::long_arguments))
        return fail(errc::unsupported);
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
    s.takes_notices = (what.features & feature::notices) != 0;
    s.asked_to_detach = what.detach;
    bytes payload(token.begin(), token.end());
    payload.insert(payload.end(), header->begin(), header->end());
    put_plain(number, frame_type::request, payload);
    return std::monostate{};
}

inline std::span<std::uint8_t> client_stream::prepare_stdin(std::uint32_t number) {
    return prepare_tagged(std::min(at(number).stdin_credit, max_tagged_payload));
}

inline void client_stream::commit_stdin(std::uint32_t number, std::size_t n) {
    session &s = at(number);
    assert(n > 0 && n <= s.stdin_credit);
    s.stdin_credit -= n;
    commit_tagged(*s.to_dom0, number, frame_type::stdin_data, n);
}

inline void client_stream::stdin_eof(std::uint32_t number) {
    put_tagged(authentic(number), number, frame_type::stdin_eof, {});
}

inline void client_stream::send_signal(std::uint32_t number, std::uint8_t signal) {
    assert(is_forwarded_signal(signal));
    put_tagged(authentic(number), number, frame_type::signal, {{signal}});
}

inline void client_stream::send_resize(std::uint32_t number, std::uint16_t columns,
                                       std::uint16_t rows) {
    std::array<std::uint8_t, 4> payload;
    store_u32(payload.data(), static_cast<std::uint32_t>(columns) << 16 | rows);
    put_tagged(authentic(number), number, frame_type::resize, payload);
}

inline void client_stream::send_detach(std::uint32_t number) {
    at(number).asked_to_detach = true;
    put_tagged(authentic(number), number, frame_type::detach, {});
}

inline void client_stream::grant_output(std::uint32_t number, std::size_t n) {
    const auto found = sessions_.find(number);
    if (found == sessions_.end())
        return;
    const std::size_t credit = found->second.output_window.pass_on(n);
    if (credit == 0)
        return;
    std::array<std::uint8_t, 4> payload;
    store_u32(payload.data(), static_cast<std::uint32_t>(credit));
    put_tagged(*found->second.to_dom0, number, frame_type::credit, payload);
}

inline void client_stream::close(std::uint32_t number) {
    if (sessions_.erase(number) == 0)
        return;
    bytes payload;
    byte_writer(payload).u16(static_cast<std::uint16_t>(errc::session_over));
    put_plain(number, frame_type::close, payload);
}

inline bool client_stream::accepted(std::uint32_t number) const {
    const auto found = sessions_.find(number);
    return found != sessions_.end() && found->second.stage == phase::running;
}

inline client_stream::session &client_stream::at(std::uint32_t number) {
    const auto found = sessions_.find(number);
    assert(found != sessions_.end());
    return found->second;
}

inline frame_authenticator &client_stream::authentic(std::uint32_t number) {
    session &s = at(number);
    assert(s.to_dom0);
    return *s.to_dom0;
}

inline result<std::optional<client_event>> client_stream::take(const frame_view &frame) {
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
    if (type == frame_type::queue) // the agent never passes these on
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
        s.output_window = receive_window(wider_);
        s.output_window.open(limits::window);
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
        return std::nullopt; // given up here, and dom0 may not know that yet
    session &s = found->second;
    if (type == frame_type::rejected || type == frame_type::close) {
        // These frames are not authentic. Before dom0 has accepted, one means that the request is
        // refused; afterwards it can only mean that the rest of the output is lost.
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

inline result<std::optional<client_event>> client_stream::take_hello(std::uint32_t number,
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

inline result<std::optional<client_event>>
client_stream::take_reason(client_event::kind what, std::uint32_t number, bytes_view payload) {
    byte_reader r(payload);
    const auto reason = r.u16();
    if (!reason || r.left() > limits::reason_text)
        return fail(errc::bad_frame);
    return client_event{.what = what,
                        .session = number,
                        .text = std::string(as_text(payload.subspan(2))),
                        .reason = static_cast<errc>(*reason)};
}

inline client_event client_stream::broken(std::uint32_t number, errc reason) {
    close(number);
    return client_event{.what = client_event::kind::closed, .session = number, .reason = reason};
}

inline result<std::optional<client_event>> client_stream::take_authentic(std::uint32_t number,
                                                                         session &s,
                                                                         frame_type type,
                                                                         bytes_view payload) {
    using kind = client_event::kind;
    byte_reader r(payload);
    const bool running = s.stage == phase::running;
    switch (type) {
    case frame_type::pending: {
        const auto serial = r.u64();
        if (!serial || r.left() > limits::reason_text ||
            (running && (*serial != 0 || !s.takes_notices)))
            return broken(number, errc::bad_frame);
        if (running)
            return client_event{.what = kind::notice,
                                .session = number,
                                .text = std::string(as_text(payload.subspan(8)))};
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
            *more > limits::widest_window - s.stdin_credit)
            return broken(number, errc::credit_exceeded);
        s.stdin_credit += *more;
        return client_event{.what = kind::stdin_ready, .session = number};
    }
    case frame_type::position: {
        const auto out = r.u64();
        const auto err = r.u64();
        if (!running || !err || r.left() != 0 || *out > job_request::most_offset ||
            *err > job_request::most_offset)
            return broken(number, errc::bad_frame);
        return client_event{.what = kind::position, .session = number, .at = {*out, *err}};
    }
    case frame_type::stdout_data:
    case frame_type::stderr_data: {
        if (!running || payload.empty())
            return broken(number, errc::bad_frame);
        if (!s.output_window.take(payload.size()))
            return broken(number, errc::credit_exceeded);
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
            name(end.cause) == "unknown" ||
            (end.cause == end_cause::detached && !s.asked_to_detach))
            return broken(number, errc::incomplete);
        sessions_.erase(number);
        return client_event{.what = kind::ended, .session = number, .end = std::move(end)};
    }
    default:
        return broken(number, errc::unknown_frame);
    }
}

inline result<std::optional<client_event>>
client_stream::send_body(std::uint32_t number, session &s, std::uint32_t credit) {
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

} // namespace qvmremote
