// SPDX-License-Identifier: GPL-2.0-or-later
// Tests a stream from a qube with the bytes that a qube can send. A request may end (by CLOSE, the
// end of its stdin, a bad frame, the end of its stream, a revoked key, drain or panic) in the same
// round of the loop in which something that it waits for is completed. The test turns the loop
// itself, so that it can arrange this.
#include "serve/connection.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <qvmremote/session.hpp>

#include "support/scratch.hpp"

using namespace qvmremote;
using namespace qvmremote::dom0;
using namespace std::chrono_literals;
using qvmremote_test::scratch;

namespace {

constexpr auto hang_guard = 60s;
warden *the_warden = nullptr;

/// A dom0 with one qube, `work`, and these rules; and the qube's end of one stream.
class house final : public coordinator {
  public:
    explicit house(const std::string &rule) : where_(paths::below(root_.path()).value()) {
        for (const std::string &dir : {where_.keys(), where_.policy(), where_.run_directory(),
                                       where_.root() + "/var/log/qubes"})
            std::filesystem::create_directories(dir);
        qvmremote_test::put(where_.policy() + "/30-test.policy", rule);
        REQUIRE(keys_.store(work_, key_));
        log_.emplace(event_log::open(where_.log(), false).value());
        const auto post = [this](std::function<void()> work) {
            boost::asio::post(loop_, std::move(work));
            ++posted;
        };
        journal_ = journal::open(where_, {}, post).value();
        tags_ =
            std::make_unique<tag_source>(tag_origin{.qubesd = {}, .program = slow_tags()}, post);
        admission_.emplace(where_, keys_, policies_, *tags_, approvals_, *journal_, *log_);
        REQUIRE(admission_->reload(std::nullopt, "auto"));
        context_ = std::make_shared<service>(*this, loop_, *log_, *journal_, *admission_,
                                             approvals_, *the_warden);
        context_->execution.self = own_account();
        context_->execution.on_end = [] {};
        int ends[2];
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
        qube_.reset(ends[0]);
        host::stream stream;
        stream.in.reset(ends[1]);
        stream.out.reset(::dup(ends[1]));
        connection_ = std::make_shared<connection>(*context_, std::move(stream), work_,
                                                   std::string("qvm-run"));
        context_->connections.insert(connection_);
        connection_->start();
    }
    ~house() {
        connection_->close();
        turn_until([this] { return context_->execution.running.empty(); });
        tags_.reset();
        context_->connections.clear();
        connection_.reset();
        loop_.poll();
    }

    void something_ended() override {}
    void questions_changed() override {}
    void keep_alive_changed() override {}
    std::optional<std::uint64_t> ask_operator(question what, approvals::answer tell) override {
        return approvals_.ask(std::move(what), host::boottime_ms(), std::move(tell));
    }
    void reschedule() override {
        if (!slots_held)
            (void)context_->scheduler.run(host::boottime_ms());
    }

    /// Sends the output of the qube's end.
    void say() {
        out_buffer &out = client.output();
        while (out.size() > 0) {
            const auto n = ::send(qube_.get(), out.pending().data(), out.size(), MSG_NOSIGNAL);
            if (n <= 0)
                return;
            out.consume(static_cast<std::size_t>(n));
        }
    }
    /// Reads what dom0 has sent; answers of the qube wait for say().
    void hear() {
        for (;;) {
            const auto room = client.prepare();
            const auto n = ::read(qube_.get(), room.data(), room.size());
            if (n <= 0)
                return;
            client.commit(static_cast<std::size_t>(n));
            for (;;) {
                auto event = client.next();
                REQUIRE(event);
                if (!*event)
                    break;
                heard.push_back(std::move(**event));
            }
        }
    }
    [[nodiscard]] bool has_heard(client_event::kind what) const {
        return std::any_of(heard.begin(), heard.end(),
                           [&](const client_event &e) { return e.what == what; });
    }
    template <class Condition>
    void turn_until(Condition holds) {
        const auto end = std::chrono::steady_clock::now() + hang_guard;
        for (;; std::this_thread::sleep_for(1ms)) {
            say();
            loop_.restart();
            loop_.poll();
            hear();
            if (holds())
                return;
            REQUIRE(std::chrono::steady_clock::now() < end);
        }
    }
    /// The same without hear(), so that the client's machine does not answer.
    template <class Condition>
    void turn_deaf_until(Condition holds) {
        const auto end = std::chrono::steady_clock::now() + hang_guard;
        for (; !holds(); std::this_thread::sleep_for(1ms)) {
            say();
            one_round();
            REQUIRE(std::chrono::steady_clock::now() < end);
        }
    }
    /// Runs the handlers that are ready now, as the daemon's loop would.
    void one_round() {
        loop_.restart();
        loop_.poll();
    }

