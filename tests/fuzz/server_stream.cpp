// SPDX-License-Identifier: GPL-2.0-or-later
// Tests dom0's end of a stream against a peer that sends anything, and one that has the key and
// lies. The input is a program: raw bytes, frames sealed with the right keys, time, and actions of
// dom0's host.
//
// Checks that a session in an event is known, and was challenged and requested once, that stdin,
// signals and credit come only for accepted sessions, that stdin never exceeds the window, that a
// request that verifies was signed, and that memory is bounded.

#include <map>
#include <set>

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
            require(stream_.session_count() <= limits::open_challenges + live_.size());
            // The output may exceed the point of congestion by the answers to one buffer of input
            // and one step of the host.
            require(stream_.output().size() <= 2 * limits::frame + 8 * limits::frame);
        }
    }

  private:
    struct live {
        std::optional<verified<envelope>> header;
        bool body_asked = false, whole = false, accepted = false;
        bool collecting = false, collected = false; // stdin, before the request is accepted
        std::size_t stdin_allowed = 0, stdin_seen = 0, stdin_written = 0;
    };
    struct signed_session {
        session_keys keys;
    };

    void step() {
        const std::uint8_t what = input_.u8();
        // One of the four sessions that the program uses.
        const std::uint32_t number = 1 + what / 16 % 4;
        switch (what % 16) {
        case 0:
            return feed(input_.take(input_.u8()));
        case 1:
            return feed(preamble);
        case 2:
            return feed(plain_frame(frame_type::open, 0));
        case 3:
            return ask(number, input_.take(input_.u16() % 2000));
        case 4:
            return ask_well(number);
        case 5:
        case 6: { // a frame of any type with the right tag
            const auto found = signed_.find(number);
            const auto type = static_cast<frame_type>(input_.u8() % 24);
            const bytes payload(input_.u8() % 4 == 0 ? repeated() : copy(input_.take(input_.u8())));
            if (found != signed_.end())
                feed(sealed_frame(found->second.keys.to_dom0, type, number, payload));
            return;
        }
        case 7: // the same without a tag
            return feed(plain_frame(static_cast<frame_type>(input_.u8() % 24), number,
                                    input_.take(input_.u8())));
        case 8:
            now_ += input_.u16();
            return drain();
        case 9:
            return output();
        default:
            return host(what % 16, number);
        }
    }

    static bytes copy(bytes_view from) { return {from.begin(), from.end()}; }
    bytes repeated() { return bytes(input_.u16() % (max_tagged_payload + 1), 'x'); }

    // Does what dom0's host may do with a session in its present state.
    void host(std::uint8_t what, std::uint32_t number) {
        const auto found = live_.find(number);
        if (found == live_.end())
            return;
        live &s = found->second;
        if (!s.accepted) {
            if (what == 10)
                stream_.pend(number, 1, "wait");
            if (what == 11 && s.whole && !s.collecting) {
                const bool stdin_live = input_.u8() % 2 && !s.collected;
                s.stdin_written = s.stdin_seen;
                stream_.accept(number, 0, stdin_live);
                s.accepted = true;
                s.stdin_allowed = s.stdin_seen + (stdin_live ? limits::window : 0);
            }
            if (what == 12) {
                stream_.refuse(number, errc::denied, "no");
                live_.erase(found);
            }
            if (what == 13 && s.whole && !s.collected &&
                s.stdin_allowed - s.stdin_seen < limits::window) {
                stream_.pend(number, 1, "wait");
                stream_.collect_stdin(number, 1);
                s.collecting = true;
                ++s.stdin_allowed;
            }
            return;
        }
        switch (what) {
        case 10: {
            const auto room = stream_.prepare_output(number, input_.u16());
            std::fill(room.begin(), room.end(), std::uint8_t{'o'});
            if (!room.empty())
                stream_.commit_output(number, frame_type::stdout_data, room.size());
            return;
        }
        case 11: {
            const std::size_t n = s.stdin_seen - s.stdin_written;
            stream_.grant_stdin(number, n);
            s.stdin_written += n;
            s.stdin_allowed += n;
            return;
        }
        case 12:
            stream_.end(number, {.cause = end_cause::exited});
            live_.erase(found);
            return;
        default:
            stream_.output_eof(number, frame_type::stderr_eof);
        }
    }

    // Reads what dom0 wrote, and keeps the challenges for requests that are signed later.
    void output() {
        for (const bytes &frame : frames_of(take_output(stream_))) {
            const std::uint32_t number = load_u32(frame.data() + 4);
            const auto type = static_cast<frame_type>(frame[8]);
            if (type == frame_type::hello)
                t_ = sha256(bytes_view(frame).subspan(frame_header::size));
            if (type == frame_type::challenge)
                std::copy_n(frame.begin() + frame_header::size, 32, challenges_[number].begin());
        }
    }

    void ask(std::uint32_t number, bytes_view header) {
        output();
        const auto found = challenges_.find(number);
        if (found == challenges_.end())
            return;
        request_signer signer(keys_[0]);
        const digest256 token = signer.token(t_, found->second, header);
        bytes payload(token.begin(), token.end());
        byte_writer(payload).put(header);
        issued_.emplace(as_text(payload));
        if (!used_.contains(number))
            signed_.insert_or_assign(number, signed_session{signer.keys(token)});
        feed(plain_frame(frame_type::request, number, payload));
    }
    void ask_well(std::uint32_t number) {
        const std::uint8_t form = input_.u8();
        envelope what = make_request(form % 2 ? request_kind::shell : request_kind::script,
                                     std::string(1 + form, 'x'), form & 4);
        if (form & 8) {
            what.body_follows = true;
            what.body_digest = sha256(as_bytes(what.body));
        }
        what.features = form & 16 ? feature::gmac : 0;
        const auto header = what.encode();
        ask(number, *header);
        const auto found = signed_.find(number);
        if (found != signed_.end() && (what.features & feature::gmac))
            found->second.keys.use_gmac();
        if (found != signed_.end() && (form & 8) && (form & 32))
            feed(sealed_frame(found->second.keys.to_dom0, frame_type::body, number,
                              as_bytes(what.body)));
    }

    void feed(bytes_view data) {
        while (!data.empty() && !broken_) {
            if (stream_.congested())
                output();
            data = data.subspan(stream_.push(data));
            drain();
        }
    }

    void drain() {
        while (!broken_) {
            const auto event = stream_.next(now_);
            if (!event) {
                broken_ = true;
                return;
            }
            if (!*event)
                return;
            take(**event);
        }
    }

    void take(const server_event &event) {
        using kind = server_event::kind;
        const std::uint32_t number = event.session;
        require(stream_.announced());
        if (event.what == kind::queue)
            return require(!event.data.empty() && number == 0);
        require(!stream_.queue_only());
        if (event.what == kind::pong)
            return;
        if (event.what == kind::open) {
            if (input_.u8() % 16 == 0)
                return stream_.reject_open(errc::draining);
            challenge fresh;
            fresh.fill(++seed_);
            const std::uint32_t given = stream_.issue_challenge(fresh, now_);
            require(given == ++last_);
            issued_at_[given] = now_;
            return;
        }
        require(number >= 1 && number <= last_);
        if (event.what == kind::request)
            return verify(event);
        const auto found = live_.find(number);
        // The session verified, and has neither ended nor been closed.
        require(found != live_.end());
        live &s = found->second;
        switch (event.what) {
        case kind::body:
            require(s.body_asked && !s.whole);
            return complete(number, s);
        case kind::stdin_data:
            s.stdin_seen += event.data.size();
            require((s.accepted || s.collecting) && !event.data.empty());
            require(s.stdin_seen <= s.stdin_allowed);
            return;
        case kind::stdin_eof:
            require(s.accepted || s.collecting);
            s.collected = std::exchange(s.collecting, false);
            return;
        case kind::resize:
            return require(s.accepted);
        case kind::credit:
            return require(s.accepted && stream_.output_credit(number) <= limits::widest_window);
        case kind::signal:
            return require(s.accepted && is_forwarded_signal(event.number));
        case kind::closed:
            live_.erase(found);
            return require(!stream_.has(number));
        default:
            require(false);
        }
    }

    void verify(const server_event &event) {
        require(used_.insert(event.session).second);
        const bool was_signed = issued_.contains(std::string(as_text(event.data)));
        auto got = stream_.verify(event, keys_, now_);
        if (!got)
            return require(!stream_.has(event.session));
        require(was_signed && now_ - issued_at_.at(event.session) <= limits::challenge_ms);
        live &s = live_[event.session];
        s.header = std::move(got->header);
        s.body_asked = stream_.take_body(event.session);
        require(s.body_asked == (**s.header).body_follows);
        if (!s.body_asked)
            complete(event.session, s);
    }
    void complete(std::uint32_t number, live &s) {
        const auto whole = stream_.complete(number, *s.header);
        if (!whole) {
            live_.erase(number);
            return require(!stream_.has(number));
        }
        require((**whole).header.body.size() == (**whole).header.body_length);
        s.whole = true;
    }

    program input_;
    std::vector<secret> keys_ = one_key();
    server_stream stream_{"work", feature::gmac, 0};
    std::uint64_t now_ = 0;
    bool broken_ = false;
    std::uint8_t seed_ = 0;
    std::uint32_t last_ = 0;
    digest256 t_{};
    std::map<std::uint32_t, challenge> challenges_;
    std::map<std::uint32_t, std::uint64_t> issued_at_;
    std::map<std::uint32_t, signed_session> signed_;
    std::set<std::string> issued_; // every token and header that was signed with the key
    std::set<std::uint32_t> used_;
    std::map<std::uint32_t, live> live_;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    // First use the input as bytes from a qube that has another key, then as a program.
    dom0_end blind;
    blind.keys = one_key(std::string(64, '0'));
    blind.feed({data, size});
    require(blind.requests.empty() && blind.stdin_seen().empty());
    machine(program({data, size})).run();
    return 0;
}
