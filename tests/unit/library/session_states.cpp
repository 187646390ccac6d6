// SPDX-License-Identifier: GPL-2.0-or-later
// Which frames are accepted in which state, from an end that has the keys and lies.
#include <qvmremote/session.hpp>

#include "session_fixture.hpp"

using namespace qvmremote;
using namespace qvmremote::test;

TEST_CASE("I1: authentic stdin, signals and bodies are refused in a wrong state") {
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
        {"detach before accept", frame_type::detach, {}, errc::unknown_frame},
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
        {"detach without a terminal", frame_type::detach, {}, errc::unknown_frame},
        {"credit of nothing", frame_type::credit, u32_bytes(0), errc::credit_exceeded},
        {"credit past the widest window", frame_type::credit,
         u32_bytes(limits::widest_window - limits::window + 1), errc::credit_exceeded},
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

TEST_CASE("arguments in the body go to a dom0 that takes them, and to no other") {
    envelope what = make_request(request_kind::exec);
    what.arguments.assign(3000, "word");
    what.arguments[0] = "printf";
    const std::vector<std::string> words = what.arguments;
    REQUIRE(what.make_header_fit());
    running s(what, true, feature::known);
    carry(s.qube, s.dom0);
    REQUIRE(s.dom0.requests.contains(1));
    CHECK((*s.dom0.requests.at(1)).header.arguments == words);

    qube_end qube;
    dom0_end older("work", feature::gmac);
    qube.ask(what);
    carry(qube, older);
    REQUIRE(qube.unsent.size() == 1);
    CHECK(qube.unsent[0].code == errc::unsupported);
    CHECK(older.headers.empty());
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

TEST_CASE("I1: signals of the list arrive at the right session") {
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

TEST_CASE("I1: all terminal sizes arrive") {
    running s(make_request(request_kind::shell, "cat"));
    s.qube.stream.send_resize(1, 300, 0xffff);
    carry(s.qube, s.dom0);
    CHECK(s.dom0.events.back().what == server_kind::resize);
    CHECK(s.dom0.events.back().columns == 300);
    CHECK(s.dom0.events.back().rows == 0xffff);
}

TEST_CASE(
    "I1: a tagged frame that an agent has changed ends the session before a byte of it is used") {
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

TEST_CASE("stdin that an operator must see comes before the command is accepted") {
    // So that dom0 sends one CREDIT for the body and one for stdin.
    const std::string body(20'000, 'x');
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

TEST_CASE(
    "I1: stdin is refused without a request for it, and beyond the amount that dom0 asked for") {
    for (const bool live : {false, true}) {
        CAPTURE(live);
        running s(make_request(request_kind::exec, {}, live), false);
        if (live)
            s.dom0.stream.pend(1, 42, "wait");
        // A client accepts CREDIT only after PENDING, and only for a request with stdin.
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
        // An end that has the key swaps the body: the digest does not match.
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
        // An agent swaps it on the way: the tag does not match.
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
        // The body is longer than the header says.
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

TEST_CASE("frames that break a stream: of the other direction, of no session, too early") {
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
        {"a byte after it", plain_frame(frame_type::hello, 0, bytes{0, 2, 0, 0, 0, 0, 0, 'x'}),
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

TEST_CASE("after a token has verified on a stream, a too long REQUEST is still refused") {
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
