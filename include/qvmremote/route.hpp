// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Carries the sessions of many clients over one stream, for the agent (doc/PROTOCOL.md, "Stream"):
/// finds the client of each frame, and checks what a client may send. It has no key and does not
/// change the bytes of a session.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <string_view>

#include <qvmremote/bytes.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/frame.hpp>
#include <qvmremote/limits.hpp>

namespace qvmremote {

/// Something that came from dom0.
struct route_event {
    enum class kind : std::uint8_t {
        deliver, ///< send data, unchanged, to `client`
        queue,   ///< give data to the carrier of protocol 1
        hello,   ///< send hello() to the clients that wait for it
    };
    kind what;
    std::uint32_t client = 0;
    bytes_view data{}; ///< borrowed until the next call of next() or feed()
};

/// Routes frames. A client is a number that the caller chooses; it is not 0 and is not used again.
/// Times are CLOCK_BOOTTIME in milliseconds.
class agent_router {
  public:
    agent_router() { to_dom0_.put(preamble); }

    /// What the agent itself sends to dom0, first the preamble. Send it between two frames, and before
    /// the bytes that a later accept() lets pass: a CLOSE in it makes room for their OPENs.
    [[nodiscard]] out_buffer &to_dom0() noexcept { return to_dom0_; }

    /// The HELLO frame as dom0 sent it, which every client receives first; empty before it has
    /// come.
    [[nodiscard]] bytes_view hello() const noexcept {
        return hello_complete_ ? hello_ : bytes_view();
    }

    // From dom0.

    /// Gives the next bytes, which are borrowed until next() has returned nothing.
    void feed(bytes_view untrusted) noexcept { input_ = untrusted; }

    /// What to do with the bytes; nothing when more are needed. A frame is passed on in pieces as
    /// it comes; two pieces for one client that are adjacent in memory may be written as one. Fails as
    /// frame_header::decode does, with errc::unknown_frame for a frame that dom0 may not send, or with
    /// errc::bad_frame. After an error, end the stream.
    [[nodiscard]] result<std::optional<route_event>> next(std::uint64_t now_ms) {
        for (;;) {
            if (payload_left_ > 0) {
                const bytes_view piece = take(payload_left_);
                if (piece.empty())
                    return std::nullopt;
                payload_left_ -= piece.size();
                if (auto event = pass(piece))
                    return event;
                continue;
            }
            const std::uint8_t *const begin = input_.data();
            const bool whole = header_size_ == 0 && input_.size() >= frame_header::size;
            const bytes_view piece = take(frame_header::size - header_size_);
            std::copy(piece.begin(), piece.end(), header_.begin() + header_size_);
            header_size_ += piece.size();
            if (header_size_ < frame_header::size)
                return std::nullopt;
            header_size_ = 0;
            auto header = frame_header::decode(header_, limits::frame);
            if (!header)
                return tl::unexpected(header.error());
            if (auto known = address(*header, now_ms); !known)
                return tl::unexpected(known.error());
            payload_left_ = header->length;
            // A header that came in one piece is passed on from the input, so that it is adjacent
            // to its payload.
            if (auto event = pass(whole ? bytes_view(begin, frame_header::size) : header_))
                return event;
        }
    }

    // From a client.

    /// How many challenges may be unused at a time: fewer than dom0 allows, because dom0 may still count
    /// one whose CLOSE is on its way. So dom0 refuses no OPEN.
    static constexpr std::size_t open_at_once = limits::open_challenges - 4;

    /// How many bytes at the beginning of `untrusted` can be sent to dom0 unchanged: whole frames
    /// of this client that obey the rules. Stops before a frame that is not complete, that has to
    /// wait (then held() is true), or that breaks a rule. The caller sends these bytes before
    /// anything else, and then calls again with the rest. An error means that the first frame
    /// breaks a rule: call remove() for the client.
    [[nodiscard]] result<std::size_t> accept(std::uint32_t client, bytes_view untrusted,
                                             std::uint64_t now_ms) {
        held_ = false;
        std::size_t size = 0;
        for (;;) {
            const bytes_view left = untrusted.subspan(size);
            if (left.size() < frame_header::size)
                return size;
            // A frame that breaks a rule is an error only if it is the first one. The frames before
            // it are counted already, so they must be sent before the client is removed.
            auto header = frame_header::decode(left.first<frame_header::size>(), limits::frame);
            if (!header && size > 0)
                return size;
            if (!header)
                return tl::unexpected(header.error());
            if (left.size() - frame_header::size < header->length)
                return size;
            auto passes = check(client, *header, now_ms);
            if (!passes && size > 0)
                return size;
            if (!passes)
                return tl::unexpected(passes.error());
            if (!*passes) {
                held_ = true;
                return size;
            }
            size += frame_header::size + header->length;
        }
    }
    /// Whether the last accept() stopped at an OPEN that must wait until fewer challenges are unused.
    [[nodiscard]] bool held() const noexcept { return held_; }

