// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/host/client.hpp>

#include <algorithm>
#include <csignal>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "support/ends.hpp"

using namespace qvmremote;
using namespace qvmremote::test;
using host::unique_fd;

namespace {

using kind = server_event::kind;

struct pair {
    unique_fd ours, theirs;
    pair() {
        int fds[2];
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
        ours.reset(fds[0]);
        theirs.reset(fds[1]);
    }
};

// dom0 at the other end of a stream, in a thread of its own, until the client hangs up.
class answering_dom0 {
  public:
    using on_event = std::function<void(dom0_end &, const kept<server_event> &)>;
    answering_dom0(on_event call, std::uint32_t features = feature::known)
        : end_("work", features), call_(std::move(call)), thread_([this] { run(); }) {
        ::signal(SIGPIPE, SIG_IGN); // as every program that uses a client does
    }
    ~answering_dom0() { thread_.join(); }

    [[nodiscard]] host::stream stream() {
        return {unique_fd(::dup(link_.ours.get())), std::move(link_.ours), "dom0"};
    }

  private:
    void run() {
        std::vector<std::uint8_t> data(4096);
        ssize_t n;
        std::size_t seen = 0;
        while ((n = ::read(link_.theirs.get(), data.data(), data.size())) > 0) {
            end_.feed(bytes_view(data.data(), static_cast<std::size_t>(n)));
            for (; seen < end_.events.size(); ++seen)
                call_(end_, kept<server_event>(end_.events[seen]));
            const bytes out = take_output(end_.stream);
            // A client that is gone may have sent something before.
            if (!out.empty()) {
                [[maybe_unused]] const ssize_t written =
                    ::write(link_.theirs.get(), out.data(), out.size());
            }
        }
    }

    pair link_;
    dom0_end end_;
    on_event call_;
    std::thread thread_;
};

host::command in_terminal() {
    host::command out;
    out.kind = request_kind::exec;
    out.arguments = {"bash", "-l"};
    out.timeout_s = 0;
    out.tty = true;
    return out;
}

// Turns input into upper case; '!' gives the session up.
class shouting final : public host::input_filter {
  public:
    [[nodiscard]] passed pass(std::span<std::uint8_t> data, std::size_t n) override {
        REQUIRE(data.size() > n);
        std::size_t done = 0;
        for (std::uint8_t &c : data.first(n)) {
            if (c == '!')
                return {done, action::leave};
            c = static_cast<std::uint8_t>(c - 'a' + 'A');
            ++done;
        }
        return {n, action::go_on};
    }
};

void say(int fd, std::string_view text) {
    REQUIRE(::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
}

} // namespace

TEST_CASE("a command in a terminal gets its size, changes of it, and what is typed") {
    pair keys, signals;
    host::terminal_size size{80, 24};
    std::vector<host::terminal_size> sizes;
    std::string typed;
    answering_dom0 dom0([&](dom0_end &end, const kept<server_event> &event) {
        if (event.what == kind::request) {
            const envelope &asked = *end.headers.at(1);
            CHECK(asked.tty);
            CHECK(asked.stdin_live);
            CHECK((asked.features & feature::terminal) != 0);
            sizes.push_back({asked.columns, asked.rows});
            say(keys.theirs.get(), "abc");
        } else if (event.what == kind::stdin_data && typed.empty()) {
            typed = event.bytes;
            size = {132, 43};
            say(signals.theirs.get(), std::string(1, SIGWINCH));
        } else if (event.what == kind::resize) {
            sizes.push_back({event.columns, event.rows});
            end.write(1, "\033[31mred");
            end.stream.end(1, {.cause = end_cause::exited, .value = 4});
        }
    });
    host::client client(dom0.stream(), secret::parse(key_text).value());
    host::string_sink out, err;
    shouting filter;
    host::run_streams io{.out = &out, .err = &err};
    io.stdin_fd = keys.ours.get();
    io.signal_fd = signals.ours.get();
    io.size = [&] { return size; };
    io.filter = &filter;
    const auto done = client.run(in_terminal(), io);
    CHECK(done.how == host::run_result::kind::ended);
    CHECK(done.exit_code() == 4);
    CHECK(out.text == "\033[31mred");
    CHECK(typed == "ABC");
    CHECK(sizes == std::vector<host::terminal_size>{{80, 24}, {132, 43}});
}

TEST_CASE("ways to leave a terminal") {
    struct row {
        const char *name;
        std::string_view key;
        int signal;
        int code;
    };
    const row rows[] = {
        {"the filter", "!", 0, 255}, {"SIGTERM", "", SIGTERM, 143}, {"SIGHUP", "", SIGHUP, 129}};
    for (const row &r : rows) {
        CAPTURE(r.name);
        pair keys, signals;
        bool closed = false;
        {
            answering_dom0 dom0([&](dom0_end &, const kept<server_event> &event) {
                if (event.what == kind::request && r.signal != 0)
                    say(signals.theirs.get(), std::string(1, static_cast<char>(r.signal)));
                if (event.what == kind::request)
                    say(keys.theirs.get(), r.key);
                closed = closed || event.what == kind::closed;
            });
            host::client client(dom0.stream(), secret::parse(key_text).value());
            host::string_sink out, err;
            shouting filter;
            host::run_streams io{.out = &out, .err = &err};
            io.stdin_fd = keys.ours.get();
            io.signal_fd = signals.ours.get();
            io.filter = &filter;
            const auto done = client.run(in_terminal(), io);
            CHECK(done.how == host::run_result::kind::interrupted);
            CHECK(done.exit_code() == r.code);
        }
        CHECK(closed);
    }
}

TEST_CASE("SIGINT is forwarded, and the program in the terminal decides what it does") {
    pair signals;
    answering_dom0 dom0([&](dom0_end &end, const kept<server_event> &event) {
        if (event.what == kind::signal)
            end.stream.end(1, {.cause = end_cause::exited, .value = event.number});
    });
    host::client client(dom0.stream(), secret::parse(key_text).value());
    host::string_sink out, err;
    host::run_streams io{.out = &out, .err = &err, .signal_fd = signals.ours.get()};
    io.changed = [&](host::run_state state, std::string_view) {
        if (state == host::run_state::running)
            say(signals.theirs.get(), "\x02");
    };
    const auto done = client.run(in_terminal(), io);
    CHECK(done.signal == 0);
    CHECK(done.exit_code() == SIGINT);
}

TEST_CASE("the client does not ask a dom0 without terminals for one") {
    answering_dom0 dom0(
        [](dom0_end &, const kept<server_event> &event) { CHECK(event.what != kind::request); },
        feature::gmac);
    host::client client(dom0.stream(), secret::parse(key_text).value());
    const auto done = client.collect(in_terminal());
    CHECK(done.result.how == host::run_result::kind::not_sent);
    CHECK(done.result.reason == errc::unsupported);
}