    /// Sends one request and leaves its answers to the caller.
    void request(std::string body, bool with_input, std::string id = {}) {
        client.open();
        turn_until([this] { return has_heard(client_event::kind::challenged); });
        static int n = 0;
        envelope what;
        what.kind = request_kind::shell;
        what.stdin_live = with_input;
        what.id = command_id::parse(id.empty() ? "test-" + std::to_string(++n) : id).value();
        what.set_body(std::move(body));
        number = heard.back().session;
        REQUIRE(client.send_request(number, std::move(what), key_));
    }

    void revoke() { REQUIRE(keys_.remove(work_)); }
    void cut() { qube_.reset(); }

    [[nodiscard]] service &context() { return *context_; }
    [[nodiscard]] class connection &stream() { return *connection_; }
    [[nodiscard]] class approvals &words() { return approvals_; }

    client_stream client;
    std::vector<client_event> heard;
    std::uint32_t number = 0;
    bool slots_held = false;     ///< no request gets a slot
    std::atomic<int> posted = 0; ///< answers that the journal's threads have posted

  private:
    // A program that answers slowly enough for a test to do something meanwhile.
    [[nodiscard]] std::string slow_tags() const {
        return qvmremote_test::put(root_ / "qvm-tags", "#!/bin/sh\nsleep 0.5\n", 0755);
    }

    scratch root_;
    paths where_;
    boost::asio::io_context loop_{1};
    qube_name work_ = qube_name::parse("work").value();
    secret key_ = secret::parse(std::string(64, 'a')).value();
    keyring keys_{where_.keys()};
    policy_files policies_{where_.policy()};
    approvals approvals_{1000};
    std::optional<event_log> log_;
    std::unique_ptr<journal> journal_;
    std::unique_ptr<tag_source> tags_;
    std::optional<class admission> admission_;
    std::shared_ptr<service> context_;
    std::shared_ptr<connection> connection_;
    host::unique_fd qube_;
};

void end_input(house &h) { h.client.stdin_eof(h.number); }
void close_session(house &h) { h.client.close(h.number); }

} // namespace

TEST_CASE("the limit for stdin expires in the round in which the collection ends") {
    struct {
        const char *name;
        void (*end)(house &);
        bool asks; ///< whether the request goes on and an operator is asked
    } const rows[] = {
        {"CLOSE", close_session, false},
        {"STDIN_EOF", end_input, true},
        {"stream end", [](house &h) { h.cut(); }, false},
        {"drain", [](house &h) { h.stream().refuse_waiting(errc::draining); }, false},
        {"panic", [](house &h) { h.stream().refuse_waiting(errc::panicked); }, false},
        {"revoked key",
         [](house &h) {
             h.revoke();
             h.stream().recheck_keys();
         },
         false},
        {"stream closed by dom0", [](house &h) { h.stream().close(); }, false},
    };
    for (const auto &row : rows) {
        const std::string row_name = row.name;
        CAPTURE(row_name);
        bool tried = false;
        // On a busy machine the limit may expire before the test sends the event: then try again
        // with more time.
        for (std::uint64_t patience = 100; !tried && patience <= 12'800; patience *= 2) {
            house h("work * ask\n");
            h.context().stdin_patience_ms = patience;
            h.request("cat", true);
            h.turn_until([&] { return h.has_heard(client_event::kind::stdin_ready); });
            if (h.has_heard(client_event::kind::refused))
                continue;
            std::this_thread::sleep_for(std::chrono::milliseconds(patience + 20));
            row.end(h);
            h.say();
            h.one_round(); // handles the bytes and the timer together
            h.one_round();
            tried = true;
            if (row.asks) {
                h.turn_until([&] { return h.words().open().size() == 1; });
                CHECK_FALSE(h.has_heard(client_event::kind::refused));
            } else {
                CHECK_FALSE(h.stream().is_busy());
                CHECK(h.words().open().empty());
            }
            CHECK(h.context().scheduler.running() == 0);
        }
        CHECK(tried);
    }
}

