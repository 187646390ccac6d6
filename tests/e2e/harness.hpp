// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The shipped daemon below a scratch root, for tests that talk to it like a qube.

#pragma once

#include <chrono>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <qvmremote/host/client.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/secret.hpp>

extern char **environ;

namespace e2e {

using namespace qvmremote;
using host::unique_fd;

/// Nothing that a test waits for takes this long, unless it hangs.
inline constexpr int hang_guard_ms = 60'000;

/// The daemon that a failed test must end.
inline pid_t daemon_that_runs = 0;

[[noreturn]] inline void die(const std::string &what) {
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
    if (daemon_that_runs > 0)
        ::kill(daemon_that_runs, SIGKILL);
    std::exit(1);
}
inline void require(bool ok, const std::string &what) {
    if (!ok)
        die(what);
}

/// The effort that the command line asks for, `[ROUNDS] [seconds=N]`. The test ends when it reaches
/// the first of the two.
class effort {
  public:
    /// `rounds` is the number of rounds if the command line gives none.
    effort(int argc, char **argv, int rounds) : rounds_(rounds) {
        for (int i = 1; i < argc; ++i) {
            const std::string word = argv[i];
            if (word.starts_with("seconds=")) {
                seconds_ = std::stoi(word.substr(8));
                rounds_ = i == 1 ? INT_MAX : rounds_;
            } else {
                rounds_ = std::stoi(word);
            }
        }
    }
    [[nodiscard]] int rounds() const { return rounds_; }
    [[nodiscard]] bool is_timed() const { return seconds_ > 0; }
    /// Whether another round fits into this share of the rounds and of the time.
    [[nodiscard]] bool goes_on(int done, double share = 1) const {
        return done < share * rounds_ &&
               (!is_timed() || std::chrono::steady_clock::now() - begin_ <
                                   std::chrono::duration<double>(share * seconds_));
    }

  private:
    int rounds_, seconds_ = 0;
    std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

/// Waits until a condition is true; returns false after hang_guard_ms.
template <class Condition>
[[nodiscard]] bool eventually(Condition condition) {
    for (int waited = 0; waited < hang_guard_ms; waited += 2) {
        if (condition())
            return true;
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return false;
}

/// All bytes of a file, or an empty text. It uses no stream, because some tests read several
/// hundred files a second.
inline std::string read_file(const std::string &path) {
    std::string out;
    const unique_fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    for (std::size_t had = 0; fd;) {
        out.resize(had + 64 * 1024);
        const ssize_t n = ::read(fd.get(), out.data() + had, out.size() - had);
        had += n > 0 ? static_cast<std::size_t>(n) : 0;
        out.resize(had);
        if (n <= 0)
            break;
    }
    return out;
}
inline void write_file(const std::string &path, std::string_view text, mode_t mode = 0600) {
    const unique_fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode));
    require(fd && ::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()),
            "cannot write " + path);
}

/// A directory for one test. The destructor removes it.
class scratch {
  public:
    scratch() {
        char name[] = "/tmp/qvm-remote-e2e-XXXXXX";
        require(::mkdtemp(name) != nullptr, "mkdtemp");
        path_ = name;
    }
    ~scratch() {
        std::error_code ec;
        std::filesystem::remove_all(path_, ec);
    }
    scratch(const scratch &) = delete;
    scratch &operator=(const scratch &) = delete;
    [[nodiscard]] const std::string &path() const { return path_; }
    [[nodiscard]] std::string operator/(const std::string &name) const {
        return path_ + "/" + name;
    }

  private:
    std::string path_;
};

/// Starts a program; stdin is /dev/null by default. The variables of `extra` come before our
/// environment.
inline pid_t spawn(std::vector<std::string> words, std::vector<std::string> extra = {},
                   int out = -1, int err = -1, int in = -1) {
    std::vector<char *> argv, envp;
    for (auto &w : words)
        argv.push_back(w.data());
    argv.push_back(nullptr);
    for (auto &e : extra)
        envp.push_back(e.data());
    for (char **e = environ; *e; ++e)
        envp.push_back(*e);
    envp.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    if (in >= 0)
        ::posix_spawn_file_actions_adddup2(&actions, in, 0);
    else
        ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    if (out >= 0)
        ::posix_spawn_file_actions_adddup2(&actions, out, 1);
    if (err >= 0)
        ::posix_spawn_file_actions_adddup2(&actions, err, 2);
    pid_t pid = 0;
    require(::posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), envp.data()) == 0,
            "cannot start " + words[0]);
    ::posix_spawn_file_actions_destroy(&actions);
    return pid;
}

/// A path in the build, from an environment variable that Meson sets.
inline std::string from_environment(const char *name) {
    const char *const value = std::getenv(name);
    require(value != nullptr, std::string(name) + " is not set: run this by `meson test`");
    return value;
}

