// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A session whose keys a test holds, and a qube without a client.

#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>

#include <doctest/doctest.h>

#include <qvmremote/session.hpp>

#include "support/ends.hpp"
#include "support/vectors.hpp"

namespace qvmremote::test {

using server_kind = server_event::kind;
using client_kind = client_event::kind;

inline const test::vector_file vectors("protocol2.txt");

inline bytes u32_bytes(std::uint32_t v) {
    bytes out(4);
    store_u32(out.data(), v);
    return out;
}
inline bytes operator+(bytes a, bytes_view b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}
inline bytes opening() { return bytes(preamble.begin(), preamble.end()); }

/// A running session, and its keys, so that a test can play an end that has the keys and lies.
struct running {
    qube_end qube;
    dom0_end dom0;
    std::optional<session_keys> keys;

    explicit running(envelope what, bool accepts = true, std::uint32_t features = feature::gmac)
        : dom0("work", features) {
        dom0.accepts = accepts;
        qube.ask(std::move(what));
        carry(qube, dom0, [this](bytes up) {
            // Find the REQUEST after the preamble or other frames: it begins with the token.
            const bool first =
                up.size() >= 16 && std::equal(preamble.begin(), preamble.end(), up.begin());
            for (const bytes &frame : frames_of(up, first ? 16 : 0))
                if (frame[8] == static_cast<std::uint8_t>(frame_type::request)) {
                    digest256 token;
                    std::copy_n(frame.begin() + frame_header::size, token.size(), token.begin());
                    request_signer signer(qube.key);
                    keys.emplace(signer.keys(token));
                }
            return up;
        });
        REQUIRE(keys);
    }
    /// Counts the frames that the honest end has sealed already.
    void skip_to_dom0(int n) {
        while (n-- > 0)
            static_cast<void>(keys->to_dom0.next_tag(0, frame_type::credit, {}));
    }
    void skip_to_qube(int n) {
        while (n-- > 0)
            static_cast<void>(keys->to_qube.next_tag(0, frame_type::credit, {}));
    }
    void say_to_dom0(frame_type type, bytes_view payload = {}) {
        dom0.feed(sealed_frame(keys->to_dom0, type, 1, payload));
    }
    void say_to_qube(frame_type type, bytes_view payload = {}) {
        qube.feed(sealed_frame(keys->to_qube, type, 1, payload));
    }
    [[nodiscard]] errc closed_in_dom0() const {
        REQUIRE(!dom0.events.empty());
        REQUIRE(dom0.events.back().what == server_kind::closed);
        return dom0.events.back().reason;
    }
    [[nodiscard]] errc closed_in_qube() const {
        REQUIRE(!qube.events.empty());
        REQUIRE(qube.events.back().what == client_kind::closed);
        return qube.events.back().reason;
    }
};

inline bytes end_payload(std::uint8_t cause, std::uint32_t value, std::uint64_t out,
                         std::uint64_t err) {
    bytes payload;
    byte_writer w(payload);
    w.u8(cause);
    w.u32(value);
    w.u64(out);
    w.u64(err);
    return payload;
}

/// The stream up to a session's challenge, as raw bytes of a qube without a client.
struct raw_qube {
    dom0_end dom0;
    explicit raw_qube() { dom0.feed(opening()); }
    void open() { dom0.feed(plain_frame(frame_type::open, 0)); }
};

} // namespace qvmremote::test
