// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/route.hpp>

#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "support/ends.hpp"

using namespace qvmremote;
using namespace qvmremote::test;

namespace {

using kind = route_event::kind;

bytes join(const std::vector<bytes> &frames) {
    bytes out;
    for (const bytes &f : frames)
        out.insert(out.end(), f.begin(), f.end());
    return out;
}
bytes open_frame() { return plain_frame(frame_type::open, 0); }
bytes challenge_frame(std::uint32_t session) {
    return plain_frame(frame_type::challenge, session, bytes(32));
}
bytes hello_frame() {
    bytes payload;
    byte_writer w(payload);
    w.u16(protocol_version);
    w.u32(0);
    w.u8(4);
    w.put("work");
    return plain_frame(frame_type::hello, 0, payload);
}

/// What the router does with dom0's bytes in pieces of a size: the bytes for each client; 0 is the
/// queue.
struct routed {
    std::map<std::uint32_t, bytes> to;
    int hellos = 0;
    std::optional<errc> broken;
};
routed route(agent_router &agent, bytes_view from_dom0, std::size_t piece = SIZE_MAX,
             std::uint64_t now_ms = 0) {
    routed out;
    while (!from_dom0.empty()) {
        agent.feed(from_dom0.first(std::min(piece, from_dom0.size())));
        from_dom0 = from_dom0.subspan(std::min(piece, from_dom0.size()));
        for (;;) {
            const auto event = agent.next(now_ms);
            if (!event) {
                out.broken = event.error().code;
                return out;
            }
            if (!*event)
                break;
            bytes &to = out.to[(**event).client];
            to.insert(to.end(), (**event).data.begin(), (**event).data.end());
            out.hellos += (**event).what == kind::hello;
        }
    }
    return out;
}
bytes said(agent_router &agent) {
    const bytes_view pending = agent.to_dom0().pending();
    bytes out(pending.begin(), pending.end());
    agent.to_dom0().consume(out.size());
    return out;
}
void send(agent_router &agent, std::uint32_t client, const bytes &frames,
          std::uint64_t now_ms = 0) {
    CHECK(agent.accept(client, frames, now_ms).value() == frames.size());
}
/// Opens a session for a client; dom0 answers with this number.
void give_session(agent_router &agent, std::uint32_t client, std::uint32_t number,
                  std::uint64_t now_ms = 0) {
    send(agent, client, open_frame(), now_ms);
    CHECK(route(agent, challenge_frame(number), SIZE_MAX, now_ms).to[client] ==
          challenge_frame(number));
}

} // namespace

TEST_CASE("router: sends the preamble first, and keeps HELLO for all clients") {
    for (const std::size_t piece : {std::size_t{1}, std::size_t{5}, SIZE_MAX}) {
        agent_router agent;
        CHECK(said(agent) == bytes(preamble.begin(), preamble.end()));
        CHECK(agent.hello().empty());
        const routed got = route(agent, hello_frame(), piece);
        CHECK(got.hellos == 1);
        const bytes_view hello = agent.hello();
        CHECK(bytes(hello.begin(), hello.end()) == hello_frame());
        CHECK(route(agent, hello_frame()).broken == errc::bad_frame);
    }
}

TEST_CASE("router: each answer goes to its client, whole or in pieces") {
    for (const std::size_t piece : {std::size_t{1}, std::size_t{13}, SIZE_MAX}) {
        agent_router agent;
        send(agent, 1, open_frame());
        send(agent, 2, open_frame());
        send(agent, 3, open_frame());
        const bytes refusal = plain_frame(frame_type::rejected, 0, bytes(2));
        routed got = route(agent, join({challenge_frame(7), refusal, challenge_frame(8)}), piece);
        CHECK(got.to[1] == challenge_frame(7));
        CHECK(got.to[2] == refusal);
        CHECK(got.to[3] == challenge_frame(8));
        CHECK(agent.session_count() == 2);
        const bytes output = plain_frame(frame_type::stdout_data, 8, bytes(100));
        const bytes end = plain_frame(frame_type::end, 7, bytes(40));
        const bytes late = plain_frame(frame_type::stdout_data, 99, bytes(20));
        const bytes entry = plain_frame(frame_type::queue, 0, bytes(9));
        got = route(agent, join({output, end, late, entry}), piece);
        CHECK(got.to[3] == output);
        CHECK(got.to[1] == end);
        CHECK(got.to[0] == bytes(9)); // the queue's, without its header
        CHECK(agent.session_count() == 1);
    }
}

