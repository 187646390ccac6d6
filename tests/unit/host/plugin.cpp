// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/host/plugin.hpp>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include "support/scratch.hpp"

using namespace qvmremote::host;
using namespace qvmremote_test;

namespace {

// Copies a module to a trusted directory, because a group may be able to write to the build
// directory.
std::string install(const scratch &dir, const std::string &module, std::string as = {}) {
    const char *from = std::getenv("QVMREMOTE_MODULES");
    REQUIRE(from != nullptr);
    const std::string text = text_of(std::string(from) + "/" + module + ".so");
    REQUIRE_FALSE(text.empty());
    return put(dir / ((as.empty() ? module : as) + ".so"), text);
}

// The file that the constructor of a module writes (tests/abi/modules/stub.c).
struct trace {
    explicit trace(std::string where) : path(std::move(where)) {
        ::setenv("QVMREMOTE_TEST_TRACE", path.c_str(), 1);
    }
    ~trace() { ::unsetenv("QVMREMOTE_TEST_TRACE"); }
    [[nodiscard]] bool is_there() const { return ::access(path.c_str(), F_OK) == 0; }
    std::string path;
};

} // namespace

TEST_CASE("a plug-in is loaded and opened, and its failures are reported") {
    const scratch dir;
    const trace loaded(dir / "trace");
    install(dir, "stub");
    auto made = transport::load(dir.path(), "stub", role::qube, {});
    REQUIRE_MESSAGE(made, made.error().what);
    CHECK(loaded.is_there());
    CHECK(made->name() == "stub");
    CHECK_FALSE(made->takes_peers());
    const auto stream = made->connect();
    REQUIRE_FALSE(stream);
    CHECK(stream.error().error_number == ECONNREFUSED);
    CHECK(contains(stream.error().what, "QVMREMOTE_UNREACHABLE")); // the stub gave no text

    // After two moves only the last owner closes, and the library is still loaded then.
    transport other(std::move(*made));
    made = transport::load(dir.path(), "stub", role::dom0, {});
    REQUIRE(made);
    other = std::move(*made);
    CHECK(other.accept().value() == std::nullopt);
}

TEST_CASE("a wrong plug-in is refused with a reason, and no code of one without the symbol runs") {
    struct row {
        const char *module; // null: none
        const char *name;
        const char *says;
        bool runs; // whether its constructor runs
    };
    static constexpr row rows[] = {
        {"no-symbol", "no-symbol", "is not a shared object with the symbol qvmremote_transport_1",
         false},
        {"wrong-abi", "wrong-abi", "has ABI 2 and this program takes 1", true},
        {"wrong-name", "wrong-name", "transport 'wrong-name' calls itself 'stub'", true},
        {"short-table", "short-table", "lacks the function 'accept'", true},
        {"no-accept", "no-accept", "lacks the function 'accept'", true},
        {"stub", "mock", "no mock.so in ", false},
        {"stub", "mock", "(installed: stub)", false},
        {nullptr, "mock", "(installed: none)", false},
        {nullptr, "", "not the name of a transport", false},
        {"stub", "../stub", "not the name of a transport", false},
        {"stub", "stub.so", "not the name of a transport", false},
        {"stub", "Stub", "not the name of a transport", false},
        {"stub", "1stub", "not the name of a transport", false},
        {"stub", "a23456789012345678901234567890123", "not the name of a transport", false},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        const scratch dir;
        const trace loaded(dir / "trace");
        if (r.module != nullptr)
            install(dir, r.module);
        const auto made = transport::load(dir.path(), r.name, role::dom0, {});
        REQUIRE_FALSE(made);
        CAPTURE(made.error().what);
        CHECK(contains(made.error().what, r.says));
        CHECK_FALSE(contains(made.error().what, "\n"));
        CHECK(loaded.is_there() == r.runs);
    }
}

TEST_CASE("a file that is not a shared object is refused") {
    const scratch dir;
    const std::string good = text_of(install(dir, "stub"));
    struct row {
        const char *name;
        std::string text;
    };
    const row rows[] = {
        {"empty", ""},
        {"text", "#!/bin/sh\ntouch /tmp/x\n"},
        {"header only", good.substr(0, 64)},
        {"cut in half", good.substr(0, good.size() / 2)},
        {"text that holds the symbol's name", "qvmremote_transport_1"},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        put(dir / "bad.so", r.text);
        const auto made = transport::load(dir.path(), "bad", role::qube, {});
        REQUIRE_FALSE(made);
        CHECK(contains(made.error().what, "transport 'bad' cannot be loaded: "));
    }
}