namespace {

// A step at which a request may wait, and what completes the wait.
struct point {
    const char *name;
    const char *rule;
    void (*reach)(house &);
    void (*complete)(house &);
};

bool is_open(house &h) { return h.words().open().size() == 1; }
void reach_question(house &h) {
    h.request("true", true);
    h.turn_until([&] { return h.has_heard(client_event::kind::stdin_ready); });
    h.client.stdin_eof(h.number);
    h.turn_until([&] { return is_open(h); });
}
void reach_body(house &h) {
    h.request(std::string(100'000, '#') + "\ntrue", false);
    h.turn_deaf_until([&] { return h.context().scheduler.running() == 1; });
}
void reach_start(house &h) {
    h.request("true", false);
    h.say();
    // START may be written already. Then the test tries a later moment, which is a valid one too.
    h.turn_deaf_until([&] { return h.context().admission.starting() == 1 || h.posted > 0; });
}
void allow(house &h) {
    if (is_open(h))
        CHECK(h.words().allow(h.words().open()[0]->serial, to_hex(h.words().open()[0]->digest), {},
                              "operator", host::boottime_ms()));
}
void give_slots(house &h) {
    h.slots_held = false;
    h.reschedule();
}
void nothing(house &) {}

const point points[] = {
    {"slot", "work level:full allow\n",
     [](house &h) {
         h.slots_held = true;
         h.request("true", false);
         h.turn_deaf_until([&] { return h.context().scheduler.waiting("work") == 1; });
     },
     give_slots},
    {"body", "work level:full allow\n", reach_body,
     [](house &h) {
         h.hear(); // the credit for the body, which the client's machine then sends
         h.say();
     }},
    {"late body", "work level:full allow\n", reach_body,
     [](house &h) {
         h.context().body_patience_ms = 0;
         h.stream().keep_alive(host::boottime_ms(), false);
     }},
    {"START is being written", "work level:full allow\n", reach_start, nothing},
    {"START written", "work level:full allow\n", reach_start,
     [](house &h) { // and the answer is posted
         for (int i = 0; h.posted == 0 && i < 60'000; ++i)
             std::this_thread::sleep_for(1ms);
     }},
    {"yes", "work * ask\n", reach_question, allow},
    {"no", "work * ask\n", reach_question,
     [](house &h) {
         if (is_open(h))
             CHECK(h.words().deny(h.words().open()[0]->serial));
     }},
    {"silence", "work * ask\n", reach_question,
     [](house &h) { h.words().expire(host::boottime_ms() + approvals::patience_ms + 1); }},
    {"slot after a yes", "work * ask\n",
     [](house &h) {
         reach_question(h);
         h.slots_held = true;
         allow(h);
     },
     give_slots},
    {"run", "work level:full allow\n",
     [](house &h) {
         h.request("sleep 1000", false);
         h.turn_until([&] { return h.has_heard(client_event::kind::accepted); });
     },
     nothing},
};

const struct {
    const char *name;
    void (*end)(house &);
} endings[] = {
    {"CLOSE", close_session},
    {"STDIN_EOF", end_input},
    {"a frame without a good tag",
     [](house &h) {
         bytes frame(frame_header::size + tag_size + 1);
         frame_header{tag_size + 1, h.number, frame_type::stdin_data}.encode(frame.data());
         h.client.output().put(frame);
     }},
    {"stream end", [](house &h) { h.cut(); }},
    {"revoked key",
     [](house &h) {
         h.revoke();
         h.stream().recheck_keys();
     }},
    {"drain", [](house &h) { h.stream().refuse_waiting(errc::draining); }},
    {"panic",
     [](house &h) {
         h.words().withdraw_all(nullptr, errc::panicked);
         h.stream().refuse_waiting(errc::panicked);
     }},
    {"stream closed by dom0", [](house &h) { h.stream().close(); }},
};

} // namespace

TEST_CASE("every completion and every ending in the same round, in both orders") {
    for (const point &at : points)
        for (const auto &ending : endings)
            for (const bool completed_first : {true, false}) {
                const std::string row = std::string(at.name) + " / " + ending.name +
                                        (completed_first ? " / completed first" : " / ended first");
                CAPTURE(row);
                house h(at.rule);
                at.reach(h);
                if (completed_first)
                    at.complete(h);
                ending.end(h);
                h.say();
                if (!completed_first)
                    at.complete(h);
                h.slots_held = false;
                // A command that was allowed first may run now; it ends with its stream.
                h.one_round();
                if (h.stream().is_busy())
                    h.cut();
                h.turn_deaf_until([&] {
                    return !h.stream().is_busy() && h.context().execution.running.empty() &&
                           h.context().scheduler.running() == 0 &&
                           h.context().admission.starting() == 0;
                });
                CHECK(h.words().open().empty());
                CHECK(h.context().scheduler.waiting("work") == 0);
            }
}

TEST_CASE("an ID is free again when its sender is gone before an operator is asked") {
    // Because of the second rule another thread asks for the tags first.
    house h("work * ask\n@tag:other * deny\n");
    h.request("true", false, "the-same");
    h.turn_deaf_until([&] { return h.context().scheduler.running() == 1; });
    h.client.close(h.number);
    h.turn_until([&] { return !h.stream().is_busy() && h.context().scheduler.running() == 0; });
    h.heard.clear();
    h.turn_until([&] { return h.posted > 0; }); // the answer about the tags
    h.request("true", false, "the-same");
    h.turn_until([&] {
        return h.has_heard(client_event::kind::pending) || h.has_heard(client_event::kind::refused);
    });
    CHECK_FALSE(h.has_heard(client_event::kind::refused));
}

TEST_CASE("a stream without answers to PING stays open, and its commands go on") {
    house h("work level:full allow\n");
    h.request("read x; echo \"$x\"", true);
    h.turn_until([&] { return h.has_heard(client_event::kind::accepted); });
    // The client is stopped, and answers no PING for an hour.
    std::uint64_t now = host::boottime_ms();
    for (int i = 0; i < 240; ++i)
        h.stream().keep_alive(now += 15'000, i % 4 == 0);
    CHECK_FALSE(h.stream().is_closed());
    CHECK(h.stream().is_busy());
    CHECK(h.stream().keep_alive_due() == UINT64_MAX); // no timer wakes the daemon for this stream
    // The client goes on.
    const auto room = h.client.prepare_stdin(h.number);
    std::copy_n("on\n", 3, room.begin());
    h.client.commit_stdin(h.number, 3);
    h.turn_until([&] { return h.has_heard(client_event::kind::ended); });
    CHECK(h.heard.back().end.exit_code() == 0);
    CHECK(h.stream().keep_alive_due() == UINT64_MAX); // idle
}

TEST_CASE(
    "a request whose body is late gives its slot to others, and runs when the body has come") {
    house h("work level:full allow\n");
    reach_body(h);
    h.stream().keep_alive(host::boottime_ms(), false);
    CHECK(h.context().scheduler.running() == 1); // the body may take a minute
    h.context().body_patience_ms = 0;
    h.stream().keep_alive(host::boottime_ms(), false);
    CHECK(h.context().scheduler.running() == 0);
    CHECK(h.stream().is_busy());
    h.turn_until([&] { return h.has_heard(client_event::kind::ended); }); // now the client reads
    CHECK(h.heard.back().end.exit_code() == 0);
}

int main(int argc, char **argv) {
    auto started = warden::start();
    std::signal(SIGPIPE, SIG_IGN); // as the daemon does
    if (!started) {
        std::fprintf(stderr, "%s\n", started.error().what.c_str());
        return 1;
    }
    the_warden = &*started;
    doctest::Context context(argc, argv);
    return context.run();
}