TEST_CASE("router: answers PINGs of dom0, and passes PONGs to the clients that sent a PING") {
    for (const std::size_t piece : {std::size_t{1}, SIZE_MAX}) {
        agent_router agent;
        (void)said(agent);
        const bytes cookie{1, 2, 3, 4, 5, 6, 7, 8};
        CHECK(route(agent, plain_frame(frame_type::ping, 0, cookie), piece).to.empty());
        CHECK(said(agent) == plain_frame(frame_type::pong, 0, cookie));
        send(agent, 5, plain_frame(frame_type::ping, 0, cookie));
        const bytes pong = plain_frame(frame_type::pong, 0, cookie);
        CHECK(route(agent, join({pong, pong}), piece).to[5] == pong); // nobody asked for the second
    }
}

TEST_CASE("router: closes the sessions of a client that is gone, and drops its answers") {
    agent_router agent;
    (void)said(agent);
    give_session(agent, 1, 4);
    give_session(agent, 2, 5);
    send(agent, 1, open_frame());
    send(agent, 1, plain_frame(frame_type::ping, 0, bytes(8)));
    agent.remove(1);
    const bytes close =
        plain_frame(frame_type::close, 4, bytes{0, static_cast<std::uint8_t>(errc::session_over)});
    CHECK(said(agent) == close);
    CHECK(agent.session_count() == 1);
    const routed got =
        route(agent, join({challenge_frame(6), plain_frame(frame_type::pong, 0, bytes(8))}));
    CHECK(got.to.empty());
    CHECK(frames_of(said(agent)).size() == 1); // closes the session that came too late
    CHECK(agent.session_count() == 1);
}

TEST_CASE("router: sends the frames before a broken one, so that answers match their OPENs") {
    for (const bytes &broken : {plain_frame(frame_type::hello, 0), plain_frame(frame_type::open, 3),
                                bytes(frame_header::size, 0xff)}) {
        agent_router agent;
        const bytes sent = join({open_frame(), plain_frame(frame_type::ping, 0, bytes(8)), broken});
        const std::size_t good = sent.size() - broken.size();
        CHECK(agent.accept(1, sent, 0).value() == good);
        CHECK_FALSE(agent.accept(1, bytes_view(sent).subspan(good), 0));
        agent.remove(1);
        send(agent, 2, open_frame());
        // dom0 has had two OPENs.
        CHECK(route(agent, join({challenge_frame(1), challenge_frame(2)})).to[2] ==
              challenge_frame(2));
    }
}

TEST_CASE("router: only as many sessions wait as dom0 allows") {
    agent_router agent;
    for (std::uint32_t n = 1; n <= agent_router::open_at_once; ++n)
        give_session(agent, 1 + n % 3, n, 1000);
    CHECK(agent.accept(9, open_frame(), 1000).value() == 0);
    CHECK(agent.held());
    SUBCASE("a used challenge makes room") {
        send(agent, 2, plain_frame(frame_type::request, 1, bytes(50)), 1000);
        send(agent, 9, open_frame(), 1000);
        CHECK_FALSE(agent.held());
    }
    SUBCASE("a closed session makes room") {
        send(agent, 2, plain_frame(frame_type::close, 1, bytes(2)), 1000);
        send(agent, 9, open_frame(), 1000);
    }
    SUBCASE("stale challenges make room") {
        CHECK(agent.accept(9, open_frame(), 1000 + limits::challenge_ms).value() == 0);
        send(agent, 9, open_frame(), 1001 + limits::challenge_ms);
    }
}

