// SPDX-License-Identifier: GPL-2.0-or-later
// Checks that both ends of the queue accept any bytes, with the same result in any pieces, that
// dom0 keeps little of them, and that an entry that was read can be written again.

#include <optional>
#include <string>

#include <qvmremote/queue.hpp>

#include "target.hpp"

using namespace qvmremote;

namespace {

struct outcome {
    std::string seen;
    std::optional<error> broken;
};

std::string shown(const queue_event &e) {
    std::string out = std::to_string(static_cast<int>(e.what)) + " ";
    if (e.id)
        out += e.id->text();
    return out + " " + e.untrusted_token + " " + std::to_string(e.length) + " " + e.untrusted_body +
           " " + std::to_string(e.number) + "\n";
}
std::string shown(const queue_order &o) {
    // Output comes in the pieces that were fed, so it is compared as a whole.
    if (o.what == queue_order::kind::output)
        return std::string(as_text(o.data));
    std::string out = std::to_string(static_cast<int>(o.what)) + " ";
    if (o.id)
        out += o.id->text();
    return out + " " + std::to_string(o.exit_code) + " " + o.meta + " " + o.audit + " " +
           std::to_string(o.number) + "\n";
}

template <class End>
outcome read_in_pieces(End end, bytes_view data, std::size_t piece) {
    outcome out;
    while (!data.empty()) {
        const std::size_t n = std::min(piece, data.size());
        end.feed(data.first(n));
        data = data.subspan(n);
        for (;;) {
            const auto event = end.next();
            if (!event) {
                out.broken = event.error();
                return out;
            }
            if (!*event)
                break;
            out.seen += shown(**event);
        }
    }
    return out;
}

queue_server asking() {
    queue_server out;
    for (const char *id : {"a", "b", "20260218-143022-12345-a1b2c3d4"})
        out.fetch(command_id::parse(id).value());
    return out;
}

template <class Make>
void same_however_cut(Make make, bytes_view input) {
    const outcome whole = read_in_pieces(make(), input, input.size());
    for (const std::size_t piece : {1u, 2u, 13u, 511u}) {
        const outcome pieces = read_in_pieces(make(), input, piece);
        require(pieces.seen == whole.seen && pieces.broken == whole.broken);
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    const bytes_view input(data, size);
    same_however_cut(asking, input);
    same_however_cut([] { return queue_client(); }, input);

    queue_server dom0;
    dom0.feed(input);
    for (auto event = dom0.next(); event && *event; event = dom0.next()) {
        if ((**event).what != queue_event::kind::entry)
            continue;
        const std::string before = shown(**event);
        queue_client qube;
        qube.entry(*(**event).id, (**event).untrusted_token, (**event).length);
        queue_server again;
        again.feed(qube.output().pending());
        const auto twice = again.next();
        require(twice && *twice && shown(**twice) == before);
    }
    return 0;
}