TEST_CASE("I7: a plug-in that others can replace is not loaded") {
    struct row {
        const char *name;
        void (*spoil)(const scratch &dir);
        const char *says;
    };
    static const row rows[] = {
        {"directory writable by others", [](const scratch &d) { ::chmod(d.path().c_str(), 0757); },
         "chmod go-w"},
        {"directory writable by others, sticky",
         [](const scratch &d) { ::chmod(d.path().c_str(), 01777); }, "chmod go-w"},
        {"file writable by the group",
         [](const scratch &d) { ::chmod((d / "stub.so").c_str(), 0664); }, "chmod go-w"},
        {"symbolic link",
         [](const scratch &d) {
             ::rename((d / "stub.so").c_str(), (d / "real.so").c_str());
             CHECK(::symlink("real.so", (d / "stub.so").c_str()) == 0);
         },
         "symbolic link to real.so"},
        {"directory in its place",
         [](const scratch &d) {
             ::unlink((d / "stub.so").c_str());
             ::mkdir((d / "stub.so").c_str(), 0755);
         },
         "not a regular file"},
        {"file of a stranger",
         [](const scratch &d) {
             if (::geteuid() != 0)
                 ::chmod((d / "stub.so").c_str(), 0666);
             else
                 CHECK(::chown((d / "stub.so").c_str(), 65534, 65534) == 0);
         },
         "not to be trusted"},
        {"directory of a stranger",
         [](const scratch &d) {
             if (::geteuid() != 0)
                 ::chmod(d.path().c_str(), 0777);
             else
                 CHECK(::chown(d.path().c_str(), 65534, 65534) == 0);
         },
         "not to be trusted"},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        const scratch dir;
        const trace loaded("/tmp/" + dir.path().substr(5) + ".trace");
        install(dir, "stub");
        r.spoil(dir);
        const auto made = transport::load(dir.path(), "stub", role::qube, {});
        REQUIRE_FALSE(made);
        CAPTURE(made.error().what);
        CHECK(contains(made.error().what, "transport 'stub' cannot be loaded: "));
        CHECK(contains(made.error().what, r.says));
        CHECK(made.error().error_number == EPERM);
        CHECK_FALSE(loaded.is_there());
        ::unlink(loaded.path.c_str());
    }
    CHECK_FALSE(transport::load("relative", "stub", role::qube, {}));
}

// The cases below use a table in this program, which gives right and wrong answers to the host.
namespace {

struct {
    qvmremote_stream answer{};
    int32_t status = QVMREMOTE_OK;
    std::string text;
    std::vector<std::string> peers;
    std::vector<std::string> options;
    int closed = 0;
} plug; // what the plug-in below does next, and what it received

int32_t answer(char *error, uint32_t error_size) {
    std::memcpy(error, plug.text.data(), std::min<std::size_t>(error_size, plug.text.size()));
    return plug.status;
}

qvmremote_transport_ops table() {
    qvmremote_transport_ops out{};
    out.struct_size = sizeof out;
    out.abi = QVMREMOTE_TRANSPORT_ABI;
    out.name = "plug";
    out.roles = QVMREMOTE_ROLE_QUBE | QVMREMOTE_ROLE_DOM0;
    out.open = [](const qvmremote_options *options, uint32_t, void **self, char *error,
                  uint32_t error_size) {
        for (uint32_t i = 0; i < options->count; ++i)
            plug.options.push_back(std::string(options->items[i].key) + "=" +
                                   options->items[i].value);
        *self = &plug;
        return answer(error, error_size);
    };
    out.close = [](void *) { ++plug.closed; };
    out.connect = [](void *, qvmremote_stream *given, char *error, uint32_t error_size) {
        *given = plug.answer;
        return answer(error, error_size);
    };
    out.listen = [](void *, int32_t *event_fd, char *error, uint32_t error_size) {
        *event_fd = plug.answer.in_fd;
        return answer(error, error_size);
    };
    out.accept = out.connect;
    out.set_peers = [](void *, const char *const *names, uint32_t count, char *error,
                       uint32_t error_size) {
        plug.peers.assign(names, names + count);
        return answer(error, error_size);
    };
    return out;
}

qvmremote_stream some_stream(std::string_view peer, int flags = SOCK_CLOEXEC) {
    qvmremote_stream out{sizeof out, -1, -1, {}, {}};
    int ends[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | flags, 0, ends) == 0);
    out.in_fd = ends[0];
    out.out_fd = ends[1];
    std::memcpy(out.peer, peer.data(), std::min(peer.size(), sizeof out.peer));
    return out;
}

