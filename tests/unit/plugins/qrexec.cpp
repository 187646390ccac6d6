// SPDX-License-Identifier: GPL-2.0-or-later
// Tests plugins/qrexec: the parser of the service's descriptor; dom0's end with calls and a clock
// of this test; the qube's end with programs that replace qrexec-client-vm.
#include <qvmremote/host/plugin.hpp>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pwd.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include "dom0.hpp"
#include "qube.hpp"
#include "support/scratch.hpp"

using namespace std::string_literals;
using namespace std::string_view_literals;
using namespace qvmremote_test;
namespace host = qvmremote::host;
using host::unique_fd;
using namespace qrexec;

namespace {

constexpr int guard_ms = 60'000;

ms ahead = 0;
ms test_clock() { return host::boottime_ms() + ahead; }

bool is_readable(int fd, int milliseconds) {
    pollfd p{fd, POLLIN, 0};
    return ::poll(&p, 1, milliseconds) == 1;
}

// Reads to the end or, with `n`, n bytes.
std::string receive(int fd, std::size_t n = SIZE_MAX) {
    std::string out;
    while (out.size() < n) {
        char buffer[4096];
        if (!is_readable(fd, guard_ms))
            return out + "(silence)";
        const ssize_t got = ::read(fd, buffer, std::min(sizeof buffer, n - out.size()));
        if (got < 0 && errno == EAGAIN)
            continue;
        if (got <= 0)
            break;
        out.append(buffer, static_cast<std::size_t>(got));
    }
    return out;
}

std::string own_name() {
    const passwd *const who = ::getpwuid(::geteuid());
    REQUIRE(who != nullptr);
    return who->pw_name;
}

unique_fd connect_to(const std::string &path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    unique_fd out(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(out.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address) != 0)
        return {};
    return out;
}

void say(const unique_fd &to, std::string_view text) {
    REQUIRE(::send(to.get(), text.data(), text.size(), MSG_NOSIGNAL) ==
            static_cast<ssize_t>(text.size()));
}

// Whether the other end was closed without sending a byte.
bool is_closed(const unique_fd &fd) { return receive(fd.get()).empty(); }

constexpr auto good = "qvmremote.Exec+ work keyword adminvm\0"sv;

struct listening {
    scratch dir;
    std::string socket = dir / "rpc/qvmremote.Exec";
    server dom0;
    int event_fd;

    explicit listening(const std::string &user = own_name())
        : dom0({socket, user}, test_clock), event_fd(dom0.listen()) {}

    std::optional<taken_stream> next() {
        REQUIRE(is_readable(event_fd, guard_ms));
        return dom0.accept();
    }
    // The text of the next failure of accept, after as many calls as it takes; no stream may come.
    std::string words() {
        for (int i = 0; i < 100; ++i) {
            try {
                if (!is_readable(event_fd, 100))
                    return {};
                const bool got_one = dom0.accept().has_value();
                CHECK_FALSE(got_one);
            } catch (const problem &why) {
                return why.text;
            }
        }
        return {};
    }
};

} // namespace

