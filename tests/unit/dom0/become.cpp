// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/become.hpp"

#include <csignal>

#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "warden_fixture.hpp"

using namespace qvmremote_test;
using namespace std::chrono_literals;

TEST_CASE("stdin, stdout and stderr are three descriptors") {
    pipe_pair in;
    REQUIRE(::write(in.write.get(), "given", 5) == 5);
    in.write.reset();
    launch what = shell("cat; echo -n words >&2");
    what.in = in.read.get();
    const auto r = run(what);
    CHECK(r.out == "given");
    CHECK(r.err == "words");
}

TEST_CASE("one descriptor may be both stdout and stderr") {
    pipe_pair both;
    launch what = shell("echo -n a; echo -n b >&2");
    what.out = what.err = both.write.get();
    child c = start(what);
    both.write.reset();
    CHECK(read_to_end(both.read.get()) == "ab");
}

TEST_CASE("the environment is the given one and nothing else") {
    launch what = command({"env", "-0"});
    what.environment = {"B=2", "A=", "ODD", "LONG=" + std::string(1000, 'x'), "B=3"};
    CHECK(run(what).out == std::string("B=2\0A=\0ODD\0LONG=", 16) + std::string(1000, 'x') +
                               std::string("\0B=3\0", 5));
    what.environment.clear();
    CHECK(run(what).out.empty());
}

TEST_CASE("a command has only the descriptors that were named") {
    launch what = command({own_path(), "--descriptors"});
    CHECK(run(what).out == "0 1 2 ");
    pipe_pair a, b;
    what.extra = {{a.write.get(), 7}, {b.read.get(), 3}, {dev_null(), 500}};
    CHECK(run(what).out == "0 1 2 3 7 500 ");
}

TEST_CASE("extra descriptors have the numbers asked for") {
    // The keeper has its own copies at low numbers: it must not overwrite one before it is used.
    std::vector<pipe_pair> pipes(9);
    launch what = shell("for n in 3 4 5 6 7 8 9 10 11; do cat <&$n; done");
    for (int i = 0; i < 9; ++i) {
        const char digit = static_cast<char>('3' + i);
        REQUIRE(::write(pipes[static_cast<std::size_t>(i)].write.get(), &digit, 1) == 1);
        pipes[static_cast<std::size_t>(i)].write.reset();
        what.extra.emplace_back(pipes[static_cast<std::size_t>(i)].read.get(), 11 - i);
    }
    CHECK(run(what).out == ";:9876543");
}

TEST_CASE("session, group, signals, umask and directory") {
    pipe_pair out;
    launch what = command({"bash", "-c", "echo up; exec sleep 1000"});
    what.out = out.write.get();
    child c = start(what);
    const pid_t pid = next(c, child_event::started).pid;
    REQUIRE(read_line(out.read.get()) == "up");
    const process_state s = state_of(pid);
    CHECK(s.group == pid);
    CHECK(s.session == pid);
    CHECK(state_of(s.parent).name == "qvm-remote-keep");
    CHECK(state_of(the_warden->pid()).name == "qvm-remote-ward");
    CHECK(state_of(s.parent).parent == the_warden->pid());
    c.kill();
    CHECK(next(c, child_event::exited).wait_status == SIGKILL);

    CHECK(run(command({"grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"})).out ==
          "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");

    launch umask = shell("umask");
    CHECK(run(umask).out == "0022\n");
    umask.umask = 077;
    CHECK(run(umask).out == "0077\n");

    launch where = command({"pwd"});
    where.directory = "/usr/bin";
    CHECK(run(where).out == "/usr/bin\n");
    CHECK_FALSE(run(where).directory_missing);
    where.directory = "";
    CHECK(run(where).out == "/\n");
    CHECK_FALSE(run(where).directory_missing);
    where.directory = "/nowhere";
    CHECK(run(where).out == "/\n");
    CHECK(run(where).directory_missing);
    where.directory = "/usr/bin";
    where.program = "./pwd";
    CHECK(run(where).out == "/usr/bin\n");
}

TEST_CASE("no_new_privs and the score for the OOM killer") {
    launch what = shell("grep NoNewPrivs /proc/self/status; cat /proc/self/oom_score_adj");
    what.no_new_privs = true;
    what.oom_score_adj = 321;
    CHECK(run(what).out == "NoNewPrivs:\t1\n321\n");
    what.no_new_privs = false;
    what.oom_score_adj.reset();
    CHECK(run(what).out == "NoNewPrivs:\t0\n" + file_text("/proc/self/oom_score_adj"));
}

