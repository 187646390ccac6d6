// SPDX-License-Identifier: GPL-2.0-or-later
// Attacks of a qube on questions, rules and records. Its key is valid, and its rights are few.

#include <nlohmann/json.hpp>

#include <qvmremote/sanitize.hpp>

#include "hostile.hpp"

namespace e2e {

namespace {

constexpr const char *asked = "asked"; // a qube, whose key has the digit 'd'

template <class T, std::size_t N>
const T &any_of(const T (&values)[N], std::mt19937 &random) {
    return values[random() % N];
}

} // namespace

// One exchange with the daemon's control socket.
std::string suite::control(const std::string &line) {
    const unique_fd fd = connect_to(dom0_.root() + "/run/qvm-remote/control.sock");
    const std::string request = line + "\n";
    require(::write(fd.get(), request.data(), request.size()) ==
                static_cast<ssize_t>(request.size()),
            "the control socket does not read");
    std::string out;
    std::array<char, 64 * 1024> piece;
    for (ssize_t n; (n = ::read(fd.get(), piece.data(), piece.size())) > 0;)
        out.append(piece.data(), static_cast<std::size_t>(n));
    return out;
}

// The same from a process with its own terminal, by which dom0 knows an operator if there are no
// cgroups.
std::string suite::operate(const std::string &line) {
    const unique_fd screen(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
    char terminal[64];
    int answer[2];
    require(screen && ::grantpt(screen.get()) == 0 && ::unlockpt(screen.get()) == 0 &&
                ::ptsname_r(screen.get(), terminal, sizeof terminal) == 0 && ::pipe(answer) == 0,
            "no terminal");
    const pid_t child = ::fork();
    if (child == 0) {
        ::setsid();
        if (::open(terminal, O_RDWR) < 0) // becomes the session's terminal
            ::_exit(1);
        const std::string said = control(line);
        ::_exit(::write(answer[1], said.data(), said.size()) < 0 ? 1 : 0);
    }
    ::close(answer[1]);
    const unique_fd from(answer[0]);
    char said[256];
    const ssize_t n = ::read(from.get(), said, sizeof said);
    ::waitpid(child, nullptr, 0);
    return {said, static_cast<std::size_t>(std::max<ssize_t>(n, 0))};
}

// Writes the rules of the qube `asked`. Before a reload they only take rights away.
void suite::set_rules(const std::string &rules) {
    const std::string path = dom0_.root() + "/etc/qubes/remote-policy.d/50-asked.policy";
    write_file(path + ".new", rules);
    std::filesystem::rename(path + ".new", path);
}
void suite::load_rules(const std::string &rules) {
    set_rules(rules);
    const std::string said = control("reload");
    require(said == "ok\n", "the rules cannot be loaded: " + said);
}

// Waits until dom0 asks its operator about the request, and gives the number of the question.
std::uint64_t suite::await_question(attacker &a) {
    const auto event = a.answer();
    require(event && event->what == client_event::kind::pending,
            "nobody is asked: " + (event ? event->text : std::string("the stream ended")));
    return event->number;
}

void suite::questions() {
    load_rules("asked * ask\n");
    row(
        "A1: a client that leaves at any moment", asked,
        [&](attacker &, std::mt19937 &random) {
            attacker a(dom0_, asked);
            const std::uint32_t session = a.open_session();
            envelope e = request(mark_command());
            e.stdin_live = random() % 2;
            const bool has_stdin = e.stdin_live;
            bytes all = signed_request(a, session, std::move(e), 'd');
            forger key(all, session, 'd');
            if (random() % 3 == 0) {
                a.send(std::exchange(all, {}));
                if (random() % 2 && !has_stdin)
                    await_question(a);
                else
                    std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
            }
            if (has_stdin && random() % 2)
                all += key.frame(frame_type::stdin_data, 1 + random() % 100);
            if (has_stdin && random() % 2)
                all += key.frame(frame_type::stdin_eof, 0);
            if (random() % 2)
                all += key.frame(frame_type::close, 2);
            a.send(all);
            if (random() % 2)
                std::this_thread::sleep_for(std::chrono::microseconds(random() % 1000));
        },
        few);
    require(eventually([&] { return control("approvals").empty(); }), "questions of nobody wait");
}

void suite::shown_questions() {
    static constexpr std::string_view pieces[] = {"#!/bin/sh\necho harmless\nexit 0\n",
                                                  "a\nb",
                                                  "a",
                                                  "",
                                                  " ",
                                                  "\x1b[2J\x1b[1;1H",
                                                  "\xe2\x80\xae",
                                                  "argv[1]       : \"true\"",
                                                  "'; true #",
                                                  "\\n"};
    row(
        "A2: what is shown is what would run", asked,
        [&](attacker &, std::mt19937 &random) {
            attacker a(dom0_, asked);
            envelope e = request({});
            e.kind = request_kind::exec;
            e.arguments = {"/bin/touch", marks_ + "/shown"};
            for (std::size_t n = random() % 6; n > 0; --n)
                e.arguments.emplace_back(any_of(pieces, random));
            if (random() % 8 == 0)
                e.arguments.emplace_back(5000, 'x');
            const std::vector<std::string> words = e.arguments;
            a.send(signed_request(a, a.open_session(), std::move(e), 'd'));
            const std::string serial = std::to_string(await_question(a));
            const auto shown = nlohmann::json::parse(control("question " + serial));
            std::vector<std::string> want;
            for (const std::string &word : words)
                want.push_back(for_terminal(word, std::string_view::npos));
            require(shown["argv"] == want && shown["complete"] == true && shown["shell"] == false,
                    "the operator is shown " + shown.dump());
            std::string other = shown["digest"];
            other[random() % other.size()] ^= 1;
            require(operate("allow " + serial + " - " + other) != "ok\n",
                    "a yes to something else counts");
            require(!control("question " + serial).empty(), "the question is gone");
        },
        few);

    std::vector<unique_fd> held; // connections with a request that never ends
    for (int i = 0; i < 80; ++i) {
        held.push_back(connect_to(dom0_.root() + "/run/qvm-remote/control.sock"));
        require(::write(held.back().get(), "x", 1) == 1, "the control socket is closed");
    }
    row(
        "A4: a no beside requests that never end", asked,
        [&](attacker &a, std::mt19937 &) {
            a.send(signed_request(a, a.open_session(), request(mark_command()), 'd'));
            const std::string said = operate("deny " + std::to_string(await_question(a)));
            require(said == "ok\n", "a no is not heard: " + said);
            expect_refusal(a);
        },
        few / 10);
}

void suite::rules() {
    const std::string allows = "asked level:full allow\n";
    load_rules(allows);
    row(
        "B6: a rule that was removed by hand", asked,
        [&](attacker &a, std::mt19937 &random) {
            static constexpr const char *removed[] = {"", "asked * deny\n", "asked level:full al",
                                                      "# none\n"};
            set_rules(any_of(removed, random));
            a.send(signed_request(a, a.open_session(), request(mark_command()), 'd'));
            expect_refusal(a);
            set_rules(allows);
            a.send(signed_request(a, a.open_session(), request("true"), 'd'));
            for (auto event = a.answer();; event = a.answer()) {
                require(event && event->what != client_event::kind::refused, "the rule is back");
                if (event->what == client_event::kind::ended)
                    break;
            }
        },
        few);

    load_rules("asked level:manage allow\n");
    row(
        "B7: what a level does not hold", asked,
        [&](attacker &a, std::mt19937 &random) {
            static const std::vector<std::string> refused[] = {
                {"systemctl", "status"},
                {"journalctl", "-n", "/etc/shadow"},
                {"journalctl", "-n5", "/usr/bin/sudo"},
                {"qvm-prefs", "work", "label", "black"},
                {"qvm-prefs", "work", "include_in_backups", "False"},
                {"qvm-start", "Domain-0"},
                {"qvm-shutdown", "dom0"},
                {"qvm-run", "dom0", "touch " + marks_ + "/level"},
                {"touch", marks_ + "/level"},
            };
            envelope e = request({});
            e.kind = request_kind::exec;
            e.arguments = any_of(refused, random);
            a.send(signed_request(a, a.open_session(), std::move(e), 'd'));
            const auto event = a.answer();
            require(event && event->what == client_event::kind::refused &&
                        event->reason == errc::denied,
                    "a level allows what it does not hold");
        },
        few);
}

void suite::narrow_rules() {
    const std::string script = "touch " + marks_ + "/digest\n";
    load_rules("asked script:sha256:" + to_hex(sha256(as_bytes(script))) + " allow\n");
    row(
        "B9: a script's bytes as something else", asked,
        [&](attacker &a, std::mt19937 &random) {
            envelope e = request(script);
            switch (random() % 3) {
            case 0:
                break; // as a command line
            case 1:
                e.kind = request_kind::script;
                e.arguments = {"argument"};
                break;
            default:
                e.set_body({});
                e.kind = request_kind::exec;
                e.arguments = {"bash", "-c", script};
            }
            a.send(signed_request(a, a.open_session(), std::move(e), 'd'));
            expect_refusal(a);
        },
        few);

    load_rules("asked exec:env allow env=LANG env=LD_PRELOAD env=BASH_ENV\n");
    row(
        "B10: variables that are not known to be harmless", asked,
        [&](attacker &a, std::mt19937 &random) {
            static constexpr const char *names[] = {
                "LD_PRELOAD", "BASH_ENV", "DBUS_SYSTEM_BUS_ADDRESS", "PYTHONPATH", "PATH", "IFS",
                "GCONV_PATH", "LESSOPEN"};
            const std::string name = any_of(names, random), value = marks_ + "/variable";
            envelope e = request({});
            e.kind = request_kind::exec;
            e.arguments = {"env"};
            e.environment = {{"LANG", "C"}, {name, value}};
            a.send(signed_request(a, a.open_session(), std::move(e), 'd'));
            std::string out;
            for (auto event = a.answer();; event = a.answer()) {
                require(event && event->what != client_event::kind::closed, "the stream ended");
                if (event->what == client_event::kind::stdout_data)
                    out += as_text(event->data);
                if (event->what == client_event::kind::ended ||
                    event->what == client_event::kind::refused)
                    break;
            }
            require(out.find(value) == out.npos, name + " has reached a command");
        },
        few);
}

void suite::records() {
    const std::string index = dom0_.root() + "/var/lib/qvm-remote/ids.sqlite";
    const std::string kept = scratch_ / "ids.sqlite";
    envelope used = request(mark_command());
    {
        host::client c = honest(dom0_, "work", 'a');
        require(c.collect({.kind = request_kind::shell,
                           .body = "true",
                           .arguments = {},
                           .environment = {},
                           .id = used.id})
                        .result.exit_code() == 0,
                "the first use of an ID");
    }
    dom0_.stop();
    std::filesystem::copy_file(index, kept);
    const auto begin = std::chrono::steady_clock::now();
    const int restarts = std::max(few / 10, 6);
    for (int i = 0; i < restarts; ++i) {
        std::filesystem::remove_all(index);
        if (i % 6 == 0)
            std::filesystem::create_directories(index + "/x");
        else if (i % 6 == 1)
            write_file(index, "no database\n");
        else if (i % 6 == 2)
            write_file(index, "");
        else if (i % 6 == 3)
            write_file(index, read_file(kept).substr(0, read_file(kept).size() / 2));
        else if (i % 6 == 4)
            std::filesystem::create_symlink("/nowhere/ids", index);
        // The daemon refuses a used ID, or does not start while it cannot know the used ones.
        if (!dom0_.comes_up())
            continue;
        attacker a(dom0_, "work");
        envelope again = request(mark_command());
        again.id = used.id;
        a.send(signed_request(a, a.open_session(), std::move(again)));
        const auto event = a.answer();
        require(event && event->what == client_event::kind::refused, "a used ID was not refused");
        dom0_.stop();
    }
    std::filesystem::remove_all(index);
    dom0_.start();
    finish_row("B11: a used ID, with its index broken", restarts, begin);

    const std::size_t before = read_file(dom0_.log()).size() + read_file(dom0_.audit()).size();
    const int failing = few * 10;
    row(
        "B12: failures without end", "stranger",
        [&](attacker &a, std::mt19937 &) {
            a.send(signed_request(a, a.open_session(), request(mark_command()), 'c'));
            expect_refusal(a);
        },
        failing);
    const std::size_t grown =
        read_file(dom0_.log()).size() + read_file(dom0_.audit()).size() - before;
    require(grown < 256 * 1024, "failures made the records grow by " + std::to_string(grown));
    {
        attacker a(dom0_, "dev");
        envelope e = request(mark_command());
        const std::string id = e.id->text();
        a.send(signed_request(a, a.open_session(), std::move(e), 'a'));
        expect_refusal(a);
        require(eventually([&] { return read_file(dom0_.log()).find("dev") != std::string::npos; }),
                "another qube's failure is not in the log");
    }

    row(
        "B13: the audit file is moved away", "work",
        [&](attacker &a, std::mt19937 &) {
            const std::string moved = dom0_.audit() + ".moved";
            std::filesystem::rename(dom0_.audit(), moved);
            a.send(signed_request(a, a.open_session(), request(mark_command())));
            expect_refusal(a);
            std::filesystem::rename(moved, dom0_.audit());
        },
        std::max(few / 10, 5));
}

void suite::rights() {
    questions();
    shown_questions();
    rules();
    narrow_rules();
    records();
}

} // namespace e2e