/// Connects to the UNIX socket at this path.
inline unique_fd connect_to(const std::string &path) {
    unique_fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    for (int i = 0; i < 1000; ++i) { // the backlog may be full for a moment
        if (::connect(fd.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address) == 0)
            return fd;
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    die("cannot connect to " + path);
}

/// The daemon with any number of qubes, on the mock transport or another one.
class daemon_under_test {
  public:
    daemon_under_test(const std::string &root, std::string peers,
                      std::vector<std::string> options = {})
        : root_(root), peers_(std::move(peers)), options_(std::move(options)) {
        std::filesystem::create_directories(root_);
        std::filesystem::permissions(root_, std::filesystem::perms::owner_all);
        std::filesystem::create_directories(root_ + "/etc/qubes/remote.d");
        std::filesystem::create_directories(root_ + "/etc/qubes/remote-policy.d");
        for (const char *d :
             {"/etc", "/etc/qubes", "/etc/qubes/remote.d", "/etc/qubes/remote-policy.d"})
            std::filesystem::permissions(root_ + d, std::filesystem::perms::owner_all);
    }
    ~daemon_under_test() { kill_now(); }
    daemon_under_test(const daemon_under_test &) = delete;
    daemon_under_test &operator=(const daemon_under_test &) = delete;

    /// Registers a key by writing its file, and gives the qube full access.
    void register_key(const std::string &qube, const std::string &digits) {
        write_file(root_ + "/etc/qubes/remote.d/" + qube + ".key", digits + "\n");
        write_file(root_ + "/etc/qubes/remote-policy.d/50-" + qube + ".policy",
                   qube + " level:full allow\n");
    }

    /// Uses another transport, with these environment variables.
    void use(std::string transport, std::string plugins, std::vector<std::string> environment) {
        transport_ = std::move(transport);
        plugins_ = std::move(plugins);
        environment_ = std::move(environment);
    }

    void start() { require(comes_up(), "the daemon does not come up"); }
    /// Starts it; false when it ends instead.
    [[nodiscard]] bool comes_up() {
        const std::string notify = root_ + "/notify";
        ::unlink(notify.c_str());
        const unique_fd ready(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::strncpy(address.sun_path, notify.c_str(), sizeof address.sun_path - 1);
        require(::bind(ready.get(), reinterpret_cast<sockaddr *>(&address), sizeof address) == 0,
                "bind " + notify);
        std::vector<std::string> words = {from_environment("QVMREMOTE_DAEMON"),
                                          "--root",
                                          root_,
                                          "--transport",
                                          transport_,
                                          "--plugin-dir",
                                          plugins_};
        words.insert(words.end(), options_.begin(), options_.end());
        std::vector<std::string> environment = {"NOTIFY_SOCKET=" + notify,
                                                "QVM_REMOTE_MOCK_DIR=" + root_,
                                                "QVM_REMOTE_MOCK_PEERS=" + peers_};
        environment.insert(environment.end(), environment_.begin(), environment_.end());
        pid_ = daemon_that_runs = spawn(words, environment);
        pollfd wait{ready.get(), POLLIN, 0};
        bool is_up = false;
        require(eventually([&] {
                    is_up = ::poll(&wait, 1, 0) == 1;
                    return is_up || ::waitpid(pid_, nullptr, WNOHANG) == pid_;
                }),
                "the daemon does not come up");
        pid_ = daemon_that_runs = is_up ? pid_ : 0;
        return is_up;
    }
    /// Kills the daemon with SIGKILL and waits for its end.
    void kill_now() {
        if (pid_ <= 0)
            return;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        pid_ = 0;
    }
    /// Ends the daemon with SIGTERM and returns its exit code.
    int stop() {
        ::kill(pid_, SIGTERM);
        int status = 0;
        ::waitpid(pid_, &status, 0);
        pid_ = 0;
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    void restart() {
        kill_now();
        start();
    }
    [[nodiscard]] pid_t pid() const { return pid_; }
    [[nodiscard]] const std::string &root() const { return root_; }
    [[nodiscard]] std::string socket(const std::string &qube) const {
        return root_ + "/" + qube + ".sock";
    }
    [[nodiscard]] std::string audit() const { return root_ + "/var/log/qvm-remote/audit.jsonl"; }
    [[nodiscard]] std::string log() const { return root_ + "/var/log/qubes/qvm-remote.log"; }

    [[nodiscard]] unique_fd connect(const std::string &qube) const {
        return connect_to(socket(qube));
    }

  private:
    std::string root_, peers_;
    std::vector<std::string> options_;
    std::string transport_ = "mock";
    std::string plugins_ = from_environment("QVMREMOTE_PLUGINS");
    std::vector<std::string> environment_;
    pid_t pid_ = 0;
};

/// A key of one repeated digit, so that failures are easy to read.
inline std::string key_digits(char c) { return std::string(secret::digits, c); }
inline secret key_of(char c) { return secret::parse(key_digits(c)).value(); }

/// An honest client with its own stream.
inline host::client honest(unique_fd fd, char key) {
    unique_fd copy(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3));
    return host::client(host::stream{std::move(fd), std::move(copy), "dom0"}, key_of(key));
}
inline host::client honest(const daemon_under_test &d, const std::string &qube, char key) {
    return honest(d.connect(qube), key);
}

/// Processes whose environment or command line holds `mark`.
inline std::vector<pid_t> processes_with(const std::string &mark) {
    std::vector<pid_t> out;
    for (const auto &entry : std::filesystem::directory_iterator("/proc")) {
        const std::string name = entry.path().filename();
        if (name.find_first_not_of("0123456789") != name.npos)
            continue;
        for (const char *file : {"/environ", "/cmdline"})
            if (read_file(entry.path().string() + file).find(mark) != std::string::npos) {
                out.push_back(static_cast<pid_t>(std::stol(name)));
                break;
            }
    }
    return out;
}

} // namespace e2e