TEST_CASE("another identity: user, groups and capabilities") {
    launch what = command({"grep", "-E", "^(Uid|Gid|Groups|CapEff)", "/proc/self/status"});
    what.user = identity{65534, 65533, {65532, 65531}};
    const auto r = run(what);
    if (::geteuid() != 0) {
        CHECK(r.error_number == EPERM);
        return;
    }
    CHECK(r.out == "Uid:\t65534\t65534\t65534\t65534\nGid:\t65533\t65533\t65533\t65533\n"
                   "Groups:\t65531 65532 \nCapEff:\t0000000000000000\n");
    // The keeper enters the directory as that user.
    what = command({"pwd"});
    what.user = identity{65534, 65534, {}};
    what.directory = "/root";
    CHECK(run(what).directory_missing);
    // It also runs the program as that user.
    char file[] = "/tmp/qvmremote-warden-XXXXXX";
    const unique_fd fd(::mkstemp(file));
    REQUIRE(::fchmod(fd.get(), 0700) == 0);
    what.program = file;
    CHECK(run(what).error_number == EACCES);
    ::unlink(file);
}

TEST_CASE("another identity, confined: it sees no socket of dom0, and cannot get one back") {
    if (::geteuid() != 0) {
        launch what = command({"true"});
        what.confined = true;
        CHECK(run(what).error_number == EPERM);
        return;
    }
    // /run is not empty outside, so that an empty list inside proves something.
    REQUIRE(run(shell("ls -A /run | wc -l")).out != "0\n");
    const int listening = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un abstract{};
    abstract.sun_family = AF_UNIX;
    const std::string name = "qvmremote-warden-" + std::to_string(::getpid());
    name.copy(abstract.sun_path + 1, name.size());
    REQUIRE(::bind(listening, reinterpret_cast<const sockaddr *>(&abstract),
                   static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size())) == 0);
    const unique_fd socket(listening);
    REQUIRE(run(shell("grep -c @" + name + " /proc/net/unix")).out == "1\n");

    struct row {
        const char *name, *text, *want;
    };
    static constexpr row rows[] = {
        {"/run is empty", "ls -A /run /var/run/", "/run:\n\n/var/run/:\n"},
        {"/run stays empty", "touch /run/x 2>/dev/null; echo $?; ls -A /run", "1\n"},
        {"no abstract socket", "tail -n +2 /proc/net/unix", ""},
        {"no interface but a loopback that is down", "tail -n +3 /proc/net/dev | wc -l", "1\n"},
        {"unmounting the cover", "umount -l /run 2>/dev/null; ls -A /run", ""},
        {"unmounting it with the capabilities of a new user namespace",
         "unshare -Urm sh -c 'umount -l /run; ls -A /run' 2>/dev/null", ""},
        {"moving the mount away",
         "unshare -Urm sh -c 'mount --move /run /mnt; ls -A /run' 2>/dev/null", ""},
        {"the root of another process", "ls /proc/1/root/run /proc/$PPID/root/run 2>/dev/null", ""},
        {"the namespace of another process",
         "nsenter -t 1 -m ls /run 2>/dev/null; nsenter -t $PPID -m ls /run 2>/dev/null", ""},
        {"exec gives no privileges", "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n"},
    };
    for (const row &r : rows) {
        INFO(r.name);
        launch what = shell(r.text);
        what.user = identity{65534, 65534, {}};
        what.no_new_privs = what.confined = true;
        CHECK(run(what).out == r.want);
    }
    // Other commands are not affected.
    CHECK(run(shell("grep -c @" + name + " /proc/net/unix")).out == "1\n");
    CHECK(run(shell("ls -A /run | wc -l")).out != "0\n");
}

TEST_CASE("a script that is still open for writing is retried until it is closed") {
    char file[] = "/tmp/qvmremote-warden-XXXXXX";
    unique_fd writing(::mkstemp(file));
    REQUIRE(::write(writing.get(), "#!/bin/sh\necho ran\n", 19) == 19);
    REQUIRE(::fchmod(writing.get(), 0700) == 0);
    std::thread later([&] {
        std::this_thread::sleep_for(100ms);
        writing.reset();
    });
    CHECK(run(command({file})).out == "ran\n");
    later.join();
    ::unlink(file);
}