TEST_CASE("a descriptor must be one of qrexec, for our service") {
    struct row {
        const char *name;
        std::string text;
        const char *source; // null: refused
        std::string argument;
    };
    const row rows[] = {
        {"the form in dom0", "qvmremote.Exec+ work keyword adminvm", "work", ""},
        {"called by name", "qvmremote.Exec+ work name dom0", "work", ""},
        {"the form in a qube", "qvmremote.Exec+ work", "work", ""},
        {"without a plus", "qvmremote.Exec work name dom0", "work", ""},
        {"with an argument", "qvmremote.Exec+monitor work name dom0", "work", "monitor"},
        {"every character", "qvmremote.Exec+a.Z_9-+b Work-1_a.b name dom0", "Work-1_a.b",
         "a.Z_9-+b"},
        {"longest argument", "qvmremote.Exec+" + std::string(63, 'a') + " w name dom0", "w",
         std::string(63, 'a')},
        {"longest source", "qvmremote.Exec+ " + std::string(63, 'w') + " name dom0", nullptr, ""},
        {"argument too long", "qvmremote.Exec+" + std::string(64, 'a') + " w name dom0", nullptr,
         ""},
        {"source too long", "qvmremote.Exec+ " + std::string(64, 'w') + " name dom0", nullptr, ""},
        {"target of a kind", "qvmremote.Exec+ w keyword @dispvm:@tag:x", "w", ""},
        {"target too long", "qvmremote.Exec+ w name " + std::string(128, 'd'), nullptr, ""},
        {"empty", "", nullptr, ""},
        {"service alone", "qvmremote.Exec+", nullptr, ""},
        {"cut in the service", "qvmremote.Ex", nullptr, ""},
        {"cut after a blank", "qvmremote.Exec+ ", nullptr, ""},
        {"cut after the source", "qvmremote.Exec+ work ", nullptr, ""},
        {"cut after the kind", "qvmremote.Exec+ work name", nullptr, ""},
        {"cut before the target", "qvmremote.Exec+ work name ", nullptr, ""},
        {"another service", "qubes.VMShell+ work name dom0", nullptr, ""},
        {"a longer service", "qvmremote.Executor+ work name dom0", nullptr, ""},
        {"small letters", "qvmremote.exec+ work name dom0", nullptr, ""},
        {"five words", "qvmremote.Exec+ work name dom0 x", nullptr, ""},
        {"a blank at the end", "qvmremote.Exec+ work name dom0 ", nullptr, ""},
        {"a blank in front", " qvmremote.Exec+ work name dom0", nullptr, ""},
        {"two blanks", "qvmremote.Exec+  work name dom0", nullptr, ""},
        {"tab", "qvmremote.Exec+\twork name dom0", nullptr, ""},
        {"another kind", "qvmremote.Exec+ work uuid dom0", nullptr, ""},
        {"newline in the source", "qvmremote.Exec+ work\n name dom0", nullptr, ""},
        {"path as source", "qvmremote.Exec+ ../x name dom0", nullptr, ""},
        {"digit first", "qvmremote.Exec+ 1work name dom0", nullptr, ""},
        {"dash first", "qvmremote.Exec+ -work name dom0", nullptr, ""},
        {"dot first", "qvmremote.Exec+ .work name dom0", nullptr, ""},
        {"keyword as source", "qvmremote.Exec+ @anyvm name dom0", nullptr, ""},
        {"slash in the argument", "qvmremote.Exec+a/b work name dom0", nullptr, ""},
        {"escape in the target", "qvmremote.Exec+ work name \x1b[2J", nullptr, ""},
        {"NUL inside", "qvmremote.Exec+ work\0name dom0"s, nullptr, ""},
        {"not ASCII", "qvmremote.Exec+ w\xc3\xb6rk name dom0", nullptr, ""},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        const auto got = parse_descriptor(r.text);
        if (r.name == "longest source"sv) {
            REQUIRE(got);
            CHECK(got->source == std::string(63, 'w'));
            continue;
        }
        REQUIRE(got.has_value() == (r.source != nullptr));
        if (got) {
            CHECK(got->source == r.source);
            CHECK(got->argument == r.argument);
        }
        CHECK(r.text.size() <= longest_descriptor + 1);
    }
    // Each prefix is refused, or is the shorter form that qrexec uses in qubes.
    const std::string whole = "qvmremote.Exec+a work name dom0";
    for (std::size_t n = 0; n < whole.size(); ++n)
        if (const auto got = parse_descriptor(whole.substr(0, n)))
            CHECK("work"s.starts_with(got->source) != whole.substr(0, n).ends_with("name"));
}

