// SPDX-License-Identifier: GPL-2.0-or-later
// Checks that a stream gives the same frames in any pieces, that they encode to the same bytes,
// that they keep the limit, and that the reader keeps no more than the limit.

#include <optional>

#include <qvmremote/frame.hpp>

#include "target.hpp"

using namespace qvmremote;

namespace {

constexpr std::size_t limit = 300;

struct outcome {
    bytes frames; // encoded again
    std::optional<error> broken;
};

outcome read_in_pieces(bytes_view data, std::size_t piece) {
    outcome out;
    frame_reader reader(limit);
    while (!data.empty() && !out.broken) {
        const std::size_t taken = reader.push(data.first(std::min(piece, data.size())));
        require(taken > 0 && reader.unread().size() <= limit + frame_header::size);
        data = data.subspan(taken);
        for (;;) {
            const auto frame = reader.next();
            if (!frame) {
                out.broken = frame.error();
                break;
            }
            if (!*frame)
                break;
            const frame_view &view = **frame;
            require(view.header.length <= limit && rule_of(view.header.type));
            require(view.untrusted_payload.size() == view.header.length);
            const std::size_t at = out.frames.size();
            out.frames.resize(at + frame_header::size);
            view.header.encode(out.frames.data() + at);
            byte_writer(out.frames).put(view.untrusted_payload);
        }
    }
    return out;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    const bytes_view input(data, size);
    const outcome whole = read_in_pieces(input, size);
    require(whole.frames.size() <= size);
    require(std::equal(whole.frames.begin(), whole.frames.end(), input.begin()));
    for (const std::size_t piece : {1u, 2u, 7u, 13u, 311u}) {
        const outcome pieces = read_in_pieces(input, piece);
        require(pieces.frames == whole.frames && pieces.broken == whole.broken);
    }

    out_buffer out;
    bytes seen;
    for (std::size_t i = 0; i < size;) {
        const std::size_t n = std::min<std::size_t>(1 + data[i] % 40, size - i);
        out.put(input.subspan(i, n));
        const std::size_t taken = std::min<std::size_t>(data[i] % 37, out.size());
        byte_writer(seen).put(out.pending().first(taken));
        out.consume(taken);
        i += n;
    }
    byte_writer(seen).put(out.pending());
    require(std::equal(seen.begin(), seen.end(), input.begin(), input.end()));
    return 0;
}
