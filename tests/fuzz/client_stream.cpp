// SPDX-License-Identifier: GPL-2.0-or-later
// Tests a qube's end of a stream against an agent that sends anything, and against a dom0 that
// lies. The input is a program: raw bytes, frames sealed with the right keys, and actions of the
// client.
//
// Checks that `ended` comes only from an END that dom0 sealed next in order, with the counts of the
// bytes that arrived (I10), that output comes only after ACCEPTED and within the window, and that
// there is no event for a session that is over.

#include <map>

#include <qvmremote/session.hpp>

#include "support/ends.hpp"
#include "support/program.hpp"
#include "target.hpp"

using namespace qvmremote;
using namespace qvmremote::test;

namespace {

class machine {
  public:
    explicit machine(program input) : input_(input) {}

    void run() {
        while (!input_.done() && !broken_) {
            step();
            // The output holds stdin, bodies, and at most one answer for each frame in a buffer.
            if (stream_.output().size() > 4 * limits::frame)
                output();
        }
    }

  private:
    struct known {
        std::optional<session_keys> keys;
        bool requested = false, accepted = false;
        std::uint64_t out = 0, err = 0;
        std::size_t held = 0; // bytes of output that were not passed on
        std::uint64_t passed = 0;
        bytes last_sealed; // the payload of the newest frame that dom0 sealed
        frame_type last_type{};
    };

    void step() {
        const std::uint8_t what = input_.u8();
        const std::uint32_t number = 1 + what / 16 % 4;
        switch (what % 16) {
        case 0:
            return feed(input_.take(input_.u8()));
        case 1: {
            bytes hello;
            byte_writer w(hello);
            w.u16(protocol_version);
            w.u32(input_.u8());
            w.u8(4);
            w.put("work");
            return feed(plain_frame(frame_type::hello, 0, hello));
        }
        case 2:
            return stream_.open();
        case 3:
            return feed(plain_frame(frame_type::challenge, number, bytes(32, number & 0xff)));
        case 4: // a correct ACCEPTED
            return seal(number, frame_type::accepted, bytes{0, 0, 0, 60, 0, 4, 0, 0});
        case 5:
        case 6: // a frame of any type with the right tag
        {
            const auto type = static_cast<frame_type>(input_.u8() % 24);
            const auto payload = input_.take(input_.u8());
            return seal(number, type, bytes(payload.begin(), payload.end()));
        }
        case 7:
            return seal(number, what & 0x80 ? frame_type::stdout_data : frame_type::stderr_data,
                        bytes(input_.u16() % (max_tagged_payload + 1), 'o'));
        case 8: { // an END with right or nearly right counts
            const auto found = sessions_.find(number);
            if (found == sessions_.end())
                return;
            bytes payload;
            byte_writer w(payload);
            w.u8(input_.u8() % 8);
            w.u32(input_.u8());
            w.u64(found->second.out + (input_.u8() == 7));
            w.u64(found->second.err);
            return seal(number, frame_type::end, payload);
        }
        case 9:
            return feed(plain_frame(static_cast<frame_type>(input_.u8() % 24), number,
                                    input_.take(input_.u8())));
        case 10:
            return output();
        default:
            return client(what % 16, number);
        }
    }

    void client(std::uint8_t what, std::uint32_t number) {
        const auto found = sessions_.find(number);
        if (found == sessions_.end())
            return;
        known &s = found->second;
        switch (what) {
        case 11:
            stream_.close(number);
            sessions_.erase(found);
            return;
        case 12:
            if (s.accepted) {
                const auto room = stream_.prepare_stdin(number);
                const std::size_t n = std::min<std::size_t>(room.size(), input_.u16());
                std::fill_n(room.begin(), n, std::uint8_t{'i'});
                if (n > 0)
                    stream_.commit_stdin(number, n);
            }
            return;
        case 13:
            if (s.accepted)
                stream_.send_signal(number, 2);
            return;
        case 14: {
            stream_.grant_output(number, s.held);
            s.passed += std::exchange(s.held, 0);
            return;
        }
        default:
            if (s.accepted)
                stream_.stdin_eof(number);
        }
    }

