// SPDX-License-Identifier: GPL-2.0-or-later
// Tests an agent's router between clients that send anything and dom0. Checks that the stream that
// they share never breaks, and that each frame and answer of dom0 reaches the client that it is
// for.
//
// Each step is a byte of the input: one of four clients, and what it does.

#include <array>
#include <deque>
#include <map>
#include <string>

#include <qvmremote/route.hpp>
#include <qvmremote/session.hpp>

#include "target.hpp"

using namespace qvmremote;

namespace {

class house {
  public:
    house() {
        for (std::size_t i = 0; i < clients_.size(); ++i)
            clients_[i].number = ++last_client_;
        exchange();
    }

    void step(byte_reader &input, std::uint8_t what) {
        client &c = clients_[what & 3];
        switch (what >> 2 & 7) {
        case 0:
            put(c, frame_type::open, 0, 0);
            break;
        case 1:
            put(c, frame_type::request, session(input), what >> 5);
            break;
        case 2:
            put(c, frame_type::close, session(input), 2);
            break;
        case 3:
            put(c, frame_type::ping, 0, 8);
            break;
        case 4:
            put(c, static_cast<frame_type>(input.u8().value_or(0)), session(input), what >> 5);
            break;
        case 5:
            if (const auto raw = input.take(input.u8().value_or(0)))
                c.held.insert(c.held.end(), raw->begin(), raw->end());
            c.honest = false;
            break;
        case 6:
            leave(c);
            break;
        default:
            now_ms_ += 1000u * (what >> 5);
        }
        pass_on(c);
        exchange();
        for (client &waiting : clients_)
            pass_on(waiting);
        exchange();
    }

    // A client that obeyed the rules, and whose frames were all sent, has got every answer.
    void finish() {
        for (const client &c : clients_)
            if (c.honest && c.held.empty()) {
                require(c.opened == c.answered);
                require(c.pinged == c.ponged);
            }
    }

  private:
    struct client {
        std::uint32_t number = 0;
        bytes held{};
        int opened = 0, answered = 0, pinged = 0, ponged = 0;
        bool honest = true;
        frame_reader from_dom0{limits::frame};
    };

    static std::uint32_t session(byte_reader &input) { return input.u8().value_or(0); }

    void put(client &c, frame_type type, std::uint32_t number, std::size_t length) {
        const std::size_t at = c.held.size();
        c.held.resize(at + frame_header::size + length);
        frame_header{static_cast<std::uint32_t>(length), number, type}.encode(c.held.data() + at);
        if (type == frame_type::open)
            ++c.opened;
        else if (type == frame_type::ping)
            ++c.pinged;
        else
            c.honest = false;
    }
    void leave(client &c) {
        router_.remove(c.number);
        c = client{};
        c.number = ++last_client_;
    }
    void pass_on(client &c) {
        for (;;) {
            const auto passes = router_.accept(c.number, c.held, now_ms_);
            if (!passes)
                return leave(c);
            if (*passes == 0)
                return;
            flush_own();
            to_dom0(bytes_view(c.held).first(*passes));
            c.held.erase(c.held.begin(), c.held.begin() + static_cast<std::ptrdiff_t>(*passes));
        }
    }
    void flush_own() {
        const bytes_view own = router_.to_dom0().pending();
        to_dom0(own);
        router_.to_dom0().consume(own.size());
    }

    void to_dom0(bytes_view data) {
        do {
            data = data.subspan(dom0_.push(data));
            for (;;) {
                const auto event = dom0_.next(now_ms_);
                // Otherwise one client's bytes have ended the stream for all.
                require(event.has_value());
                if (!*event)
                    break;
                if ((**event).what == server_event::kind::open)
                    (void)dom0_.issue_challenge({}, now_ms_);
                else if ((**event).what == server_event::kind::request)
                    (void)dom0_.verify(**event, {}, now_ms_);
            }
        } while (!data.empty());
    }

    // Exchanges bytes with dom0 until neither end has more.
    void exchange() {
        flush_own();
        while (dom0_.output().size() > 0) {
            const bytes_view pending = dom0_.output().pending();
            const bytes said(pending.begin(), pending.end());
            dom0_.output().consume(said.size());
            router_.feed(said);
            for (;;) {
                const auto event = router_.next(now_ms_);
                require(event.has_value());
                if (!*event)
                    break;
                if ((**event).what == route_event::kind::deliver)
                    deliver((**event).client, (**event).data);
            }
            flush_own();
        }
    }
    void deliver(std::uint32_t number, bytes_view data) {
        for (client &c : clients_) {
            if (c.number != number)
                continue;
            while (!data.empty()) {
                data = data.subspan(c.from_dom0.push(data));
                count(c);
            }
            return;
        }
        require(false); // a frame for a client that is gone
    }
    static void count(client &c) {
        for (;;) {
            const auto frame = c.from_dom0.next();
            require(frame.has_value());
            if (!*frame)
                return;
            const frame_header &header = (**frame).header;
            c.answered += header.type == frame_type::challenge ||
                          (header.type == frame_type::rejected && header.session == 0);
            c.ponged += header.type == frame_type::pong;
        }
    }

    std::uint64_t now_ms_ = 1000;
    server_stream dom0_{"work", feature::gmac, 1000};
    agent_router router_;
    std::array<client, 4> clients_;
    std::uint32_t last_client_ = 0;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    house all;
    byte_reader input(bytes_view(data, size));
    while (const auto what = input.u8())
        all.step(input, *what);
    all.finish();
    return 0;
}