TEST_CASE("router: an incomplete frame waits, and a frame of a session that is over passes") {
    agent_router agent;
    give_session(agent, 1, 3);
    const bytes request = plain_frame(frame_type::request, 3, bytes(60));
    for (std::size_t n = 0; n < request.size(); ++n)
        CHECK(agent.accept(1, bytes_view(request).first(n), 0).value() == 0);
    send(agent, 1, request);
    CHECK(route(agent, plain_frame(frame_type::refused, 3, bytes(20))).to.size() == 1);
    send(agent, 1, plain_frame(frame_type::close, 3, bytes(2)));
}

TEST_CASE("router: what a client may not send") {
    struct row {
        const char *name;
        bytes frame;
        errc want;
    };
    const row rows[] = {
        {"what dom0 says", plain_frame(frame_type::end, 3, bytes(16)), errc::unknown_frame},
        {"the queue's", plain_frame(frame_type::queue, 0, bytes(1)), errc::unknown_frame},
        {"no type", bytes(frame_header::size), errc::unknown_frame},
        {"OPEN with a number", plain_frame(frame_type::open, 1), errc::bad_frame},
        {"OPEN with a payload", plain_frame(frame_type::open, 0, bytes(1)), errc::bad_frame},
        {"PING of a session", plain_frame(frame_type::ping, 3, bytes(8)), errc::bad_frame},
        {"a short PING", plain_frame(frame_type::ping, 0, bytes(7)), errc::bad_frame},
        {"PONG", plain_frame(frame_type::pong, 0, bytes(8)), errc::bad_frame},
        {"STDIN without a number", plain_frame(frame_type::stdin_data, 0, bytes(17)),
         errc::bad_frame},
        {"a number that was never given", plain_frame(frame_type::close, 4, bytes(2)),
         errc::bad_frame},
        {"another's session", plain_frame(frame_type::close, 2, bytes(2)), errc::bad_frame},
        {"a REQUEST that is too long",
         plain_frame(frame_type::request, 3, bytes(32 + limits::request_header + 1)),
         errc::frame_too_large},
        {"a long frame before a token has verified",
         plain_frame(frame_type::stdin_data, 3, bytes(limits::frame)), errc::frame_too_large},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        agent_router agent;
        give_session(agent, 2, 2);
        give_session(agent, 1, 3);
        const auto got = agent.accept(1, r.frame, 0);
        REQUIRE_FALSE(got);
        CHECK(got.error().code == r.want);
    }
    agent_router agent;
    give_session(agent, 1, 3);
    (void)route(agent, plain_frame(frame_type::accepted, 3, bytes(24)));
    send(agent, 1, plain_frame(frame_type::stdin_data, 3, bytes(limits::frame)));
}

TEST_CASE("router: what dom0 may not send") {
    struct row {
        const char *name;
        bytes frame;
        errc want;
    };
    const row rows[] = {
        {"what a qube says", plain_frame(frame_type::open, 0), errc::unknown_frame},
        {"no type", bytes(frame_header::size), errc::unknown_frame},
        {"HELLO with a number", plain_frame(frame_type::hello, 1, bytes(7)), errc::bad_frame},
        {"a long HELLO", plain_frame(frame_type::hello, 0, bytes(263)), errc::bad_frame},
        {"a short PING", plain_frame(frame_type::ping, 0, bytes(7)), errc::bad_frame},
        {"PONG of a session", plain_frame(frame_type::pong, 3, bytes(8)), errc::bad_frame},
        {"an empty piece of the queue", plain_frame(frame_type::queue, 0), errc::bad_frame},
        {"a CHALLENGE that nobody asked for", challenge_frame(9), errc::bad_frame},
        {"REJECTED although nobody waits for it", plain_frame(frame_type::rejected, 0, bytes(2)),
         errc::bad_frame},
        {"output of no session", plain_frame(frame_type::stdout_data, 0, bytes(17)),
         errc::bad_frame},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        agent_router agent;
        give_session(agent, 1, 3);
        CHECK(route(agent, r.frame).broken == r.want);
    }
    agent_router agent;
    give_session(agent, 1, 3);
    send(agent, 1, open_frame());
    CHECK(route(agent, challenge_frame(3)).broken == errc::bad_frame); // a number twice
}
