// SPDX-License-Identifier: GPL-2.0-or-later
// Runs instead of a qube's agent and floods dom0: it writes as fast as its pipe accepts, and drops
// its input.
//
//   flood bogus       frames of a session that is over
//   flood requests    a session for each request, and a token that verifies under no key
//   flood entries     entries of protocol 1, with such a token

#include "timing.hpp"

#include <cstring>
#include <string_view>

#include <qvmremote/bytes.hpp>
#include <qvmremote/frame.hpp>

using namespace bench;
using namespace qvmremote;

namespace {

constexpr std::size_t batch = 64 * 1024;

bytes pending;

void put(std::uint32_t session, frame_type type, std::string_view payload) {
    std::uint8_t header[frame_header::size];
    frame_header{static_cast<std::uint32_t>(payload.size()), session, type}.encode(header);
    pending.insert(pending.end(), header, header + sizeof header);
    pending.insert(pending.end(), payload.begin(), payload.end());
}

void send() {
    for (bytes_view left(pending); !left.empty();) {
        const ssize_t n = ::write(STDOUT_FILENO, left.data(), left.size());
        if (n <= 0)
            std::exit(0);
        left = left.subspan(static_cast<std::size_t>(n));
    }
    pending.clear();
}

// Reads and drops input until the call ends.
void throw_input_away() {
    static char room[batch];
    while (::read(STDIN_FILENO, room, sizeof room) > 0) {
    }
}

} // namespace

int main(int argc, char **argv) {
    const std::string_view kind = argc == 2 ? argv[1] : "";
    if (kind != "bogus" && kind != "requests" && kind != "entries")
        die("usage: flood bogus|requests|entries");
    pending.assign(preamble.begin(), preamble.end());
    send();
    if (::fork() == 0) {
        throw_input_away();
        return 0;
    }
    // dom0 counts its sessions from 1.
    std::uint32_t number = 0;
    if (kind == "bogus") {
        put(0, frame_type::open, {});
        put(++number, frame_type::close, {});
    }
    for (std::uint32_t entry = 0;;) {
        while (pending.size() < batch) {
            if (kind == "bogus") {
                put(number, frame_type::stdin_data, "not the sixteen bytes of a tag");
            } else if (kind == "requests") {
                put(0, frame_type::open, {});
                put(++number, frame_type::request, std::string(160, 'x'));
            } else {
                char line[160];
                const int n = std::snprintf(line, sizeof line,
                                            "entry 20260102-030405-7-%08x %064x 9\n", ++entry, 0);
                put(0, frame_type::queue, {line, static_cast<std::size_t>(n)});
            }
        }
        send();
    }
}