bool is_open(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }

} // namespace

TEST_CASE("I3: a stream whose peer's name does not have the strict form is refused") {
    const qvmremote_transport_ops ops = table();
    plug = {};
    auto made = transport::from_table(&ops, role::dom0, {});
    REQUIRE(made);
    struct row {
        const char *name;
        std::string peer;
        bool good;
    };
    const row rows[] = {
        {"plain", "work", true},
        {"all kinds", "Dev-1_a.b", true},
        {"63 bytes", std::string(63, 'a'), true},
        {"64 bytes, no NUL", std::string(64, 'a'), false},
        {"empty", "", false},
        {"digit first", "1work", false},
        {"dot first", ".work", false},
        {"dash first", "-work", false},
        {"slash", "work/../dom0", false},
        {"blank", "work ", false},
        {"newline", "work\n", false},
        {"escape", "\x1b[2J", false},
        {"not ASCII", "w\xc3\xb6rk", false},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        plug.answer = some_stream(r.peer);
        auto got = made->accept();
        CHECK(got.has_value() == r.good);
        if (got) {
            REQUIRE(got->has_value());
            CHECK((*got)->peer == r.peer);
        } else {
            CHECK(got.error().error_number == EPROTO);
            CHECK_FALSE(is_open(plug.answer.in_fd));
            CHECK_FALSE(is_open(plug.answer.out_fd));
        }
    }
}

TEST_CASE("a stream whose argument does not have the strict form is refused") {
    const qvmremote_transport_ops ops = table();
    plug = {};
    auto made = transport::from_table(&ops, role::dom0, {});
    REQUIRE(made);
    struct row {
        std::string argument;
        bool good;
    };
    const row rows[] = {
        {"", true},
        {"monitor", true},
        {"+a.B_9-", true},
        {std::string(63, 'a'), true},
        {std::string(64, 'a'), false},
        {"a b", false},
        {"a/b", false},
        {"\n", false},
    };
    for (const row &r : rows) {
        CAPTURE(r.argument);
        plug.answer = some_stream("work");
        std::memcpy(plug.answer.argument, r.argument.data(), r.argument.size());
        auto got = made->accept();
        REQUIRE(got.has_value() == r.good);
        if (got)
            CHECK((*got)->argument == r.argument);
        else
            CHECK_FALSE(is_open(plug.answer.in_fd));
    }
    // A plug-in that is older than the field `argument` leaves it unchanged.
    plug.answer = some_stream("work");
    qvmremote_transport_ops older = ops;
    older.accept = [](void *, qvmremote_stream *given, char *, uint32_t) {
        std::memcpy(given, &plug.answer, offsetof(qvmremote_stream, argument));
        return int32_t{QVMREMOTE_OK};
    };
    auto first = transport::from_table(&older, role::dom0, {});
    REQUIRE(first);
    CHECK(first->accept().value().value().argument.empty());
}

TEST_CASE("the transport explains why a stream ended without a byte") {
    qvmremote_transport_ops ops = table();
    plug = {};
    plug.text = "the policy says no";
    {
        auto silent = transport::from_table(&ops, role::qube, {});
        REQUIRE(silent);
        CHECK_FALSE(silent->explain());
    }
    ops.explain = [](void *, char *error, uint32_t error_size) {
        return answer(error, error_size);
    };
    auto made = transport::from_table(&ops, role::qube, {});
    REQUIRE(made);
    CHECK_FALSE(made->explain());
    plug.status = QVMREMOTE_AGAIN;
    CHECK_FALSE(made->explain());
    plug.status = QVMREMOTE_REFUSED;
    const auto why = made->explain();
    REQUIRE(why);
    CHECK(why->error_number == EACCES);
    CHECK(why->what == "transport 'plug': the policy says no");
    plug.status = QVMREMOTE_OK;
    auto in_dom0 = transport::from_table(&ops, role::dom0, {});
    REQUIRE(in_dom0);
    plug.status = QVMREMOTE_REFUSED;
    CHECK_FALSE(in_dom0->explain());
}

