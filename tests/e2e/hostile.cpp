// SPDX-License-Identifier: GPL-2.0-or-later
// A hostile agent between a client and the shipped daemon: it sees every byte of the qube's side,
// changes, repeats, delays and invents frames, and has no key. What would run creates a file, and what
// would be delivered lands in one, so an execution cannot go unnoticed. After each row an honest
// request still succeeds.
//
// Usage: hostile [TRIES] [seconds=N]. Each row prints its count; any execution or delivered byte fails
// the test. With a time the rows are gone through again, with other bits, until it is over.

#include "harness.hpp"

#include <functional>
#include <random>

#include <qvmremote/session.hpp>

using namespace e2e;

namespace {

int tries = 10'000;
unsigned seed = 20260218;

// A qube's end that stays a client in all but what the test does to its bytes.
class attacker {
public:
    attacker(const daemon_under_test &d, const std::string &qube) : fd_(d.connect(qube)) {}

    client_stream machine;

    /// Takes what the machine wants to send instead of sending it.
    bytes take_output() {
        const bytes_view pending = machine.output().pending();
        bytes out(pending.begin(), pending.end());
        machine.output().consume(pending.size());
        return out;
    }
    void send(bytes_view data) {
        while (!data.empty()) {
            const ssize_t n = ::send(fd_.get(), data.data(), data.size(), MSG_NOSIGNAL);
            if (n <= 0) {
                open_ = false;
                return;
            }
            data = data.subspan(static_cast<std::size_t>(n));
        }
    }
    void flush() { send(take_output()); }

    /// Changes what dom0 sends before the machine reads it.
    std::function<void(std::span<std::uint8_t>)> on_input;

    /// The next event; nothing at the end of the stream.
    std::optional<client_event> next() {
        for (;;) {
            auto event = machine.next();
            if (!event)
                return std::nullopt;
            if (*event)
                return std::move(**event);
            pollfd wait{fd_.get(), POLLIN, 0};
            require(::poll(&wait, 1, hang_guard_ms) == 1, "the daemon does not answer");
            const auto room = machine.prepare();
            const ssize_t n = ::read(fd_.get(), room.data(), room.size());
            if (n <= 0)
                return std::nullopt;
            if (on_input)
                on_input(room.first(static_cast<std::size_t>(n)));
            machine.commit(static_cast<std::size_t>(n));
        }
    }
    /// The next event of a kind that is none of `skipped`.
    std::optional<client_event> answer() {
        for (;;) {
            auto event = next();
            if (!event || event->what != client_event::kind::hello)
                return event;
        }
    }

    /// Opens a session; its number.
    std::uint32_t open_session() {
        machine.open();
        flush();
        auto event = answer();
        require(event && event->what == client_event::kind::challenged, "no challenge came");
        return event->session;
    }

    [[nodiscard]] bool is_open() const { return open_; }
    [[nodiscard]] int fd() const { return fd_.get(); }

private:
    unique_fd fd_;
    bool open_ = true;
};

class suite {
public:
    suite()
        : dom0_(scratch_ / "root", "work dev stranger"), marks_(scratch_ / "marks") {
        std::filesystem::create_directories(marks_);
        dom0_.register_key("work", key_digits('a'));
        dom0_.register_key("dev", key_digits('b'));
        dom0_.start();
    }

    void run();

private:
    // What must not run says so by a file with a name of its own.
    std::string mark_command() { return "touch " + marks_ + "/" + std::to_string(++mark_); }
    std::size_t marks() const {
        std::size_t n = 0;
        for ([[maybe_unused]] const auto &e : std::filesystem::directory_iterator(marks_))
            ++n;
        return n;
    }
    envelope request(std::string body) {
        envelope e;
        e.kind = request_kind::shell;
        e.id = host::client::make_id();
        e.features = feature::gmac;
        e.set_body(std::move(body));
        return e;
    }
    // A REQUEST frame, and where its parts are: header 12, token 32, then the envelope.
    static constexpr std::size_t token_at = frame_header::size;
    static constexpr std::size_t envelope_at = frame_header::size + token_size;
    static constexpr std::size_t flags_at = envelope_at + 2 + 16 + 1;
    static constexpr std::size_t timeout_at = flags_at + 1;
    static constexpr std::size_t features_at = timeout_at + 4;

    bytes signed_request(attacker &a, std::uint32_t session, envelope e, char key = 'a') {
        require(a.machine.send_request(session, std::move(e), key_of(key)).has_value(), "encode");
        return a.take_output();
    }

