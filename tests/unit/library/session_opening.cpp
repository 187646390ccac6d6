// SPDX-License-Identifier: GPL-2.0-or-later
// How a stream begins and a session opens: preamble, challenge, key, features.
#include <qvmremote/session.hpp>

#include "session_fixture.hpp"

using namespace qvmremote;
using namespace qvmremote::test;

TEST_CASE("the preamble: is found after up to 64 KiB of other bytes, in any pieces") {
    for (const auto &row : {std::pair(0u, true),
                            {1u, true},
                            {15u, true},
                            {65535u, true},
                            {65536u, true},
                            {65537u, false},
                            {200'000u, false}}) {
        const auto noise = row.first;
        const bool found = row.second;
        CAPTURE(noise);
        dom0_end dom0;
        dom0.feed(bytes(noise, '\n') + preamble);
        CHECK(dom0.stream.announced() == found);
        CHECK(dom0.broken.has_value() == !found);
        if (!found)
            CHECK(dom0.broken->code == errc::bad_preamble);
    }
    for (std::size_t cut = 0; cut <= 16; ++cut) {
        CAPTURE(cut);
        dom0_end dom0;
        const bytes all = bytes{0, 'q', 'v', 0, 0, 'q', 'v', 'm', '-', 'r'} + preamble;
        dom0.feed(bytes_view(all).first(10 + cut));
        CHECK(dom0.stream.announced() == (cut == 16));
        dom0.feed(bytes_view(all).subspan(10 + cut));
        CHECK(dom0.stream.announced());
        CHECK_FALSE(dom0.broken);
    }
    dom0_end slow;
    for (std::size_t i = 0; i < 65536; ++i)
        slow.feed(bytes(1, static_cast<std::uint8_t>(i)));
    slow.feed(preamble);
    CHECK(slow.stream.announced());
    for (std::size_t i = 0; i < 16; ++i) {
        dom0_end dom0;
        bytes bad = opening();
        bad[i] ^= 1;
        dom0.feed(bad + bytes(100, 0));
        CHECK_FALSE(dom0.stream.announced());
    }
}

TEST_CASE("the preamble: must come within 30 s, by the clock value") {
    for (const auto &row : {std::pair(0u, true), {30'000u, true}, {30'001u, false}}) {
        const auto at = row.first;
        const bool found = row.second;
        dom0_end dom0;
        dom0.now = at;
        dom0.feed(preamble);
        CHECK(dom0.stream.announced() == found);
    }
    dom0_end silent;
    CHECK(silent.stream.next(30'000).has_value());
    CHECK(silent.stream.next(30'001).error().code == errc::bad_preamble);
}

TEST_CASE("I5: before the preamble nothing is answered, not even a ping") {
    dom0_end dom0;
    dom0.feed(vectors["frame.ping"]);
    CHECK(dom0.stream.output().size() == 0);
}

TEST_CASE("I4: 64 challenges may be open, and the 65th is refused until one is used or too old") {
    raw_qube qube;
    static_cast<void>(take_output(qube.dom0.stream));
    for (int i = 0; i < 65; ++i)
        qube.open();
    const auto answers = frames_of(take_output(qube.dom0.stream));
    REQUIRE(answers.size() == 65);
    CHECK(answers[63][8] == static_cast<std::uint8_t>(frame_type::challenge));
    CHECK(answers[64] == plain_frame(frame_type::rejected, 0, bytes{0, 21}));
    CHECK(qube.dom0.stream.session_count() == 64);

    qube.dom0.now = 30'000;
    qube.open();
    CHECK(frames_of(take_output(qube.dom0.stream))[0][8] ==
          static_cast<std::uint8_t>(frame_type::rejected));
    qube.dom0.now = 30'001;
    qube.open();
    CHECK(frames_of(take_output(qube.dom0.stream))[0][8] ==
          static_cast<std::uint8_t>(frame_type::challenge));
    CHECK(qube.dom0.stream.session_count() == 1);
}

TEST_CASE("I4: dom0 keeps little for a peer that sends anything and reads nothing") {
    raw_qube qube;
    const auto flood = [&](const bytes &frame) {
        bytes many;
        while (many.size() < 16'000)
            many = many + frame;
        while (!qube.dom0.stream.congested()) {
            const std::size_t before = qube.dom0.stream.output().size();
            qube.dom0.feed(many);
            if (qube.dom0.broken || qube.dom0.stream.output().size() == before)
                break;
        }
        // The output may exceed what congested() allows by the answers to one buffer of input: at
        // most 44 bytes for each 12.
        CHECK(qube.dom0.stream.output().size() <= 2 * limits::frame + 4 * 17'000);
        CHECK(qube.dom0.stream.session_count() <= limits::open_challenges);
    };
    flood(plain_frame(frame_type::open, 0));
    flood(plain_frame(frame_type::request, 70));
    flood(plain_frame(frame_type::request, 64));
    flood(vectors["frame.ping"]);
}

TEST_CASE("I1: a challenge is valid for 30 s, by the clock value") {
    for (const auto &row :
         {std::pair(0u, true), {30'000u, true}, {30'001u, false}, {4'000'000'000u, false}}) {
        const auto late = row.first;
        const bool good = row.second;
        CAPTURE(late);
        qube_end qube;
        dom0_end dom0;
        qube.ask(make_request(request_kind::exec));
        carry(qube, dom0, [&](bytes up) {
            if (!up.empty() && up.size() != 28) // everything except preamble and OPEN
                dom0.now = late;
            return up;
        });
        CHECK(dom0.requests.size() == (good ? 1 : 0));
        if (!good) {
            CHECK(dom0.refusals == std::vector{errc::challenge_stale});
            REQUIRE(qube.last(client_kind::rejected));
            CHECK(qube.last(client_kind::rejected)->reason == errc::challenge_stale);
        }
    }
}

TEST_CASE("I2: a challenge is valid for one request, whatever its result") {
    // A second REQUEST ends the session that runs, and starts no command.
    running s(make_request(request_kind::exec));
    bytes request;
    {
        qube_end again;
        again.ask(make_request(request_kind::exec));
        dom0_end twin;
        carry(again, twin, [&](bytes up) {
            if (up.size() > 28)
                request = up;
            return up;
        });
    }
    s.dom0.feed(request);
    CHECK(s.dom0.count(server_kind::request) == 1);
    CHECK(s.closed_in_dom0() == errc::challenge_stale);
    // After the session is gone, another REQUEST is only rejected.
    const std::size_t seen = s.dom0.events.size();
    static_cast<void>(take_output(s.dom0.stream));
    s.dom0.feed(request);
    CHECK(s.dom0.events.size() == seen);
    CHECK(frames_of(take_output(s.dom0.stream))[0] ==
          plain_frame(frame_type::rejected, 1, bytes{0, 17}));

    // A bad token uses the challenge up too.
    dom0_end dom0;
    dom0.feed(opening() + plain_frame(frame_type::open, 0));
    bytes bad = request;
    bad[20] ^= 1;
    dom0.feed(bad);
    CHECK(dom0.refusals == std::vector{errc::bad_token});
    dom0.feed(request);
    CHECK(dom0.requests.empty());
    CHECK(dom0.stream.session_count() == 0);
}

TEST_CASE("I1: no key, another qube's key, no keys at all") {
    struct row {
        const char *name;
        std::vector<secret> keys;
        errc logged;
    };
    row rows[3];
    rows[0] = {"no keys", {}, errc::no_key};
    rows[1] = {"another key", one_key(std::string(64, 'a')), errc::bad_token};
    rows[2] = {"the same digits, another case",
               one_key("AAE24849842D7082B66F57CE8270BD04DA2C39FFB97DF22803C270983032C4E5"),
               errc::bad_token};
    for (row &r : rows) {
        CAPTURE(r.name);
        qube_end qube;
        dom0_end dom0;
        dom0.keys = std::move(r.keys);
        qube.ask(make_request(request_kind::exec));
        carry(qube, dom0);
        CHECK(dom0.requests.empty());
        CHECK(dom0.refusals == std::vector{r.logged});
        CHECK(dom0.stream.session_count() == 0);
        // The qube gets the same answer in each case.
        REQUIRE(qube.last(client_kind::rejected));
        CHECK(qube.last(client_kind::rejected)->reason == errc::bad_token);
    }
}

TEST_CASE(
    "I3: HELLO changed on the way (features, the peer's name, anything) makes no token verify") {
    const std::size_t hello_size = vectors["frame.hello"].size();
    for (std::size_t i = frame_header::size; i < hello_size; ++i) {
        CAPTURE(i);
        qube_end qube;
        dom0_end dom0;
        qube.ask(make_request(request_kind::exec));
        bool first = true;
        carry(qube, dom0, {}, [&](bytes down) {
            if (first && !down.empty()) {
                first = false;
                down[i] ^= 1; // the last byte of the features: removes GMAC
            }
            return down;
        });
        CHECK(dom0.requests.empty());
        if (!qube.broken)
            CHECK(dom0.refusals == std::vector{errc::bad_token});
    }
}

TEST_CASE("features: dom0 refuses a feature that it lacks, and the client does not ask for it") {
    dom0_end plain("work", 0);
    qube_end qube;
    envelope what = make_request(request_kind::exec);
    what.features = feature::gmac;
    qube.ask(what);
    carry(qube, plain);
    REQUIRE(plain.requests.size() == 1);
    CHECK((*plain.requests.at(1)).header.features == 0);

    // Another program with the key asks for it anyway.
    dom0_end dom0("work", 0);
    dom0.feed(opening() + plain_frame(frame_type::open, 0));
    const auto said = frames_of(take_output(dom0.stream));
    request_signer signer(dom0.keys[0]);
    challenge c;
    std::copy_n(said[1].begin() + frame_header::size, c.size(), c.begin());
    const bytes header = what.encode().value();
    const digest256 token =
        signer.token(sha256(bytes_view(said[0]).subspan(frame_header::size)), c, header);
    dom0.feed(plain_frame(frame_type::request, 1, bytes(token.begin(), token.end()) + header));
    CHECK(dom0.refusals == std::vector{errc::unsupported});
    auto keys = signer.keys(token);
    const auto answer = frames_of(take_output(dom0.stream)).at(0);
    CHECK(answer[8] == static_cast<std::uint8_t>(frame_type::refused));
    CHECK(
        keys.to_qube.open({{static_cast<std::uint32_t>(answer.size() - 12), 1, frame_type::refused},
                           bytes_view(answer).subspan(12)}));
}

TEST_CASE("a client that asked for notices gets them while its command runs") {
    for (const std::uint32_t features : {0u, feature::notices}) {
        CAPTURE(features);
        envelope what = make_request(request_kind::shell, "sleep 1");
        what.features = features;
        running s(what, true, feature::known);
        s.dom0.stream.notify(1, "words");
        carry(s.qube, s.dom0);
        CHECK(s.qube.count(client_event::kind::notice) == (features ? 1u : 0u));
        CHECK(s.qube.stream.accepted(1));
        // A serial belongs to a question, and a running command has none.
        s.dom0.stream.pend(1, 7, "words");
        carry(s.qube, s.dom0);
        CHECK(s.qube.count(client_event::kind::closed) == 1);
    }
}

TEST_CASE("GMAC frames travel when both ends can, and are checked") {
    envelope what = make_request(request_kind::shell, "cat", true);
    what.features = feature::gmac;
    running s(what);
    s.qube.write(1, std::string(100'000, 'x'));
    s.dom0.write(1, std::string(100'000, 'y'));
    bool damaged = false;
    carry(s.qube, s.dom0);
    CHECK(s.dom0.stdin_seen() == std::string(100'000, 'x'));
    CHECK(s.qube.output(client_kind::stdout_data) == std::string(100'000, 'y'));
    s.qube.write(1, std::string(50'000, 'x'));
    carry(s.qube, s.dom0, [&](bytes up) {
        if (!damaged && up.size() > 40'000) {
            up[20'000] ^= 1;
            damaged = true;
        }
        return up;
    });
    CHECK(s.dom0.stdin_seen().size() == 100'000);
    CHECK(s.closed_in_dom0() == errc::bad_tag);
}

TEST_CASE("a session that is closed before its request leaves nothing") {
    raw_qube qube;
    qube.open();
    CHECK(qube.dom0.stream.session_count() == 1);
    qube.dom0.feed(plain_frame(frame_type::close, 1));
    CHECK(qube.dom0.stream.session_count() == 0);
    CHECK(qube.dom0.count(server_kind::closed) == 0);

    raw_qube eager;
    eager.open();
    eager.dom0.feed(plain_frame(frame_type::stdin_data, 1, bytes(20)));
    CHECK(eager.dom0.stream.session_count() == 0);
    CHECK(eager.dom0.stdin_seen().empty());
    CHECK(eager.dom0.count(server_kind::closed) == 0);
}

TEST_CASE("a request that cannot be encoded is not sent, and the session can be closed") {
    qube_end qube;
    dom0_end dom0;
    envelope bad = make_request(request_kind::exec);
    bad.arguments.emplace_back(20'000, 'x');
    qube.ask(bad);
    carry(qube, dom0);
    REQUIRE(qube.unsent.size() == 1);
    CHECK(qube.unsent[0].code == errc::frame_too_large);
    CHECK(dom0.count(server_kind::request) == 0);
    qube.stream.close(1);
    carry(qube, dom0);
    CHECK(dom0.stream.session_count() == 0);
}
