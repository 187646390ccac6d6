// SPDX-License-Identifier: GPL-2.0-or-later
// Tests plugins/qvm-run: its parsers and schedules; dom0's end with programs, a qubesd and a clock
// of this test; the qube's end as a plug-in and compiled in.
#include <qvmremote/host/plugin.hpp>

#include "qvm_run_fixture.hpp"

using namespace qvmremote_test;

// This case is the first, since it needs the rights that the others give up.
TEST_CASE("an agent of another user is refused") {
    if (::geteuid() != 0) {
        MESSAGE("not tried: it needs a second user, so root, as which CI runs this");
        return;
    }
    const module m;
    const std::string path = m.dir / "agent.sock";
    ::chmod(m.dir.path().c_str(), 0777);
    REQUIRE(::seteuid(65534) == 0);
    const unique_fd agent = listen_at(path);
    REQUIRE(::seteuid(0) == 0);
    ::chmod(m.dir.path().c_str(), 0755);
    auto qube = m.load(host::role::qube, {{"socket", path}});
    REQUIRE_MESSAGE(qube, qube.error().what);
    const auto got = qube->connect();
    REQUIRE_FALSE(got);
    CHECK(got.error().error_number == EACCES);
    CHECK(contains(got.error().what, "neither this user nor root"));
}

TEST_CASE("the module exports its table and nothing else") {
    CHECK(boost::dll::library_info(std::getenv("QVMREMOTE_QVM_RUN")).symbols() ==
          std::vector<std::string>{QVMREMOTE_TRANSPORT_SYMBOL});
}

TEST_CASE("bad options are refused by name") {
    const module m;
    struct row {
        host::role as;
        host::transport_options options;
        const char *says;
    };
    const row rows[] = {
        {host::role::qube,
         {{"qubesd", "/x"}},
         "unknown option 'qubesd': the only option here is socket"},
        {host::role::qube, {{"socket", "/" + std::string(107, 'x')}}, "option 'socket'"},
        {host::role::dom0, {{"socket", "/x"}}, "unknown option 'socket'"},
        {host::role::dom0,
         {{"qvm-run", "qvm-run"}},
         "option 'qvm-run': 'qvm-run' is not an absolute"},
        {host::role::dom0, {{"qvm-check", "none"}}, "option 'qvm-check': 'none'"},
        {host::role::dom0, {{"qrexec-client", "x"}}, "or 'none'"},
        {host::role::dom0, {{"qubesd", "/" + std::string(107, 'x')}}, "option 'qubesd'"},
    };
    for (const row &r : rows) {
        CAPTURE(r.says);
        const auto made = m.load(r.as, r.options);
        REQUIRE_FALSE(made);
        CAPTURE(made.error().what);
        CHECK(contains(made.error().what, r.says));
        CHECK(made.error().error_number == EINVAL);
    }
    CHECK(m.load(host::role::dom0, {{"qubesd", "none"}, {"qrexec-client", "none"}}));
}

TEST_CASE("a client reaches the agent's socket, or learns why it does not") {
    const module m;
    const std::string home = m.dir / "home";
    REQUIRE(::mkdir(home.c_str(), 0700) == 0);
    REQUIRE(::mkdir((home + "/.qvm-remote").c_str(), 0700) == 0);
    ::setenv("HOME", home.c_str(), 1);
    const std::string path = home + "/.qvm-remote/agent.sock";
    for (const bool compiled_in : {false, true}) {
        CAPTURE(compiled_in);
        auto made = compiled_in ? host::transport::from_table(&qvmremote_transport_qvm_run,
                                                              host::role::qube, {})
                                : m.load(host::role::qube, {});
        REQUIRE_MESSAGE(made, made.error().what);
        CHECK(made->name() == "qvm-run");
        auto got = made->connect();
        REQUIRE_FALSE(got);
        CHECK(got.error().error_number == ECONNREFUSED);
        CHECK(contains(got.error().what, "dom0 has not connected to this qube yet"));
        CHECK(contains(got.error().what, path));
        {
            const unique_fd agent = listen_at(path);
            got = made->connect();
            REQUIRE_MESSAGE(got, got.error().what);
            const unique_fd far(::accept4(agent.get(), nullptr, nullptr, SOCK_CLOEXEC));
            send(got->out, "up");
            send(far, "down");
            CHECK(receive(far, 2) == "up");
            CHECK(receive(got->in, 4) == "down");
            timeval limit{1, 1};
            socklen_t size = sizeof limit;
            REQUIRE(::getsockopt(got->in.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, &size) == 0);
            CHECK((limit.tv_sec == 0 && limit.tv_usec == 0));
        }
        CHECK(made->connect().error().error_number == ECONNREFUSED); // the socket of a dead agent
        ::unlink(path.c_str());
    }
    const auto dom0 =
        host::transport::from_table(&qvmremote_transport_qvm_run, host::role::dom0, {});
    REQUIRE_FALSE(dom0);
    CHECK(contains(dom0.error().what, "has no part for dom0"));
}

TEST_CASE("the loader loads it as in the daemon") {
    machine m;
    m.does("work", echoes);
    const module plugin;
    fake_qubesd qubesd(m.how.qubesd);
    auto dom0 = plugin.load(host::role::dom0, {{"qubesd", m.how.qubesd},
                                               {"qrexec-client", "none"},
                                               {"qvm-run", m.how.qvm_run},
                                               {"qvm-check", m.how.qvm_check}});
    REQUIRE_MESSAGE(dom0, dom0.error().what);
    REQUIRE(dom0->takes_peers());
    const std::vector<std::string> names = {"work"};
    REQUIRE(dom0->set_peers(names));
    CHECK_FALSE(qubesd.is_asked()); // not before listen
    const int event_fd = dom0->listen().value();
    const unique_fd events = qubesd.take(ask_events);
    send(events, connected);
    std::optional<host::stream> got;
    bool is_listed = false;
    for (int i = 0; i < 1000 && !got; ++i) {
        REQUIRE(is_readable(event_fd, guard_ms));
        auto one = dom0->accept();
        REQUIRE_MESSAGE(one, one.error().what);
        got = std::move(*one);
        if (!is_listed && qubesd.is_asked()) {
            send(qubesd.take(ask_listing), listing({{"work", "Running"}}));
            is_listed = true;
        }
    }
    REQUIRE(got);
    CHECK(got->peer == "work");
    CHECK(receive(got->in, 6) == "hello\n");
}
