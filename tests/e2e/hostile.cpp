// SPDX-License-Identifier: GPL-2.0-or-later
// Tests the shipped daemon against a hostile agent and a hostile client. The agent is between a
// client and the daemon and has no key: it sees all bytes, and changes, repeats, delays and invents
// frames. A command that runs makes a file, and delivered bytes are written to a file, so the test
// notices each execution. The client must not accept a result that the agent has changed. The
// hostile client has a key: it floods, lies, stalls, and sends without credit. After each row an
// honest request must succeed.
//
// Usage: hostile [TRIES] [seconds=N]. Each row prints its count. The test fails after any execution
// or delivered byte. With a time, all rows are repeated with other random bits until it is over.

#include "hostile.hpp"

namespace e2e {

// Flips one random bit of a field of the signed header on the way.
void suite::changed_header(const char *name, std::size_t at, std::size_t width, envelope e) {
    row(name, "work", [&](attacker &a, std::mt19937 &random) {
        e.id = host::client::make_id();
        bytes frame = signed_request(a, a.open_session(), e);
        frame[at + random() % width] ^= static_cast<std::uint8_t>(1u << random() % 8);
        a.send(frame);
        expect_refusal(a);
    });
}

// Starts a command that writes its stdin to a file, and sends the bytes that `attack` returns. The
// session must end, and none of these bytes may arrive.
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
    // Opens as many challenges as a stream may have, on enough streams of two qubes.
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
            streams[s]->send(
                signed_request(*streams[s], session, request(mark_command()), s % 2 ? 'a' : 'b'));
            expect_refusal(*streams[s]);
        }
    streams.clear();
    finish_row("a challenge used after 30 s", made, begin);
}

