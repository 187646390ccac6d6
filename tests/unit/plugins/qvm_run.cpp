// SPDX-License-Identifier: GPL-2.0-or-later
// plugins/qvm-run: its parsers and schedules on values; dom0's end with programs, a qubesd and a
// clock of this test's; the qube's end as a plug-in and compiled in.
#include <qvmremote/host/plugin.hpp>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include "dom0.hpp"
#include "qubesd.hpp"
#include "schedule.hpp"
#include "support/scratch.hpp"

using namespace std::string_literals;
using namespace std::string_view_literals;
using namespace qvmremote_test;
namespace host = qvmremote::host;
using host::unique_fd;
using namespace qvm_run;

namespace {

constexpr int guard_ms = 60'000;

ms ahead = 0;
ms test_clock() { return host::boottime_ms() + ahead; }

bool is_readable(int fd, int milliseconds) {
    pollfd p{fd, POLLIN, 0};
    return ::poll(&p, 1, milliseconds) == 1;
}

// All that comes until the end; or, with `n`, n bytes.
std::string receive(const unique_fd &fd, std::size_t n = SIZE_MAX) {
    std::string out;
    while (out.size() < n) {
        char buffer[4096];
        if (!is_readable(fd.get(), guard_ms))
            return out + "(silence)";
        const ssize_t got = ::read(fd.get(), buffer, std::min(sizeof buffer, n - out.size()));
        if (got <= 0)
            return out;
        out.append(buffer, static_cast<std::size_t>(got));
    }
    return out;
}

void send(const unique_fd &fd, std::string_view text) {
    REQUIRE(::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL) ==
            static_cast<ssize_t>(text.size()));
}