    /// Call this when a client is gone. Closes its sessions, and drops later answers to it.
    void remove(std::uint32_t client) {
        std::replace(openers_.begin(), openers_.end(), client, std::uint32_t{0});
        std::replace(pingers_.begin(), pingers_.end(), client, std::uint32_t{0});
        for (auto at = sessions_.begin(); at != sessions_.end();) {
            if (at->second.client != client) {
                ++at;
                continue;
            }
            close(at->first);
            at = sessions_.erase(at);
        }
    }

    [[nodiscard]] std::size_t session_count() const noexcept { return sessions_.size(); }

  private:
    struct session {
        std::uint32_t client;
        std::uint64_t challenged_ms;
        bool requested = false;
    };
    // What happens to the bytes of the present frame.
    enum class target : std::uint8_t { nobody, client, queue, hello, ping };

    [[nodiscard]] bytes_view take(std::size_t most) noexcept {
        const bytes_view out = input_.first(std::min(most, input_.size()));
        input_ = input_.subspan(out.size());
        return out;
    }

    // Takes a piece of the present frame, header or payload; returns an event if the caller has to
    // act.
    [[nodiscard]] std::optional<route_event> pass(bytes_view piece) {
        const bool is_header = !in_payload_;
        in_payload_ = payload_left_ > 0;
        const bool is_last = payload_left_ == 0;
        switch (target_) {
        case target::nobody:
            return std::nullopt;
        case target::client:
            return route_event{route_event::kind::deliver, client_, piece};
        case target::queue:
            if (is_header)
                return std::nullopt;
            return route_event{route_event::kind::queue, 0, piece};
        case target::hello:
            byte_writer(hello_).put(piece);
            if (!is_last)
                return std::nullopt;
            hello_complete_ = true;
            return route_event{route_event::kind::hello, 0, {}};
        case target::ping:
            if (!is_header)
                byte_writer(ping_).put(piece);
            if (is_last) {
                put(0, frame_type::pong, ping_);
                ping_.clear();
            }
            return std::nullopt;
        }
        return std::nullopt;
    }

    // Checks the header of a frame from dom0, and sets target_ and client_. The value is always true.
    [[nodiscard]] result<bool> address(const frame_header &header, std::uint64_t now_ms) {
        const frame_rule &rule = *rule_of(header.type);
        if (rule.from == sender::qube)
            return fail(errc::unknown_frame);
        verified_ = verified_ || rule.tag == tagging::tagged;
        target_ = target::nobody;
        in_payload_ = false;
        const std::uint32_t number = header.session;
        const auto to = [this](std::uint32_t client) {
            client_ = client;
            target_ = client == 0 ? target::nobody : target::client;
        };
        switch (header.type) {
        case frame_type::hello:
            if (hello_complete_ || number != 0 || header.length > largest_hello)
                return fail(errc::bad_frame);
            target_ = target::hello;
            return true;
        case frame_type::ping:
            if (number != 0 || header.length != 8)
                return fail(errc::bad_frame);
            target_ = target::ping;
            return true;
        case frame_type::pong:
            if (number != 0 || header.length != 8)
                return fail(errc::bad_frame);
            if (!pingers_.empty()) {
                to(pingers_.front());
                pingers_.pop_front();
            }
            return true;
        case frame_type::queue:
            if (number != 0 || header.length == 0 || header.length > limits::queue_piece)
                return fail(errc::bad_frame);
            target_ = target::queue;
            return true;
        case frame_type::challenge: {
            if (openers_.empty() || number == 0 || sessions_.contains(number))
                return fail(errc::bad_frame);
            const std::uint32_t client = openers_.front();
            openers_.pop_front();
            last_number_ = std::max(last_number_, number);
            to(client);
            if (client == 0)
                close(number);
            else
                sessions_.emplace(number, session{client, now_ms});
            return true;
        }
        default:
            break;
        }
        if (number == 0) {
            if (header.type != frame_type::rejected || openers_.empty())
                return fail(errc::bad_frame);
            to(openers_.front());
            openers_.pop_front();
            return true;
        }
        const auto at = sessions_.find(number);
        if (at == sessions_.end())
            return true; // the client is gone, and dom0 may not know that yet
        to(at->second.client);
        if (header.type == frame_type::end || header.type == frame_type::refused ||
            header.type == frame_type::rejected || header.type == frame_type::close)
            sessions_.erase(at);
        return true;
    }

