// SPDX-License-Identifier: GPL-2.0-or-later
// Tests plugins/mock as its users see it: loaded by name, with both roles in this process.
#include <qvmremote/host/plugin.hpp>

#include <chrono>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include "support/scratch.hpp"

using namespace qvmremote::host;
using namespace qvmremote_test;

namespace {

bool is_readable(int fd, int milliseconds) {
    pollfd p{fd, POLLIN, 0};
    return ::poll(&p, 1, milliseconds) == 1;
}

struct mock {
    mock() {
        put(dir / "mock.so", text_of(std::getenv("QVMREMOTE_MOCK")));
        sockets = dir / "sockets";
    }
    [[nodiscard]] outcome<transport> load(role as, const transport_options &options) const {
        return transport::load(dir.path(), "mock", as, options);
    }
    [[nodiscard]] transport dom0(transport_options options, const char *peers = "work") const {
        options.emplace_back("dir", sockets);
        options.emplace_back("peers", peers);
        auto out = load(role::dom0, options);
        REQUIRE_MESSAGE(out, out.error().what);
        return std::move(*out);
    }
    [[nodiscard]] transport qube(transport_options options, const char *peer = "work") const {
        options.emplace_back("socket", sockets + "/" + peer + ".sock");
        auto out = load(role::qube, options);
        REQUIRE_MESSAGE(out, out.error().what);
        return std::move(*out);
    }
    scratch dir;
    std::string sockets;
};

stream next(transport &dom0, int event_fd) {
    REQUIRE(is_readable(event_fd, 5000));
    std::optional<stream> out;
    dom0.accept()
        .map([&](std::optional<stream> got) { out = std::move(got); })
        .map_error([](const failure &why) { FAIL(why.what); });
    REQUIRE(out);
    return std::move(*out);
}

void send(const unique_fd &fd, std::string_view text) {
    REQUIRE(::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL) ==
            static_cast<ssize_t>(text.size()));
}

// Reads to the end or, with `n`, n bytes. Adds "(silence)" after 5 s without a byte.
std::string receive(const unique_fd &fd, std::size_t n = SIZE_MAX) {
    std::string out;
    while (out.size() < n) {
        char buffer[4096];
        if (!is_readable(fd.get(), 5000))
            return out + "(silence)";
        const ssize_t got = ::read(fd.get(), buffer, std::min(sizeof buffer, n - out.size()));
        if (got <= 0)
            return out;
        out.append(buffer, static_cast<std::size_t>(got));
    }
    return out;
}

// What each end reads when both send `text`, with these options on the qube's side.
struct both_ways {
    std::string at_dom0;
    std::string at_qube;
};
both_ways pass(const transport_options &options, std::string_view text) {
    const mock m;
    transport dom0 = m.dom0({});
    const int event_fd = dom0.listen().value();
    transport qube = m.qube(options);
    auto near = qube.connect();
    REQUIRE_MESSAGE(near, near.error().what);
    const stream far = next(dom0, event_fd);
    static_cast<void>(::send(near->out.get(), text.data(), text.size(), MSG_NOSIGNAL));
    static_cast<void>(::send(far.out.get(), text.data(), text.size(), MSG_NOSIGNAL));
    ::shutdown(near->out.get(), SHUT_WR);
    ::shutdown(far.out.get(), SHUT_WR);
    return {receive(far.in), receive(near->in)};
}

std::string ten_thousand() {
    std::string out;
    for (int i = 0; i < 10000; ++i)
        out += static_cast<char>('a' + i % 23);
    return out;
}

} // namespace

TEST_CASE("the module exports its table and nothing else") {
    CHECK(boost::dll::library_info(std::getenv("QVMREMOTE_MOCK")).symbols() ==
          std::vector<std::string>{QVMREMOTE_TRANSPORT_SYMBOL});
}

