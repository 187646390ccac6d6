// SPDX-License-Identifier: GPL-2.0-or-later
// How a session ends: results and refusals.
#include <qvmremote/session.hpp>

#include "session_fixture.hpp"

using namespace qvmremote;
using namespace qvmremote::test;

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
        {"unknown cause", end_payload(8, 0, 3, 0), errc::incomplete},
        {"detached, for which nobody asked", end_payload(7, 0, 3, 0), errc::incomplete},
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

TEST_CASE("I10: only the value 0 is success, not 256") {
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

TEST_CASE("I10: a refusal that is not authentic counts as a refusal before ACCEPTED, and as a loss "
          "after it") {
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

TEST_CASE("authentic frames of dom0 in states that do not allow them") {
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
        {"more credit than the window", false, frame_type::accepted,
         u32_bytes(0) + u32_bytes(limits::window + 1), errc::bad_frame},
        {"accepted, cut", false, frame_type::accepted, u32_bytes(0), errc::bad_frame},
        {"pending, cut", false, frame_type::pending, u32_bytes(0), errc::bad_frame},
        {"accepted twice", true, frame_type::accepted, u32_bytes(0) + u32_bytes(0),
         errc::bad_frame},
        {"refused after accept", true, frame_type::refused, {0, 23}, errc::bad_frame},
        {"pending after accept", true, frame_type::pending, bytes(8), errc::bad_frame},
        {"empty output", true, frame_type::stdout_data, {}, errc::bad_frame},
        {"end of output with data", true, frame_type::stderr_eof, {'x'}, errc::bad_frame},
        {"credit past the widest window", true, frame_type::credit,
         u32_bytes(limits::widest_window - limits::window + 1), errc::credit_exceeded},
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

TEST_CASE("a refusal and a wait arrive with their texts") {
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