TEST_CASE(
    "I3: the peer is the qube that qrexec names; the bytes after the NUL belong to the host") {
    listening l;
    const unique_fd one = connect_to(l.socket);
    say(one, "qvmremote.Exec+monitor work name dom0\0qvmremote.Exec+ other name dom0\0rest"sv);
    const auto got = l.next();
    REQUIRE(got);
    CHECK(got->from == descriptor{"work", "monitor"});
    ::shutdown(one.get(), SHUT_WR);
    CHECK(receive(got->socket.get()) == "qvmremote.Exec+ other name dom0\0rest"s);
    // The caller has ended its direction; the other one stays open.
    REQUIRE(::write(got->socket.get(), "answer", 6) == 6);
    CHECK(receive(one.get(), 6) == "answer");
    CHECK(l.dom0.half_way() == 0);
    CHECK_FALSE(is_readable(l.event_fd, 0));
}

TEST_CASE("a descriptor may come byte by byte, and does not delay others") {
    listening l;
    const unique_fd slow = connect_to(l.socket);
    for (std::size_t i = 0; i + 1 < good.size(); ++i) {
        say(slow, good.substr(i, 1));
        CHECK_FALSE(l.next());
        CHECK_FALSE(is_readable(l.event_fd, 0)); // what was read is not waited for again
    }
    CHECK(l.dom0.half_way() == 1);
    const unique_fd quick = connect_to(l.socket);
    say(quick, "qvmremote.Exec+ dev name dom0\0"sv);
    CHECK(l.next()->from.source == "dev");
    say(slow, "\0"sv);
    CHECK(l.next()->from.source == "work");
}

TEST_CASE("a connection that is not a call of qrexec is closed, reported once a minute, and harms "
          "no other") {
    struct row {
        const char *name;
        std::string text;
        bool ends; // whether it then ends its direction
    };
    const row rows[] = {
        {"nothing", "", true},
        {"cut", "qvmremote.Exec+ wo", true},
        {"whole without NUL", "qvmremote.Exec+ work name dom0", true},
        {"another service", "qubes.VMShell+ work name dom0\0"s, false},
        {"too long", "qvmremote.Exec+ work name " + std::string(4000, 'd'), false},
        {"as long as a qube can make it",
         "qvmremote.Exec+" + std::string(3900, 'a') + " work name dom0\0"s, false},
        {"a stream of protocol 2", "QVM-REMOTE/2 agent\n", true},
    };
    listening l;
    bool first = true;
    for (const row &r : rows) {
        CAPTURE(r.name);
        const unique_fd bad = connect_to(l.socket);
        say(bad, r.text);
        if (r.ends)
            ::shutdown(bad.get(), SHUT_WR);
        const std::string said = l.words();
        CHECK(contains(said, "does not begin as a call of qrexec") == first);
        first = false;
        CHECK((is_closed(bad) || errno == ECONNRESET));
        const unique_fd one = connect_to(l.socket);
        say(one, good);
        CHECK(l.next()->from.source == "work");
    }
}

TEST_CASE("a connection that sends nothing is closed after a time, and does not delay others") {
    listening l;
    std::vector<unique_fd> silent;
    for (std::size_t i = 0; i < most_half_way + 10; ++i)
        silent.push_back(connect_to(l.socket));
    CHECK_FALSE(l.next());
    CHECK(l.dom0.half_way() == most_half_way);
    CHECK_FALSE(is_readable(l.event_fd, 0)); // full: the others wait in the kernel
    const unique_fd one = connect_to(l.socket);
    say(one, good);
    CHECK_FALSE(is_readable(l.event_fd, 0));
    CHECK(l.dom0.next_due() <= test_clock() + descriptor_limit);
    ahead += descriptor_limit;
    std::optional<taken_stream> got = l.dom0.accept();
    CHECK(is_closed(silent[0]));
    REQUIRE(got);
    CHECK(got->from.source == "work");
    CHECK(contains(l.words(), "did not say within 5 s where it comes from"));
    CHECK(l.dom0.half_way() == 10);
    ahead = 0;
}