    // True if the frame may go to dom0 now, false if it must wait. An error means that this client may
    // never send it: dom0 would end the stream of all clients, or the session is another client's.
    [[nodiscard]] result<bool> check(std::uint32_t client, const frame_header &header,
                                     std::uint64_t now_ms) {
        const frame_rule &rule = *rule_of(header.type);
        const std::uint32_t number = header.session;
        if (rule.from == sender::dom0 || header.type == frame_type::queue)
            return fail(errc::unknown_frame);
        // dom0 takes large frames only after a token has verified, so we do the same.
        if (header.length > largest_request && (!verified_ || header.type == frame_type::request))
            return fail(errc::frame_too_large);
        if (header.type == frame_type::open) {
            if (number != 0 || header.length != 0)
                return fail(errc::bad_frame);
            if (open_sessions(now_ms) >= open_at_once)
                return false;
            openers_.push_back(client);
            return true;
        }
        if (header.type == frame_type::ping) {
            if (number != 0 || header.length != 8)
                return fail(errc::bad_frame);
            pingers_.push_back(client);
            return true;
        }
        if (number == 0 || header.type == frame_type::pong)
            return fail(errc::bad_frame);
        const auto at = sessions_.find(number);
        if (at == sessions_.end()) {
            // The session is over, and the client may not know yet. dom0 ignores the frame.
            if (number > last_number_)
                return fail(errc::bad_frame);
            return true;
        }
        if (at->second.client != client)
            return fail(errc::bad_frame);
        if (header.type == frame_type::request)
            at->second.requested = true;
        else if (header.type == frame_type::close)
            sessions_.erase(at);
        return true;
    }

    // Counts the challenges that dom0 holds open for us, and the OPENs that it has not answered.
    [[nodiscard]] std::size_t open_sessions(std::uint64_t now_ms) const {
        const auto waiting = std::count_if(sessions_.begin(), sessions_.end(), [&](const auto &s) {
            return !s.second.requested && now_ms <= s.second.challenged_ms + limits::challenge_ms;
        });
        return openers_.size() + static_cast<std::size_t>(waiting);
    }

    void put(std::uint32_t number, frame_type type, bytes_view payload) {
        const auto room = to_dom0_.prepare(frame_header::size + payload.size());
        frame_header{static_cast<std::uint32_t>(payload.size()), number, type}.encode(room.data());
        std::copy(payload.begin(), payload.end(), room.begin() + frame_header::size);
        to_dom0_.commit(frame_header::size + payload.size());
    }
    void close(std::uint32_t number) {
        bytes reason;
        byte_writer(reason).u16(static_cast<std::uint16_t>(errc::session_over));
        put(number, frame_type::close, reason);
    }

    static constexpr std::size_t largest_request = 32 + limits::request_header; // with its token
    static constexpr std::size_t largest_hello = 2 + 4 + 1 + 255;

    out_buffer to_dom0_;
    bytes_view input_;
    std::array<std::uint8_t, frame_header::size> header_{};
    std::size_t header_size_ = 0, payload_left_ = 0;
    bool in_payload_ = false; // the header of the present frame has passed
    target target_ = target::nobody;
    std::uint32_t client_ = 0;
    bytes hello_, ping_;
    bool hello_complete_ = false;
    bool verified_ = false; // dom0 has sent a tagged frame
    bool held_ = false;

    std::map<std::uint32_t, session> sessions_;
    std::uint32_t last_number_ = 0;
    // The clients that wait for an answer, oldest first; 0 for a client that is gone.
    std::deque<std::uint32_t> openers_, pingers_;
};

} // namespace qvmremote
