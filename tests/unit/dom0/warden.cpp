// SPDX-License-Identifier: GPL-2.0-or-later
// Invariant I9, tried from both ends: what is started is what was asked for, and nothing of it is
// left afterwards. A real warden, real processes; those are marked by a variable in their
// environment, so that survivors are found wherever they have gone.
#include "execute/warden.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <new>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

using namespace qvmremote;
using namespace qvmremote::dom0;
using host::unique_fd;
using namespace std::chrono_literals;

namespace {

constexpr auto hang_guard = 60s; // not a requirement: the machine may be busy
warden *the_warden = nullptr;

[[nodiscard]] std::string mark() {
    static int n = 0;
    return "QVMREMOTE_TEST_MARK=" + std::to_string(::getpid()) + "." + std::to_string(++n);
}

struct pipe_pair {
    unique_fd read, write;
    pipe_pair() {
        int ends[2];
        REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
        read.reset(ends[0]);
        write.reset(ends[1]);
    }
};

[[nodiscard]] int dev_null() {
    static const int fd = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    return fd;
}

[[nodiscard]] launch command(std::vector<std::string> argv) {
    launch out;
    out.program = argv.front();
    out.argv = std::move(argv);
    out.environment = {"PATH=/usr/bin:/bin"};
    out.in = out.out = out.err = dev_null();
    return out;
}

[[nodiscard]] launch shell(const std::string &text) { return command({"bash", "-c", text}); }

[[nodiscard]] child start(const launch &what) {
    auto out = the_warden->launch(what);
    REQUIRE(out);
    return std::move(*out);
}

// Waits for the next event.
[[nodiscard]] child_event next(child &c) {
    for (;;) {
        if (const auto e = c.next())
            return *e;
        pollfd p{c.descriptor(), POLLIN, 0};
        REQUIRE(::poll(&p, 1, static_cast<int>(std::chrono::milliseconds(hang_guard).count())) ==
                1);
    }
}

[[nodiscard]] child_event next(child &c, child_event::event_kind want) {
    const child_event out = next(c);
    REQUIRE(out.kind == want);
    return out;
}

[[nodiscard]] std::string read_to_end(int fd) {
    std::string out;
    char piece[4096];
    for (;;) {
        pollfd p{fd, POLLIN, 0};
        REQUIRE(::poll(&p, 1, static_cast<int>(std::chrono::milliseconds(hang_guard).count())) ==
                1);
        const ssize_t n = ::read(fd, piece, sizeof piece);
        if (n <= 0)
            return out;
        out.append(piece, static_cast<std::size_t>(n));
    }
}

[[nodiscard]] std::string read_line(int fd) {
    std::string out;
    char c = 0;
    pollfd p{fd, POLLIN, 0};
    while (::poll(&p, 1, static_cast<int>(std::chrono::milliseconds(hang_guard).count())) == 1 &&
           ::read(fd, &c, 1) == 1 && c != '\n')
        out.push_back(c);
    REQUIRE(c == '\n');
    return out;
}

struct result_of_run {
    int wait_status = -1;
    int error_number = 0;
    bool directory_missing = false;
    std::string out, err;
};

// Runs to the end, with small outputs.
[[nodiscard]] result_of_run run(launch what) {
    pipe_pair out, err;
    what.out = out.write.get();
    what.err = err.write.get();
    child c = start(what);
    out.write.reset();
    err.write.reset();
    result_of_run r;
    r.out = read_to_end(out.read.get());
    r.err = read_to_end(err.read.get());
    child_event e = next(c);
    if (e.kind == child_event::failed) {
        r.error_number = e.error_number;
        return r;
    }
    REQUIRE(e.kind == child_event::started);
    r.directory_missing = e.directory_missing;
    e = next(c, child_event::exited);
    r.wait_status = e.wait_status;
    if (!e.tree_empty)
        c.terminate();
    (void)next(c, child_event::empty);
    CHECK_FALSE(c.next());
    return r;
}

[[nodiscard]] std::string file_text(const std::string &path) {
    // Not by an iterator, which throws when the process ends between open and read.
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

void for_each_process(const std::function<void(pid_t)> &take) {
    DIR *const proc = ::opendir("/proc");
    REQUIRE(proc);
    while (const dirent *entry = ::readdir(proc))
        if (const int pid = std::atoi(entry->d_name); pid > 0)
            take(pid);
    ::closedir(proc);
}

// Processes with the mark; one that is dead and not reaped has no environment.
[[nodiscard]] std::set<pid_t> marked(const std::string &with) {
    std::set<pid_t> out;
    for_each_process([&](pid_t pid) {
        const std::string text =
            '\0' + file_text("/proc/" + std::to_string(pid) + "/environ") + '\0';
        if (text.find('\0' + with + '\0') != text.npos)
            out.insert(pid);
    });
    return out;
}

[[nodiscard]] bool soon(const std::function<bool()> &holds) {
    const auto until = std::chrono::steady_clock::now() + hang_guard;
    while (!holds()) {
        if (std::chrono::steady_clock::now() > until)
            return false;
        std::this_thread::sleep_for(5ms);
    }
    return true;
}

[[nodiscard]] bool all_gone(const std::string &with) {
    return soon([&] { return marked(with).empty(); });
}

struct process_state {
    std::string name;
    char state = 'X'; // as in stat; X: no such process
    pid_t parent = 0, group = 0, session = 0;
};

[[nodiscard]] process_state state_of(pid_t pid) {
    process_state out;
    const std::string text = file_text("/proc/" + std::to_string(pid) + "/stat");
    const auto open = text.find('('), close = text.rfind(')');
    if (close == text.npos)
        return out;
    out.name = text.substr(open + 1, close - open - 1);
    std::sscanf(text.c_str() + close + 2, "%c %d %d %d", &out.state, &out.parent, &out.group,
                &out.session);
    return out;
}

[[nodiscard]] bool is_gone(pid_t pid) {
    const char state = state_of(pid).state;
    return state == 'X' || state == 'Z';
}

[[nodiscard]] std::set<int> descriptors_of(pid_t pid) {
    std::set<int> out;
    const std::string path = "/proc/" + std::to_string(pid) + "/fd";
    DIR *const open = ::opendir(path.c_str());
    REQUIRE(open);
    while (const dirent *entry = ::readdir(open))
        if (entry->d_name[0] != '.')
            out.insert(std::atoi(entry->d_name));
    if (pid == ::getpid())
        out.erase(::dirfd(open));
    ::closedir(open);
    return out;
}

// The keepers of a warden; what else is below it is theirs.
[[nodiscard]] std::set<pid_t> keepers_of(const warden &of) {
    std::set<pid_t> out;
    for (const pid_t pid : detail::processes_below(of.pid(), detail::listing::children_files))
        if (state_of(pid).parent == of.pid() && !is_gone(pid))
            out.insert(pid);
    return out;
}

// A process that ignores TERM, in a session of its own, with two parents gone; it writes a line
// when it is there. The shell that began all this stays, ignoring TERM as well.
constexpr const char *stubborn =
    "trap '' TERM HUP INT; "
    "( ( setsid bash -c 'echo up; while :; do sleep 1; done' & ) & ); while :; do sleep 1; done";

// Runs `stubborn` until it stands.
[[nodiscard]] child start_stubborn(warden &by, const std::string &with) {
    pipe_pair out;
    launch what = shell(stubborn);
    what.environment.push_back(with);
    what.out = out.write.get();
    auto c = by.launch(what);
    REQUIRE(c);
    REQUIRE(next(*c).kind == child_event::started);
    REQUIRE(read_line(out.read.get()) == "up");
    REQUIRE(marked(with).size() >= 2);
    return std::move(*c);
}

// What this program does under other names.

// Forks without end, at most 200 at a time: some stay and have children, some only hand on and end,
// each in a session of its own, and all ignore what may be ignored.
[[noreturn]] void fork_bomb() {
    auto *const living = new (::mmap(nullptr, sizeof(std::atomic<int>), PROT_READ | PROT_WRITE,
                                     MAP_SHARED | MAP_ANONYMOUS, -1, 0)) std::atomic<int>(1);
    for (int n = 1; n < NSIG; ++n)
        ::signal(n, SIG_IGN);
    if (::write(1, "up\n", 3) != 3)
        ::_exit(1);
    for (unsigned turn = static_cast<unsigned>(::getpid());; ++turn) {
        if (living->fetch_add(1) >= 200) {
            living->fetch_sub(1);
            ::usleep(200);
            continue;
        }
        const pid_t pid = ::fork();
        if (pid == 0)
            ::setsid();
        if (pid < 0)
            living->fetch_sub(1);
        if (pid > 0 && turn % 2 == 0) {
            living->fetch_sub(1);
            ::_exit(0);
        }
    }
}

[[noreturn]] void print_descriptors() {
    for (int fd = 0; fd < 1024; ++fd)
        if (::fcntl(fd, F_GETFD) >= 0)
            ::dprintf(1, "%d ", fd);
    ::_exit(0);
}

// A daemon of its own with a stubborn tree, and a warden; tells the warden's number and waits.
// Outside of doctest, so without its macros.
[[noreturn]] void fake_daemon(const char *with) {
    ::setpgid(0, 0);
    auto by = warden::start();
    int ends[2];
    if (!by || ::pipe2(ends, O_CLOEXEC) != 0)
        ::_exit(1);
    launch what = shell(stubborn);
    what.environment.push_back(with);
    what.out = ends[1];
    const auto c = by->launch(what);
    char up;
    if (!c || ::read(ends[0], &up, 1) != 1)
        ::_exit(1);
    ::dprintf(1, "%d\n", by->pid());
    for (;;)
        ::pause();
}

[[nodiscard]] std::string own_path() {
    char text[4096];
    const ssize_t n = ::readlink("/proc/self/exe", text, sizeof text);
    REQUIRE(n > 0);
    return std::string(text, static_cast<std::size_t>(n));
}

} // namespace

TEST_CASE("how a command ends") {
    struct row {
        const char *name;
        std::vector<std::string> argv;
        int wait_status;
    };
    const row rows[] = {
        {"0", {"true"}, 0},
        {"1", {"false"}, 1 << 8},
        {"255", {"bash", "-c", "exit 255"}, 255 << 8},
        {"exit 9 is no signal", {"bash", "-c", "exit 9"}, 9 << 8},
        {"signal 9", {"bash", "-c", "kill -9 $$"}, 9},
        {"signal 15", {"bash", "-c", "kill $$"}, 15},
        {"by its path", {"/usr/bin/true"}, 0},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        CHECK(run(command(r.argv)).wait_status == r.wait_status);
    }
}

TEST_CASE("what cannot be started says why") {
    char directory[] = "/tmp/qvmremote-warden-XXXXXX";
    REQUIRE(::mkdtemp(directory));
    const std::string plain = std::string(directory) + "/plain";
    std::ofstream(plain) << "exit 0\n";
    const std::string text = std::string(directory) + "/text";
    std::ofstream(text) << "exit 0\n";
    ::chmod(text.c_str(), 0755);
    const std::string orphan = std::string(directory) + "/orphan";
    std::ofstream(orphan) << "#!/nowhere/sh\n";
    ::chmod(orphan.c_str(), 0755);
    struct row {
        const char *name;
        std::string program;
        int want;
    };
    const row rows[] = {
        {"not in the PATH", "qvm-remote-no-such-program", ENOENT},
        {"no such file", "/nowhere/program", ENOENT},
        {"not executable", plain, EACCES},
        {"a directory", "/usr/bin/", EACCES},
        {"a directory, searched", "..", EACCES},
        {"neither ELF nor #!", text, ENOEXEC},
        {"no such interpreter", orphan, ENOENT},
        {"a path through a file", plain + "/x", ENOENT},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        CHECK(run(command({r.program})).error_number == r.want);
    }
    for (const std::string &file : {plain, text, orphan})
        ::unlink(file.c_str());
    ::rmdir(directory);
}

TEST_CASE("what cannot be carried out as written is refused before anything runs") {
    struct row {
        const char *name;
        std::function<void(launch &)> spoil;
        int want;
    };
    const row rows[] = {
        {"no program", [](launch &l) { l.program.clear(); }, EINVAL},
        {"no argv", [](launch &l) { l.argv.clear(); }, EINVAL},
        {"NUL in the program", [](launch &l) { l.program.push_back('\0'); }, EINVAL},
        {"NUL in argv", [](launch &l) { l.argv.emplace_back("a\0b", 3); }, EINVAL},
        {"NUL in the environment", [](launch &l) { l.environment.emplace_back("A=\0", 3); },
         EINVAL},
        {"NUL in the directory", [](launch &l) { l.directory.assign("/\0tmp", 5); }, EINVAL},
        {"no stdin", [](launch &l) { l.in = -1; }, EINVAL},
        {"a number of ours",
         [](launch &l) {
             l.extra = {{dev_null(), 2}};
         },
         EINVAL},
        {"a number twice",
         [](launch &l) {
             l.extra = {{dev_null(), 5}, {dev_null(), 5}};
         },
         EINVAL},
        {"17 more",
         [](launch &l) {
             for (int n = 3; n < 20; ++n)
                 l.extra.emplace_back(dev_null(), n);
         },
         EINVAL},
        {"a descriptor that is closed", [](launch &l) { l.out = 1 << 20; }, EBADF},
        {"9 MiB", [](launch &l) { l.argv.emplace_back(9 << 20, 'x'); }, E2BIG},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        launch what = command({"true"});
        r.spoil(what);
        const auto c = the_warden->launch(what);
        REQUIRE_FALSE(c);
        CHECK(c.error().error_number == r.want);
    }
}

TEST_CASE("stdin, stdout and stderr are three") {
    pipe_pair in;
    REQUIRE(::write(in.write.get(), "given", 5) == 5);
    in.write.reset();
    launch what = shell("cat; echo -n words >&2");
    what.in = in.read.get();
    const auto r = run(what);
    CHECK(r.out == "given");
    CHECK(r.err == "words");
}

TEST_CASE("one descriptor may be two of the three") {
    pipe_pair both;
    launch what = shell("echo -n a; echo -n b >&2");
    what.out = what.err = both.write.get();
    child c = start(what);
    both.write.reset();
    CHECK(read_to_end(both.read.get()) == "ab");
}

TEST_CASE("the environment is as given, nothing else") {
    launch what = command({"env", "-0"});
    what.environment = {"B=2", "A=", "ODD", "LONG=" + std::string(1000, 'x'), "B=3"};
    CHECK(run(what).out == std::string("B=2\0A=\0ODD\0LONG=", 16) + std::string(1000, 'x') +
                               std::string("\0B=3\0", 5));
    what.environment.clear();
    CHECK(run(what).out.empty());
}

TEST_CASE("arguments arrive as they are, short and long") {
    for (const std::size_t size : {0u, 1u, 1000u, 60u * 1024, 66u * 1024, 100u * 1024}) {
        CAPTURE(size);
        launch what = command({"bash", "-c", "printf %s \"$#:$1:\"; printf %s \"$2\" | wc -c",
                               "name", "a b'\"$\n\xff", std::string(size, 'y')});
        CHECK(run(what).out == "2:a b'\"$\n\xff:" + std::to_string(size) + "\n");
    }
    // 300 KiB in all: more than one message, less than what Linux takes.
    launch what = command({"bash", "-c", "echo $#", "name"});
    for (int i = 0; i < 300; ++i)
        what.argv.emplace_back(1024, 'z');
    CHECK(run(what).out == "300\n");
    what.argv.emplace_back(128 * 1024, 'z');
    CHECK(run(what).error_number == E2BIG);
}

TEST_CASE("a command has no descriptor but those named") {
    launch what = command({own_path(), "--descriptors"});
    CHECK(run(what).out == "0 1 2 ");
    pipe_pair a, b;
    what.extra = {{a.write.get(), 7}, {b.read.get(), 3}, {dev_null(), 500}};
    CHECK(run(what).out == "0 1 2 3 7 500 ");
}

TEST_CASE("extra descriptors have the numbers asked for") {
    // Low numbers, where the keeper's own copies stand: none may be overwritten before it is used.
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

TEST_CASE("a script in memory runs as /dev/fd/N") {
    const unique_fd script(::memfd_create("script", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    std::string text = "echo \"$1\"; exit 3\n#";
    text.append(900 * 1024, '.');
    REQUIRE(::write(script.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()));
    REQUIRE(::fcntl(script.get(), F_ADD_SEALS,
                    F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
    launch what = command({"bash", "/dev/fd/9", "word"});
    what.extra = {{script.get(), 9}};
    const auto r = run(what);
    CHECK(r.out == "word\n");
    CHECK(WEXITSTATUS(r.wait_status) == 3);
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

TEST_CASE("another identity, all of it") {
    launch what = command({"grep", "-E", "^(Uid|Gid|Groups|CapEff)", "/proc/self/status"});
    what.user = identity{65534, 65533, {65532, 65531}};
    const auto r = run(what);
    if (::geteuid() != 0) {
        CHECK(r.error_number == EPERM);
        return;
    }
    CHECK(r.out == "Uid:\t65534\t65534\t65534\t65534\nGid:\t65533\t65533\t65533\t65533\n"
                   "Groups:\t65531 65532 \nCapEff:\t0000000000000000\n");
    // The directory is entered as that user.
    what = command({"pwd"});
    what.user = identity{65534, 65534, {}};
    what.directory = "/root";
    CHECK(run(what).directory_missing);
    // And the program is run as that user.
    char file[] = "/tmp/qvmremote-warden-XXXXXX";
    const unique_fd fd(::mkstemp(file));
    REQUIRE(::fchmod(fd.get(), 0700) == 0);
    what.program = file;
    CHECK(run(what).error_number == EACCES);
    ::unlink(file);
}

TEST_CASE("another identity, confined: no socket of dom0's is in sight, and none comes back") {
    if (::geteuid() != 0) {
        launch what = command({"true"});
        what.confined = true;
        CHECK(run(what).error_number == EPERM);
        return;
    }
    // Not empty here, so that an empty list there says something.
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
        {"and stays so", "touch /run/x 2>/dev/null; echo $?; ls -A /run", "1\n"},
        {"no abstract socket", "tail -n +2 /proc/net/unix", ""},
        {"no interface but a loopback that is down", "tail -n +3 /proc/net/dev | wc -l", "1\n"},
        {"taking the cover off", "umount -l /run 2>/dev/null; ls -A /run", ""},
        {"the same with capabilities in a user namespace of one's own",
         "unshare -Urm sh -c 'umount -l /run; ls -A /run' 2>/dev/null", ""},
        {"a mount over it", "unshare -Urm sh -c 'mount --move /run /mnt; ls -A /run' 2>/dev/null",
         ""},
        {"the root of another process", "ls /proc/1/root/run /proc/$PPID/root/run 2>/dev/null", ""},
        {"the namespace of another process",
         "nsenter -t 1 -m ls /run 2>/dev/null; nsenter -t $PPID -m ls /run 2>/dev/null", ""},
        {"nothing is gained by exec", "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n"},
    };
    for (const row &r : rows) {
        INFO(r.name);
        launch what = shell(r.text);
        what.user = identity{65534, 65534, {}};
        what.no_new_privs = what.confined = true;
        CHECK(run(what).out == r.want);
    }
    // Nothing of it reaches the other commands.
    CHECK(run(shell("grep -c @" + name + " /proc/net/unix")).out == "1\n");
    CHECK(run(shell("ls -A /run | wc -l")).out != "0\n");
}

TEST_CASE("a script that somebody still holds open for writing is waited for") {
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

TEST_CASE("a signal goes to the process group") {
    const std::string with = mark();
    pipe_pair out;
    launch what = shell("trap : USR2; (trap 'echo inner; exit 0' USR2; echo up; "
                        "while :; do sleep 0.05; done) & wait; wait; echo outer; exit 7");
    what.environment.push_back(with);
    what.out = out.write.get();
    child c = start(what);
    out.write.reset();
    (void)next(c, child_event::started);
    REQUIRE(read_line(out.read.get()) == "up");
    c.signal(SIGUSR2);
    CHECK(read_to_end(out.read.get()) == "inner\nouter\n");
    CHECK(WEXITSTATUS(next(c, child_event::exited).wait_status) == 7);
    (void)next(c, child_event::empty);
    CHECK(marked(with).empty());
}

TEST_CASE("a signal after the first process's end goes to those that remain") {
    const std::string with = mark();
    pipe_pair out;
    launch what = shell("setsid bash -c 'trap \"echo got; exit 0\" USR1; echo up; "
                        "while :; do sleep 0.05; done' & exec true");
    what.environment.push_back(with);
    what.out = out.write.get();
    child c = start(what);
    out.write.reset();
    (void)next(c, child_event::started);
    REQUIRE(read_line(out.read.get()) == "up");
    CHECK_FALSE(next(c, child_event::exited).tree_empty);
    c.signal(SIGUSR1);
    CHECK(read_line(out.read.get()) == "got");
    (void)next(c, child_event::empty);
    CHECK(all_gone(with));
}

TEST_CASE("a child in the background is reported, then ended") {
    const std::string with = mark();
    launch what = shell("sleep 1000 >/dev/null 2>&1 </dev/null & exit 5");
    what.environment.push_back(with);
    pipe_pair out;
    what.out = out.write.get();
    child c = start(what);
    out.write.reset();
    CHECK(read_to_end(out.read.get()).empty()); // nobody of ours holds it open
    (void)next(c, child_event::started);
    const auto e = next(c, child_event::exited);
    CHECK(WEXITSTATUS(e.wait_status) == 5);
    CHECK_FALSE(e.tree_empty);
    CHECK_FALSE(c.next());
    CHECK(soon([&] { return marked(with).size() == 1; }));
    c.terminate();
    (void)next(c, child_event::empty);
    CHECK(marked(with).empty());
}

TEST_CASE("terminate: who listens ends in its own way, even when stopped") {
    pipe_pair out;
    launch what =
        shell("trap 'echo bye; exit 4' TERM; echo up; kill -STOP $$; while :; do sleep 0.05; done");
    what.out = out.write.get();
    child c = start(what);
    (void)next(c, child_event::started);
    REQUIRE(read_line(out.read.get()) == "up");
    c.terminate();
    c.terminate();
    CHECK(read_line(out.read.get()) == "bye");
    CHECK(WEXITSTATUS(next(c, child_event::exited).wait_status) == 4);
    (void)next(c, child_event::empty);
}

TEST_CASE("who ignores TERM in a session of its own dies") {
    struct row {
        const char *name;
        std::function<void(std::optional<child> &)> end;
        bool reported;
    };
    const row rows[] = {
        {"terminate", [](auto &c) { c->terminate(); }, true},
        {"kill", [](auto &c) { c->kill(); }, true},
        {"terminate, then kill", [](auto &c) { c->terminate(), c->kill(); }, true},
        {"let go of", [](auto &c) { c.reset(); }, false},
        {"terminate and let go of", [](auto &c) { c->terminate(), c.reset(); }, false},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        const std::string with = mark();
        std::optional<child> c(start_stubborn(*the_warden, with));
        r.end(c);
        if (r.reported) {
            CHECK(next(*c, child_event::exited).wait_status == SIGKILL);
            (void)next(*c, child_event::empty);
            CHECK(marked(with).empty()); // not soon: it was said
        } else {
            CHECK(all_gone(with));
        }
    }
}

TEST_CASE("let go of before it began, a command ends as well") {
    const std::string with = mark();
    launch what = shell(stubborn);
    what.environment.push_back(with);
    for (int i = 0; i < 20; ++i)
        (void)start(what);
    (void)run(command({"true"})); // the warden takes one after the other
    CHECK(all_gone(with));
}

TEST_CASE("the keeper is killed: the warden kills the orphans, and others live") {
    const std::string with = mark(), other = mark();
    child bystander = start_stubborn(*the_warden, other);
    pipe_pair out;
    launch what = shell(std::string("(setsid bash -c \"trap '' TERM; echo up; sleep 1000\" &); ") +
                        "exec sleep 1000");
    what.environment.push_back(with);
    what.out = out.write.get();
    child c = start(what);
    const pid_t pid = next(c, child_event::started).pid;
    REQUIRE(read_line(out.read.get()) == "up");
    const pid_t keeper = state_of(pid).parent;
    REQUIRE(state_of(keeper).name == "qvm-remote-keep");
    REQUIRE(::kill(keeper, SIGKILL) == 0);
    (void)next(c, child_event::lost);
    CHECK_FALSE(c.next());
    CHECK(all_gone(with));
    CHECK(marked(other).size() >= 2);
    c.signal(SIGTERM);
    c.terminate();
    c.kill();
    CHECK(the_warden->alive());
}

TEST_CASE("the daemon is killed: no process is left") {
    for (const bool whole_group : {false, true}) {
        CAPTURE(whole_group);
        const std::string with = mark();
        pipe_pair out;
        const pid_t daemon = ::fork();
        REQUIRE(daemon >= 0);
        if (daemon == 0) {
            ::dup2(out.write.get(), 1);
            ::execl("/proc/self/exe", "warden", "--daemon", with.c_str(), nullptr);
            ::_exit(127);
        }
        out.write.reset();
        const pid_t warden_pid = std::stoi(read_line(out.read.get()));
        CHECK(state_of(warden_pid).name == "qvm-remote-ward");
        CHECK(marked(with).size() >= 2);
        ::kill(whole_group ? -daemon : daemon, SIGKILL);
        ::waitpid(daemon, nullptr, 0);
        CHECK(all_gone(with));
        CHECK(soon([&] { return is_gone(warden_pid); }));
    }
}

TEST_CASE("the warden is killed: the daemon notices, commands go on and end as before") {
    auto own = warden::start();
    REQUIRE(own);
    CHECK(own->alive());
    const std::string with = mark();
    child c = start_stubborn(*own, with);
    REQUIRE(::kill(own->pid(), SIGKILL) == 0);
    pollfd p{own->descriptor(), POLLIN, 0};
    CHECK(::poll(&p, 1, static_cast<int>(std::chrono::milliseconds(hang_guard).count())) == 1);
    CHECK_FALSE(own->alive());
    const auto refused = own->launch(command({"true"}));
    REQUIRE_FALSE(refused);
    CHECK((refused.error().error_number == EPIPE || refused.error().error_number == ECONNRESET));
    CHECK(marked(with).size() >= 2);
    CHECK_FALSE(c.next());
    c.kill();
    (void)next(c, child_event::exited);
    (void)next(c, child_event::empty);
    CHECK(marked(with).empty());
}

TEST_CASE("the warden ends when it is let go of, after its commands") {
    const std::string with = mark();
    std::optional<pid_t> pid;
    {
        auto own = warden::start();
        REQUIRE(own);
        pid = own->pid();
        { const child c = start_stubborn(*own, with); }
        own->stop();
        CHECK(marked(with).empty());
    }
    CHECK(state_of(*pid).state == 'X');
}

TEST_CASE("the warden holds nothing of the daemon, the keeper nothing of the command") {
    // 0 to 2, the socket, and one to each keeper.
    const auto settled = [] {
        return descriptors_of(the_warden->pid()).size() == 4 + keepers_of(*the_warden).size();
    };
    CHECK(soon(settled));
    child first = start(command({"sleep", "1000"}));
    (void)next(first, child_event::started);
    pipe_pair extra;
    launch what = command({"sleep", "1000"});
    what.extra = {{extra.read.get(), 9}};
    what.environment.push_back("LONG=" + std::string(100 * 1024, 'x'));
    child second = start(what);
    const pid_t keeper = state_of(next(second, child_event::started).pid).parent;
    // 0 to 2, the one to the warden, and the command's control socket.
    CHECK(soon([&] { return descriptors_of(keeper).size() == 5; }));
    CHECK(soon(settled));
}

TEST_CASE("a warden that cannot make a keeper says so, and goes on when it can") {
    auto own = warden::start();
    REQUIRE(own);
    const auto first_event = [&] {
        auto c = own->launch(command({"true"}));
        REQUIRE(c);
        return next(*c);
    };
    // The one that waited and comes back, and the one that was made meanwhile.
    {
        auto c = own->launch(command({"true"}));
        REQUIRE(c);
        while (next(*c).kind != child_event::empty) {
        }
    }
    REQUIRE(soon([&] { return keepers_of(*own).size() == 2; }));
    // No room for a link, which is two, but for a control socket to answer on.
    const rlim_t used = descriptors_of(own->pid()).size();
    rlimit old{};
    rlimit few{used + 1, used + 1};
    REQUIRE(::prlimit(own->pid(), RLIMIT_NOFILE, nullptr, &old) == 0);
    few.rlim_max = old.rlim_max;
    REQUIRE(::prlimit(own->pid(), RLIMIT_NOFILE, &few, nullptr) == 0);
    std::vector<child> busy;
    for (int i = 0; i < 2; ++i) {
        auto c = own->launch(command({"sleep", "1000"}));
        REQUIRE(c);
        CHECK(next(*c).kind == child_event::started);
        busy.push_back(std::move(*c));
    }
    for (int i = 0; i < 3; ++i) {
        const child_event e = first_event();
        CHECK(e.kind == child_event::failed);
        CHECK(e.error_number == EMFILE);
    }
    REQUIRE(::prlimit(own->pid(), RLIMIT_NOFILE, &old, nullptr) == 0);
    CHECK(first_event().kind == child_event::started);
}

TEST_CASE("a keeper comes back from a command that ended by itself, and from no other") {
    auto own = warden::start();
    REQUIRE(own);
    const auto keeper_of = [&](launch what, bool kill) {
        auto c = own->launch(what);
        REQUIRE(c);
        const pid_t pid = state_of(next(*c, child_event::started).pid).parent;
        if (kill)
            c->kill();
        while (next(*c).kind != child_event::empty) {
        }
        return pid;
    };
    std::set<pid_t> seen;
    CHECK(soon([&] { return !seen.insert(keeper_of(command({"true"}), false)).second; }));
    const pid_t killed = keeper_of(command({"sleep", "1000"}), true);
    CHECK(soon([&] { return !keepers_of(*own).contains(killed); }));
}

TEST_CASE("no more than two keepers wait") {
    auto own = warden::start();
    REQUIRE(own);
    {
        std::vector<child> many;
        for (int i = 0; i < 8; ++i) {
            auto c = own->launch(command({"sh", "-c", "read -r _ || true"}));
            REQUIRE(c);
            (void)next(*c, child_event::started);
            many.push_back(std::move(*c));
        }
        for (child &c : many)
            while (next(c).kind != child_event::empty) {
            }
    }
    CHECK(soon([&] { return keepers_of(*own).size() == 2; }));
}

TEST_CASE("a keeper that is killed while it waits is replaced") {
    auto own = warden::start();
    REQUIRE(own);
    const auto below = [&] {
        return detail::processes_below(own->pid(), detail::listing::children_files);
    };
    for (int i = 0; i < 3; ++i) {
        REQUIRE(soon([&] { return below().size() == 1; }));
        const pid_t waiting = below().front();
        REQUIRE(::kill(waiting, SIGKILL) == 0);
        CHECK(soon([&] { return below().size() == 1 && below().front() != waiting; }));
    }
    auto c = own->launch(command({"true"}));
    REQUIRE(c);
    (void)next(*c, child_event::started);
}

TEST_CASE("a fork bomb ends") {
    const std::string with = mark();
    for (int i = 0; i < 5; ++i) {
        pipe_pair out;
        launch what = command({own_path(), "--bomb"});
        what.environment.push_back(with);
        what.out = out.write.get();
        child c = start(what);
        (void)next(c, child_event::started);
        REQUIRE(read_line(out.read.get()) == "up");
        CHECK(soon([&] { return marked(with).size() > 100; }));
        c.kill();
        while (next(c).kind != child_event::empty) {
        }
        CHECK(marked(with).empty());
    }
}

TEST_CASE("both ways of listing a tree agree") {
    const std::string with = mark();
    const child c = start_stubborn(*the_warden, with);
    const auto all = [&](detail::listing how) {
        const auto found = detail::processes_below(the_warden->pid(), how);
        return std::set<pid_t>(found.begin(), found.end());
    };
    CHECK(soon([&] {
        const auto one = all(detail::listing::children_files);
        const auto other = all(detail::listing::whole_proc);
        const auto want = marked(with);
        return one == other && want.size() >= 2 &&
               std::includes(one.begin(), one.end(), want.begin(), want.end());
    }));
}

TEST_CASE("signals from a terminal or to the group do not end the warden") {
    for (const int n : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGUSR1, SIGTSTP, SIGCHLD})
        ::kill(the_warden->pid(), n);
    CHECK(run(command({"true"})).wait_status == 0);
    CHECK(the_warden->alive());
}

TEST_CASE("orders that cross the end do no harm, and no event is lost by them") {
    for (int i = 0; i < 100; ++i) {
        child c = start(command({"true"}));
        // Some arrive before the command, some behind its keeper's last look.
        for (int n = 0; n < i; ++n)
            c.signal(SIGCONT);
        (void)next(c, child_event::started);
        c.signal(SIGCONT);
        CHECK(next(c, child_event::exited).wait_status == 0);
        c.terminate();
        (void)next(c, child_event::empty);
    }
}

TEST_CASE("200 launches leak no descriptor and no process") {
    (void)run(command({"true"}));
    // The keepers that wait are there.
    const auto quiet = [] {
        const std::size_t waiting = keepers_of(*the_warden).size();
        return waiting >= 1 && waiting <= 2 &&
               detail::processes_below(the_warden->pid(), detail::listing::children_files).size() ==
                   waiting &&
               descriptors_of(the_warden->pid()).size() == 4 + waiting;
    };
    REQUIRE(soon(quiet));
    const auto ours = descriptors_of(::getpid());
    std::vector<child> all;
    for (int i = 0; i < 200; ++i)
        all.push_back(start(command({i % 4 ? "true" : "qvm-remote-no-such-program"})));
    for (child &c : all)
        for (auto kind = next(c).kind; kind != child_event::empty && kind != child_event::failed;)
            kind = next(c).kind;
    all.clear();
    CHECK(soon(quiet));
    CHECK(descriptors_of(::getpid()) == ours);
}

int main(int argc, char **argv) {
    if (argc > 1 && std::strcmp(argv[1], "--bomb") == 0)
        fork_bomb();
    if (argc > 1 && std::strcmp(argv[1], "--descriptors") == 0)
        print_descriptors();
    if (argc > 2 && std::strcmp(argv[1], "--daemon") == 0)
        fake_daemon(argv[2]);
    // What a caller of the daemon may have left behind, and glibc lets nobody touch.
    struct {
        void (*handler)(int);
        std::uint64_t flags, restorer, mask;
    } const ignored{SIG_IGN, 0, 0, 0};
    ::syscall(SYS_rt_sigaction, 32, &ignored, nullptr, std::size_t{8});
    auto started = warden::start();
    if (!started) {
        std::fprintf(stderr, "%s\n", started.error().what.c_str());
        return 1;
    }
    the_warden = &*started;
    doctest::Context context(argc, argv);
    return context.run();
}