TEST_CASE("thirty-two calls at the same time") {
    listening l;
    std::vector<unique_fd> calls;
    for (int i = 0; i < 32; ++i) {
        calls.push_back(connect_to(l.socket));
        say(calls.back(), "qvmremote.Exec+ q" + std::to_string(i) + " name dom0\0"s);
    }
    std::vector<bool> seen(32);
    for (int i = 0; i < 32; ++i) {
        const auto got = l.next();
        REQUIRE(got);
        seen[std::stoul(got->from.source.substr(1))] = true;
    }
    CHECK(std::count(seen.begin(), seen.end(), true) == 32);
}

TEST_CASE("a connection of a user that qrexec does not run as is refused") {
    const bool is_root = ::geteuid() == 0;
    listening l(is_root ? own_name() : "root");
    if (is_root) {
        // Let another user connect, as a member of the group could.
        for (const std::string &path : {l.dir.path(), l.dir / "rpc"})
            REQUIRE(::chmod(path.c_str(), 0755) == 0);
        REQUIRE(::chmod(l.socket.c_str(), 0666) == 0);
    }
    const pid_t child = ::fork();
    if (child == 0) {
        if (is_root && ::setuid(65534) != 0)
            ::_exit(3);
        const unique_fd made = connect_to(l.socket);
        if (!made)
            ::_exit(2);
        ::send(made.get(), good.data(), good.size(), MSG_NOSIGNAL);
        char c = 0;
        ::_exit(::read(made.get(), &c, 1) <= 0 ? 0 : 1);
    }
    CHECK(contains(l.words(), "qrexec does not run as that user"));
    int status = -1;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    CHECK(l.dom0.half_way() == 0);
}

