// SPDX-License-Identifier: GPL-2.0-or-later
// Tests the calls into qubes.
#include "qvm_run_fixture.hpp"

using namespace qvmremote_test;

TEST_CASE("the command is one line that every login shell runs, whatever stream follows it") {
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

    const machine m; // gives up root's rights
    REQUIRE(::mkdir((m.dir() / "bin").c_str(), 0700) == 0);
    put(m.dir() / "bin/qvm-remote-agent", "#!/bin/sh\necho agent\nexec cat\n", 0700);
    put(m.dir() / "script", command + "; exit\necho not a command\n");
    const std::string path = "PATH=" + (m.dir() / "bin") + ":/usr/bin:/bin";
    // With qubes.VMShell the command comes before the stream on stdin; qrexec itself passes it as
    // an argument.
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
        auto shell = child::start({.argv = argv, .in = in.get(), .out = write_end.get()});
        REQUIRE_MESSAGE(shell, shell.error().what);
        write_end.reset();
        CHECK(receive(read_end) == "agent\necho not a command\n");
    }
}

TEST_CASE("a named qube that runs is called at once; no other qube is called") {
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

    // There is nothing to do, and nothing is due.
    CHECK(m.c->next_due() == never);
    CHECK_FALSE(is_readable(m.event_fd, 0));

    send(events, event_text("stranger", "domain-start") + event_text("late", "domain-start"));
    CHECK(m.next_stream().qube == "late");
    // After a new name, the state is asked for again.
    m.c->set_peers({"work", "late", "off", "stranger"});
    m.answer_listing(qubesd, listing({{"stranger", "Running"},
                                      {"work", "Running"},
                                      {"late", "Running"},
                                      {"off", "Halted"}}));
    CHECK(m.next_stream().qube == "stranger");
    CHECK(m.noted("calls").size() == 3);
}

TEST_CASE("qrexec-client is called if it is installed") {
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

TEST_CASE("when the child ends, the stream ends, even if another process has it open") {
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

TEST_CASE("a call that ends before the qube has sent a byte is reported, whatever it returned") {
    machine m;
    m.does("work", "echo no such shell >&2\nexit 0\n");
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events = m.start_with(qubesd, {"work"}, listing({{"work", "Running"}}));
    CHECK(m.next_problem() ==
          "work: qvm-run ended with 0 before the qube sent a byte: no such shell");
}

TEST_CASE("a program that cannot be started is a failure like others, and harms no other call") {
    machine m;
    m.how.qrexec_client = m.dir() / "nothing";
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events = m.start_with(qubesd, {"work"}, listing({{"work", "Running"}}));
    const std::string said = m.next_problem();
    CHECK(said.starts_with("work: cannot start "));
    CHECK(contains(said, "No such file"));
    CHECK(m.left() <= first_pause * 12 / 10);
}

TEST_CASE(
    "the call to a qube that is not named any more is ended, and made again when it is named") {
    machine m;
    m.does("work", "trap '' TERM\necho hello\nwhile :; do sleep 1000; done\n");
    m.does("dev", echoes);
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events =
        m.start_with(qubesd, {"dev", "work"}, listing({{"work", "Running"}, {"dev", "Running"}}));
    m.until([&] { return m.streams.size() == 2; });
    const pid_t old = m.last("calls", "work");
    m.c->set_peers({"dev"});
    // The stream ends, although the host did nothing.
    for (const taken_stream &s : m.streams)
        if (s.qube == "work")
            CHECK(receive(s.socket) == "hello\n");
    m.c->set_peers({"dev", "work"});
    m.answer_listing(qubesd, listing({{"work", "Running"}, {"dev", "Running"}}));
    CHECK(is_there(old));
    // Only one call to a qube at a time, and the old one has not ended.
    CHECK(m.count("calls", "work") == 1);
    m.pass(grace);
    m.pass(grace);
    m.until([&] { return m.count("calls", "work") == 2; });
    CHECK_FALSE(is_there(old));
    CHECK(m.problems.empty());
    CHECK(m.count("calls", "dev") == 1);
}

TEST_CASE("a child has only stdin, stdout, stderr and the environment from us") {
    machine m;
    ::setenv("QVMREMOTE_TEST_MARK", "here", 1);
    // Use no other process, because dash blocks all signals while it starts one.
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
    for (int fd = 3; fd < 10; ++fd) // the shell uses numbers from 10 on
        CHECK_FALSE(contains(got, " " + std::to_string(fd) + " "));
    CHECK_FALSE(contains(got, " " + std::to_string(stray.get()) + " "));
    CHECK(contains(got, "here\nleads\n"));
}

TEST_CASE("endless stderr costs little and delays no other call") {
    machine m;
    m.does("loud", "echo hello\nexec yes no >&2\n");
    m.does("work", echoes);
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events =
        m.start_with(qubesd, {"loud", "work"}, listing({{"work", "Running"}, {"loud", "Running"}}));
    m.until([&] { return m.streams.size() == 2; });
    // Its stderr is read at intervals; between them there is nothing to do.
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

TEST_CASE("with 64 open calls nothing is due and nothing to do, and close ends them all") {
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

TEST_CASE("close lets a child pass on what it holds") {
    machine m;
    const std::string passed = m.dir() / "passed";
    m.does("work", "echo hello\nsleep 0.5\nexec cat >" + passed + "\n");
    fake_qubesd qubesd(m.how.qubesd);
    const unique_fd events = m.start_with(qubesd, {"work"}, listing({{"work", "Running"}}));
    const taken_stream s = m.next_stream();
    send(s.socket, "the last words");
    m.c.reset();
    CHECK(text_of(passed) == "the last words");
}