TEST_CASE("descriptors are taken, checked and owned") {
    const qvmremote_transport_ops ops = table();
    plug = {};
    auto made = transport::from_table(&ops, role::qube, {});
    REQUIRE(made);

    plug.answer = some_stream("whatever\n");
    {
        const auto got = made->connect();
        REQUIRE(got);
        CHECK(got->peer == "dom0"); // in a qube the other end is always dom0
        CHECK(got->in.get() == plug.answer.in_fd);
        CHECK(got->out.get() == plug.answer.out_fd);
    }
    CHECK_FALSE(is_open(plug.answer.in_fd));
    CHECK_FALSE(is_open(plug.answer.out_fd));

    plug.answer = some_stream("x");
    const unique_fd other(plug.answer.out_fd);
    plug.answer.out_fd = plug.answer.in_fd;
    {
        const auto got = made->connect();
        REQUIRE(got);
        CHECK(got->in.get() != got->out.get());
        CHECK((::fcntl(got->out.get(), F_GETFD) & FD_CLOEXEC) != 0);
        REQUIRE(::write(got->out.get(), "x", 1) == 1);
        char c = 0;
        CHECK(::read(other.get(), &c, 1) == 1);
    }

    plug.answer = {sizeof plug.answer, -1, -1, {}, {}};
    CHECK(made->connect().error().error_number == EPROTO);
    plug.answer = some_stream("x");
    ::close(plug.answer.out_fd);
    plug.answer.out_fd = -1;
    CHECK(made->connect().error().error_number == EPROTO);
    CHECK_FALSE(is_open(plug.answer.in_fd));
    plug.answer = some_stream("x", 0); // a child would inherit it
    const auto inherited = made->connect();
    REQUIRE_FALSE(inherited);
    CHECK(contains(inherited.error().what, "close-on-exec"));
    CHECK_FALSE(is_open(plug.answer.in_fd));
}

TEST_CASE("a status becomes a failure, and its text is made safe") {
    const qvmremote_transport_ops ops = table();
    plug = {};
    auto made = transport::from_table(&ops, role::dom0, {});
    REQUIRE(made);
    struct row {
        int32_t status;
        std::string text;
        int want;
        std::string says;
    };
    const row rows[] = {
        {QVMREMOTE_FAILED, "disk gone; mend it", EIO, "transport 'plug': disk gone; mend it"},
        {QVMREMOTE_BAD_OPTION, "option 'x'", EINVAL, "option 'x'"},
        {QVMREMOTE_UNREACHABLE, "", ECONNREFUSED, "QVMREMOTE_UNREACHABLE"},
        {QVMREMOTE_REFUSED, "policy", EACCES, "policy"},
        {-99, "", EPROTO, "status -99"},
        {7, "", EPROTO, "status 7"},
        {QVMREMOTE_FAILED, "\x1b[2J\nqvm-remote: all is well", EIO,
         "\\x1b[2J\\nqvm-remote: all is well"},
        {QVMREMOTE_FAILED, std::string(4000, 'x'), EIO, std::string(500, 'x')}, // without NUL
    };
    for (const row &r : rows) {
        CAPTURE(r.says);
        plug.status = r.status;
        plug.text = r.text;
        const auto got = made->accept();
        REQUIRE_FALSE(got);
        CHECK(got.error().error_number == r.want);
        CHECK(contains(got.error().what, r.says));
        CHECK_FALSE(contains(got.error().what, "\n"));
        CHECK(got.error().what.size() < 600);
    }
    plug.status = QVMREMOTE_AGAIN;
    CHECK(made->accept().value() == std::nullopt);
    CHECK_FALSE(made->listen());
    plug.status = QVMREMOTE_OK;
    plug.answer.in_fd = 7;
    CHECK(made->listen().value() == 7);
    plug.answer.in_fd = -1;
    CHECK(made->listen().error().error_number == EPROTO);
}

