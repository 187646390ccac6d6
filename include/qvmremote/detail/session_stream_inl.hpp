// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of session.hpp: what both ends share.

#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <utility>

#include <qvmremote/session.hpp>

namespace qvmremote {

inline std::size_t window_pool::take(std::size_t most) noexcept {
    std::size_t got = std::min(most, left_);
    if (whole_)
        got = whole_->take(got);
    left_ -= got;
    return got;
}

inline void window_pool::give_back(std::size_t n) noexcept {
    left_ += n;
    if (whole_)
        whole_->give_back(n);
}

inline receive_window &receive_window::operator=(receive_window &&other) noexcept {
    std::swap(wider_, other.wider_);
    std::swap(size_, other.size_);
    std::swap(credit_, other.credit_);
    std::swap(owed_, other.owed_);
    std::swap(passed_, other.passed_);
    std::swap(taken_, other.taken_);
    return *this;
}

inline receive_window::~receive_window() {
    if (taken_ > 0)
        wider_->give_back(taken_);
}

inline bool receive_window::take(std::size_t n) noexcept {
    if (n > credit_)
        return false;
    credit_ -= n;
    return true;
}

inline std::size_t receive_window::pass_on(std::size_t n) noexcept {
    // So often the whole window must have passed before it grows: a short command gets no more.
    constexpr std::size_t earned_after = 4;
    owed_ += n;
    passed_ += n;
    assert(credit_ + owed_ <= size_);
    if (owed_ < size_ / 4)
        return 0;
    std::size_t credit = std::exchange(owed_, 0);
    if (wider_ && size_ < limits::widest_window && passed_ >= earned_after * size_) {
        const std::size_t more = wider_->take(std::min(size_, limits::widest_window - size_));
        size_ += more;
        taken_ += more;
        credit += more;
        passed_ = 0;
    }
    credit_ += credit;
    return credit;
}

inline void stream_end::ping(std::uint64_t cookie) {
    std::array<std::uint8_t, 8> payload;
    store_u64(payload.data(), cookie);
    put_plain(0, frame_type::ping, payload);
}

inline void stream_end::release_idle_memory() {
    reader_.release_if_empty();
    out_.release_if_empty();
}

inline void stream_end::put_plain(std::uint32_t session, frame_type type, bytes_view payload) {
    const auto room = out_.prepare(frame_header::size + payload.size());
    frame_header{static_cast<std::uint32_t>(payload.size()), session, type}.encode(room.data());
    std::copy(payload.begin(), payload.end(), room.begin() + frame_header::size);
    out_.commit(frame_header::size + payload.size());
}

inline void stream_end::put_tagged(frame_authenticator &keys, std::uint32_t session,
                                   frame_type type, bytes_view payload) {
    assert(payload.size() <= max_tagged_payload);
    const auto room = prepare_tagged(payload.size());
    std::copy(payload.begin(), payload.end(), room.begin());
    commit_tagged(keys, session, type, payload.size());
}

// Returns room for a payload in the output, with room for the header before it and for the tag
// after it. commit_tagged must follow before the output is used again; otherwise the frame would
// begin at another place and seal the bytes that are there.
inline std::span<std::uint8_t> stream_end::prepare_tagged(std::size_t payload) {
    const auto room = out_.prepare(frame_header::size + payload + tag_size);
    prepared_ = room.data();
    return room.subspan(frame_header::size, payload);
}

inline void stream_end::commit_tagged(frame_authenticator &keys, std::uint32_t session,
                                      frame_type type, std::size_t payload) {
    const auto room = out_.prepare(frame_header::size + payload + tag_size);
    assert(room.data() == prepared_);
    out_.commit(keys.seal(room.data(), session, type, payload));
}

inline bytes stream_end::reason_payload(errc reason, std::string_view text) {
    bytes payload;
    byte_writer w(payload);
    w.u16(static_cast<std::uint16_t>(reason));
    w.put(text.substr(0, limits::reason_text));
    return payload;
}

// Handles PING and PONG, which both ends treat in the same way; returns whether the frame was one
// of them.
inline result<bool> stream_end::take_stream_frame(const frame_view &frame) {
    const frame_type type = frame.header.type;
    if (type != frame_type::ping && type != frame_type::pong)
        return false;
    if (frame.header.session != 0 || frame.untrusted_payload.size() != 8)
        return fail(errc::bad_frame);
    if (type == frame_type::ping)
        put_plain(0, frame_type::pong, frame.untrusted_payload);
    return true;
}

} // namespace qvmremote