TEST_CASE("several peers, each under its own name, come through one descriptor") {
    const mock m;
    transport dom0 = m.dom0({}, "work  dev-1 ");
    CHECK_FALSE(dom0.accept().has_value()); // not listening yet
    const int event_fd = dom0.listen().value();
    CHECK_FALSE(is_readable(event_fd, 0));
    CHECK(dom0.accept().value() == std::nullopt);
    CHECK(mode_of(m.sockets) == 0700);
    CHECK(mode_of(m.sockets + "/work.sock") == 0600);

    transport work = m.qube({}, "work");
    transport dev = m.qube({}, "dev-1");
    const auto a = work.connect();
    const auto b = dev.connect();
    const auto c = work.connect();
    REQUIRE((a && b && c));
    CHECK(a->peer == "dom0");
    std::map<std::string, int> peers;
    for (int i = 0; i < 3; ++i)
        ++peers[next(dom0, event_fd).peer];
    CHECK(peers == std::map<std::string, int>{{"work", 2}, {"dev-1", 1}});
    CHECK_FALSE(is_readable(event_fd, 0));
    CHECK(dom0.accept().value() == std::nullopt);

    const auto again = dev.connect();
    const stream far = next(dom0, event_fd);
    send(again->out, "to dom0");
    send(far.out, "to the qube");
    CHECK(receive(far.in, 7) == "to dom0");
    CHECK(receive(again->in, 11) == "to the qube");
}

TEST_CASE("peers come and go") {
    const mock m;
    transport dom0 = m.dom0({}, "work");
    const int event_fd = dom0.listen().value();
    REQUIRE(dom0.takes_peers());
    transport work = m.qube({}, "work");
    transport dev = m.qube({}, "dev");
    CHECK(dev.connect().error().error_number == ECONNREFUSED);
    const std::vector<std::string> names = {"dev"};
    REQUIRE(dom0.set_peers(names));
    CHECK(dev.connect());
    CHECK(next(dom0, event_fd).peer == "dev");
    CHECK(work.connect()); // a configured peer may connect, authorised or not
    CHECK(next(dom0, event_fd).peer == "work");
    REQUIRE(dom0.set_peers({}));
    const auto gone = dev.connect();
    CHECK(gone.error().error_number == ECONNREFUSED);
    CHECK(contains(gone.error().what, "start a daemon"));
    const std::vector<std::string> bad = {"work", "../x"};
    CHECK(dom0.set_peers(bad).error().error_number == EINVAL);
    CHECK(work.connect());          // nothing has changed
    REQUIRE(dom0.set_peers(names)); // makes the socket again, since the first one is gone
    CHECK(dev.connect());
}

