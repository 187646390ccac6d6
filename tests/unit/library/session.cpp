// SPDX-License-Identifier: GPL-2.0-or-later
// Both machines against each other, then each against an end that holds the keys and lies.
// Built twice: over EVP, and with QVMREMOTE_DIRECT_SHA256.
#include <qvmremote/session.hpp>

#include <doctest/doctest.h>

#include "support/ends.hpp"
#include "support/vectors.hpp"

using namespace qvmremote;
using namespace qvmremote::test;

namespace {

using server_kind = server_event::kind;
using client_kind = client_event::kind;

const test::vector_file vectors("protocol2.txt");

bytes u32_bytes(std::uint32_t v) {
    bytes out(4);
    store_u32(out.data(), v);
    return out;
}
bytes operator+(bytes a, bytes_view b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}
bytes opening() { return bytes(preamble.begin(), preamble.end()); }

/// A running session, and the keys of it that somebody at either end who lies would hold.
struct running {
    qube_end qube;
    dom0_end dom0;
    std::optional<session_keys> keys;

    explicit running(envelope what, bool accepts = true, std::uint32_t features = feature::gmac)
        : dom0("work", features) {
        dom0.accepts = accepts;
        qube.ask(std::move(what));
        carry(qube, dom0, [this](bytes up) {
            // The token stands behind preamble or frames, at the front of REQUEST.
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

bytes end_payload(std::uint8_t cause, std::uint32_t value, std::uint64_t out, std::uint64_t err) {
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

} // namespace

TEST_CASE("each kind of request goes through, and its result comes back") {
    struct row {
        const char *name;
        envelope what;
    };
    const row rows[] = {
        {"shell", make_request(request_kind::shell, "ls\n")},
        {"exec", make_request(request_kind::exec)},
        {"script", make_request(request_kind::script, "#!/bin/sh\n")},
        {"script that follows", make_request(request_kind::script, std::string(300'000, 'x'))},
        {"largest script", make_request(request_kind::script, std::string(limits::command, 'x'))},
        {"ping", make_request(request_kind::ping)},
        {"status", make_request(request_kind::status)},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        running s(r.what);
        REQUIRE(s.dom0.requests.size() == 1);
        const envelope &got = (*s.dom0.requests.at(1)).header;
        CHECK(got.kind == r.what.kind);
        CHECK(got.body == r.what.body);
        CHECK(got.arguments == r.what.arguments);
        CHECK(s.qube.count(client_kind::accepted) == 1);
        CHECK(s.qube.stream.accepted(1));

        s.dom0.write(1, "out");
        s.dom0.write(1, "error", frame_type::stderr_data);
        s.dom0.stream.output_eof(1, frame_type::stdout_eof);
        s.dom0.stream.output_eof(1, frame_type::stderr_eof);
        s.dom0.stream.end(1, {.cause = end_cause::exited, .value = 3, .text = "words"});
        carry(s.qube, s.dom0);
        CHECK(s.qube.output(client_kind::stdout_data) == "out");
        CHECK(s.qube.output(client_kind::stderr_data) == "error");
        const auto *ended = s.qube.last(client_kind::ended);
        REQUIRE(ended);
        CHECK(ended->end.exit_code() == 3);
        CHECK(ended->end.text == "words");
        CHECK(s.dom0.stream.session_count() == 0);
        CHECK_FALSE(s.qube.stream.has(1));
        CHECK_FALSE(s.qube.broken);
        CHECK_FALSE(s.dom0.broken);
    }
}

TEST_CASE("the recorded sessions: both machines say what make.py says") {
    for (const std::string name : {"live", "bulk"}) {
        CAPTURE(name);
        const bool live = name == "live";
        const bytes &up = vectors["session." + name + ".to_dom0"];
        const bytes &down = vectors["session." + name + ".to_qube"];

        // dom0, fed with the qube's half.
        dom0_end dom0;
        dom0.accepts = !live;
        // The recording of `live` sends stdin once it was accepted, by an operator.
        const std::size_t request_end = 16 + 12 + vectors["frame.request"].size();
        dom0.feed(live ? bytes_view(up).first(request_end) : bytes_view(up));
        if (live) {
            dom0.stream.pend(1, 7, "waiting for approval");
            dom0.stream.accept(1, 60, true);
            dom0.feed(bytes_view(up).subspan(request_end));
            CHECK(dom0.stdin_seen() == "hello\n");
            CHECK(dom0.count(server_kind::stdin_eof) == 1);
            CHECK(dom0.count(server_kind::signal) == 1);
            dom0.write(1, "hello\n");
            dom0.stream.output_eof(1, frame_type::stdout_eof);
            dom0.write(1, "done\n", frame_type::stderr_data);
            dom0.stream.output_eof(1, frame_type::stderr_eof);
            dom0.stream.end(1, {.cause = end_cause::exited});
        } else {
            std::string bulk;
            for (int i = 0; i < 5000; ++i)
                bulk.push_back(static_cast<char>(i * 7));
            dom0.write(1, bulk);
            dom0.stream.end(1, {.cause = end_cause::exited, .value = 3});
        }
        CHECK_FALSE(dom0.broken);
        CHECK(to_hex(take_output(dom0.stream)) == to_hex(down));

        // The qube, fed with dom0's half.
        qube_end qube;
        qube.key = secret::parse(vectors.text("key")).value();
        envelope what =
            envelope::decode(vectors[live ? "envelope.shell" : "envelope.script_follows"]).value();
        if (!live)
            what.body = vectors.text("body");
        qube.ask(std::move(what));
        qube.feed(down);
        CHECK_FALSE(qube.broken);
        CHECK(qube.unsent.empty());
        REQUIRE(qube.last(client_kind::ended));
        CHECK(qube.last(client_kind::ended)->end.exit_code() == (live ? 0 : 3));
        CHECK(qube.count(client_kind::pending) == (live ? 1 : 0));
        if (!live)
            CHECK(to_hex(take_output(qube.stream)) == to_hex(up));
    }
}

TEST_CASE("a recorded stream cut anywhere ends nothing; damaged anywhere never ends well") {
    const bytes &down = vectors["session.live.to_qube"];
    const auto play = [](bytes_view data) {
        qube_end qube;
        qube.key = secret::parse(vectors.text("key")).value();
        qube.ask(envelope::decode(vectors["envelope.shell"]).value());
        qube.feed(data);
        return qube;
    };
    CHECK(play(down).count(client_kind::ended) == 1);
    for (std::size_t n = 0; n < down.size(); ++n)
        REQUIRE(play(bytes_view(down).first(n)).count(client_kind::ended) == 0);
    for (std::size_t i = 0; i < down.size(); ++i) {
        CAPTURE(i);
        bytes bad = down;
        bad[i] ^= 0x04;
        const qube_end qube = play(bad);
        REQUIRE(qube.count(client_kind::ended) == 0);
        const std::string seen = qube.output(client_kind::stdout_data);
        REQUIRE((seen.empty() || seen == "hello\n"));
    }
}

TEST_CASE("I1: a recorded request cut or damaged anywhere starts nothing and feeds nothing") {
    const bytes &up = vectors["session.live.to_dom0"];
    const auto play = [](bytes_view data) {
        dom0_end dom0;
        dom0.feed(data);
        return std::pair(dom0.requests.size(), dom0.stdin_seen());
    };
    CHECK(play(up) == std::pair(std::size_t{1}, std::string("hello\n")));
    const std::size_t request_end = 16 + 12 + vectors["frame.request"].size();
    for (std::size_t n = 0; n < request_end; ++n)
        REQUIRE(play(bytes_view(up).first(n)).first == 0);
    for (std::size_t i = 0; i < up.size(); ++i) {
        CAPTURE(i);
        bytes bad = up;
        bad[i] ^= 0x10;
        const auto [started, fed] = play(bad);
        if (i < request_end)
            REQUIRE(started == 0);
        if (i < request_end + 12 + 6 + 16)
            REQUIRE(fed.empty());
        else
            REQUIRE(fed == "hello\n");
    }
}

TEST_CASE("stdin and output go through as they are, with credit used up and given again") {
    running s(make_request(request_kind::shell, "cat", true));
    std::string text;
    for (int i = 0; i < 1'500'000; ++i)
        text.push_back(static_cast<char>(i * 31 >> 3));

    // Nobody writes it on: 256 KiB come, and no more.
    std::size_t sent = s.qube.write(1, text);
    CHECK(sent == limits::window);
    carry(s.qube, s.dom0);
    CHECK(s.qube.stream.stdin_credit(1) == 0);
    CHECK(s.dom0.stdin_seen() == text.substr(0, limits::window));
    // Small amounts are saved up.
    s.dom0.stream.grant_stdin(1, limits::window / 4 - 1);
    carry(s.qube, s.dom0);
    CHECK(s.qube.stream.stdin_credit(1) == 0);
    s.dom0.stream.grant_stdin(1, 1);
    carry(s.qube, s.dom0);
    CHECK(s.qube.stream.stdin_credit(1) == limits::window / 4);
    s.dom0.stream.grant_stdin(1, limits::window - limits::window / 4);
    std::size_t granted = sent;
    while (sent < text.size()) {
        carry(s.qube, s.dom0);
        const std::size_t n = s.qube.write(1, std::string_view(text).substr(sent));
        REQUIRE(n > 0);
        sent += n;
        carry(s.qube, s.dom0);
        s.dom0.stream.grant_stdin(1, sent - granted);
        granted = sent;
    }
    s.qube.stream.stdin_eof(1);
    carry(s.qube, s.dom0);
    CHECK(s.dom0.stdin_seen() == text);
    CHECK(s.dom0.count(server_kind::stdin_eof) == 1);

    // Output: the qube passes nothing on.
    s.qube.grants = false;
    s.dom0.write(1, text);
    CHECK(s.dom0.stream.output_credit(1) == 0);
    CHECK(s.dom0.stream.congested());
    carry(s.qube, s.dom0);
    CHECK(s.qube.output(client_kind::stdout_data) == text.substr(0, limits::window));
    CHECK(s.dom0.stream.prepare_output(1, 100).empty());
    s.qube.stream.grant_output(1, limits::window);
    carry(s.qube, s.dom0);
    CHECK(s.dom0.stream.output_credit(1) == limits::window);
    s.dom0.stream.end(1, {.cause = end_cause::exited});
    carry(s.qube, s.dom0);
    CHECK(s.qube.count(client_kind::ended) == 1);
}

TEST_CASE("many sessions beside each other, each with its own stalled reader") {
    qube_end qube;
    dom0_end dom0;
    for (int i = 0; i < 20; ++i)
        qube.ask(make_request(request_kind::shell, "echo " + std::to_string(i), true));
    carry(qube, dom0);
    CHECK(dom0.requests.size() == 20);
    qube.grants = false;
    for (std::uint32_t n = 1; n <= 20; ++n) {
        CHECK((*dom0.requests.at(n)).header.body == "echo " + std::to_string(n - 1));
        dom0.write(n, std::string(n == 3 ? limits::window : 10, 'x'));
        carry(qube, dom0);
    }
    CHECK(dom0.stream.output_credit(3) == 0);
    CHECK(dom0.stream.output_credit(4) == limits::window - 10);
    for (std::uint32_t n = 20; n >= 1; --n)
        dom0.stream.end(n, {.cause = end_cause::signalled, .value = 15});
    carry(qube, dom0);
    CHECK(qube.count(client_kind::ended) == 20);
    CHECK(qube.last(client_kind::ended)->end.exit_code() == 143);
}

TEST_CASE("the preamble: behind 64 KiB of noise, not one byte more, however it is cut") {
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

TEST_CASE("the preamble: within 30 s, by the clock value") {
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

TEST_CASE("I4: what dom0 holds for a peer that sends anything and reads nothing is bounded") {
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
        // One buffer of input more than what congested() allows, at most 44 bytes for each 12.
        CHECK(qube.dom0.stream.output().size() <= 2 * limits::frame + 4 * 17'000);
        CHECK(qube.dom0.stream.session_count() <= limits::open_challenges);
    };
    flood(plain_frame(frame_type::open, 0));
    flood(plain_frame(frame_type::request, 70));
    flood(plain_frame(frame_type::request, 64));
    flood(vectors["frame.ping"]);
}

TEST_CASE("I1: a challenge is good for 30 s, by the clock value") {
    for (const auto &row :
         {std::pair(0u, true), {30'000u, true}, {30'001u, false}, {4'000'000'000u, false}}) {
        const auto late = row.first;
        const bool good = row.second;
        CAPTURE(late);
        qube_end qube;
        dom0_end dom0;
        qube.ask(make_request(request_kind::exec));
        carry(qube, dom0, [&](bytes up) {
            if (!up.empty() && up.size() != 28) // all but preamble and OPEN
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

TEST_CASE("I2: a challenge is good for one request, whatever came of it") {
    // A REQUEST twice: the session that runs is ended, and nothing starts again.
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
    // Once more, now that the session is gone: told so, and no more.
    const std::size_t seen = s.dom0.events.size();
    static_cast<void>(take_output(s.dom0.stream));
    s.dom0.feed(request);
    CHECK(s.dom0.events.size() == seen);
    CHECK(frames_of(take_output(s.dom0.stream))[0] ==
          plain_frame(frame_type::rejected, 1, bytes{0, 17}));

    // A bad token spends it too.
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
        // What the qube sees is the same.
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
                down[i] ^= 1; // at the features' last byte: GMAC stripped
            }
            return down;
        });
        CHECK(dom0.requests.empty());
        if (!qube.broken)
            CHECK(dom0.refusals == std::vector{errc::bad_token});
    }
}

TEST_CASE("features: dom0 refuses what it does not have, and the client does not ask for it") {
    dom0_end plain("work", 0);
    qube_end qube;
    envelope what = make_request(request_kind::exec);
    what.features = feature::gmac;
    qube.ask(what);
    carry(qube, plain);
    REQUIRE(plain.requests.size() == 1);
    CHECK((*plain.requests.at(1)).header.features == 0);

    // Somebody with the key asks all the same.
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

TEST_CASE("I1: no stdin, signal or body outside its state, though authentic") {
    struct row {
        const char *name;
        frame_type type;
        bytes payload;
        errc want;
    };
    const row before[] = {
        {"stdin before accept", frame_type::stdin_data, {'x'}, errc::unknown_frame},
        {"end of stdin before accept", frame_type::stdin_eof, {}, errc::unknown_frame},
        {"signal before accept", frame_type::signal, {15}, errc::unknown_frame},
        {"resize before accept", frame_type::resize, {0, 80, 0, 25}, errc::unknown_frame},
        {"credit before accept", frame_type::credit, {0, 0, 0, 1}, errc::unknown_frame},
        {"body that nobody asked for", frame_type::body, {'x'}, errc::unknown_frame},
    };
    for (const row &r : before) {
        CAPTURE(r.name);
        running s(make_request(request_kind::shell, "cat", true), false);
        s.say_to_dom0(r.type, r.payload);
        CHECK(s.closed_in_dom0() == r.want);
        CHECK(s.dom0.stdin_seen().empty());
        CHECK_FALSE(s.dom0.stream.has(1));
        carry(s.qube, s.dom0);
        CHECK(s.closed_in_qube() == r.want);
    }
    const row after[] = {
        {"empty stdin", frame_type::stdin_data, {}, errc::unknown_frame},
        {"end of stdin with data", frame_type::stdin_eof, {'x'}, errc::unknown_frame},
        {"body", frame_type::body, {'x'}, errc::unknown_frame},
        {"no signal", frame_type::signal, {}, errc::bad_value},
        {"signal 0", frame_type::signal, {0}, errc::bad_value},
        {"KILL", frame_type::signal, {9}, errc::bad_value},
        {"STOP", frame_type::signal, {19}, errc::bad_value},
        {"SEGV", frame_type::signal, {11}, errc::bad_value},
        {"real-time signal", frame_type::signal, {64}, errc::bad_value},
        {"two signals", frame_type::signal, {15, 15}, errc::bad_value},
        {"half a size", frame_type::resize, {0, 80}, errc::bad_value},
        {"credit of nothing", frame_type::credit, u32_bytes(0), errc::credit_exceeded},
        {"credit past the window", frame_type::credit, u32_bytes(1), errc::credit_exceeded},
        {"credit that would wrap", frame_type::credit, u32_bytes(0xffffffff),
         errc::credit_exceeded},
        {"credit of five bytes", frame_type::credit, {0, 0, 0, 1, 0}, errc::credit_exceeded},
    };
    for (const row &r : after) {
        CAPTURE(r.name);
        running s(make_request(request_kind::shell, "cat", true));
        s.say_to_dom0(r.type, r.payload);
        CHECK(s.closed_in_dom0() == r.want);
        CHECK_FALSE(s.dom0.stream.has(1));
    }
    running deaf(make_request(request_kind::shell, "cat", false));
    deaf.say_to_dom0(frame_type::stdin_data, bytes{'x'});
    CHECK(deaf.closed_in_dom0() == errc::unknown_frame);

    running closed(make_request(request_kind::shell, "cat", true));
    closed.say_to_dom0(frame_type::stdin_eof);
    closed.say_to_dom0(frame_type::stdin_data, bytes{'x'});
    CHECK(closed.closed_in_dom0() == errc::unknown_frame);
}

TEST_CASE("I4: stdin past its credit ends the session") {
    running s(make_request(request_kind::shell, "cat", true));
    const bytes piece(max_tagged_payload, 'x');
    for (std::size_t left = limits::window; left > 0;) {
        const std::size_t n = std::min(left, piece.size());
        s.say_to_dom0(frame_type::stdin_data, bytes_view(piece).first(n));
        left -= n;
    }
    CHECK(s.dom0.stream.has(1));
    s.say_to_dom0(frame_type::stdin_data, bytes{'x'});
    CHECK(s.closed_in_dom0() == errc::credit_exceeded);
    CHECK(s.dom0.stdin_seen().size() == limits::window);
}

TEST_CASE("I1: signals of the list go through, and to the right session") {
    running s(make_request(request_kind::shell, "cat"));
    for (const std::uint8_t signal : bytes{1, 2, 3, 10, 12, 15, 18, 20})
        s.qube.stream.send_signal(1, signal);
    carry(s.qube, s.dom0);
    CHECK(s.dom0.count(server_kind::signal) == 8);
    CHECK(s.dom0.events.back().number == 20);
    s.skip_to_dom0(8);
    s.say_to_dom0(frame_type::resize, bytes{0, 132, 0, 43});
    CHECK(s.dom0.events.back().what == server_kind::resize);
    CHECK(s.dom0.events.back().columns == 132);
    CHECK(s.dom0.events.back().rows == 43);
}

TEST_CASE(
    "I1: what an agent does to tagged frames ends the session before a byte of them is used") {
    struct row {
        const char *name;
        std::function<std::vector<bytes>(std::vector<bytes>)> change;
        std::string fed;
    };
    const row rows[] = {
        {"reordered",
         [](std::vector<bytes> f) {
             std::swap(f[0], f[1]);
             return f;
         },
         ""},
        {"duplicated",
         [](std::vector<bytes> f) {
             f.insert(f.begin(), f[0]);
             return f;
         },
         "one"},
        {"dropped",
         [](std::vector<bytes> f) {
             f.erase(f.begin());
             return f;
         },
         ""},
        {"dropped in the middle",
         [](std::vector<bytes> f) {
             f.erase(f.begin() + 1);
             return f;
         },
         "one"},
        {"of another type",
         [](std::vector<bytes> f) {
             f[0][8] = 5;
             return f;
         },
         ""},
        {"of the other session",
         [](std::vector<bytes> f) {
             f[0][7] = 2;
             return f;
         },
         ""},
        {"grown",
         [](std::vector<bytes> f) {
             ++f[0][3];
             f[0].push_back(0);
             return f;
         },
         ""},
        {"cut to its tag",
         [](std::vector<bytes> f) {
             f[0][3] = 16;
             f[0].erase(f[0].begin() + 12, f[0].begin() + 15);
             return f;
         },
         ""},
        {"cut below a tag",
         [](std::vector<bytes> f) {
             f[0][3] = 15;
             f[0].resize(27);
             return f;
         },
         ""},
        {"empty",
         [](std::vector<bytes> f) {
             f[0][3] = 0;
             f[0].resize(12);
             return f;
         },
         ""},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        qube_end qube;
        dom0_end dom0;
        qube.ask(make_request(request_kind::shell, "cat", true));
        qube.ask(make_request(request_kind::shell, "cat", true));
        carry(qube, dom0);
        qube.write(1, "one");
        qube.write(1, "two");
        qube.write(1, "three");
        carry(qube, dom0, [&](bytes up) {
            if (up.empty())
                return up;
            bytes out;
            for (const bytes &frame : r.change(frames_of(up)))
                out = out + frame;
            return out;
        });
        CHECK(dom0.stdin_seen() == r.fed);
        REQUIRE(dom0.count(server_kind::closed) >= 1);
        for (const auto &event : dom0.events)
            if (event.what == server_kind::closed)
                CHECK(event.reason == errc::bad_tag);
        CHECK_FALSE(dom0.broken);
        CHECK(qube.count(client_kind::closed) >= 1);
    }
}

TEST_CASE("I10: a result is complete or it is an error") {
    struct row {
        const char *name;
        bytes payload;
        errc want;
    };
    const row lies[] = {
        {"fewer bytes", end_payload(1, 0, 2, 0), errc::incomplete},
        {"more bytes", end_payload(1, 0, 4, 0), errc::incomplete},
        {"on the other stream", end_payload(1, 0, 0, 3), errc::incomplete},
        {"largest count", end_payload(1, 0, UINT64_MAX, 0), errc::incomplete},
        {"cause 0", end_payload(0, 0, 3, 0), errc::incomplete},
        {"unknown cause", end_payload(7, 0, 3, 0), errc::incomplete},
        {"empty", {}, errc::bad_frame},
        {"cut", bytes(20, 1), errc::bad_frame},
        {"too many words", end_payload(1, 0, 3, 0) + bytes(513, 'x'), errc::bad_frame},
    };
    for (const row &r : lies) {
        CAPTURE(r.name);
        running s(make_request(request_kind::exec));
        s.skip_to_qube(1); // ACCEPTED
        s.say_to_qube(frame_type::stdout_data, bytes{'a', 'b', 'c'});
        s.say_to_qube(frame_type::end, r.payload);
        CHECK(s.closed_in_qube() == r.want);
        CHECK(s.qube.count(client_kind::ended) == 0);
    }
    running cut(make_request(request_kind::exec));
    cut.dom0.write(1, "abc");
    cut.dom0.write(1, "def");
    cut.dom0.stream.end(1, {.cause = end_cause::exited});
    const bytes all = take_output(cut.dom0.stream);
    const auto frames = frames_of(all);
    cut.qube.feed(frames[0] + frames[2]);
    CHECK(cut.closed_in_qube() == errc::bad_tag);
    CHECK(cut.qube.count(client_kind::ended) == 0);
}

TEST_CASE("I10: success is the value 0, not a value that ends in it") {
    struct row {
        end_cause cause;
        std::uint32_t value;
        int want;
    };
    for (const row &r : {row{end_cause::exited, 0, 0},
                         {end_cause::exited, 255, 255},
                         {end_cause::exited, 256, 255},
                         {end_cause::exited, 0xffffff00, 255},
                         {end_cause::signalled, 9, 137},
                         {end_cause::signalled, 128, 255},
                         {end_cause::timed_out, 300, 124},
                         {end_cause::not_found, 0, 127},
                         {end_cause::not_started, 13, 125},
                         {end_cause::cancelled, 34, 126},
                         {static_cast<end_cause>(9), 0, 255}})
        CHECK(run_end{.cause = r.cause, .value = r.value}.exit_code() == r.want);
}

TEST_CASE("I10: refusals that nobody vouches for mean no before ACCEPTED, and a loss after it") {
    running early(make_request(request_kind::exec), false);
    early.qube.feed(vectors["frame.rejected"]);
    REQUIRE(early.qube.last(client_kind::rejected));
    CHECK(early.qube.last(client_kind::rejected)->reason == errc::bad_token);

    running late(make_request(request_kind::exec));
    late.qube.feed(vectors["frame.rejected"]);
    CHECK(late.closed_in_qube() == errc::bad_token);
    CHECK(late.qube.count(client_kind::rejected) == 0);

    running shut(make_request(request_kind::exec));
    shut.qube.feed(plain_frame(frame_type::close, 1));
    CHECK(shut.closed_in_qube() == errc::session_over);
    CHECK_FALSE(shut.qube.stream.has(1));

    // A forged refusal.
    running forged(make_request(request_kind::exec), false);
    bytes frame = vectors["frame.refused"];
    forged.qube.feed(frame);
    CHECK(forged.closed_in_qube() == errc::bad_tag);
    CHECK(forged.qube.count(client_kind::refused) == 0);
}

TEST_CASE("dom0's own words, tagged, in states that do not allow them") {
    struct row {
        const char *name;
        bool accepted;
        frame_type type;
        bytes payload;
        errc want;
    };
    const row rows[] = {
        {"output before accept", false, frame_type::stdout_data, {'x'}, errc::bad_frame},
        {"errors before accept", false, frame_type::stderr_data, {'x'}, errc::bad_frame},
        {"end of output before accept", false, frame_type::stdout_eof, {}, errc::bad_frame},
        {"end before accept", false, frame_type::end, end_payload(1, 0, 0, 0), errc::bad_frame},
        {"credit before accept, no body", false, frame_type::credit, u32_bytes(5),
         errc::credit_exceeded},
        {"more window than there is", false, frame_type::accepted,
         u32_bytes(0) + u32_bytes(limits::window + 1), errc::bad_frame},
        {"accepted, cut", false, frame_type::accepted, u32_bytes(0), errc::bad_frame},
        {"pending, cut", false, frame_type::pending, u32_bytes(0), errc::bad_frame},
        {"accepted twice", true, frame_type::accepted, u32_bytes(0) + u32_bytes(0),
         errc::bad_frame},
        {"refused after accept", true, frame_type::refused, {0, 23}, errc::bad_frame},
        {"pending after accept", true, frame_type::pending, bytes(8), errc::bad_frame},
        {"empty output", true, frame_type::stdout_data, {}, errc::bad_frame},
        {"end of output with data", true, frame_type::stderr_eof, {'x'}, errc::bad_frame},
        {"credit past the window", true, frame_type::credit, u32_bytes(1), errc::credit_exceeded},
        {"credit that would wrap", true, frame_type::credit, u32_bytes(0xffffffff),
         errc::credit_exceeded},
        {"credit of nothing", true, frame_type::credit, u32_bytes(0), errc::bad_frame},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        running s(make_request(request_kind::shell, "cat", true), r.accepted);
        if (r.accepted)
            s.skip_to_qube(1);
        s.say_to_qube(r.type, r.payload);
        CHECK(s.closed_in_qube() == r.want);
        CHECK(s.qube.output(client_kind::stdout_data).empty());
        carry(s.qube, s.dom0);
        CHECK(s.closed_in_dom0() == errc::session_over);
    }
    running greedy(make_request(request_kind::exec));
    greedy.qube.grants = false;
    greedy.skip_to_qube(1);
    const bytes piece(max_tagged_payload, 'x');
    for (int i = 0; i < 5; ++i)
        greedy.say_to_qube(frame_type::stdout_data, piece);
    CHECK(greedy.closed_in_qube() == errc::credit_exceeded);
}

TEST_CASE("a refusal, and a wait, are told with their words") {
    running s(make_request(request_kind::exec), false);
    s.dom0.stream.pend(1, 42, "waiting for approval");
    s.dom0.stream.refuse(1, errc::denied, "no rule matches");
    carry(s.qube, s.dom0);
    REQUIRE(s.qube.last(client_kind::pending));
    CHECK(s.qube.last(client_kind::pending)->number == 42);
    CHECK(s.qube.last(client_kind::pending)->text == "waiting for approval");
    REQUIRE(s.qube.last(client_kind::refused));
    CHECK(s.qube.last(client_kind::refused)->reason == errc::denied);
    CHECK(s.qube.last(client_kind::refused)->text == "no rule matches");
    CHECK(s.dom0.stream.session_count() == 0);
}

TEST_CASE("stdin that an operator is to see comes before the command is accepted") {
    const std::string body(20'000, 'x'); // its CREDIT and that of stdin are told apart
    running s(make_request(request_kind::script, body, true), false);
    REQUIRE(s.dom0.requests.size() == 1);
    CHECK(s.qube.stream.stdin_credit(1) == 0);
    s.dom0.stream.pend(1, 42, "waiting for approval");
    s.dom0.stream.collect_stdin(1, 100);
    carry(s.qube, s.dom0);
    CHECK(s.qube.stream.stdin_credit(1) == 100);
    const auto say = [&](std::string_view text) {
        const auto room = s.qube.stream.prepare_stdin(1);
        std::copy(text.begin(), text.end(), room.begin());
        s.qube.stream.commit_stdin(1, text.size());
        carry(s.qube, s.dom0);
    };
    say("hello");
    CHECK(s.dom0.stdin_seen() == "hello");
    s.dom0.stream.collect_stdin(1, 5);
    carry(s.qube, s.dom0);
    CHECK(s.qube.stream.stdin_credit(1) == 100);
    CHECK_FALSE(s.qube.stream.accepted(1));
    say("\n");
    s.qube.stream.stdin_eof(1);
    carry(s.qube, s.dom0);
    CHECK(s.dom0.count(server_kind::stdin_eof) == 1);
    s.dom0.stream.accept(1, 60, false);
    carry(s.qube, s.dom0);
    CHECK(s.qube.stream.accepted(1));
    CHECK(s.qube.stream.stdin_credit(1) == 0);
    s.dom0.stream.end(1, {.cause = end_cause::exited});
    carry(s.qube, s.dom0);
    CHECK(s.qube.count(client_kind::ended) == 1);
}

TEST_CASE("I1: stdin is taken for nobody who did not ask for it, nor more than was asked for") {
    for (const bool live : {false, true}) {
        CAPTURE(live);
        running s(make_request(request_kind::exec, {}, live), false);
        if (live)
            s.dom0.stream.pend(1, 42, "wait");
        // A client takes CREDIT only behind PENDING, and for a request with stdin.
        if (!live) {
            s.dom0.stream.collect_stdin(1, 100);
            carry(s.qube, s.dom0);
            CHECK(s.closed_in_qube() == errc::credit_exceeded);
            continue;
        }
        s.dom0.stream.collect_stdin(1, 4);
        s.say_to_dom0(frame_type::stdin_data, bytes(5, 'x'));
        CHECK(s.closed_in_dom0() == errc::credit_exceeded);
        CHECK(s.dom0.stdin_seen().empty());
    }
    running s(make_request(request_kind::exec, {}, true), false);
    s.dom0.stream.pend(1, 42, "wait");
    s.dom0.stream.collect_stdin(1, 4);
    s.say_to_dom0(frame_type::signal, bytes{15});
    CHECK(s.closed_in_dom0() == errc::unknown_frame);
}

TEST_CASE("I1: a body swapped, cut or too long never becomes a request") {
    const std::string body(200'000, 'x');
    {
        // By somebody with the key: the digest is what stops it.
        running s(make_request(request_kind::script, body), true);
        CHECK(s.dom0.requests.size() == 1);
        qube_end liar;
        dom0_end dom0;
        envelope what = make_request(request_kind::script, body);
        what.body[1000] = 'y';
        liar.ask(what);
        carry(liar, dom0);
        CHECK(dom0.refusals == std::vector{errc::bad_digest});
        CHECK(dom0.requests.empty());
        CHECK(liar.last(client_kind::refused)->reason == errc::bad_digest);
    }
    {
        // On the way: the tag.
        qube_end qube;
        dom0_end dom0;
        qube.ask(make_request(request_kind::script, body));
        carry(qube, dom0, [](bytes up) {
            if (up.size() > 100'000)
                up[50'000] ^= 1;
            return up;
        });
        CHECK(dom0.requests.empty());
        CHECK(dom0.events.back().reason == errc::bad_tag);
    }
    {
        // More than the header promised.
        dom0_end dom0;
        qube_end qube;
        envelope what = make_request(request_kind::script, body);
        qube.ask(what);
        std::optional<session_keys> keys;
        carry(qube, dom0, [&](bytes up) {
            if (up.size() > 28 && up[8] == 4) {
                digest256 token;
                std::copy_n(up.begin() + 12, 32, token.begin());
                request_signer signer(qube.key);
                keys.emplace(signer.keys(token));
                return up;
            }
            if (up.size() < 100)
                return up;
            bytes out;
            for (int i = 0; i < 4; ++i)
                out = out + sealed_frame(keys->to_dom0, frame_type::body, 1,
                                         bytes(max_tagged_payload, 'x'));
            return out;
        });
        CHECK(dom0.requests.empty());
        CHECK(dom0.events.back().reason == errc::credit_exceeded);
    }
}

TEST_CASE("frames that break a stream: of the other direction, of nothing, before their time") {
    struct row {
        const char *name;
        bytes frame;
        errc want;
    };
    const row to_dom0[] = {
        {"HELLO", vectors["frame.hello"], errc::unknown_frame},
        {"CHALLENGE", vectors["frame.challenge"], errc::unknown_frame},
        {"ACCEPTED", vectors["frame.accepted"], errc::unknown_frame},
        {"END", vectors["frame.end"], errc::unknown_frame},
        {"OPEN of a session", plain_frame(frame_type::open, 1), errc::bad_frame},
        {"OPEN with a payload", plain_frame(frame_type::open, 0, bytes{1}), errc::bad_frame},
        {"PING of a session", plain_frame(frame_type::ping, 1, bytes(8)), errc::bad_frame},
        {"PING of nine bytes", plain_frame(frame_type::ping, 0, bytes(9)), errc::bad_frame},
        {"a session never issued", plain_frame(frame_type::request, 2, bytes(40)), errc::bad_frame},
        {"CLOSE of the stream", plain_frame(frame_type::close, 0), errc::bad_frame},
        {"CREDIT of the stream", plain_frame(frame_type::credit, 0, bytes(20)), errc::bad_frame},
        {"more than a header before any token", plain_frame(frame_type::request, 1, bytes(16'417)),
         errc::frame_too_large},
    };
    for (const row &r : to_dom0) {
        CAPTURE(r.name);
        raw_qube qube;
        qube.open();
        qube.dom0.feed(r.frame);
        REQUIRE(qube.dom0.broken);
        CHECK(qube.dom0.broken->code == r.want);
    }
    const row to_qube[] = {
        {"OPEN", vectors["frame.open"], errc::unknown_frame},
        {"REQUEST", vectors["frame.request"], errc::unknown_frame},
        {"STDIN", vectors["frame.stdin_data"], errc::unknown_frame},
        {"HELLO twice", vectors["frame.hello"], errc::bad_frame},
        {"CHALLENGE that nobody asked for", plain_frame(frame_type::challenge, 2, bytes(32)),
         errc::bad_frame},
        {"REJECTED that nobody asked for", plain_frame(frame_type::rejected, 0, bytes(2)),
         errc::bad_frame},
        {"REJECTED with too many words", plain_frame(frame_type::rejected, 1, bytes(515)),
         errc::bad_frame},
        {"REJECTED without a reason", plain_frame(frame_type::rejected, 1, bytes(1)),
         errc::bad_frame},
    };
    for (const row &r : to_qube) {
        CAPTURE(r.name);
        running s(make_request(request_kind::exec), false);
        s.qube.feed(r.frame);
        REQUIRE(s.qube.broken);
        CHECK(s.qube.broken->code == r.want);
    }
    const row hellos[] = {
        {"CHALLENGE first", vectors["frame.challenge"], errc::bad_version},
        {"version 3", plain_frame(frame_type::hello, 0, bytes{0, 3, 0, 0, 0, 0, 0}),
         errc::bad_version},
        {"empty", plain_frame(frame_type::hello, 0), errc::bad_frame},
        {"features missing", plain_frame(frame_type::hello, 0, bytes{0, 2, 0}), errc::bad_frame},
        {"name cut", plain_frame(frame_type::hello, 0, bytes{0, 2, 0, 0, 0, 0, 2, 'x'}),
         errc::bad_frame},
        {"a byte behind it", plain_frame(frame_type::hello, 0, bytes{0, 2, 0, 0, 0, 0, 0, 'x'}),
         errc::bad_frame},
        {"of a session", plain_frame(frame_type::hello, 1, bytes{0, 2, 0, 0, 0, 0, 0}),
         errc::bad_frame},
    };
    for (const row &r : hellos) {
        CAPTURE(r.name);
        qube_end qube;
        qube.ask(make_request(request_kind::exec));
        qube.feed(r.frame);
        REQUIRE(qube.broken);
        CHECK(qube.broken->code == r.want);
        CHECK_FALSE(qube.stream.features());
    }
}

TEST_CASE("on a stream that has proven itself a REQUEST still fits in a header") {
    running s(make_request(request_kind::exec));
    s.dom0.feed(plain_frame(frame_type::open, 0));
    static_cast<void>(take_output(s.dom0.stream));
    s.dom0.feed(plain_frame(frame_type::request, 2, bytes(16'417)));
    CHECK_FALSE(s.dom0.broken);
    CHECK_FALSE(s.dom0.stream.has(2));
    CHECK(s.dom0.stream.has(1));
    CHECK(frames_of(take_output(s.dom0.stream))[0] ==
          plain_frame(frame_type::close, 2, bytes{0, 10}));
}

TEST_CASE("frames after END, or after either end gave up, are ignored") {
    running s(make_request(request_kind::shell, "cat", true));
    s.dom0.stream.end(1, {.cause = end_cause::exited});
    s.qube.write(1, "late");
    s.qube.stream.send_signal(1, 2);
    s.qube.stream.close(1);
    const std::size_t seen = s.dom0.events.size();
    carry(s.qube, s.dom0);
    CHECK(s.dom0.events.size() == seen);
    CHECK_FALSE(s.dom0.broken);
    CHECK(s.qube.count(client_kind::ended) == 0);

    running left(make_request(request_kind::exec));
    left.dom0.write(1, "late");
    left.qube.stream.close(1);
    carry(left.qube, left.dom0);
    CHECK(left.closed_in_dom0() == errc::session_over);
    CHECK(left.qube.output(client_kind::stdout_data).empty());
    CHECK_FALSE(left.qube.broken);
}

TEST_CASE("a session given up before its request leaves nothing") {
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

TEST_CASE("an agent that puts two clients on one stream changes no byte of theirs") {
    // Each client believes it has a stream of its own: the agent gives both the HELLO it has, sends
    // their OPENs on in turn, and routes by the number that dom0's answers bring.
    dom0_end dom0;
    qube_end clients[2];
    clients[0].ask(make_request(request_kind::shell, "first"));
    clients[1].ask(make_request(request_kind::shell, "second"));
    dom0.feed(preamble);
    const bytes hello = take_output(dom0.stream);
    std::deque<int> opens;
    std::map<std::uint32_t, int> route;
    for (auto &client : clients)
        client.feed(hello);
    for (int round = 0; round < 4; ++round) {
        for (int i = 1; i >= 0; --i) {
            const bytes up = take_output(clients[i].stream);
            const std::size_t skip = round == 0 ? preamble.size() : 0;
            for (const bytes &frame : frames_of(up, up.empty() ? 0 : skip)) {
                if (frame[8] == static_cast<std::uint8_t>(frame_type::open))
                    opens.push_back(i);
                dom0.feed(frame);
            }
        }
        for (const bytes &frame : frames_of(take_output(dom0.stream))) {
            const std::uint32_t number = load_u32(frame.data() + 4);
            if (frame[8] == static_cast<std::uint8_t>(frame_type::challenge)) {
                route[number] = opens.front();
                opens.pop_front();
            }
            clients[route.at(number)].feed(frame);
        }
    }
    CHECK((*dom0.requests.at(1)).header.body == "second");
    CHECK((*dom0.requests.at(2)).header.body == "first");
    CHECK(clients[0].stream.accepted(2));
    CHECK(clients[1].stream.accepted(1));
    // Mixed up, nothing gets through.
    dom0.write(1, "for the second");
    clients[0].feed(take_output(dom0.stream));
    CHECK(clients[0].output(client_kind::stdout_data).empty());
}

TEST_CASE("a sign of life, both ways, at any time after the preamble") {
    running s(make_request(request_kind::exec));
    s.qube.stream.ping(1);
    s.dom0.stream.ping(2);
    carry(s.qube, s.dom0);
    CHECK(s.qube.count(client_kind::pong) == 1);
    CHECK(s.dom0.count(server_kind::pong) == 1);
}

TEST_CASE("what the client cannot encode is not sent, and the session can be given up") {
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

TEST_CASE("idle memory goes back and everything goes on") {
    running s(make_request(request_kind::shell, "cat", true));
    for (int i = 0; i < 3; ++i) {
        s.qube.stream.release_idle_memory();
        s.dom0.stream.release_idle_memory();
        s.qube.write(1, "x");
        carry(s.qube, s.dom0);
    }
    CHECK(s.dom0.stdin_seen() == "xxx");
}