unique_fd listen_at(const std::string &path, int backlog = 16) {
    unique_fd out(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    REQUIRE(::bind(out.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address) == 0);
    REQUIRE(::listen(out.get(), backlog) == 0);
    return out;
}

bool is_there(pid_t pid) { return ::kill(pid, 0) == 0; }

void wait_for(const std::function<bool()> &what) {
    for (int waited = 0; !what(); waited += 5) {
        REQUIRE(waited < guard_ms);
        ::poll(nullptr, 0, 5);
    }
}

// qubesd, played by the test step by step.
class fake_qubesd {
  public:
    explicit fake_qubesd(const std::string &path) : path_(path), listening_(listen_at(path)) {}
    ~fake_qubesd() { ::unlink(path_.c_str()); }

    // The next connection, which asks for just this.
    unique_fd take(std::string_view question) {
        REQUIRE(is_readable(listening_.get(), guard_ms));
        unique_fd out(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        CHECK(receive(out) == question);
        return out;
    }
    [[nodiscard]] bool is_asked() const { return is_readable(listening_.get(), 0); }

  private:
    std::string path_;
    unique_fd listening_;
};

std::string event_text(std::string_view subject, std::string_view name,
                       std::string_view pairs = {}) {
    return "1\0"s.append(subject) + '\0' + std::string(name) + '\0' + std::string(pairs) + '\0';
}

const std::string connected = event_text("", "connection-established");

std::string listing(std::initializer_list<std::pair<const char *, const char *>> rows) {
    std::string out = "0\0"s;
    for (const auto &[name, state] : rows)
        out += std::string(name) + " class=AppVM state=" + state + "\n";
    return out;
}

// dom0 with its programs, which are scripts here. What the "qube" NAME does when it is called lies
// in do/NAME; whether it runs, for qvm-check, in state/NAME. They note name and process in `calls`
// and `checks`.
struct machine {
    machine() {
        if (::geteuid() == 0) { // nothing here needs it
            REQUIRE(::setgid(65534) == 0);
            REQUIRE(::setuid(65534) == 0);
        }
        made_dir.emplace();
        ahead = 0;
        for (const char *name : {"do", "state"})
            REQUIRE(::mkdir((dir() / name).c_str(), 0700) == 0);
        how.qubesd = dir() / "qubesd.sock";
        how.qrexec_client = {};
        how.qvm_run = script("qvm-run", "[ \"$1 $2 $3\" = '--no-gui --no-autostart --pass-io' ] || "
                                        "exit 2\nname=$4\n" +
                                            called);
        how.qvm_check =
            script("qvm-check", "[ \"$1\" = --running ] || exit 2\necho \"$2 $$\" >>" +
                                    dir().path() + "/checks\n. " + dir().path() + "/state/$2\n");
    }
    ~machine() { c.reset(); }

    [[nodiscard]] const scratch &dir() const { return *made_dir; }
    [[nodiscard]] std::string script(const char *name, const std::string &text) const {
        return put(dir() / name, "#!/bin/sh\n" + text, 0700);
    }
    void does(const char *name, const std::string &text) const {
        put(dir() / ("do/"s + name), text);
    }
    void is(const char *name, const std::string &text) const {
        put(dir() / ("state/"s + name), text);
    }

    void start(const std::vector<std::string> &names) {
        c.emplace(how, test_clock);
        event_fd = c->listen();
        c->set_peers(names);
    }
    // Connects to qubesd and hears of all that runs.
    unique_fd start_with(fake_qubesd &qubesd, const std::vector<std::string> &names,
                         const std::string &listed) {
        start(names);
        unique_fd events = qubesd.take(ask_events);
        send(events, connected);
        answer_listing(qubesd, listed);
        return events;
    }
    void answer_listing(fake_qubesd &qubesd, const std::string &listed) {
        wait_for([&] {
            step();
            return qubesd.is_asked();
        });
        send(qubesd.take(ask_listing), listed);
        step(guard_ms);
    }

    // What can be done now, or within so many milliseconds.
    void step(int milliseconds = 0) {
        is_readable(event_fd, milliseconds);
        try {
            while (auto got = c->accept())
                streams.push_back(std::move(*got));
        } catch (const problem &why) {
            problems.push_back(why.text);
        }
    }
    void until(const std::function<bool()> &what) {
        const ms start = host::boottime_ms();
        while (!what()) {
            REQUIRE(host::boottime_ms() - start < guard_ms);
            step(20);
        }
    }
    taken_stream next_stream() {
        until([&] { return !streams.empty(); });
        taken_stream out = std::move(streams.front());
        streams.erase(streams.begin());
        return out;
    }
    std::string next_problem() {
        until([&] { return !problems.empty(); });
        std::string out = problems.front();
        problems.erase(problems.begin());
        return out;
    }
    // Until the clock says so, and what is due then.
    void pass(ms time) {
        ahead += time;
        step();
    }
    // How long until something is due.
    [[nodiscard]] ms left() const {
        const ms due = c->next_due();
        const ms now = test_clock();
        return due == never ? never : due > now ? due - now : 0;
    }

    [[nodiscard]] std::vector<std::pair<std::string, pid_t>> noted(const char *file) const {
        std::vector<std::pair<std::string, pid_t>> out;
        std::istringstream in(text_of(dir() / file));
        std::string name;
        pid_t pid = 0;
        while (in >> name >> pid)
            out.emplace_back(name, pid);
        return out;
    }
    [[nodiscard]] std::size_t count(const char *file, std::string_view name) const {
        std::size_t out = 0;
        for (const auto &row : noted(file))
            out += row.first == name;
        return out;
    }
    [[nodiscard]] pid_t last(const char *file, std::string_view name) const {
        pid_t out = 0;
        for (const auto &row : noted(file))
            if (row.first == name)
                out = row.second;
        REQUIRE(out > 0);
        return out;
    }

    std::optional<scratch> made_dir;
    settings how;
    std::string called = "echo \"$name $$\" >>\"${0%/*}/calls\"\n. \"${0%/*}/do/$name\"\n";
    std::optional<caller> c;
    int event_fd = -1;
    std::vector<taken_stream> streams;
    std::vector<std::string> problems;
};

constexpr const char *echoes = "echo hello\nexec cat\n";

// Read while we have our rights.
const std::string module_text = text_of(std::getenv("QVMREMOTE_QVM_RUN"));

struct module {
    module() { put(dir / "qvm-run.so", module_text); }
    [[nodiscard]] host::outcome<host::transport>
    load(host::role as, const host::transport_options &options) const {
        return host::transport::load(dir.path(), "qvm-run", as, options);
    }
    scratch dir;
};

} // namespace

// First, since it needs the rights that the others give up.
TEST_CASE("an agent of another user is none") {
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

TEST_CASE("the module shows its table and nothing else") {
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
        {host::role::qube, {{"qubesd", "/x"}}, "option 'qubesd' is unknown here; there is socket"},
        {host::role::qube, {{"socket", "/" + std::string(107, 'x')}}, "option 'socket'"},
        {host::role::dom0, {{"socket", "/x"}}, "option 'socket' is unknown here"},
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

TEST_CASE("a qube reaches the agent's socket, or is told why not") {
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
        CHECK(made->connect().error().error_number == ECONNREFUSED); // what a dead agent left
        ::unlink(path.c_str());
    }
    const auto dom0 =
        host::transport::from_table(&qvmremote_transport_qvm_run, host::role::dom0, {});
    REQUIRE_FALSE(dom0);
    CHECK(contains(dom0.error().what, "has no part for dom0"));
}

TEST_CASE("events: what concerns a qube's running, in chunks of any size") {
    const std::string text =
        connected + event_text("work", "domain-start", "start_guid\0True\0"sv) +
        event_text("work", "domain-tag-add:x", "tag\0x\0"sv) + event_text("dom0", "domain-start") +
        event_text("../x", "domain-start") + event_text(std::string(32, 'a'), "domain-start") +
        event_text("", "domain-start") + event_text("dev-1", "domain-paused") +
        event_text("dev-1", "domain-unpaused", "k\0\0"sv) + event_text("work", "domain-shutdown") +
        event_text("", "domain-delete", "vm\0old\0"sv) +
        event_text("work", "domain-start" + std::string(100, 'x')) +
        event_text("work", "domain-start", "key\0"s + std::string(60'000, 'v') + '\0');
    const std::vector<event> want = {
        {news::connected, ""}, {news::runs, "work"},   {news::stands, "dev-1"},
        {news::runs, "dev-1"}, {news::stands, "work"}, {news::stands, "old"},
        {news::runs, "work"},
    };
    for (const std::size_t chunk : {std::size_t{1}, std::size_t{7}, text.size()}) {
        CAPTURE(chunk);
        event_reader reader;
        std::vector<event> got;
        for (std::size_t at = 0; at < text.size(); at += chunk) {
            std::string_view part = std::string_view(text).substr(at, chunk);
            while (!part.empty()) {
                const auto one = reader.next(part);
                REQUIRE(one);
                if (*one)
                    got.push_back(**one);
            }
        }
        CHECK(got == want);
    }
}

TEST_CASE("events: what is none breaks the connection for good") {
    const std::string rows[] = {
        "2\0QubesException\0\0no\0"s,
        "0\0"s,
        "\0"s,
        "11\0"s,
        "garbage",
        event_text("work", "domain-start"),           // before anything else
        event_text("work", "connection-established"), // of whom?
        connected + "2\0"s,
        connected + "1\0work\0x\0k\0"s + std::string(largest_event, 'v'),
    };
    for (const std::string &text : rows) {
        CAPTURE(text.substr(0, 80));
        event_reader reader;
        std::string_view part = text;
        bool failed = false;
        while (!part.empty() && !failed)
            failed = !reader.next(part);
        CHECK(failed);
        part = connected;
        CHECK_FALSE(reader.next(part));
    }
}

TEST_CASE("listings") {
    CHECK(running_qubes("0\0"sv).value().empty());
    const std::string good = "0\0"
                             "work class=AppVM state=Running\n"
                             "dom0 class=AdminVM state=Running\n"
                             "off state=Halted class=AppVM uuid=1\n"
                             "booting class=AppVM state=Transient\n"
                             "paused class=AppVM state=Paused\n"
                             "sys-net class=AppVM state=Running\n"
                             "a/../b class=AppVM state=Running\n"s;
    CHECK(running_qubes(good).value() == std::vector<std::string>{"sys-net", "work"});
    for (std::size_t n = 0; n < good.size(); ++n) // cut anywhere, it is whole lines or nothing
        CHECK(running_qubes(good.substr(0, n)).has_value() ==
              (n >= 2 && (n == 2 || good[n - 1] == '\n')));
    const std::string bad[] = {
        "2\0x\0"s,
        "1\0"s,
        "0\0work class=AppVM\n"s,
        "0\0work state=Running state=Halted\n"s,
        "0\0work state=Running \n"s,
        "0\0 state=Running\n"s,
        "0\0work Running\n"s,
        "0\0work =Running\n"s,
        "0\0\n"s,
        "0\0work state=Running\nwork state=Running\n"s,
        "0\0"s + std::string(largest_listing, '\n'),
    };
    for (const std::string &text : bad) {
        CAPTURE(text.substr(0, 60));
        CHECK_FALSE(running_qubes(text));
    }
}

TEST_CASE("pauses double from 1 s to 60 s, a fifth shorter or longer") {
    for (const std::uint32_t random : {0u, 0x80000000u, 0xffffffffu}) {
        CAPTURE(random);
        back_off pause;
        for (const ms base : {1u, 2u, 4u, 8u, 16u, 32u, 60u, 60u}) {
            const ms got = pause.next(random);
            if (random == 0)
                CHECK(got == base * 800);
            else if (random == 0x80000000u)
                CHECK(got == base * 1000);
            else
                CHECK(got == base * 1200 - 1);
        }
        pause.reset();
        CHECK(pause.next(0x80000000u) == 1000);
    }
}

TEST_CASE("an end has two steps") {
    ending end;
    CHECK(end.step(0) == 0);
    CHECK(end.due() == never);
    end.begin(100);
    end.begin(1000); // has begun already
    CHECK(end.due() == 2100);
    CHECK(end.step(2099) == 0);
    CHECK(end.step(2100) == SIGTERM);
    CHECK(end.due() == 4100);
    CHECK(end.step(4099) == 0);
    CHECK(end.step(5000) == SIGKILL);
    CHECK(end.due() == never);
    CHECK(end.step(9000) == 0);
}

TEST_CASE("a failure is said when it is news") {
    telling told;
    CHECK(told.is_new(1, 5));
    CHECK_FALSE(told.is_new(1, 10));
    CHECK_FALSE(told.is_new(2, 60'004)); // another, and too soon
    CHECK(told.is_new(2, 60'005));
    CHECK_FALSE(told.is_new(2, 200'000));
    CHECK(told.is_new(1, 200'001));
    CHECK(told.is_new(1, 200'001 + words_fade_after));
    told.forget();
    CHECK_FALSE(told.is_new(1, 200'002 + words_fade_after));
    CHECK(told.is_new(1, 300'002 + words_fade_after));
}

TEST_CASE("the last line of stderr, bounded and printable") {
    last_line line;
    line.feed("first\nsec");
    line.feed("ond \x1b[2J\xff\r\n\n");
    CHECK(line.text() == "second ?[2J?");
    line.feed(std::string(1000, 'x'));
    CHECK(line.text() == std::string(last_line::most, 'x'));
}

// The path of a program, or nothing where it is not installed.
static std::string program_in_path(const std::string &name) {
    std::istringstream directories(std::getenv("PATH") ? std::getenv("PATH") : "/usr/bin:/bin");
    for (std::string directory; std::getline(directories, directory, ':');)
        if (std::string path = directory + "/" + name; ::access(path.c_str(), X_OK) == 0)
            return path;
    return {};
}

TEST_CASE(
    "the command is one line that every login shell takes, however long the stream after it") {
    const std::string command = command_for_qube();
    CHECK(command.starts_with("exec sh -c '"));
    CHECK(command.find_first_of("\\!\n") == command.npos);
    CHECK(std::count(command.begin(), command.end(), '\'') == 2);
    const std::vector<std::string> direct = call_of({"", "/q", "/r", "/c", ""}, "work");
    CHECK(direct == std::vector<std::string>{"/q", "-d", "work", "DEFAULT:nogui:" + command});
    CHECK(direct.back().size() <= 4000);
    CHECK(
        call_of({"", "", "/r", "/c", ""}, "work") ==
        std::vector<std::string>{"/r", "--no-gui", "--no-autostart", "--pass-io", "work", command});

    CHECK(call_of({"", "/q", "/r", "/c", "anna"}, "work").back() == "anna:nogui:" + command);
    CHECK(call_of({"", "", "/r", "/c", "anna"}, "work") ==
          std::vector<std::string>{"/r", "--no-gui", "--no-autostart", "--pass-io", "--user=anna",
                                   "work", command});

    const machine m; // for its rights
    REQUIRE(::mkdir((m.dir() / "bin").c_str(), 0700) == 0);
    put(m.dir() / "bin/qvm-remote-agent", "#!/bin/sh\necho agent\nexec cat\n", 0700);
    put(m.dir() / "script", command + "; exit\necho not a command\n");
    const std::string path = "PATH=" + (m.dir() / "bin") + ":/usr/bin:/bin";
    // As qubes.VMShell has it, the command in front of the stream; and as qrexec itself does.
    std::vector<std::vector<std::string>> ways = {{"/usr/bin/env", path, "/bin/bash"}};
    for (const char *const name :
         {"sh", "dash", "bash", "zsh", "tcsh", "fish", "ksh93", "mksh", "busybox"}) {
        const std::string shell = program_in_path(name);
        if (shell.empty()) {
            MESSAGE("SKIPPED: there is no ", std::string(name), " here");
            continue;
        }
        ways.push_back({"/usr/bin/env", path, shell});
        if (std::string_view(name) == "busybox")
            ways.back().emplace_back("sh");
        ways.back().insert(ways.back().end(), {"-c", command});
    }
    for (const auto &argv : ways) {
        CAPTURE(argv[2]);
        const bool is_first = &argv == &ways.front();
        put(m.dir() / "rest", "echo not a command\n");
        const unique_fd in(
            ::open((m.dir() / (is_first ? "script" : "rest")).c_str(), O_RDONLY | O_CLOEXEC));
        int out[2];
        REQUIRE(::pipe2(out, O_CLOEXEC) == 0);
        const unique_fd read_end(out[0]);
        unique_fd write_end(out[1]);
        auto shell = child::start(argv, in.get(), write_end.get(), -1);
        REQUIRE_MESSAGE(shell, shell.error().what);
        write_end.reset();
        CHECK(receive(read_end) == "agent\necho not a command\n");
    }
}

TEST_CASE("what runs is called, at once; what does not run, or is not named, is not") {
    machine m;
    for (const char *name : {"work", "late", "off", "stranger"})
        m.does(name, echoes);
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events = m.start_with(qubesd, {"work", "late", "off", "dom0", "a.b"},
                                          listing({{"dom0", "Running"},
                                                   {"late", "Halted"},
                                                   {"stranger", "Running"},
                                                   {"work", "Running"}}));
    const taken_stream work = m.next_stream();
    CHECK(work.qube == "work");
    CHECK(receive(work.socket, 6) == "hello\n");
    send(work.socket, "both ways");
    CHECK(receive(work.socket, 9) == "both ways");
    CHECK((::fcntl(work.socket.get(), F_GETFD) & FD_CLOEXEC) != 0);

    // Nothing to do, nothing due.
    CHECK(m.c->next_due() == never);
    CHECK_FALSE(is_readable(m.event_fd, 0));

    send(events, event_text("stranger", "domain-start") + event_text("late", "domain-start"));
    CHECK(m.next_stream().qube == "late");
    // A new name: what is known of it is asked for.
    m.c->set_peers({"work", "late", "off", "stranger"});
    m.answer_listing(qubesd, listing({{"stranger", "Running"},
                                      {"work", "Running"},
                                      {"late", "Running"},
                                      {"off", "Halted"}}));
    CHECK(m.next_stream().qube == "stranger");
    CHECK(m.noted("calls").size() == 3);
}

TEST_CASE("an event that overtakes the listing counts") {
    machine m;
    m.does("work", echoes);
    m.does("off", echoes);
    fake_qubesd qubesd(m.how.qubesd);
    m.start({"work", "off"});
    const unique_fd events = qubesd.take(ask_events);
    send(events, connected);
    m.until([&] { return qubesd.is_asked(); });
    unique_fd asked = qubesd.take(ask_listing);
    send(events, event_text("off", "domain-shutdown"));
    m.step(guard_ms);
    send(asked, listing({{"off", "Running"}, {"work", "Running"}}));
    asked.reset();
    CHECK(m.next_stream().qube == "work");
    send(events, event_text("work", "domain-paused") + event_text("off", "domain-unpaused"));
    CHECK(m.next_stream().qube == "off");
    CHECK(m.count("calls", "off") == 1);
}

TEST_CASE("qrexec-client is called where there is one") {
    machine m;
    m.how.qrexec_client =
        m.script("qrexec-client",
                 "[ \"$1\" = -d ] || exit 2\n"
                 "case $3 in DEFAULT:nogui:exec\\ sh\\ -c*) ;; *) exit 2;; esac\nname=$2\n" +
                     m.called);
    m.does("work", echoes);
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events = m.start_with(qubesd, {"work"}, listing({{"work", "Running"}}));
    CHECK(receive(m.next_stream().socket, 6) == "hello\n");
}

TEST_CASE("without a qubesd qvm-check is asked, and not while a call stands") {
    machine m;
    for (const char *name : {"work", "late"})
        m.does(name, echoes);
    m.is("work", "exit 0\n");
    m.is("late", "exit 1\n");
    SUBCASE("a path where nothing is") {}
    SUBCASE("`none`") { m.how.qubesd.clear(); }
    m.start({"work", "late"});
    {
        const taken_stream work = m.next_stream();
        CHECK(work.qube == "work");
        m.until([&] { return m.count("checks", "late") == 1 && m.left() > 0; });
        CHECK(m.left() <= check_interval);
        m.is("late", "exit 0\n");
        m.pass(check_interval);
        const taken_stream late = m.next_stream();
        CHECK(late.qube == "late");
        m.until([&] { return m.c->next_due() == never; }); // not qubesd's socket either
        m.pass(1'000'000);
        CHECK(m.c->next_due() == never);
        CHECK(m.count("checks", "work") == 1);
        CHECK(m.count("checks", "late") == 2);
        CHECK(m.count("calls", "late") == 1);
        // A call that ends says nothing of the qube: it is checked again before the next.
        m.is("work", "exit 1\n");
        ::kill(m.last("calls", "work"), SIGKILL);
        m.until([&] { return m.left() != never; });
        CHECK(receive(work.socket) == "hello\n");
        m.pass(first_pause * 2);
        m.until([&] { return m.count("checks", "work") == 2; });
    }
    m.step();
    CHECK(m.count("calls", "work") == 1);
}

TEST_CASE("a check that hangs is killed, and holds up nobody else") {
    machine m;
    m.how.qubesd.clear();
    m.does("work", echoes);
    m.is("work", "exit 0\n");
    m.is("hung", "trap '' TERM\nwhile :; do sleep 1000; done\n");
    m.start({"hung", "work"});
    const taken_stream work = m.next_stream();
    CHECK(work.qube == "work");
    m.until([&] { return m.count("checks", "hung") == 1; });
    const pid_t hung = m.last("checks", "hung");
    CHECK(is_there(hung));
    m.pass(answer_limit);
    m.until([&] { return !is_there(hung); });
    CHECK(contains(m.next_problem(), "hung: qvm-check does not end"));
    CHECK(m.count("calls", "hung") == 0);
}

TEST_CASE("no more than eight checks at a time") {
    machine m;
    m.how.qubesd.clear();
    std::vector<std::string> names;
    for (int i = 0; i < 12; ++i) {
        names.push_back("q" + std::to_string(i));
        m.is(names.back().c_str(), "exec sleep 1000\n");
    }
    m.start(names);
    m.until([&] { return m.noted("checks").size() == 8; });
    m.step(100);
    CHECK(m.noted("checks").size() == 8);
    for (const auto &[name, pid] : m.noted("checks"))
        ::kill(pid, SIGKILL);
    m.until([&] { return m.noted("checks").size() == 12; });
}

TEST_CASE("when the child ends the stream ends, whoever else has it open") {
    machine m;
    m.does("work", "sleep 1000 &\necho hello\nread line\nexit 3\n");
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events = m.start_with(qubesd, {"work"}, listing({{"work", "Running"}}));
    const taken_stream work = m.next_stream();
    CHECK(receive(work.socket, 6) == "hello\n");
    send(work.socket, "go\n");
    m.until([&] { return m.left() != never; });
    CHECK(receive(work.socket).empty());
    CHECK(m.left() <= first_pause * 12 / 10);
}

TEST_CASE("pauses grow with each failure, which is said once; a good call or a start forgets") {
    machine m;
    m.does("work", "echo \"cannot\t$$\" >&2\nexit 9\n");
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events = m.start_with(qubesd, {"work"}, listing({{"work", "Running"}}));
    ms base = first_pause;
    for (std::size_t calls = 1; calls <= 8; ++calls) {
        CAPTURE(calls);
        m.until([&] {
            return m.count("calls", "work") == calls && m.left() != 0 && m.left() != never &&
                   !is_there(m.last("calls", "work"));
        });
        const ms left = m.left();
        CHECK(left <= base * 12 / 10);
        if (calls >= 6) // the smaller ones pass while this test looks
            CHECK(left > base / 2);
        base = std::min(2 * base, longest_pause);
        m.pass(left);
    }
    m.until([&] { return m.count("calls", "work") == 9 && !is_there(m.last("calls", "work")); });
    REQUIRE(m.problems.size() == 1);
    CHECK(m.problems[0].starts_with(
        "work: qvm-run ended with 9 before the qube sent a byte: cannot?"));
    CHECK(m.streams.empty()); // the host heard of no stream

    // Started anew, it is called at once, and the pauses begin anew.
    m.does("work", echoes);
    send(events, event_text("work", "domain-start"));
    taken_stream work = m.next_stream();
    CHECK(m.count("calls", "work") == 10);
    m.pass(proven_after);
    m.does("work", "exit 9\n");
    ::kill(m.last("calls", "work"), SIGKILL);
    m.until([&] { return m.left() != never; });
    CHECK(m.left() <= first_pause * 12 / 10);
    CHECK(m.problems.size() == 1); // it had been good: no failure to call
    // Another day, the same failure is news.
    m.pass(least_between_words);
    m.until([&] { return m.problems.size() == 2; });
    CHECK(m.problems[1] == "work: qvm-run ended with 9 before the qube sent a byte");
}

TEST_CASE("a call that ends before the qube has sent a byte is named, whatever it returned") {
    machine m;
    m.does("work", "echo no such shell >&2\nexit 0\n");
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events = m.start_with(qubesd, {"work"}, listing({{"work", "Running"}}));
    CHECK(m.next_problem() ==
          "work: qvm-run ended with 0 before the qube sent a byte: no such shell");
}

TEST_CASE("what cannot be started is a failure like others, and harms no other") {
    machine m;
    m.how.qrexec_client = m.dir() / "nothing";
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events = m.start_with(qubesd, {"work"}, listing({{"work", "Running"}}));
    const std::string said = m.next_problem();
    CHECK(said.starts_with("work: cannot start "));
    CHECK(contains(said, "No such file"));
    CHECK(m.left() <= first_pause * 12 / 10);
}

TEST_CASE("a qube that says nothing is given up after 15 s") {
    machine m;
    m.does("work", "echo starting >&2\nexec sleep 1000\n");
    m.does("dev", echoes);
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events =
        m.start_with(qubesd, {"dev", "work"}, listing({{"work", "Running"}, {"dev", "Running"}}));
    CHECK(m.next_stream().qube == "dev"); // and gone: closed here
    m.until([&] { return m.count("calls", "work") == 1; });
    const pid_t pid = m.last("calls", "work");
    m.until([&] { return m.left() > stderr_rest; }); // its words are read
    CHECK(is_there(pid));
    m.pass(answer_limit);
    CHECK(m.next_problem() == "work: no answer within 15 s: starting");
    m.pass(grace);
    m.until([&] { return !is_there(pid); });
}

TEST_CASE("the host closes: the child reads it, then gets SIGTERM, then SIGKILL") {
    machine m;
    m.does("work", "echo hello\nexec cat\n");
    m.does("slow", "echo hello\nexec sleep 1000\n");
    m.does("deaf", "trap '' TERM\necho hello\nwhile :; do sleep 1000; done\n");
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events =
        m.start_with(qubesd, {"work", "slow", "deaf"},
                     listing({{"work", "Running"}, {"slow", "Running"}, {"deaf", "Running"}}));
    m.until([&] { return m.streams.size() == 3; });
    const pid_t work = m.last("calls", "work");
    const pid_t slow = m.last("calls", "slow");
    const pid_t deaf = m.last("calls", "deaf");
    // Half an end is none.
    for (const taken_stream &s : m.streams)
        if (s.qube == "slow")
            ::shutdown(s.socket.get(), SHUT_WR);
    m.step();
    CHECK(m.c->next_due() == never);

    m.streams.clear();
    send(events, event_text("work", "domain-shutdown") + event_text("slow", "domain-shutdown") +
                     event_text("deaf", "domain-shutdown"));
    m.until([&] { return !is_there(work); });
    CHECK(is_there(slow));
    CHECK_FALSE(is_readable(m.event_fd, 0)); // until something ends, or is due
    CHECK(m.left() <= grace);
    m.pass(grace);
    m.until([&] { return !is_there(slow); });
    CHECK(is_there(deaf));
    m.pass(grace);
    m.until([&] { return !is_there(deaf); });
    CHECK(m.c->next_due() == never);
    CHECK(m.noted("calls").size() == 3); // none runs any more, so none was called again
    CHECK(m.problems.empty());
}

TEST_CASE("who is not named any more is cut off, and called again when it is") {
    machine m;
    m.does("work", "trap '' TERM\necho hello\nwhile :; do sleep 1000; done\n");
    m.does("dev", echoes);
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events =
        m.start_with(qubesd, {"dev", "work"}, listing({{"work", "Running"}, {"dev", "Running"}}));
    m.until([&] { return m.streams.size() == 2; });
    const pid_t old = m.last("calls", "work");
    m.c->set_peers({"dev"});
    for (const taken_stream &s : m.streams)
        if (s.qube == "work")
            CHECK(receive(s.socket) == "hello\n"); // its end, though the host did nothing
    m.c->set_peers({"dev", "work"});
    m.answer_listing(qubesd, listing({{"work", "Running"}, {"dev", "Running"}}));
    CHECK(is_there(old));
    CHECK(m.count("calls", "work") == 1); // one call to a qube, and the old one stands
    m.pass(grace);
    m.pass(grace);
    m.until([&] { return m.count("calls", "work") == 2; });
    CHECK_FALSE(is_there(old));
    CHECK(m.problems.empty());
    CHECK(m.count("calls", "dev") == 1);
}

TEST_CASE("strange bytes from qubesd: the connection is made anew, later and later") {
    machine m;
    m.does("work", echoes);
    fake_qubesd qubesd(m.how.qubesd);
    m.start({"work"});
    ms base = first_pause;
    const std::string strange[] = {"garbage", "2\0QubesException\0\0\0"s, connected, ""};
    for (const std::string &text : strange) {
        CAPTURE(text);
        unique_fd events = qubesd.take(ask_events);
        send(events, text);
        if (text == connected) {
            m.until([&] { return qubesd.is_asked(); });
            send(qubesd.take(ask_listing), "0\0work\n");
        } else if (text.empty()) {
            events.reset();
        }
        m.until([&] { return m.left() <= base * 12 / 10; });
        CHECK(m.left() > base / 2);
        CHECK_FALSE(qubesd.is_asked());
        m.pass(base * 12 / 10);
        base *= 2;
    }
    REQUIRE(m.problems.size() == 1);
    CHECK(contains(m.problems[0], "says what is no event; it is asked again"));
    CHECK(m.noted("calls").empty());

    // It comes to its senses; then it is silent where an answer is due.
    unique_fd events = qubesd.take(ask_events);
    send(events, connected);
    m.answer_listing(qubesd, listing({{"work", "Running"}}));
    const taken_stream work = m.next_stream();
    CHECK(m.c->next_due() == never);
    m.c->set_peers({"dev", "work"});
    const unique_fd silent = qubesd.take(ask_listing);
    m.pass(answer_limit);
    CHECK(receive(events).empty());
    m.pass(longest_pause * 2);
    m.until([&] { return qubesd.is_asked(); });
}

TEST_CASE("a restart of qubesd ends no call; states are asked for again when they matter") {
    machine m;
    m.does("work", echoes);
    std::optional<fake_qubesd> qubesd(std::in_place, m.how.qubesd);
    unique_fd events = m.start_with(*qubesd, {"work"}, listing({{"work", "Running"}}));
    taken_stream work = m.next_stream();
    qubesd.reset();
    events.reset();
    m.step(guard_ms);
    CHECK(m.c->next_due() == never); // all that is named has its call
    CHECK(is_there(m.last("calls", "work")));
    qubesd.emplace(m.how.qubesd);
    work.socket.reset();
    m.until([&] {
        if (!qubesd->is_asked())
            m.pass(first_pause);
        return qubesd->is_asked();
    });
    CHECK(m.count("calls", "work") == 1); // not before it is known to run
    events = qubesd->take(ask_events);
    send(events, connected);
    m.answer_listing(*qubesd, listing({{"work", "Running"}}));
    ahead += longest_pause * 2;
    CHECK(m.next_stream().qube == "work");
}

TEST_CASE("a child has nothing of ours but stdin, stdout, stderr and the environment") {
    machine m;
    ::setenv("QVMREMOTE_TEST_MARK", "here", 1);
    // Without another process: dash blocks all signals while it starts one.
    m.does("work", "while read -r line; do case $line in SigBlk:*|SigIgn:*) echo \"$line\";; esac; "
                   "done </proc/$$/status\n"
                   "cd /proc/$$/fd; for fd in *; do [ -e $fd ] && printf '%s ' $fd; done; cd /\n"
                   "readlink /proc/$$/cwd\necho $QVMREMOTE_TEST_MARK\n"
                   "[ \"$(cut -d' ' -f6 /proc/$$/stat)\" = $$ ] && echo leads\necho end\n"
                   "exec cat\n");
    fake_qubesd qubesd(m.how.qubesd);
    sigset_t set;
    sigset_t old;
    ::sigemptyset(&set);
    ::sigaddset(&set, SIGTERM);
    ::sigprocmask(SIG_BLOCK, &set, &old);
    const auto before = ::signal(SIGPIPE, SIG_IGN);
    const unique_fd stray(::open("/dev/null", O_RDONLY)); // not close-on-exec
    const unique_fd events = m.start_with(qubesd, {"work"}, listing({{"work", "Running"}}));
    const taken_stream work = m.next_stream();
    ::signal(SIGPIPE, before);
    ::sigprocmask(SIG_SETMASK, &old, nullptr);
    std::string got;
    while (!got.ends_with("end\n") && got.size() < 4096)
        got += receive(work.socket, 1);
    CAPTURE(got);
    CHECK(contains(got, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"));
    CHECK(contains(got, "\n0 1 "));
    CHECK(contains(got, " 2 /\n"));
    for (int fd = 3; fd < 10; ++fd) // a script has its own from 10 on
        CHECK_FALSE(contains(got, " " + std::to_string(fd) + " "));
    CHECK_FALSE(contains(got, " " + std::to_string(stray.get()) + " "));
    CHECK(contains(got, "here\nleads\n"));
}

TEST_CASE("stderr without end costs little and holds up nobody") {
    machine m;
    m.does("loud", "echo hello\nexec yes no >&2\n");
    m.does("work", echoes);
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events =
        m.start_with(qubesd, {"loud", "work"}, listing({{"work", "Running"}, {"loud", "Running"}}));
    m.until([&] { return m.streams.size() == 2; });
    // The loud one is read at intervals: in between nothing is to be done.
    std::size_t wakes = 0;
    const ms start = host::boottime_ms();
    while (host::boottime_ms() - start < 500) {
        wakes += is_readable(m.event_fd, 20);
        m.step();
    }
    CHECK(wakes >= 1);
    CHECK(wakes <= 20);
    for (const taken_stream &s : m.streams)
        if (s.qube == "work") {
            send(s.socket, "still here");
            CHECK(receive(s.socket, 16) == "hello\nstill here");
        }
}

TEST_CASE("64 calls that stand: nothing due, nothing to do, and close ends them all") {
    machine m;
    std::vector<std::string> names;
    std::string listed = "0\0"s;
    for (int i = 0; i < 64; ++i) {
        names.push_back("q" + std::to_string(i));
        m.does(names.back().c_str(),
               i % 8 == 0   ? "trap '' TERM\necho hello\nwhile :; do sleep 1000; done\n"
               : i % 8 == 1 ? "echo hello\nexec sleep 1000\n"
                            : echoes);
        listed += names.back() + " state=Running\n";
    }
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events = m.start_with(qubesd, names, listed);
    m.until([&] { return m.streams.size() == 64; });
    CHECK(m.c->next_due() == never);
    CHECK_FALSE(is_readable(m.event_fd, 100));
    const auto calls = m.noted("calls");
    REQUIRE(calls.size() == 64);
    m.c.reset();
    for (const auto &call : calls) {
        CAPTURE(call.first);
        CHECK_FALSE(is_there(call.second));
    }
    CHECK(::waitpid(-1, nullptr, WNOHANG) == -1); // no child is left, ended or not
    CHECK(errno == ECHILD);
}

TEST_CASE("through the loader, as the daemon has it") {
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
