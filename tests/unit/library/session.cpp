// SPDX-License-Identifier: GPL-2.0-or-later
// Tests both machines against each other, and against recorded sessions. Built twice: over EVP, and
// with QVMREMOTE_DIRECT_SHA256.
#include <qvmremote/session.hpp>

#include "session_fixture.hpp"

using namespace qvmremote;
using namespace qvmremote::test;

TEST_CASE("a request of each kind arrives, and its result comes back") {
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

TEST_CASE("both machines send the bytes of the recorded sessions") {
    for (const std::string name : {"live", "bulk"}) {
        CAPTURE(name);
        const bool live = name == "live";
        const bytes &up = vectors["session." + name + ".to_dom0"];
        const bytes &down = vectors["session." + name + ".to_qube"];

        // dom0 receives the bytes that the qube sent in the recording.
        dom0_end dom0;
        dom0.accepts = !live;
        // In the recording `live`, the qube sends stdin only after an operator has approved.
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

        // The qube receives the bytes that dom0 sent in the recording.
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

TEST_CASE("a recorded stream that is cut gives no END, and one that is damaged gives no result") {
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

TEST_CASE("I1: a recorded request that is cut or damaged starts no command and gives it no input") {
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

TEST_CASE("stdin and output arrive unchanged, with credit used up and given again") {
    running s(make_request(request_kind::shell, "cat", true));
    std::string text;
    for (int i = 0; i < 1'500'000; ++i)
        text.push_back(static_cast<char>(i * 31 >> 3));

    // dom0 gives no new credit, so only 256 KiB come.
    std::size_t sent = s.qube.write(1, text);
    CHECK(sent == limits::window);
    carry(s.qube, s.dom0);
    CHECK(s.qube.stream.stdin_credit(1) == 0);
    CHECK(s.dom0.stdin_seen() == text.substr(0, limits::window));
    // Small amounts are added up before credit is sent.
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

    // The same for output, of which the qube passes nothing on.
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

TEST_CASE("a window grows with what is passed on, as far as its pool allows") {
    constexpr std::size_t kib = 1024;
    const auto whole = std::make_shared<window_pool>(1024 * kib);
    auto pool = std::make_shared<window_pool>(1536 * kib, whole);
    // Takes all that the window allows and passes it on, so often.
    const auto stream = [](receive_window &w, int windows) {
        for (int i = 0; i < windows; ++i) {
            const std::size_t n = w.credit();
            REQUIRE(w.take(n));
            CHECK_FALSE(w.take(1));
            static_cast<void>(w.pass_on(n));
        }
        return w.credit();
    };
    receive_window narrow;
    narrow.open(limits::window);
    CHECK(stream(narrow, 100) == 256 * kib); // without a pool
    {
        receive_window first(pool), second(pool);
        first.open(limits::window);
        second.open(limits::window);
        CHECK(stream(first, 3) == 256 * kib);
        CHECK(stream(first, 1) == 512 * kib);
        CHECK(stream(first, 3) == 512 * kib);
        CHECK(stream(first, 1) == limits::widest_window);
        CHECK(stream(first, 100) == limits::widest_window);
        CHECK(stream(second, 4) == 512 * kib);
        CHECK(stream(second, 100) == 512 * kib); // the whole pool is taken
    }
    CHECK(pool->take(2048 * kib) == 1024 * kib); // all that both took is there again
    CHECK(whole->take(1) == 0);
    pool->give_back(1024 * kib);
    CHECK(whole->take(2048 * kib) == 1024 * kib);
    CHECK(pool->take(1) == 0);
    whole->give_back(1024 * kib);

    // Who made the pool may be gone before the last window is, as when dom0's daemon ends.
    receive_window last(pool);
    last.open(limits::window);
    CHECK(stream(last, 4) == 512 * kib);
    pool.reset();
    { const receive_window gone = std::move(last); }
    CHECK(whole->take(2048 * kib) == 1024 * kib);
}

TEST_CASE("a stream that is read gets a wider window, one that is not keeps what it has") {
    running s(make_request(request_kind::shell, "cat", true));
    const std::string text(100'000, 'x');
    const auto unread = [&] {
        s.qube.grants = false;
        while (s.dom0.stream.output_credit(1) > 0)
            s.dom0.write(1, text);
        std::size_t before = s.qube.output(client_kind::stdout_data).size();
        carry(s.qube, s.dom0);
        return s.qube.output(client_kind::stdout_data).size() - before;
    };
    CHECK(unread() == limits::window);
    s.qube.stream.grant_output(1, limits::window);
    s.qube.grants = true;
    for (int i = 0; i < 60; ++i) {
        carry(s.qube, s.dom0);
        s.dom0.write(1, text);
    }
    carry(s.qube, s.dom0);
    const std::size_t wide = unread();
    CHECK(wide > 3 * limits::window);
    CHECK(wide <= limits::widest_window);
}

TEST_CASE("many sessions at the same time, each with a reader that has stopped") {
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

TEST_CASE("an agent that puts two clients on one stream changes no byte of theirs") {
    // For each client it looks like a stream of its own: the agent gives both its HELLO, passes
    // their OPENs on in turn, and routes by the session numbers in dom0's answers.
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
    // If the agent sends frames to the wrong client, nothing is delivered.
    dom0.write(1, "for the second");
    clients[0].feed(take_output(dom0.stream));
    CHECK(clients[0].output(client_kind::stdout_data).empty());
}

TEST_CASE("both ends answer a PING at any time after the preamble") {
    running s(make_request(request_kind::exec));
    s.qube.stream.ping(1);
    s.dom0.stream.ping(2);
    carry(s.qube, s.dom0);
    CHECK(s.qube.count(client_kind::pong) == 1);
    CHECK(s.dom0.count(server_kind::pong) == 1);
}

TEST_CASE("after idle memory is freed, sessions go on") {
    running s(make_request(request_kind::shell, "cat", true));
    for (int i = 0; i < 3; ++i) {
        s.qube.stream.release_idle_memory();
        s.dom0.stream.release_idle_memory();
        s.qube.write(1, "x");
        carry(s.qube, s.dom0);
    }
    CHECK(s.dom0.stdin_seen() == "xxx");
}