    // Reads what the client wrote, and derives the keys from its request, as dom0 does.
    void output() {
        const bytes out = take_output(stream_);
        const std::size_t skip = std::exchange(preamble_taken_, true) ? 0 : preamble.size();
        for (const bytes &frame : frames_of(out, skip)) {
            if (frame[8] != static_cast<std::uint8_t>(frame_type::request))
                continue;
            const auto found = sessions_.find(load_u32(frame.data() + 4));
            if (found == sessions_.end())
                continue;
            digest256 token;
            std::copy_n(frame.begin() + frame_header::size, token.size(), token.begin());
            request_signer signer(key_);
            found->second.keys.emplace(signer.keys(token));
            if (gmac_)
                found->second.keys->use_gmac();
        }
    }

    void seal(std::uint32_t number, frame_type type, const bytes &payload) {
        output();
        const auto found = sessions_.find(number);
        if (found == sessions_.end() || !found->second.keys)
            return;
        found->second.last_type = type;
        found->second.last_sealed = payload;
        sealing_ = number;
        feed(sealed_frame(found->second.keys->to_qube, type, number, payload));
        sealing_ = 0;
    }

    void feed(bytes_view data) {
        while (!data.empty() && !broken_) {
            data = data.subspan(stream_.push(data));
            for (;;) {
                const auto event = stream_.next();
                if (!event) {
                    broken_ = true;
                    return;
                }
                if (!*event)
                    break;
                take(**event);
            }
        }
    }

    void take(const client_event &event) {
        using kind = client_event::kind;
        const std::uint32_t number = event.session;
        if (event.what == kind::pong || event.what == kind::hello)
            return require(number == 0);
        if (event.what == kind::challenged) {
            require(!sessions_.contains(number) && stream_.has(number));
            known &s = sessions_[number];
            const std::uint8_t form = input_.u8();
            envelope what = make_request(request_kind::shell,
                                         std::string(form & 1 ? 13'000 : 10, 'x'), form & 2);
            what.features = form & 4 ? feature::gmac : 0;
            gmac_ = (what.features & stream_.features().value()) != 0;
            if (form & 8)
                return; // dom0 did not announce itself yet, or never will
            require(stream_.send_request(number, what, key_).has_value());
            s.requested = true;
            return output();
        }
        if (number == 0)
            return require(event.what == kind::rejected);
        const auto found = sessions_.find(number);
        require(found != sessions_.end());
        known &s = found->second;
        switch (event.what) {
        case kind::rejected:
            require(!s.accepted && !stream_.has(number));
            sessions_.erase(found);
            return;
        case kind::closed:
            require(!stream_.has(number));
            sessions_.erase(found);
            return;
        case kind::ended: {
            // The event comes from the frame that dom0 has just sealed, and its counts are right.
            require(sealing_ == number && s.last_type == frame_type::end && s.accepted);
            require(event.end.stdout_bytes == s.out && event.end.stderr_bytes == s.err);
            require(!stream_.has(number));
            const int code = event.end.exit_code();
            require(code != 0 || (event.end.cause == end_cause::exited && event.end.value == 0));
            sessions_.erase(found);
            return;
        }
        default:
            break;
        }
        // All other events come from the frame that dom0 has just sealed.
        require(sealing_ == number && s.requested);
        switch (event.what) {
        case kind::refused:
            require(!s.accepted && !stream_.has(number));
            sessions_.erase(found);
            return;
        case kind::pending:
            return require(!s.accepted);
        case kind::accepted:
            require(!s.accepted && stream_.accepted(number));
            s.accepted = true;
            break;
        case kind::stdout_data:
        case kind::stderr_data:
            s.held += event.data.size();
            require(s.accepted &&
                    s.held <=
                        (s.passed < 4 * limits::window ? limits::window : limits::widest_window));
            require(std::equal(event.data.begin(), event.data.end(), s.last_sealed.begin(),
                               s.last_sealed.end()));
            (event.what == kind::stdout_data ? s.out : s.err) += event.data.size();
            return;
        default:
            require(s.accepted);
        }
        require(stream_.stdin_credit(number) <= limits::widest_window);
    }

    program input_;
    client_stream stream_;
    secret key_ = secret::parse(key_text).value();
    bool broken_ = false, preamble_taken_ = false, gmac_ = false;
    std::uint32_t sealing_ = 0;
    std::map<std::uint32_t, known> sessions_;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    // First use the input as bytes from an agent without a key, then as a program.
    qube_end blind;
    blind.ask(make_request(request_kind::exec));
    blind.feed({data, size});
    require(blind.count(client_event::kind::ended) == 0);
    require(blind.count(client_event::kind::accepted) == 0);
    machine(program({data, size})).run();
    return 0;
}
