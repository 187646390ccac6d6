// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/queue.hpp>

#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "support/ends.hpp"
#include "support/vectors.hpp"

using namespace qvmremote;
using namespace qvmremote::test;

namespace {

const command_id id = command_id::parse("20260218-143022-12345-a1b2c3d4").value();
const std::string token(64, 'a');

std::string said(queue_end &by) {
    const bytes out = take_output(by);
    return std::string(as_text(out));
}

/// What a server returns for `untrusted` in pieces of a size. An error ends the input.
struct heard {
    std::vector<queue_event> events;
    std::optional<errc> broken;
};
heard hear(queue_server &dom0, std::string_view untrusted, std::size_t piece = SIZE_MAX) {
    heard out;
    while (!untrusted.empty()) {
        dom0.feed(as_bytes(untrusted.substr(0, piece)));
        untrusted.remove_prefix(std::min(piece, untrusted.size()));
        for (;;) {
            auto event = dom0.next();
            if (!event) {
                out.broken = event.error().code;
                return out;
            }
            if (!*event)
                break;
            out.events.push_back(std::move(**event));
        }
    }
    return out;
}

struct row {
    const char *name;
    std::string line;
    errc want;
};
const row refused[] = {
    {"no word", "\n", errc::bad_command_id},
    {"unknown word", "take x\n", errc::unknown_frame},
    {"a path for an ID", "gone ../x\n", errc::bad_command_id},
    {"an ID that ends in .auth", "gone x.auth\n", errc::bad_command_id},
    {"two blanks", "gone  x\n", errc::bad_command_id},
    {"a blank after the last word", "gone x \n", errc::bad_frame},
    {"a word too many", "idle now\n", errc::bad_frame},
    {"entry without a length", "entry x -\n", errc::bad_frame},
    {"a token in capitals", "entry x " + std::string(64, 'A') + " 1\n", errc::bad_frame},
    {"a short token", "entry x abc 1\n", errc::bad_frame},
    {"a signed length", "entry x - +1\n", errc::bad_frame},
    {"a leading zero", "entry x - 01\n", errc::bad_frame},
    {"a length beyond 64 bits", "entry x - 18446744073709551616\n", errc::bad_frame},
    {"a body that nobody asked for", "body x 1\n1", errc::bad_frame},
    {"a long line", "gone " + std::string(600, 'x') + "\n", errc::bad_frame},
    {"a long line without an end", std::string(512, 'x'), errc::bad_frame},
};

} // namespace

TEST_CASE("messages that dom0 refuses") {
    for (const row &r : refused)
        for (const std::size_t piece : {std::size_t{1}, std::size_t{100}, std::size_t{SIZE_MAX}}) {
            CAPTURE(r.name);
            queue_server dom0;
            CHECK(hear(dom0, r.line, piece).broken == r.want);
        }
}

TEST_CASE("an entry, its body and its end, with the bytes in any pieces") {
    for (const std::size_t piece : {std::size_t{1}, std::size_t{7}, std::size_t{SIZE_MAX}}) {
        queue_client qube;
        queue_server dom0;
        qube.entry(id, token, 9);
        qube.entry(command_id::parse("x").value(), {}, 300u << 20);
        auto got = hear(dom0, said(qube), piece).events;
        REQUIRE(got.size() == 2);
        CHECK(got[0].what == queue_event::kind::entry);
        CHECK(got[0].id->text() == id.text());
        CHECK(got[0].untrusted_token == token);
        CHECK(got[0].length == 9);
        CHECK(got[1].untrusted_token.empty());
        CHECK(got[1].length == 300u << 20);

        dom0.fetch(id);
        CHECK(said(dom0) == "fetch " + id.text() + "\n");
        const std::string body("a\n\0b\nidle\n", 10);
        qube.body(id, as_bytes(body));
        qube.idle();
        got = hear(dom0, said(qube), piece).events;
        REQUIRE(got.size() == 2);
        CHECK(got[0].what == queue_event::kind::body);
        CHECK(got[0].untrusted_body == body);
        CHECK(got[1].what == queue_event::kind::idle);
        // A body is accepted only once.
        CHECK(hear(dom0, "body " + id.text() + " 1\n1").broken == errc::bad_frame);
    }
}

TEST_CASE("a body may be empty or have exactly the limit; one byte more ends the stream") {
    queue_server dom0;
    dom0.fetch(id);
    auto got = hear(dom0, "body " + id.text() + " 0\n").events;
    REQUIRE(got.size() == 1);
    CHECK(got[0].untrusted_body.empty());
    dom0.fetch(id);
    got = hear(dom0, "body " + id.text() + " 1048576\n" + std::string(1048576, 'x')).events;
    REQUIRE(got.size() == 1);
    CHECK(got[0].untrusted_body.size() == 1048576);
    dom0.fetch(id);
    CHECK(hear(dom0, "body " + id.text() + " 1048577\n").broken == errc::bad_frame);
}