TEST_CASE("sockets are removed with the transport; stale ones are replaced, live ones and files "
          "are not") {
    const mock m;
    {
        transport dom0 = m.dom0({});
        REQUIRE(dom0.listen());
        transport second = m.dom0({});
        const auto taken = second.listen();
        REQUIRE_FALSE(taken);
        CHECK(contains(taken.error().what, "another daemon listens"));
    }
    const std::string path = m.sockets + "/work.sock";
    CHECK(::access(path.c_str(), F_OK) != 0);

    {
        const unique_fd killed(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        path.copy(address.sun_path, sizeof address.sun_path - 1);
        REQUIRE(::bind(killed.get(), reinterpret_cast<const sockaddr *>(&address),
                       sizeof address) == 0);
    }
    {
        transport dom0 = m.dom0({});
        CHECK(dom0.listen());
        transport qube = m.qube({});
        CHECK(qube.connect());
    }
    put(path, "precious");
    transport dom0 = m.dom0({});
    CHECK_FALSE(dom0.listen());
    CHECK(text_of(path) == "precious");
}

TEST_CASE("another user may not connect, whatever the modes") {
    if (::geteuid() != 0)
        return; // needs a second user; CI runs this as root
    const mock m;
    transport dom0 = m.dom0({});
    const int event_fd = dom0.listen().value();
    transport qube = m.qube({});
    ::chmod(m.dir.path().c_str(), 0755);
    ::chmod(m.sockets.c_str(), 0755);
    REQUIRE(::seteuid(65534) == 0);
    const auto by_mode = qube.connect();
    REQUIRE(::seteuid(0) == 0);
    REQUIRE_FALSE(by_mode);
    CHECK(by_mode.error().error_number == EACCES);

    ::chmod((m.sockets + "/work.sock").c_str(), 0666);
    REQUIRE(::seteuid(65534) == 0);
    const auto connected = qube.connect();
    REQUIRE(::seteuid(0) == 0);
    REQUIRE(connected); // root listens
    CHECK(is_readable(event_fd, 5000));
    CHECK(dom0.accept().value() == std::nullopt);
    CHECK(receive(connected->in).empty());
}

TEST_CASE("bad options are refused by name") {
    const mock m;
    struct row {
        const char *name;
        role as;
        transport_options options;
        const char *says;
    };
    const row rows[] = {
        {"no dir", role::dom0, {{"peers", "a"}}, "option 'dir'"},
        {"bad peer", role::dom0, {{"dir", "/x"}, {"peers", "a ../b"}}, "option 'peers': '../b'"},
        {"long dir",
         role::dom0,
         {{"dir", "/" + std::string(120, 'x')}, {"peers", "a"}},
         "option 'dir'"},
        {"no socket", role::qube, {}, "option 'socket'"},
        {"long socket", role::qube, {{"socket", "/" + std::string(120, 'x')}}, "option 'socket'"},
        {"an option of the other role",
         role::qube,
         {{"socket", "/x"}, {"dir", "/x"}},
         "unknown option 'dir'"},
        {"misspelt", role::qube, {{"socket", "/x"}, {"fualt", "cut:1"}}, "option 'fualt'"},
        {"seed", role::qube, {{"socket", "/x"}, {"seed", "1x"}}, "option 'seed'"},
        {"range", role::qube, {{"socket", "/x"}, {"fault-range", "0"}}, "option 'fault-range'"},
        {"kind",
         role::qube,
         {{"socket", "/x"}, {"fault", "cut:1,melt:2"}},
         "option 'fault': 'melt:2'"},
        {"no number", role::qube, {{"socket", "/x"}, {"fault", "cut:"}}, "option 'fault'"},
        {"negative", role::qube, {{"socket", "/x"}, {"fault", "cut:-1"}}, "option 'fault'"},
        {"a leading zero", role::qube, {{"socket", "/x"}, {"fault", "cut:010"}}, "option 'fault'"},
        {"direction", role::qube, {{"socket", "/x"}, {"fault", "up:cut:1"}}, "option 'fault'"},
        {"long delay",
         role::qube,
         {{"socket", "/x"}, {"fault", "delay:99999999999"}},
         "option 'fault'"},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        const auto made = m.load(r.as, r.options);
        REQUIRE_FALSE(made);
        CAPTURE(made.error().what);
        CHECK(contains(made.error().what, r.says));
        CHECK(made.error().error_number == EINVAL);
    }
    // Others could replace our sockets in a directory that they can write to.
    REQUIRE(make_directories(m.sockets, 0700));
    ::chmod(m.sockets.c_str(), 0777);
    transport dom0 = m.dom0({});
    const auto listening = dom0.listen();
    REQUIRE_FALSE(listening);
    CHECK(contains(listening.error().what, "option 'dir'"));
}

TEST_CASE("a fault happens at its byte and nowhere else") {
    const std::string text = ten_thousand();
    struct row {
        const char *fault;
        std::string out; // as dom0 reads it; "=" if unchanged
        std::string in;  // as the qube reads it
    };
    std::string twice = text;
    twice.insert(5000, 1, text[5000]);
    const row rows[] = {
        {"delay:20", "=", "="},
        {"in:delay:20,out:delay:10", "=", "="},
        {"duplicate:5000", twice, "="},
        {"out:duplicate:5000", twice, "="},
        {"in:duplicate:5000", "=", twice},
        {"duplicate:5000,in:duplicate:5000", twice, twice},
        {"duplicate:10000", "=", "="}, // beyond the end
        {"split:5000,in:split:0", "=", "="},
        {"cut:10001", "=", "="},
    };
    for (const row &r : rows) {
        CAPTURE(r.fault);
        const both_ways got = pass({{"fault", r.fault}}, text);
        CHECK((got.at_dom0 == (r.out == "=" ? text : r.out)));
        CHECK((got.at_qube == (r.in == "=" ? text : r.in)));
    }
    CHECK(pass({{"fault", "cut:4321"}}, text).at_dom0 == text.substr(0, 4321));
    CHECK(pass({{"fault", "cut:0"}}, text).at_dom0.empty());
    CHECK(pass({{"fault", "in:cut:4321"}}, text).at_qube == text.substr(0, 4321));

    const both_ways bad = pass({{"fault", "corrupt:7777"}}, text);
    CHECK(bad.at_qube == text);
    REQUIRE(bad.at_dom0.size() == text.size());
    for (std::size_t i = 0; i < text.size(); ++i) {
        const auto difference = static_cast<unsigned char>(bad.at_dom0[i] ^ text[i]);
        CHECK((i == 7777 ? difference != 0 && (difference & (difference - 1)) == 0
                         : difference == 0));
    }
}

TEST_CASE("a delay ends, and a stall does not") {
    const auto before = std::chrono::steady_clock::now();
    CHECK(pass({{"fault", "in:delay:150"}}, "x").at_qube == "x");
    CHECK(std::chrono::steady_clock::now() - before >= std::chrono::milliseconds(150));

    const mock m;
    transport dom0 = m.dom0({{"fault", "in:stall:3"}});
    const int event_fd = dom0.listen().value();
    transport qube = m.qube({});
    auto near = qube.connect();
    stream far = next(dom0, event_fd);
    send(near->out, "12345");
    CHECK(receive(far.in, 3) == "123");
    CHECK_FALSE(is_readable(far.in.get(), 100)); // neither bytes nor an end
    send(far.out, "back");
    CHECK(receive(near->in, 4) == "back"); // the other direction works
    near->in.reset();
    near->out.reset();
    CHECK(receive(far.in).empty()); // the stalled end is gone, so the stream ends
}

TEST_CASE("the same seed chooses the same faults, stream by stream") {
    const std::string text = ten_thousand();
    const auto cuts = [&](const char *seed) {
        const mock m;
        transport dom0 = m.dom0({});
        const int event_fd = dom0.listen().value();
        transport qube = m.qube({{"fault", "cut:?"}, {"seed", seed}, {"fault-range", "5000"}});
        std::vector<std::size_t> out;
        for (int i = 0; i < 5; ++i) {
            auto near = qube.connect();
            const stream far = next(dom0, event_fd);
            static_cast<void>(::send(near->out.get(), text.data(), text.size(), MSG_NOSIGNAL));
            const std::string got = receive(far.in);
            CHECK(got == text.substr(0, got.size()));
            CHECK(got.size() < 5000);
            out.push_back(got.size());
        }
        return out;
    };
    const auto one = cuts("1");
    CHECK(one == cuts("1"));
    CHECK(one != cuts("2"));
    CHECK(one[0] != one[1]);
    const transport_options corrupt = {{"fault", "corrupt:?"}, {"seed", "7"}};
    CHECK(pass(corrupt, text).at_dom0 == pass(corrupt, text).at_dom0);
    CHECK(pass(corrupt, text).at_dom0 != text);
}

TEST_CASE("a relay passes more than it holds, and a slow reader slows the writer down") {
    const mock m;
    transport dom0 = m.dom0({});
    const int event_fd = dom0.listen().value();
    transport qube = m.qube({{"fault", "delay:0"}});
    auto near = qube.connect();
    const stream far = next(dom0, event_fd);
    ::fcntl(near->out.get(), F_SETFL, O_NONBLOCK);
    const std::string piece(64 * 1024, 'x');
    std::size_t sent = 0;
    // The way is full when nothing more is accepted for a while: only then is the relay's own
    // buffer full too.
    pollfd p{near->out.get(), POLLOUT, 0};
    while (::poll(&p, 1, 200) == 1 && sent < (64u << 20)) {
        const ssize_t n = ::send(near->out.get(), piece.data(), piece.size(), MSG_NOSIGNAL);
        if (n > 0)
            sent += static_cast<std::size_t>(n);
    }
    CHECK(sent > 64 * 1024);
    CHECK(sent < (4u << 20));
    ::shutdown(near->out.get(), SHUT_WR);
    CHECK(receive(far.in).size() == sent);
}

TEST_CASE("close ends relays with open and stalled streams") {
    const mock m;
    transport dom0 = m.dom0({});
    const int event_fd = dom0.listen().value();
    std::vector<stream> kept;
    {
        transport qube = m.qube({{"fault", "stall:1,in:stall:1"}});
        for (int i = 0; i < 8; ++i) {
            auto near = qube.connect();
            REQUIRE(near);
            send(near->out, "123");
            kept.push_back(std::move(*near));
            kept.push_back(next(dom0, event_fd));
        }
    }
    for (const stream &s : kept)
        CHECK(receive(s.in).size() <= 1);
}