TEST_CASE("the socket exists with its mode while the transport listens, and only ours is removed") {
    const scratch dir;
    const std::string path = dir / "rpc/qvmremote.Exec";
    const auto inode_of = [&] {
        struct stat at {};
        return ::lstat(path.c_str(), &at) == 0 ? at.st_ino : 0;
    };
    {
        server first({path, own_name()}, test_clock);
        CHECK(::access(path.c_str(), F_OK) != 0);
        static_cast<void>(first.listen());
        CHECK(mode_of(path) == 0660);
        struct stat at {};
        REQUIRE(::stat(path.c_str(), &at) == 0);
        const group *const all = ::getgrnam("qubes");
        if (all != nullptr && ::geteuid() == 0)
            CHECK(at.st_gid == all->gr_gid);
        server second({path, own_name()}, test_clock);
        CHECK_THROWS_AS(static_cast<void>(second.listen()), problem);
        CHECK(connect_to(path));
    }
    CHECK(::access(path.c_str(), F_OK) != 0);

    // A socket that a killed daemon left is replaced.
    {
        const unique_fd left(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
        REQUIRE(::bind(left.get(), reinterpret_cast<sockaddr *>(&address), sizeof address) == 0);
    }
    const ino_t stale = inode_of();
    {
        server again({path, own_name()}, test_clock);
        static_cast<void>(again.listen());
        CHECK(connect_to(path));
        CHECK(stale != 0);
        // A file that somebody else put there is not removed.
        ::unlink(path.c_str());
        put(path, "x");
    }
    CHECK(text_of(path) == "x");
    server blocked({path, own_name()}, test_clock);
    // A file that is not a socket stays.
    CHECK_THROWS_AS(static_cast<void>(blocked.listen()), problem);
    CHECK(text_of(path) == "x");
    ::unlink(path.c_str());
    REQUIRE(::symlink("/etc/passwd", path.c_str()) == 0);
    server linked({path, own_name()}, test_clock);
    CHECK_THROWS_AS(static_cast<void>(linked.listen()), problem);
    CHECK_THROWS_AS(server({path, "no-such-user"}, test_clock), problem);
    CHECK_THROWS_AS(server({dir / std::string(200, 'x'), own_name()}, test_clock), problem);
}

namespace {

struct in_qube {
    scratch dir;
    std::string home = dir / "home";
    std::string client;

    explicit in_qube(const std::string &script)
        : client(put(dir / "client", "#!/bin/sh\n" + script, 0755)) {
        ::mkdir(home.c_str(), 0700);
        ::setenv("HOME", home.c_str(), 1);
        const char *const from = std::getenv("QVMREMOTE_QREXEC");
        REQUIRE(from != nullptr);
        put(dir / "qrexec.so", text_of(from), 0644);
    }

    host::outcome<host::transport> open(host::transport_options more = {}) const {
        more.emplace(more.begin(), "client", client);
        return host::transport::load(dir.path(), "qrexec", host::role::qube, more);
    }
};

} // namespace

TEST_CASE("a call is made by qrexec-client-vm, on two sockets, and ends with its owner") {
    const in_qube q("echo $$ \"$@\"; echo words >&2; [ -S /proc/self/fd/0 ] && echo socket; "
                    "[ /proc/$$/fd/0 -ef /proc/$$/fd/1 ] || echo two; cat");
    pid_t pid = 0;
    {
        auto way = q.open({{"target", "mgmt"}, {"argument", "monitor"}});
        REQUIRE_MESSAGE(way, way.error().what);
        auto stream = way->connect();
        REQUIRE(stream);
        std::string line;
        while (!line.ends_with("two\n")) {
            const std::string more = receive(stream->in.get(), 1);
            REQUIRE(more.size() == 1);
            line += more;
        }
        CHECK(contains(line, " mgmt qvmremote.Exec+monitor\nsocket\n"));
        pid = std::stoi(line);
        REQUIRE(::write(stream->out.get(), "back", 4) == 4);
        CHECK(receive(stream->in.get(), 4) == "back");
        CHECK(::kill(pid, 0) == 0);
    }
    CHECK(::kill(pid, 0) != 0);
}

TEST_CASE("explain says why a call ended before dom0 sent a byte") {
    struct row {
        const char *script;
        int error; // errno of the failure; 0: no reason is known
        const char *says;
    };
    static constexpr row rows[] = {
        {"echo Request refused >&2; exit 126", EACCES,
         "refuses the call to qvmremote.Exec in dom0 "
         "(Request refused)"},
        {"exit 126", EACCES, "/etc/qubes/policy.d"},
        {"exit 127", ECONNREFUSED, "there is no service qvmremote.Exec in dom0"},
        {"printf 'cannot connect\\033[2J\\n' >&2; exit 125", ECONNREFUSED,
         "qrexec could not make the call to qvmremote.Exec in dom0 (cannot connect?[2J)"},
        {"exit 0", ECONNREFUSED, "ended the call to qvmremote.Exec without an answer"},
        {"exit 1", EIO, "ended with 1"},
        {"kill -9 $$", EIO, "was killed by signal 9"},
        {"exec >&- <&-; sleep 1000", 0, ""},
        {"exec >&-; sleep 1000", 0, ""}, // its standard input is still open
    };
    for (const row &r : rows) {
        CAPTURE(r.script);
        const in_qube q(r.script);
        auto way = q.open();
        REQUIRE(way);
        auto stream = way->connect();
        REQUIRE(stream);
        CHECK(receive(stream->in.get()).empty());
        const auto why = way->explain();
        REQUIRE(why.has_value() == (r.error != 0));
        if (why) {
            CHECK(why->error_number == r.error);
            CHECK(contains(why->what, r.says));
            CHECK_FALSE(way->explain()); // the reason belongs to that call only
        }
    }
    const in_qube q("exit 0");
    ::unlink(q.client.c_str());
    auto way = q.open();
    REQUIRE(way);
    const auto none = way->connect();
    REQUIRE_FALSE(none);
    CHECK(contains(none.error().what, "No such file"));
}

TEST_CASE("a user may make eight calls at a time, and one that ends makes room") {
    const in_qube q("cat");
    std::vector<host::transport> ways;
    std::vector<host::stream> streams;
    for (int i = 0; i < calls_at_once; ++i) {
        auto way = q.open();
        REQUIRE(way);
        auto stream = way->connect();
        REQUIRE(stream);
        ways.push_back(std::move(*way));
        streams.push_back(std::move(*stream));
    }
    // The ninth finds each lock held.
    for (int i = 0; i < calls_at_once; ++i) {
        const std::string path = q.home + "/.qvm-remote/qrexec-" + std::to_string(i) + ".lock";
        CHECK(mode_of(path) == 0600);
        const unique_fd file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
        CHECK(::flock(file.get(), LOCK_EX | LOCK_NB) != 0);
    }
    ways.pop_back();
    auto ninth = q.open();
    REQUIRE(ninth);
    CHECK(ninth->connect());
}

TEST_CASE("a call that an agent keeps is used if there is one") {
    const in_qube q("exit 126");
    const std::string base = q.home + "/.qvm-remote";
    ::mkdir(base.c_str(), 0700);
    const unique_fd agent(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = base + "/agent-qrexec.sock";
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    REQUIRE(::bind(agent.get(), reinterpret_cast<sockaddr *>(&address), sizeof address) == 0);
    REQUIRE(::listen(agent.get(), 4) == 0);
    auto way = q.open();
    REQUIRE(way);
    auto stream = way->connect();
    REQUIRE(stream);
    const unique_fd taken(::accept(agent.get(), nullptr, nullptr));
    REQUIRE(::write(taken.get(), "kept", 4) == 4);
    CHECK(receive(stream->in.get(), 4) == "kept");
    CHECK_FALSE(way->explain());

    auto alone = q.open({{"kept", "no"}});
    REQUIRE(alone);
    auto own = alone->connect();
    REQUIRE(own);
    CHECK(receive(own->in.get()).empty());
    CHECK(alone->explain()->error_number == EACCES);
}

TEST_CASE("bad options are refused by name") {
    struct row {
        const char *key;
        std::string value;
        const char *says;
    };
    const row rows[] = {
        {"speed", "9", "the options here are client, target, argument, kept"},
        {"client", "qrexec-client-vm", "not an absolute path"},
        {"target", "-p", "not the name of a qube"},
        {"target", "a b", "not the name of a qube"},
        {"argument", "+x", "must be of letters"},
        {"argument", "a/b", "must be of letters"},
        {"argument", std::string(64, 'a'), "must be of letters"},
        {"kept", "perhaps", "not yes or no"},
    };
    const in_qube q("exit 0");
    for (const row &r : rows) {
        CAPTURE(r.key);
        const auto way = q.open({{r.key, r.value}});
        REQUIRE_FALSE(way);
        CHECK(way.error().error_number == EINVAL);
        CHECK(contains(way.error().what, r.says));
    }
    const auto dom0 = host::transport::load(q.dir.path(), "qrexec", host::role::dom0,
                                            {{"socket", "x"}, {"user", own_name()}});
    REQUIRE_FALSE(dom0);
    CHECK(contains(dom0.error().what, "not an absolute path"));
}

TEST_CASE("the argument reaches the host") {
    const in_qube q("exit 0");
    const std::string path = q.dir / "rpc/qvmremote.Exec";
    auto dom0 = host::transport::load(q.dir.path(), "qrexec", host::role::dom0,
                                      {{"socket", path}, {"user", own_name()}});
    REQUIRE_MESSAGE(dom0, dom0.error().what);
    const auto event_fd = dom0->listen();
    REQUIRE(event_fd);
    const unique_fd one = connect_to(path);
    say(one, "qvmremote.Exec+monitor work name dom0\0"sv);
    REQUIRE(is_readable(*event_fd, guard_ms));
    const auto got = dom0->accept();
    REQUIRE(got);
    REQUIRE(got->has_value());
    CHECK((*got)->peer == "work");
    CHECK((*got)->argument == "monitor");
}