TEST_CASE("after `gone` the body of the entry is refused") {
    queue_server dom0;
    dom0.fetch(id);
    CHECK(hear(dom0, "gone " + id.text() + "\n").events.size() == 1);
    CHECK(hear(dom0, "body " + id.text() + " 1\n1").broken == errc::bad_frame);
}

TEST_CASE("the orders of dom0 arrive unchanged") {
    queue_server dom0;
    dom0.fetch(id);
    dom0.drop(id);
    dom0.later(id);
    const std::string text("o\0u\nt", 5);
    auto room = dom0.prepare_output(100000);
    CHECK(room.size() == limits::queue_output);
    std::copy(text.begin(), text.end(), room.begin());
    dom0.commit_output(id, false, text.size());
    dom0.result_of(id, 126, "id=x\n", "[line]\n");
    dom0.ping(7);
    const std::string wire = said(dom0);
    for (const std::size_t piece : {std::size_t{1}, std::size_t{3}, std::size_t{SIZE_MAX}}) {
        queue_client qube;
        std::vector<queue_order> orders;
        std::string output;
        for (std::string_view left = wire; !left.empty();) {
            qube.feed(as_bytes(left.substr(0, piece)));
            left.remove_prefix(std::min(piece, left.size()));
            for (;;) {
                auto order = qube.next();
                REQUIRE(order.has_value());
                if (!*order)
                    break;
                if ((**order).what == queue_order::kind::output) {
                    CHECK(!(**order).is_stdout);
                    output += as_text((**order).data);
                } else {
                    orders.push_back(std::move(**order));
                }
            }
        }
        CHECK(output == text);
        REQUIRE(orders.size() == 5);
        CHECK(orders[0].what == queue_order::kind::fetch);
        CHECK(orders[1].what == queue_order::kind::drop);
        CHECK(orders[2].what == queue_order::kind::later);
        CHECK(orders[3].what == queue_order::kind::result);
        CHECK(orders[3].id->text() == id.text());
        CHECK(orders[3].exit_code == 126);
        CHECK(orders[3].meta == "id=x\n");
        CHECK(orders[3].audit == "[line]\n");
        CHECK(orders[4].what == queue_order::kind::ping);
        CHECK(orders[4].number == 7);
    }
}

TEST_CASE("the queue travels in frames, or without frames after its own preamble") {
    const vector_file vectors("protocol2.txt");
    const bytes &first = vectors["queue.preamble"];
    CHECK(std::equal(first.begin(), first.end(), queue_preamble.begin(), queue_preamble.end()));

    server_stream alone("work", 0, 0);
    const std::string chatter = "Welcome!\n";
    CHECK(alone.push(as_bytes(chatter)) == chatter.size());
    CHECK(alone.next(0).value() == std::nullopt);
    CHECK(alone.push(first) == first.size());
    CHECK(alone.push(as_bytes("idle\n")) == 5);
    auto event = alone.next(0);
    REQUIRE((event && *event));
    CHECK((**event).what == server_event::kind::queue);
    CHECK(as_text((**event).data) == "idle\n");
    CHECK(alone.queue_only());
    CHECK(alone.output().size() == 0); // no HELLO is sent there
    alone.put_queue(as_bytes("ping 1\n"));
    CHECK(as_text(take_output(alone)) == "ping 1\n");

    server_stream framed("work", 0, 0);
    CHECK(framed.push(preamble) == preamble.size());
    const bytes &frame = vectors["frame.queue"];
    CHECK(framed.push(frame) == frame.size());
    event = framed.next(0);
    REQUIRE((event && *event));
    CHECK((**event).what == server_event::kind::queue);
    CHECK(as_text((**event).data) == "idle\n");
    CHECK(!framed.queue_only());
    take_output(framed);
    framed.put_queue(bytes(limits::queue_piece + 1, 'x'));
    const auto frames = frames_of(take_output(framed));
    REQUIRE(frames.size() == 2);
    CHECK(frames[0].size() == frame_header::size + limits::queue_piece);
    CHECK(frames[1] == plain_frame(frame_type::queue, 0, bytes(1, 'x')));
}

TEST_CASE("QUEUE frames that hold nothing, too much, or belong to a session end the stream") {
    for (const bytes &bad :
         {plain_frame(frame_type::queue, 0), plain_frame(frame_type::queue, 1, bytes(1, 'x')),
          plain_frame(frame_type::queue, 0, bytes(limits::queue_piece + 1, 'x'))}) {
        server_stream dom0("work", 0, 0);
        CHECK(dom0.push(preamble) == preamble.size());
        CHECK(dom0.push(bad) == bad.size());
        const auto event = dom0.next(0);
        REQUIRE(!event);
        CHECK(event.error().code == errc::bad_frame);
    }
}
