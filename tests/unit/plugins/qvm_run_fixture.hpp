// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A dom0 whose programs are scripts, and a qubesd that a test plays step by step.

#pragma once

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

#include <qvmremote/host/plugin.hpp>

#include "dom0.hpp"
#include "qubesd.hpp"
#include "schedule.hpp"
#include "support/scratch.hpp"

namespace qvmremote_test {

using namespace std::string_literals;
using namespace std::string_view_literals;
namespace host = qvmremote::host;
using host::unique_fd;
using namespace qvm_run;

inline constexpr int guard_ms = 60'000;

inline ms ahead = 0;
inline ms test_clock() { return host::boottime_ms() + ahead; }

inline bool is_readable(int fd, int milliseconds) {
    pollfd p{fd, POLLIN, 0};
    return ::poll(&p, 1, milliseconds) == 1;
}

/// Reads to the end or, with `n`, n bytes.
inline std::string receive(const unique_fd &fd, std::size_t n = SIZE_MAX) {
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

inline void send(const unique_fd &fd, std::string_view text) {
    REQUIRE(::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL) ==
            static_cast<ssize_t>(text.size()));
}

inline unique_fd listen_at(const std::string &path, int backlog = 16) {
    unique_fd out(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    REQUIRE(::bind(out.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address) == 0);
    REQUIRE(::listen(out.get(), backlog) == 0);
    return out;
}

inline bool is_there(pid_t pid) { return ::kill(pid, 0) == 0; }

inline void wait_for(const std::function<bool()> &what) {
    for (int waited = 0; !what(); waited += 5) {
        REQUIRE(waited < guard_ms);
        ::poll(nullptr, 0, 5);
    }
}

/// qubesd, played by the test step by step.
class fake_qubesd {
  public:
    explicit fake_qubesd(const std::string &path) : path_(path), listening_(listen_at(path)) {}
    ~fake_qubesd() { ::unlink(path_.c_str()); }

    // Accepts the next connection, which must ask exactly this.
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

inline std::string event_text(std::string_view subject, std::string_view name,
                              std::string_view pairs = {}) {
    return "1\0"s.append(subject) + '\0' + std::string(name) + '\0' + std::string(pairs) + '\0';
}

inline const std::string connected = event_text("", "connection-established");

inline std::string listing(std::initializer_list<std::pair<const char *, const char *>> rows) {
    std::string out = "0\0"s;
    for (const auto &[name, state] : rows)
        out += std::string(name) + " class=AppVM state=" + state + "\n";
    return out;
}

/// A dom0 whose programs are scripts. The file do/NAME says what the "qube" NAME does when it is
/// called, and state/NAME tells qvm-check whether it runs. The scripts note name and process ID in
/// `calls` and `checks`.
struct machine {
    machine() {
        if (::geteuid() == 0) { // no test here needs root
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
    // Connects to qubesd, which lists the qubes.
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

    // Does what can be done now or within this time.
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
    // Moves the clock forward, and does what is due then.
    void pass(ms time) {
        ahead += time;
        step();
    }
    // The time until something is due.
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

inline constexpr const char *echoes = "echo hello\nexec cat\n";

/// Read before the tests give up their rights.
inline const std::string module_text = text_of(std::getenv("QVMREMOTE_QVM_RUN"));

struct module {
    module() { put(dir / "qvm-run.so", module_text); }
    [[nodiscard]] host::outcome<host::transport>
    load(host::role as, const host::transport_options &options) const {
        return host::transport::load(dir.path(), "qvm-run", as, options);
    }
    scratch dir;
};

/// The path of a program; empty if it is not installed.
inline std::string program_in_path(const std::string &name) {
    std::istringstream directories(std::getenv("PATH") ? std::getenv("PATH") : "/usr/bin:/bin");
    for (std::string directory; std::getline(directories, directory, ':');)
        if (std::string path = directory + "/" + name; ::access(path.c_str(), X_OK) == 0)
            return path;
    return {};
}

} // namespace qvmremote_test
