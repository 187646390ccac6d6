// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Both ends of a stream for tests, each with a simple host: dom0 answers every OPEN and REQUEST at
/// once, and the qube sends a request for each challenge.

#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <qvmremote/session.hpp>

namespace qvmremote::test {

inline constexpr std::string_view key_text =
    "aae24849842d7082b66f57ce8270bd04da2c39ffb97df22803c270983032c4e5";

inline std::vector<secret> one_key(std::string_view text = key_text) {
    std::vector<secret> out;
    out.push_back(secret::parse(text).value());
    return out;
}

/// An event with a copy of its data, so that it stays valid.
template <class Event>
struct kept : Event {
    std::string bytes;
    explicit kept(const Event &event) : Event(event), bytes(as_text(event.data)) {
        this->data = {};
    }
};

template <class Stream>
bytes take_output(Stream &stream) {
    const bytes_view pending = stream.output().pending();
    bytes out(pending.begin(), pending.end());
    stream.output().consume(out.size());
    return out;
}

/// Splits the bytes of a correct end into frames, after `skip` bytes of preamble.
inline std::vector<bytes> frames_of(bytes_view stream, std::size_t skip = 0) {
    std::vector<bytes> out;
    for (stream = stream.subspan(skip); !stream.empty();) {
        const std::size_t size = frame_header::size + load_u32(stream.data());
        out.emplace_back(stream.begin(), stream.begin() + static_cast<std::ptrdiff_t>(size));
        stream = stream.subspan(size);
    }
    return out;
}

inline bytes plain_frame(frame_type type, std::uint32_t session, bytes_view payload = {}) {
    bytes out(frame_header::size + payload.size());
    frame_header{static_cast<std::uint32_t>(payload.size()), session, type}.encode(out.data());
    std::copy(payload.begin(), payload.end(), out.begin() + frame_header::size);
    return out;
}

inline bytes sealed_frame(frame_authenticator &keys, frame_type type, std::uint32_t session,
                          bytes_view payload = {}) {
    bytes out(frame_header::size + payload.size() + tag_size);
    std::copy(payload.begin(), payload.end(), out.begin() + frame_header::size);
    static_cast<void>(keys.seal(out.data(), session, type, payload.size()));
    return out;
}

inline envelope make_request(request_kind kind, std::string body = {}, bool stdin_live = false) {
    envelope out;
    out.nonce.fill(0x11);
    out.kind = kind;
    out.id = command_id::parse("20260218-143022-12345-a1b2c3d4").value();
    out.stdin_live = stdin_live;
    if (kind == request_kind::exec)
        out.arguments = {"qvm-ls", "--raw-list"};
    out.set_body(std::move(body));
    return out;
}

struct dom0_end {
    server_stream stream;
    std::vector<secret> keys = one_key();
    std::uint64_t now = 0;
    bool accepts = true; ///< accept a complete request at once
    std::uint8_t next_challenge = 0x80;
    std::vector<kept<server_event>> events;
    std::vector<errc> refusals; ///< what verify and complete returned
    std::map<std::uint32_t, verified<envelope>> headers;
    std::map<std::uint32_t, verified<request>> requests;
    std::optional<error> broken;

    explicit dom0_end(std::string_view peer = "work", std::uint32_t features = feature::gmac)
        : stream(peer, features, 0) {}

    void feed(bytes_view data) {
        do {
            if (broken)
                return;
            data = data.subspan(stream.push(data));
            drain();
        } while (!data.empty());
    }

    void drain() {
        for (;;) {
            auto event = stream.next(now);
            if (!event) {
                broken = event.error();
                return;
            }
            if (!*event)
                return;
            events.emplace_back(**event);
            answer(**event);
        }
    }

    [[nodiscard]] std::size_t count(server_event::kind what) const {
        std::size_t n = 0;
        for (const auto &event : events)
            n += event.what == what;
        return n;
    }
    [[nodiscard]] std::string stdin_seen() const {
        std::string out;
        for (const auto &event : events)
            if (event.what == server_event::kind::stdin_data)
                out += event.bytes;
        return out;
    }
    void write(std::uint32_t session, std::string_view text,
               frame_type type = frame_type::stdout_data) {
        while (!text.empty()) {
            const auto room = stream.prepare_output(session, text.size());
            if (room.empty())
                return;
            std::copy_n(text.begin(), room.size(), room.begin());
            stream.commit_output(session, type, room.size());
            text.remove_prefix(room.size());
        }
    }

