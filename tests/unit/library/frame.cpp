// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/frame.hpp>

#include <string>

#include <doctest/doctest.h>

#include "support/vectors.hpp"

using namespace qvmremote;

namespace {

const test::vector_file vectors("protocol2.txt");

std::span<const std::uint8_t, frame_header::size> head(const bytes &frame) {
    return std::span(frame).first<frame_header::size>();
}

struct row {
    const char *name;
    std::string_view hex;
    errc want;
    std::uint32_t at;
};
constexpr row refused[] = {
    {"one byte too long",
     "00010001"
     "00000001"
     "0a"
     "000000",
     errc::frame_too_large, 0},
    {"longest length",
     "ffffffff"
     "00000001"
     "0a"
     "000000",
     errc::frame_too_large, 0},
    {"type 0",
     "00000000"
     "00000001"
     "00"
     "000000",
     errc::unknown_frame, 8},
    {"type after the last",
     "00000000"
     "00000001"
     "18"
     "000000",
     errc::unknown_frame, 8},
    {"reserved for jobs",
     "00000000"
     "00000001"
     "22"
     "000000",
     errc::unknown_frame, 8},
    {"last type",
     "00000000"
     "00000001"
     "ff"
     "000000",
     errc::unknown_frame, 8},
    {"first reserved byte",
     "00000000"
     "00000001"
     "0a"
     "010000",
     errc::bad_frame, 9},
    {"second reserved byte",
     "00000000"
     "00000001"
     "0a"
     "000100",
     errc::bad_frame, 10},
    {"third reserved byte",
     "00000000"
     "00000001"
     "0a"
     "000001",
     errc::bad_frame, 11},
};

} // namespace

TEST_CASE("headers of the vectors decode, and encode to the same bytes") {
    CHECK(bytes(preamble.begin(), preamble.end()) == vectors["preamble"]);
    for (const frame_rule &rule : frame_rules) {
        CAPTURE(rule.name);
        const bytes &frame = vectors["frame." + std::string(rule.name)];
        const auto header = frame_header::decode(head(frame), limits::frame);
        REQUIRE(header);
        CHECK(header->type == rule.type);
        CHECK(header->length == frame.size() - frame_header::size);
        std::uint8_t again[frame_header::size];
        header->encode(again);
        CHECK(to_hex(again) == to_hex(head(frame)));
    }
}

TEST_CASE("refused headers, with the place") {
    for (const row &r : refused) {
        CAPTURE(r.name);
        const auto header = frame_header::decode(head(from_hex(r.hex).value()), limits::frame);
        REQUIRE_FALSE(header);
        CHECK(header.error() == error{r.want, r.at});
    }
}

TEST_CASE("I4: a too large length is refused before memory is taken, and only one frame is kept") {
    frame_reader reader(100);
    bytes frame(frame_header::size);
    frame_header{101, 1, frame_type::stdin_data}.encode(frame.data());
    CHECK(reader.push(frame) == frame.size());
    CHECK(reader.next().error().code == errc::frame_too_large);

    frame_reader greedy(100);
    bytes much = vectors["frame.stdout_data.gmac"];
    frame_header{100, 1, frame_type::stdin_data}.encode(much.data());
    CHECK(greedy.push(much) == 112);
    CHECK(greedy.push(much) == 0);
    CHECK(greedy.next().value()->untrusted_payload.size() == 100);
    CHECK(greedy.push(much) == 112);
}

TEST_CASE("a stream gives the same frames in any pieces") {
    bytes stream;
    std::size_t frames = 0;
    for (const frame_rule &rule : frame_rules) {
        const bytes &frame = vectors["frame." + std::string(rule.name)];
        stream.insert(stream.end(), frame.begin(), frame.end());
        ++frames;
    }
    for (std::size_t piece = 1; piece < 100; ++piece) {
        CAPTURE(piece);
        frame_reader reader(limits::frame);
        bytes again;
        std::size_t seen = 0;
        for (std::size_t at = 0; at < stream.size(); at += piece) {
            const auto some = bytes_view(stream).subspan(at, std::min(piece, stream.size() - at));
            REQUIRE(reader.push(some) == some.size());
            for (;;) {
                const auto frame = reader.next();
                REQUIRE(frame);
                if (!*frame)
                    break;
                ++seen;
                const std::size_t start = again.size();
                again.resize(start + frame_header::size);
                (**frame).header.encode(again.data() + start);
                again.insert(again.end(), (**frame).untrusted_payload.begin(),
                             (**frame).untrusted_payload.end());
            }
        }
        CHECK(seen == frames);
        CHECK(again == stream);
        CHECK(reader.unread().empty());
    }
}

TEST_CASE(
    "a prefix of a vector is not a frame yet; a damaged header gives no frame or another one") {
    for (const frame_rule &rule : frame_rules) {
        CAPTURE(rule.name);
        const bytes &frame = vectors["frame." + std::string(rule.name)];
        for (std::size_t n = 0; n < frame.size(); ++n) {
            frame_reader reader(limits::frame);
            static_cast<void>(reader.push(bytes_view(frame).first(n)));
            const auto got = reader.next();
            REQUIRE(got);
            REQUIRE_FALSE(*got);
        }
        for (std::size_t i = 0; i < frame_header::size; ++i) {
            bytes bad = frame;
            bad[i] ^= 0x80;
            const auto header = frame_header::decode(head(bad), limits::frame);
            // A smaller length or another session is well-formed; the tag makes such a frame fail.
            CHECK(header.has_value() == (i >= 2 && i < 8));
        }
    }
}

TEST_CASE("the limit is raised, never lowered") {
    frame_reader reader(100);
    reader.raise_limit(50);
    CHECK(reader.prepare().size() == 112);
    reader.raise_limit(200);
    CHECK(reader.prepare().size() == 212);
}

TEST_CASE("memory is freed only between frames") {
    frame_reader reader(100);
    const bytes &frame = vectors["frame.ping"];
    static_cast<void>(reader.push(bytes_view(frame).first(15)));
    reader.release_if_empty();
    static_cast<void>(reader.push(bytes_view(frame).subspan(15)));
    CHECK(reader.next().value()->untrusted_payload.size() == 8);
    reader.release_if_empty();
    CHECK(reader.unread().empty());
}

TEST_CASE("output is unchanged, however it is consumed") {
    for (const std::size_t taken : {1u, 2u, 3u, 7u, 16u, 1000u}) {
        CAPTURE(taken);
        out_buffer out;
        std::string in, seen;
        for (int i = 0; i < 300; ++i) {
            const std::string piece(static_cast<std::size_t>(i % 17),
                                    static_cast<char>('a' + i % 26));
            in += piece;
            out.put(as_bytes(piece));
            const std::size_t n = std::min(taken, out.size());
            seen += as_text(out.pending().first(n));
            out.consume(n);
            if (i % 50 == 0)
                out.release_if_empty();
        }
        seen += as_text(out.pending());
        CHECK(seen == in);
    }
}