void suite::replayed_ids() {
    const auto begin = std::chrono::steady_clock::now();
    constexpr int restarts = 100;
    // IDs that have run, with and without a time in them.
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
            // The request is signed with the right key on a fresh challenge: only the ID is old.
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

// The command runs to its end, and the agent changes its output or END: the client must not accept
// the END.
void suite::touched_results() {
    const auto result_row = [&](const char *name, const std::string &command,
                                const std::function<std::vector<bytes>(bytes)> &touch) {
        row(
            name, "work",
            [&](attacker &a, std::mt19937 &) {
                const std::uint32_t session = a.open_session();
                a.on_frame = touch;
                a.send(signed_request(a, session, request(command)));
                for (;;) {
                    const auto event = a.next();
                    require(event.has_value(), std::string(name) + ": the stream ended");
                    require(event->what != client_event::kind::ended,
                            std::string(name) + ": a result was believed");
                    if (event->what == client_event::kind::closed)
                        break;
                }
                a.on_frame = nullptr;
                a.flush();
            },
            few);
    };
    std::mt19937 random(seed);
    const std::string talks = "echo out; echo err >&2; exit 3";
    result_row("I10: an END forged", "exec sleep 1000", [&](bytes frame) {
        bytes forged(1 + 4 + 8 + 8 + tag_size);
        forged[0] = static_cast<std::uint8_t>(end_cause::exited);
        for (std::size_t i = forged.size() - tag_size; i < forged.size(); ++i)
            forged[i] = static_cast<std::uint8_t>(random());
        std::vector<bytes> out{frame};
        if (type_of(frame) == frame_type::accepted)
            out.push_back(plain_frame(frame_type::end, load_u32(frame.data() + 4), forged));
        return out;
    });
    result_row("I10: an END changed", talks, [&](bytes frame) {
        if (type_of(frame) == frame_type::end)
            frame[frame_header::size + random() % (frame.size() - frame_header::size)] ^=
                static_cast<std::uint8_t>(1u << random() % 8);
        return std::vector<bytes>{frame};
    });
    bytes kept;
    result_row("I10: the END of another session", talks, [&](bytes frame) {
        if (type_of(frame) == frame_type::end) {
            const bytes own = frame;
            if (!kept.empty())
                frame = kept;
            else // there is no other session yet
                frame.back() ^= 1;
            store_u32(frame.data() + 4, load_u32(own.data() + 4));
            kept = own;
        }
        return std::vector<bytes>{frame};
    });
    result_row("I10: output left out", talks, [](bytes frame) {
        return type_of(frame) == frame_type::stdout_data ? std::vector<bytes>{}
                                                         : std::vector<bytes>{frame};
    });
    result_row("I10: a frame of output repeated", talks, [](bytes frame) {
        const bool twice = type_of(frame) == frame_type::stdout_data;
        return twice ? std::vector<bytes>{frame, frame} : std::vector<bytes>{frame};
    });
    bytes held_back;
    result_row("I10: output in another order", talks, [&](bytes frame) {
        if (type_of(frame) == frame_type::stdout_data) {
            held_back = frame;
            return std::vector<bytes>{};
        }
        return held_back.empty() ? std::vector<bytes>{frame}
                                 : std::vector<bytes>{frame, std::exchange(held_back, {})};
    });
}

// After an authentic frame with forbidden content the session ends, and its command too.
void suite::lying_client() {
    const auto lie = [&](const char *name, bool has_stdin,
                         const std::function<bytes(forger &, std::mt19937 &)> &make) {
        row(
            name, "work",
            [&](attacker &a, std::mt19937 &random) {
                const std::uint32_t session = a.open_session();
                envelope e = request("exec sleep 1000");
                e.features = 0;
                e.stdin_live = has_stdin;
                const bytes asked = signed_request(a, session, std::move(e));
                forger key(asked, session);
                a.send(asked);
                const auto accepted = a.answer();
                require(accepted && accepted->what == client_event::kind::accepted, "not accepted");
                a.send(make(key, random));
                auto event = a.next();
                while (event && event->what == client_event::kind::stdin_ready)
                    event = a.next(); // dom0's credit for what the pipe took
                require(event && event->what == client_event::kind::closed &&
                            event->session == session,
                        std::string(name) + ": the frame was accepted");
            },
            few);
    };
    lie("more STDIN than there is credit for", true, [](forger &key, std::mt19937 &) {
        // The command does not read, but a pipe of 256 KiB takes what comes first.
        bytes all;
        for (std::size_t sent = 0; sent <= limits::widest_window; sent += max_tagged_payload)
            all += key.frame(frame_type::stdin_data, max_tagged_payload);
        return all;
    });
    lie("CREDIT beyond the window", false, [](forger &key, std::mt19937 &random) {
        std::uniform_int_distribution<std::uint32_t> any(limits::widest_window);
        return key.number(frame_type::credit, any(random));
    });
    lie("CREDIT for nothing", false,
        [](forger &key, std::mt19937 &) { return key.number(frame_type::credit, 0); });
    lie("STDIN for a request without it", false,
        [](forger &key, std::mt19937 &) { return key.frame(frame_type::stdin_data, 1); });
    lie("STDIN after its end", true, [](forger &key, std::mt19937 &) {
        bytes all = key.frame(frame_type::stdin_eof, 0);
        return all += key.frame(frame_type::stdin_data, 1);
    });
    lie("empty STDIN", true,
        [](forger &key, std::mt19937 &) { return key.frame(frame_type::stdin_data, 0); });
    lie("a SIGNAL that is not on the list", false, [](forger &key, std::mt19937 &random) {
        static constexpr std::uint8_t numbers[] = {0, 9, 11, 19, 64, 65, 255};
        return key.frame(frame_type::signal, {{numbers[random() % std::size(numbers)]}});
    });
    lie("a BODY that nobody asked for", false, [](forger &key, std::mt19937 &random) {
        return key.frame(frame_type::body, 1 + random() % 999);
    });
    lie("RESIZE of another length", false, [](forger &key, std::mt19937 &random) {
        return key.frame(frame_type::resize, std::array<std::size_t, 3>{0, 3, 5}[random() % 3]);
    });
}

// Sizes, numbers and frames that no client sends.
void suite::senseless_client() {
    row(
        "a BODY longer than announced", "work",
        [&](attacker &a, std::mt19937 &random) {
            const std::uint32_t session = a.open_session();
            envelope e = request(mark_command() + "\n" + std::string(limits::inline_body, '#'));
            const std::size_t length = e.body.size();
            const bytes asked = signed_request(a, session, std::move(e));
            forger key(asked, session);
            a.send(asked);
            a.send(key.frame(frame_type::body, length + 1 + random() % 999));
            expect_refusal(a);
        },
        few);
    row("a number that no session has had", "work", [&](attacker &a, std::mt19937 &random) {
        const std::uint32_t session = a.open_session();
        bytes frame = signed_request(a, session, request(mark_command()));
        store_u32(frame.data() + 4,
                  random() % 2 ? 0 : session + 1 + static_cast<std::uint32_t>(random() % 1000));
        a.send(frame);
        expect_refusal(a);
    });
    row("a frame that only dom0 may send", "work", [&](attacker &a, std::mt19937 &random) {
        const std::uint32_t session = a.open_session();
        std::vector<frame_type> theirs;
        for (const frame_rule &rule : frame_rules)
            if (rule.from == sender::dom0)
                theirs.push_back(rule.type);
        a.send(plain_frame(theirs[random() % theirs.size()], session, bytes(random() % 64)));
        expect_refusal(a);
    });
    row("a frame that is too long", "work", [&](attacker &a, std::mt19937 &random) {
        bytes frame = plain_frame(frame_type::request, a.open_session(), bytes(64));
        store_u32(frame.data(), 0x80000000u | static_cast<std::uint32_t>(random()));
        a.send(frame);
        expect_refusal(a);
    });
    std::string once = scratch_ / "ran";
    int count = 0;
    row(
        "I2: a session's number used again after its END", "work",
        [&](attacker &a, std::mt19937 &) {
            const std::uint32_t session = a.open_session();
            const bytes asked = signed_request(a, session, request("echo ran >> " + once));
            a.send(asked);
            for (auto event = a.next(); !event || event->what != client_event::kind::ended;
                 event = a.next())
                require(event.has_value(), "the first request fails");
            ++count;
            a.send(asked);
            // The machine does not know the session any more, so check that dom0 serves the next
            // one.
            a.machine.close(a.open_session());
            a.flush();
        },
        few);
    require(read_file(once).size() == static_cast<std::size_t>(count) * 4, "a request ran again");
}

// The peak of the daemon's resident memory, in KiB.
static long peak_kib(const daemon_under_test &d) {
    const std::string status = read_file("/proc/" + std::to_string(d.pid()) + "/status");
    const std::size_t at = status.find("VmHWM:");
    require(at != status.npos, "the daemon is gone");
    return std::stol(status.substr(at + 6));
}

// Sends until the daemon does not read any more. The daemon must keep little of it.
void suite::flooding_client() {
    const long before = peak_kib(dom0_);
    row(
        "OPENs without end", "work",
        [&](attacker &, std::mt19937 &) {
            attacker a(dom0_, "work");
            constexpr int asked = 100;
            for (int i = 0; i < asked; ++i)
                a.machine.open();
            a.flush();
            int given = 0;
            for (int i = 0; i < asked; ++i) {
                const auto event = a.answer();
                require(event.has_value(), "the stream ended");
                given += event->what == client_event::kind::challenged;
            }
            require(given == static_cast<int>(limits::open_challenges), "challenges without end");
        },
        few);
    const auto endless = [&](const char *name, const std::function<bytes(std::uint32_t)> &piece) {
        row(
            name, "work",
            [&](attacker &, std::mt19937 &) {
                attacker a(dom0_, "work");
                const bytes again = piece(a.open_session());
                // Stop when the daemon has not read for a while: it waits until we read its
                // answers.
                for (std::size_t sent = 0; a.is_open() && sent < 8 * 1024 * 1024;
                     sent += again.size()) {
                    pollfd room{a.fd(), POLLOUT, 0};
                    if (::poll(&room, 1, 100) != 1)
                        break;
                    a.send(again);
                }
            },
            few / 10);
    };
    const auto many = [](const bytes &frame) {
        bytes all;
        while (all.size() < 1024)
            all += frame;
        return all;
    };
    endless("PINGs whose answers nobody reads",
            [&](std::uint32_t) { return many(plain_frame(frame_type::ping, 0, bytes(8))); });
    endless("requests of a session that is over", [&](std::uint32_t session) {
        bytes all = plain_frame(frame_type::close, session, bytes(2));
        return all += many(plain_frame(frame_type::request, session, bytes(64)));
    });
    endless("frames of a session that is over", [&](std::uint32_t session) {
        bytes all = plain_frame(frame_type::close, session, bytes(2));
        return all += many(plain_frame(frame_type::stdin_data, session, bytes(64)));
    });
#ifndef __SANITIZE_ADDRESS__ // AddressSanitizer keeps freed memory
    const long grown = peak_kib(dom0_) - before;
    require(grown < 8 * 1024, "floods make the daemon grow by " + std::to_string(grown) + " KiB");
    std::printf("%-52s %6ld KiB\n", "the daemon's growth by floods", grown);
#else
    (void)before;
#endif
}

// Begins something and does not finish it, on as many streams as a qube may have.
void suite::stalling_client() {
    std::vector<std::unique_ptr<attacker>> waiting;
    const auto hold = [&](std::unique_ptr<attacker> a) {
        waiting.push_back(std::move(a));
        if (waiting.size() > 60)
            waiting.erase(waiting.begin(), waiting.begin() + 30);
    };
    row(
        "a request that stops half-way", "work",
        [&](attacker &, std::mt19937 &random) {
            auto a = std::make_unique<attacker>(dom0_, "work");
            bytes frame = signed_request(*a, a->open_session(), request(mark_command()));
            frame.resize(random() % frame.size());
            a->send(frame);
            hold(std::move(a));
        },
        few);
    waiting.clear();
    // These take slots of their own qube, and no slot of another.
    for (std::size_t i = 0; i < limits::running_per_qube; ++i) {
        auto a = std::make_unique<attacker>(dom0_, "dev");
        a->send(signed_request(
            *a, a->open_session(),
            request(mark_command() + "\n" + std::string(limits::inline_body, '#')), 'b'));
        hold(std::move(a));
    }
    row(
        "beside bodies that never come", "work",
        [&](attacker &, std::mt19937 &) { good_request("stalls"); }, few);
    waiting.clear();
    host::client dev = honest(dom0_, "dev", 'b');
    require(dev.collect({.kind = request_kind::shell,
                         .body = "exit 4",
                         .arguments = {},
                         .environment = {},
                         .id = {}})
                    .result.exit_code() == 4,
            "a qube's slots are not given back");
}

// A client that has a slot and does not send its body.
std::unique_ptr<attacker> suite::withheld_body() {
    auto a = std::make_unique<attacker>(dom0_, "dev");
    a->send(signed_request(*a, a->open_session(),
                           request(std::string(limits::inline_body + 1, '#')), 'b'));
    a->await_call_for_body();
    return a;
}

// Whether no request of the qube gets a slot.
bool suite::has_no_slot() {
    host::client dev = honest(dom0_, "dev", 'b');
    return dev.collect({.kind = request_kind::status,
                        .body = {},
                        .arguments = {},
                        .environment = {},
                        .id = {}})
               .out.find("running: 0") != std::string::npos;
}

void suite::swapped_bodies() {
    std::string big(limits::inline_body + 1000, '#');

    row("I1: a body swapped after its header", "work", [&](attacker &a, std::mt19937 &) {
        const std::uint32_t session = a.open_session();
        a.send(signed_request(a, session, request("true " + big)));
        // dom0 asks for the body. The machine answers with sealed frames, and the agent replaces
        // their payload.
        std::string swapped = mark_command() + "; " + big;
        a.await_call_for_body();
        bytes frame = a.take_output();
        std::copy_n(swapped.begin(), std::min(swapped.size(), frame.size() - 40),
                    frame.begin() + frame_header::size);
        a.send(frame);
        expect_refusal(a);
    });
    row("I1: a body swapped inside its header", "work", [&](attacker &a, std::mt19937 &) {
        const std::string payload = mark_command();
        bytes frame =
            signed_request(a, a.open_session(), request(std::string(payload.size(), '#')));
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
}

void suite::damaged_requests() {
    changed_header("I1: a time-out changed", timeout_at, 4, request(mark_command()));
    changed_header("I1: the stdin flag changed", flags_at, 1, request(mark_command()));
    changed_header("I1: a feature stripped from the request", features_at, 4,
                   request(mark_command()));
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
}

void suite::repeated_requests() {
    // Keep one good request, and send it again on every later challenge.
    std::optional<bytes> kept;
    const std::string once = scratch_ / "once";
    row("I2: a request sent again on another challenge", "work", [&](attacker &a, std::mt19937 &) {
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

void suite::injected_frames() {
    const std::string sink = "exec cat >> " + (scratch_ / "delivered");
    session_row("I1: a STDIN frame injected", sink,
                [&](attacker &, std::uint32_t session, std::mt19937 &random) {
                    bytes payload(16 + 1 + random() % 64);
                    for (auto &b : payload)
                        b = static_cast<std::uint8_t>(random());
                    return plain_frame(frame_type::stdin_data, session, payload);
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
    session_row("I1: a SIGNAL frame injected",
                "trap 'echo caught >> " + (scratch_ / "delivered") +
                    "' USR1; while :; do sleep 0.01; done",
                [&](attacker &, std::uint32_t session, std::mt19937 &random) {
                    bytes payload(17);
                    for (auto &b : payload)
                        b = static_cast<std::uint8_t>(random());
                    payload[0] = 10;
                    return plain_frame(frame_type::signal, session, payload);
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
}

// A body is late for so long that dom0 gives the slot to others.
void suite::late_body(attacker &withheld) {
    bool is_given_back = false;
    for (int i = 0; i < 180 && !is_given_back; ++i) {
        is_given_back = has_no_slot();
        if (!is_given_back)
            std::this_thread::sleep_for(std::chrono::seconds(1));
    }
    require(is_given_back, "a request whose body never comes keeps its slot");
    // When the body comes after all, its command runs.
    withheld.flush();
    for (;;) {
        const auto event = withheld.next();
        require(event && event->what != client_event::kind::refused, "a late body is refused");
        if (event->what == client_event::kind::ended)
            break;
    }
}

void suite::run() {
    good_request("the start");
    const auto withheld = withheld_body(); // it keeps its slot for a minute
    swapped_bodies();
    damaged_requests();
    repeated_requests();
    late_challenges();
    injected_frames();
    touched_results();
    lying_client();
    senseless_client();
    flooding_client();
    stalling_client();
    late_body(*withheld);
    jobs();
    rights(); // this starts the daemon again
    replayed_ids();
}

} // namespace e2e

int main(int argc, char **argv) {
    using namespace e2e;
    const effort asked(argc, argv, tries);
    tries = asked.is_timed() ? std::min(asked.rounds(), 500) : asked.rounds();
    few = asked.is_timed() ? tries / 5 : std::max(tries / 40, 20);
    ::signal(SIGPIPE, SIG_IGN);
    do {
        suite().run();
        ++seed;
    } while (asked.is_timed() && asked.goes_on(0));
    std::printf("all rows hold\n");
    return 0;
}