TEST_CASE("a short table is accepted, and a refusal names the missing function") {
    struct row {
        const char *name;
        void (*change)(qvmremote_transport_ops &ops);
        role as;
        const char *says; // null: accepted
    };
    static const row rows[] = {
        {"whole", [](auto &) {}, role::dom0, nullptr},
        {"newer, longer", [](auto &o) { o.struct_size += 64; }, role::dom0, nullptr},
        {"older, without explain", [](auto &o) { o.struct_size -= uint32_t{sizeof(void *)}; },
         role::qube, nullptr},
        {"older, without set_peers", [](auto &o) { o.struct_size -= uint32_t{2 * sizeof(void *)}; },
         role::dom0, nullptr},
        {"set_peers cut in the middle",
         [](auto &o) { o.struct_size -= uint32_t{sizeof(void *) + 1}; }, role::dom0, nullptr},
        {"no open", [](auto &o) { o.open = nullptr; }, role::qube, "function 'open'"},
        {"no close", [](auto &o) { o.close = nullptr; }, role::qube, "function 'close'"},
        {"no connect", [](auto &o) { o.connect = nullptr; }, role::qube, "function 'connect'"},
        {"no connect, in dom0", [](auto &o) { o.connect = nullptr; }, role::dom0, nullptr},
        {"no listen", [](auto &o) { o.listen = nullptr; }, role::dom0, "function 'listen'"},
        {"no listen, in a qube", [](auto &o) { o.listen = nullptr; }, role::qube, nullptr},
        {"no accept", [](auto &o) { o.accept = nullptr; }, role::dom0, "function 'accept'"},
        {"two numbers only", [](auto &o) { o.struct_size = 8; }, role::qube, "has no name"},
        {"no name", [](auto &o) { o.name = nullptr; }, role::qube, "has no name"},
        {"name with a path", [](auto &o) { o.name = "a/b"; }, role::qube, "has no name"},
        {"other ABI", [](auto &o) { o.abi = 0; }, role::qube, "has ABI 0"},
        {"not for dom0", [](auto &o) { o.roles = QVMREMOTE_ROLE_QUBE; }, role::dom0, "for dom0"},
        {"not for qubes", [](auto &o) { o.roles = QVMREMOTE_ROLE_DOM0; }, role::qube, "a qube"},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        qvmremote_transport_ops ops = table();
        r.change(ops);
        plug = {};
        {
            const auto made = transport::from_table(&ops, r.as, {});
            CHECK(made.has_value() == (r.says == nullptr));
            if (made)
                CHECK(made->takes_peers() == (ops.struct_size >= sizeof ops - sizeof(void *)));
            else
                CHECK(contains(made.error().what, r.says == nullptr ? "" : r.says));
        }
        CHECK(plug.closed == (r.says == nullptr ? 1 : 0));
    }
    qvmremote_transport_ops ops = table();
    ops.open = [](const qvmremote_options *, uint32_t, void **, char *, uint32_t) { return 0; };
    CHECK(transport::from_table(&ops, role::qube, {}).error().error_number == EPROTO);
}

TEST_CASE("options and peers arrive, and each function needs its role") {
    const qvmremote_transport_ops ops = table();
    plug = {};
    const transport_options options = {{"dir", "/run/x"}, {"fault-range", "9"}};
    auto made = transport::from_table(&ops, role::dom0, options);
    REQUIRE(made);
    CHECK(plug.options == std::vector<std::string>{"dir=/run/x", "fault-range=9"});
    const std::vector<std::string> names = {"work", "dev"};
    REQUIRE(made->set_peers(names));
    CHECK(plug.peers == names);
    CHECK_FALSE(made->connect());

    auto in_qube = transport::from_table(&ops, role::qube, {});
    REQUIRE(in_qube);
    CHECK_FALSE(in_qube->listen());
    CHECK_FALSE(in_qube->accept());
    CHECK_FALSE(in_qube->set_peers(names));

    plug.status = QVMREMOTE_BAD_OPTION;
    plug.text = "option 'dir' is missing";
    const auto refused = transport::from_table(&ops, role::dom0, {});
    REQUIRE_FALSE(refused);
    CHECK(refused.error().what == "transport 'plug': option 'dir' is missing");
}

TEST_CASE("options come from configuration keys") {
    struct row {
        const char *name;
        const char *key;
        const char *want;
    };
    static constexpr row rows[] = {
        {"mock", "QVM_REMOTE_MOCK_DIR", "dir"},
        {"mock", "QVM_REMOTE_MOCK_FAULT_RANGE", "fault-range"},
        {"qvm-run", "QVM_REMOTE_QVM_RUN_USER", "user"},
        {"mock", "QVM_REMOTE_MOCK_", nullptr},
        {"mock", "QVM_REMOTE_MOCK", nullptr},
        {"mock", "QVM_REMOTE_QREXEC_DIR", nullptr},
        {"mock", "QVM_REMOTE_MOCKING_DIR", nullptr},
    };
    for (const row &r : rows) {
        CAPTURE(r.key);
        CHECK(option_name(r.name, r.key).value_or("-") == (r.want == nullptr ? "-" : r.want));
    }
}