  private:
    void answer(const server_event &event) {
        using kind = server_event::kind;
        if (event.what == kind::open) {
            challenge fresh;
            for (std::size_t i = 0; i < fresh.size(); ++i)
                fresh[i] = static_cast<std::uint8_t>(next_challenge + i);
            next_challenge = static_cast<std::uint8_t>(next_challenge + 32);
            stream.issue_challenge(fresh, now);
        } else if (event.what == kind::request) {
            auto got = stream.verify(event, keys, now);
            if (!got) {
                refusals.push_back(got.error().code);
                return;
            }
            headers.insert_or_assign(event.session, std::move(got->header));
            if (!stream.take_body(event.session))
                complete(event.session);
        } else if (event.what == kind::body) {
            complete(event.session);
        }
    }
    void complete(std::uint32_t session) {
        auto whole = stream.complete(session, headers.at(session));
        if (!whole) {
            refusals.push_back(whole.error().code);
            return;
        }
        const envelope &header = (**whole).header;
        if (accepts)
            stream.accept(session, header.timeout_s, header.stdin_live);
        requests.insert_or_assign(session, std::move(*whole));
    }
};

struct qube_end {
    client_stream stream;
    secret key = secret::parse(key_text).value();
    std::deque<envelope> queue;
    std::vector<kept<client_event>> events;
    std::vector<error> unsent;
    bool grants = true; ///< give credit for output at once
    std::optional<error> broken;

    void ask(envelope what) {
        queue.push_back(std::move(what));
        stream.open();
    }
    void feed(bytes_view data) {
        do {
            if (broken)
                return;
            data = data.subspan(stream.push(data));
            drain();
        } while (!data.empty());
    }
    void drain() {
        for (;;) {
            auto event = stream.next();
            if (!event) {
                broken = event.error();
                return;
            }
            if (!*event)
                return;
            events.emplace_back(**event);
            if ((**event).what == client_event::kind::challenged && !queue.empty()) {
                envelope what = std::move(queue.front());
                queue.pop_front();
                if (auto sent = stream.send_request((**event).session, std::move(what), key); !sent)
                    unsent.push_back(sent.error());
            }
            if (grants && !(**event).data.empty())
                stream.grant_output((**event).session, (**event).data.size());
        }
    }
    [[nodiscard]] std::size_t count(client_event::kind what) const {
        std::size_t n = 0;
        for (const auto &event : events)
            n += event.what == what;
        return n;
    }
    [[nodiscard]] const kept<client_event> *last(client_event::kind what) const {
        for (auto i = events.rbegin(); i != events.rend(); ++i)
            if (i->what == what)
                return &*i;
        return nullptr;
    }
    [[nodiscard]] std::string output(client_event::kind what) const {
        std::string out;
        for (const auto &event : events)
            if (event.what == what)
                out += event.bytes;
        return out;
    }
    /// Sends as much as credit allows. Returns how much.
    std::size_t write(std::uint32_t session, std::string_view text) {
        std::size_t sent = 0;
        while (sent < text.size()) {
            const auto room = stream.prepare_stdin(session);
            const std::size_t n = std::min(room.size(), text.size() - sent);
            if (n == 0)
                break;
            std::copy_n(text.begin() + static_cast<std::ptrdiff_t>(sent), n, room.begin());
            stream.commit_stdin(session, n);
            sent += n;
        }
        return sent;
    }
};

/// Changes the bytes of one direction on their way.
using passage = std::function<bytes(bytes)>;

/// Carries bytes both ways until nothing moves.
inline void carry(qube_end &qube, dom0_end &dom0, const passage &to_dom0 = {},
                  const passage &to_qube = {}) {
    for (;;) {
        bytes up = take_output(qube.stream);
        if (to_dom0)
            up = to_dom0(std::move(up));
        dom0.feed(up);
        bytes down = take_output(dom0.stream);
        if (to_qube)
            down = to_qube(std::move(down));
        qube.feed(down);
        if (up.empty() && down.empty())
            return;
    }
}

} // namespace qvmremote::test