    // Each try on the stream at hand, and a new one when the daemon has had enough of it.
    void row(const char *name, const std::string &qube,
             const std::function<void(attacker &, std::mt19937 &)> &attempt, int count = tries) {
        std::mt19937 random(seed);
        std::optional<attacker> a;
        const auto begin = std::chrono::steady_clock::now();
        for (int i = 0; i < count; ++i) {
            if (!a || i % 500 == 0)
                a.emplace(dom0_, qube);
            attempt(*a, random);
            if (!a->is_open())
                a.reset();
        }
        a.reset();
        finish_row(name, count, begin);
    }
    void finish_row(const char *name, int count, std::chrono::steady_clock::time_point begin) {
        good_request(name);
        require(marks() == 0, std::string(name) + ": " + std::to_string(marks()) + " executions");
        std::printf("%-52s %6d tries, 0 executions, %.1f s\n", name, count,
                    std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
        std::fflush(stdout);
    }
    void good_request(const std::string &after) {
        host::client c = honest(dom0_, "work", 'a');
        const host::collected r = c.collect({.kind = request_kind::shell,
                                             .body = "echo good; exit 3",
                                             .arguments = {},
                                             .environment = {},
                                             .id = {}});
        require(r.result.how == host::run_result::kind::ended && r.result.exit_code() == 3 &&
                    r.out == "good\n",
                "after \"" + after + "\" an honest request fails: " + r.result.untrusted_text);
    }
    void expect_refusal(attacker &a) {
        const auto event = a.answer();
        require(!event || event->what == client_event::kind::rejected ||
                    event->what == client_event::kind::refused ||
                    event->what == client_event::kind::closed,
                "a tampered request was not refused");
    }

    void changed_header(const char *name, std::size_t at, std::size_t width, envelope e);
    void session_row(const char *name, const std::string &how,
                     const std::function<bytes(attacker &, std::uint32_t, std::mt19937 &)> &attack);
    void late_challenges();
    void replayed_ids();

    scratch scratch_;
    daemon_under_test dom0_;
    std::string marks_;
    std::uint64_t mark_ = 0;
};

// One random bit of a field of the signed header, flipped on the way.
void suite::changed_header(const char *name, std::size_t at, std::size_t width, envelope e) {
    row(name, "work", [&](attacker &a, std::mt19937 &random) {
        e.id = host::client::make_id();
        bytes frame = signed_request(a, a.open_session(), e);
        frame[at + random() % width] ^= static_cast<std::uint8_t>(1u << random() % 8);
        a.send(frame);
        expect_refusal(a);
    });
}

// An accepted session that writes its stdin to a file; `attack` gives the bytes to send. The session
// must end, and nothing of what was sent may arrive.
void suite::session_row(
    const char *name, const std::string &command,
    const std::function<bytes(attacker &, std::uint32_t, std::mt19937 &)> &attack) {
    const std::string delivered = scratch_ / "delivered";
    row(name, "work", [&](attacker &a, std::mt19937 &random) {
        const std::uint32_t session = a.open_session();
        envelope e = request(command);
        e.stdin_live = true;
        a.send(signed_request(a, session, std::move(e)));
        const auto accepted = a.answer();
        require(accepted && accepted->what == client_event::kind::accepted, "not accepted");
        a.send(attack(a, session, random));
        for (;;) {
            const auto event = a.next();
            require(event.has_value(), "the stream ended");
            if (event->what == client_event::kind::closed)
                break;
            require(event->what != client_event::kind::ended, "the command ended undisturbed");
        }
    });
    require(read_file(delivered).empty(), std::string(name) + ": bytes were delivered");
}

void suite::late_challenges() {
    const auto begin = std::chrono::steady_clock::now();
    // As many as one stream may hold open, on as many streams of two qubes as it takes.
    const int per_stream = static_cast<int>(limits::open_challenges);
    std::vector<std::unique_ptr<attacker>> streams;
    std::vector<std::vector<std::uint32_t>> sessions;
    int made = 0;
    while (made < tries) {
        streams.push_back(std::make_unique<attacker>(dom0_, streams.size() % 2 ? "work" : "dev"));
        sessions.emplace_back();
        for (int i = 0; i < per_stream && made < tries; ++i, ++made)
            sessions.back().push_back(streams.back()->open_session());
    }
    const std::uint64_t opened = host::boottime_ms();
    require(eventually([&] { return host::boottime_ms() > opened + limits::challenge_ms + 100; }),
            "the clock stands still");
    for (std::size_t s = 0; s < streams.size(); ++s)
        for (const std::uint32_t session : sessions[s]) {
            streams[s]->send(signed_request(*streams[s], session, request(mark_command()),
                                            s % 2 ? 'a' : 'b'));
            expect_refusal(*streams[s]);
        }
    streams.clear();
    finish_row("a challenge used after 30 s", made, begin);
}

void suite::replayed_ids() {
    const auto begin = std::chrono::steady_clock::now();
    constexpr int restarts = 100;
    // IDs that have run, with a time in them and without.
    std::vector<command_id> used;
    {
        host::client c = honest(dom0_, "work", 'a');
        for (int i = 0; i < 50; ++i) {
            const command_id id = i % 2 ? host::client::make_id()
                                        : command_id::parse("plain-" + std::to_string(i)).value();
            const auto r = c.collect({.kind = request_kind::shell,
                                      .body = "true",
                                      .arguments = {},
                                      .environment = {},
                                      .id = id});
            require(r.result.exit_code() == 0, "the first use of an ID");
            used.push_back(id);
        }
    }
    int count = 0;
    for (int restart = 0; restart <= restarts; ++restart) {
        attacker a(dom0_, "work");
        for (int i = 0; i < tries / restarts; ++i, ++count) {
            // Signed with the right key, on a fresh challenge: only the ID is old.
            envelope e = request(mark_command());
            e.id = used[static_cast<std::size_t>(i) % used.size()];
            a.send(signed_request(a, a.open_session(), std::move(e)));
            const auto event = a.answer();
            require(event && event->what == client_event::kind::refused &&
                        event->reason == errc::id_used,
                    "a used ID was not refused as such");
        }
        if (restart < restarts)
            dom0_.restart();
    }
    finish_row("a used ID, before and after 100 restarts", count, begin);
}

void suite::run() {
    good_request("the start");
    std::string big(limits::inline_body + 1000, '#');

    row("I1: a body swapped behind its header", "work", [&](attacker &a, std::mt19937 &) {
        const std::uint32_t session = a.open_session();
        a.send(signed_request(a, session, request("true " + big)));
        // dom0 asks for the body; the machine answers with sealed frames, whose payload is swapped.
        std::string swapped = mark_command() + "; " + big;
        for (int i = 0; i < 2 && a.machine.output().size() == 0; ++i) {
            pollfd wait{a.fd(), POLLIN, 0};
            require(::poll(&wait, 1, hang_guard_ms) == 1, "no credit for the body");
            const auto room = a.machine.prepare();
            const ssize_t n = ::read(a.fd(), room.data(), room.size());
            require(n > 0, "the stream ended");
            a.machine.commit(static_cast<std::size_t>(n));
            require(a.machine.next().has_value(), "the stream broke");
        }
        bytes frame = a.take_output();
        std::copy_n(swapped.begin(), std::min(swapped.size(), frame.size() - 40),
                    frame.begin() + frame_header::size);
        a.send(frame);
        expect_refusal(a);
    });
    row("I1: a body swapped inside its header", "work", [&](attacker &a, std::mt19937 &) {
        const std::string payload = mark_command();
        bytes frame = signed_request(a, a.open_session(), request(std::string(payload.size(), '#')));
        std::copy(payload.begin(), payload.end(), frame.end() - static_cast<long>(payload.size()));
        a.send(frame);
        expect_refusal(a);
    });
    {
        envelope e;
        e.kind = request_kind::exec;
        e.arguments = {"touch", marks_ + "/argv"};
        row("I1: an argv swapped", "work", [&](attacker &a, std::mt19937 &random) {
            e.id = host::client::make_id();
            e.arguments[1] = marks_ + "/argV";
            bytes frame = signed_request(a, a.open_session(), e);
            frame[frame.size() - 5 - 1 - random() % e.arguments[1].size()] ^= 0x20;
            a.send(frame);
            expect_refusal(a);
        });
    }
    changed_header("I1: a time-out changed", timeout_at, 4, request(mark_command()));
    changed_header("I1: the stdin flag changed", flags_at, 1, request(mark_command()));
    changed_header("I1: a feature stripped from the request", features_at, 4, request(mark_command()));
    changed_header("I1: a token changed", token_at, token_size, request(mark_command()));

    row("I1: a feature stripped from HELLO", "work", [&](attacker &, std::mt19937 &) {
        attacker fresh(dom0_, "work");
        bool changed = false;
        fresh.on_input = [&](std::span<std::uint8_t> data) {
            if (!std::exchange(changed, true)) // HELLO comes first: version, then features
                data[frame_header::size + 2 + 3] = 0;
        };
        fresh.send(signed_request(fresh, fresh.open_session(), request(mark_command())));
        expect_refusal(fresh);
    });
    row("I1: a truncated token", "work", [&](attacker &a, std::mt19937 &random) {
        bytes frame = signed_request(a, a.open_session(), request(mark_command()));
        const std::size_t cut = 1 + random() % token_size;
        frame.erase(frame.begin() + token_at, frame.begin() + static_cast<long>(token_at + cut));
        store_u32(frame.data(), static_cast<std::uint32_t>(frame.size() - frame_header::size));
        a.send(frame);
        expect_refusal(a);
    });
    row("I1: an absent token", "work", [&](attacker &a, std::mt19937 &) {
        bytes frame = signed_request(a, a.open_session(), request(mark_command()));
        frame.resize(frame_header::size);
        store_u32(frame.data(), 0);
        a.send(frame);
        expect_refusal(a);
    });
    row("I1: another qube's key", "work", [&](attacker &a, std::mt19937 &) {
        a.send(signed_request(a, a.open_session(), request(mark_command()), 'b'));
        expect_refusal(a);
    });
    row("I1: no key at all", "stranger", [&](attacker &a, std::mt19937 &) {
        a.send(signed_request(a, a.open_session(), request(mark_command()), 'c'));
        expect_refusal(a);
    });
    {
        // One good request, kept, and sent again on every challenge that comes after.
        std::optional<bytes> kept;
        const std::string once = scratch_ / "once";
        row("I2: a request sent again on another challenge", "work",
            [&](attacker &a, std::mt19937 &) {
                const std::uint32_t session = a.open_session();
                if (!kept) {
                    kept = signed_request(a, session, request("echo ran >> " + once));
                    a.send(*kept);
                    for (;;) {
                        const auto event = a.next();
                        require(event.has_value(), "the first request fails");
                        if (event->what == client_event::kind::ended)
                            return;
                    }
                }
                bytes frame = *kept;
                store_u32(frame.data() + 4, session);
                a.send(frame);
                expect_refusal(a);
            });
        require(read_file(once) == "ran\n", "a kept request ran again");
        row("I2: a request sent twice on one challenge", "work", [&](attacker &a, std::mt19937 &) {
            ::unlink(once.c_str());
            const std::uint32_t session = a.open_session();
            bytes frame = signed_request(a, session, request("echo ran >> " + once));
            bytes twice = frame;
            twice.insert(twice.end(), frame.begin(), frame.end());
            a.send(twice);
            for (;;) {
                const auto event = a.next();
                require(event.has_value(), "the stream ended");
                if (event->what != client_event::kind::accepted)
                    break;
            }
            const std::string ran = read_file(once);
            require(ran.empty() || ran == "ran\n", "one challenge, two executions");
        });
    }
    late_challenges();

    const std::string sink = "exec cat >> " + (scratch_ / "delivered");
    const auto plain_frame = [](std::uint32_t session, frame_type type, bytes_view payload) {
        bytes frame(frame_header::size + payload.size());
        frame_header{static_cast<std::uint32_t>(payload.size()), session, type}.encode(frame.data());
        std::copy(payload.begin(), payload.end(), frame.begin() + frame_header::size);
        return frame;
    };
    session_row("I1: a STDIN frame injected", sink,
                [&](attacker &, std::uint32_t session, std::mt19937 &random) {
                    bytes payload(16 + 1 + random() % 64);
                    for (auto &b : payload)
                        b = static_cast<std::uint8_t>(random());
                    return plain_frame(session, frame_type::stdin_data, payload);
                });
    session_row("I1: STDIN frames in another order", sink,
                [&](attacker &a, std::uint32_t session, std::mt19937 &) {
                    const auto piece = [&](const char *text) {
                        const auto room = a.machine.prepare_stdin(session);
                        std::copy_n(text, 6, room.begin());
                        a.machine.commit_stdin(session, 6);
                        return a.take_output();
                    };
                    const bytes first = piece("first\n");
                    bytes second = piece("secon\n");
                    second.insert(second.end(), first.begin(), first.end());
                    return second;
                });
    session_row("I1: a SIGNAL frame injected", "trap 'echo caught >> " + (scratch_ / "delivered") +
                                                   "' USR1; while :; do sleep 0.01; done",
                [&](attacker &, std::uint32_t session, std::mt19937 &random) {
                    bytes payload(17);
                    for (auto &b : payload)
                        b = static_cast<std::uint8_t>(random());
                    payload[0] = 10;
                    return plain_frame(session, frame_type::signal, payload);
                });
    session_row("I1: a SIGNAL frame ahead of its turn", sink,
                [&](attacker &a, std::uint32_t session, std::mt19937 &) {
                    const auto room = a.machine.prepare_stdin(session);
                    std::copy_n("first\n", 6, room.begin());
                    a.machine.commit_stdin(session, 6);
                    const bytes before = a.take_output();
                    a.machine.send_signal(session, 10);
                    bytes swapped = a.take_output();
                    swapped.insert(swapped.end(), before.begin(), before.end());
                    return swapped;
                });
    replayed_ids();
}

} // namespace

int main(int argc, char **argv) {
    const effort asked(argc, argv, tries);
    tries = asked.is_timed() ? std::min(asked.rounds(), 500) : asked.rounds();
    ::signal(SIGPIPE, SIG_IGN);
    do {
        suite().run();
        ++seed;
    } while (asked.is_timed() && asked.goes_on(0));
    std::printf("all rows hold\n");
    return 0;
}
