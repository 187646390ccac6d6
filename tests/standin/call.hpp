// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A call into a qube, for the stand-ins, as qrexec makes it: a process of the qube with its own
/// sockets, and a relay that sees no more of it than the real one.

#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <pwd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace standin {

inline std::string read_file(const std::string &path) {
    std::ifstream in(path, std::ios::binary);
    std::ostringstream out;
    out << in.rdbuf();
    return out.str();
}
/// The first line of a file.
inline std::string read_line(const std::string &path) {
    const std::string text = read_file(path);
    return text.substr(0, text.find('\n'));
}
inline void append(const std::string &path, const std::string &line) {
    const int fd = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    [[maybe_unused]] const ssize_t n = ::write(fd, line.data(), line.size());
    ::close(fd);
}

/// The directory of the machine, from QVMREMOTE_STANDIN.
inline std::string machine() {
    const char *const set = std::getenv("QVMREMOTE_STANDIN");
    if (!set) {
        std::fprintf(stderr, "stand-in: QVMREMOTE_STANDIN is not set\n");
        std::exit(2);
    }
    return set;
}
inline std::string directory_of(const std::string &qube) { return machine() + "/qubes/" + qube; }
inline bool exists(const std::string &qube) {
    return !qube.empty() && qube.find('/') == qube.npos &&
           std::filesystem::is_directory(directory_of(qube));
}
inline std::string state_of(const std::string &qube) {
    return read_line(directory_of(qube) + "/state");
}

/// Notes a call, so that tests can count them.
inline void note_call(const char *program, const std::string &qube, char **argv) {
    std::string line = std::string(program) + " " + qube + " " + std::to_string(::getpid());
    for (char **word = argv + 1; *word; ++word) {
        line += ' ';
        for (const char c : std::string_view(*word))
            line += c == '\n' ? "\\n" : std::string(1, c);
    }
    append(machine() + "/calls", line + "\n");
}

/// The faults to play: the lines of the qube's file `faults`.
inline std::map<std::string, long> faults_of(const std::string &qube) {
    std::istringstream in(read_file(directory_of(qube) + "/faults"));
    std::map<std::string, long> out;
    for (std::string line; std::getline(in, line);) {
        std::istringstream words(line);
        std::string name;
        long value = 0;
        words >> name >> value;
        if (!name.empty())
            out[name] = value;
    }
    return out;
}

inline void wait_ms(long ms) { ::poll(nullptr, 0, static_cast<int>(ms)); }

/// The process that runs in the qube.
struct service {
    std::vector<std::string> argv;
    std::string first_input;   ///< what it reads from stdin before the caller's bytes
    bool with_profile = false; ///< a login shell, whose profile prints
};

namespace detail {

struct lane {
    int from, to;
    std::string pending;
    bool ended = false;  // no more input
    bool broken = false; // the reader is gone: bytes are dropped
    std::uint64_t passed = 0;
    long stop_after = -1; // stalls after so many bytes

    static constexpr std::size_t piece = 256 * 1024;

    [[nodiscard]] bool is_stalled() const {
        return stop_after >= 0 && passed >= static_cast<std::uint64_t>(stop_after);
    }
    [[nodiscard]] pollfd input() const {
        return {ended || is_stalled() || pending.size() > piece ? -1 : from, POLLIN, 0};
    }
    [[nodiscard]] pollfd output() const {
        return {pending.empty() || broken ? -1 : to, POLLOUT, 0};
    }
    void read_some(std::vector<char> &room) {
        const ssize_t n = ::read(from, room.data(), room.size());
        if (n <= 0) {
            ended = ended || n == 0 || (errno != EAGAIN && errno != EINTR);
            return;
        }
        passed += static_cast<std::uint64_t>(n);
        const bool was_empty = pending.empty();
        if (!broken)
            pending.append(room.data(), static_cast<std::size_t>(n));
        if (was_empty)
            write_some();
    }
    void write_some() {
        if (pending.empty() || broken)
            return;
        const ssize_t n = ::write(to, pending.data(), pending.size());
        if (n > 0)
            pending.erase(0, static_cast<std::size_t>(n));
        else if (n < 0 && errno != EAGAIN && errno != EINTR)
            broken = true;
        if (broken)
            pending.clear();
    }
};

inline void set_nonblocking(int fd) { ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK); }

inline std::vector<std::string> environment_in(const std::string &directory) {
    const std::string extra = read_line(directory + "/path");
    const passwd *const who = ::getpwuid(::geteuid());
    const std::string user = who ? who->pw_name : "user";
    const char *const language = std::getenv("LANG");
    return {"HOME=" + directory + "/home", "USER=" + user, "LOGNAME=" + user,
            "PATH=" + (extra.empty() ? "" : extra + ":") + "/usr/local/bin:/usr/bin:/bin",
            std::string("LANG=") + (language ? language : "C.UTF-8")};
}

// In the child: becomes the service.
[[noreturn]] inline void become_service(const service &what, const std::string &home,
                                        const std::vector<std::string> &environment, int in,
                                        int out, int err) {
    ::setsid();
    // Use the system call, since glibc skips two signals that a parent may have ignored.
    const std::array<std::uint64_t, 8> by_default{};
    for (int n = 1; n <= 64; ++n)
        ::syscall(SYS_rt_sigaction, n, by_default.data(), nullptr, std::size_t{8});
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    ::dup2(in, 0);
    ::dup2(out, 1);
    ::dup2(err, 2);
    ::close_range(3, ~0u, 0);
    std::vector<char *> words, variables;
    for (const std::string &word : what.argv)
        words.push_back(const_cast<char *>(word.c_str()));
    for (const std::string &variable : environment)
        variables.push_back(const_cast<char *>(variable.c_str()));
    words.push_back(nullptr);
    variables.push_back(nullptr);
    if (::chdir(home.c_str()) == 0)
        ::execvpe(words[0], words.data(), variables.data());
    ::_exit(127);
}

/// The service in the qube, and our ends of its three streams.
struct running_service {
    pid_t child = -1;
    int in = -1, out = -1, err = -1;
};

inline running_service start_service(const std::string &directory, const service &what) {
    int in[2], out[2], err[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, in) != 0 ||
        ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, out) != 0 ||
        ::pipe2(err, O_CLOEXEC) != 0)
        return {};
    if (what.with_profile) {
        const std::string chatter = read_file(directory + "/profile");
        [[maybe_unused]] const ssize_t n = ::write(out[1], chatter.data(), chatter.size());
    }
    const auto environment = environment_in(directory);
    const pid_t child = ::fork();
    if (child == 0)
        become_service(what, directory + "/home", environment, in[1], out[1], err[1]);
    ::close(in[1]);
    ::close(out[1]);
    ::close(err[1]);
    return {child, in[0], out[0], err[0]};
}

// A program that changes the qube's state sends SIGUSR2. inotify would not do: a user has 128
// instances, and a test has 64 qubes whose agents need theirs.
inline int watch_state() {
    sigset_t changed;
    ::sigemptyset(&changed);
    ::sigaddset(&changed, SIGUSR2);
    ::sigprocmask(SIG_BLOCK, &changed, nullptr);
    return ::signalfd(-1, &changed, SFD_CLOEXEC | SFD_NONBLOCK);
}

inline bool is_halted(const std::string &qube) {
    return state_of(qube) != "Running" && state_of(qube) != "Paused";
}

// Relays until the service has ended, the qube has halted (true), or `cut` bytes of output have passed.
inline bool relay(const std::string &qube, std::array<lane, 3> &lanes, int watch, long cut) {
    std::vector<char> room(lane::piece);
    bool halted = is_halted(qube); // it may have halted before the call was noted
    while (!halted) {
        std::array<pollfd, 7> fds{};
        for (std::size_t i = 0; i < 3; ++i) {
            fds[2 * i] = lanes[i].input();
            fds[2 * i + 1] = lanes[i].output();
        }
        fds[6] = {watch, POLLIN, 0};
        if (lanes[1].ended && lanes[2].ended && lanes[1].pending.empty() &&
            lanes[2].pending.empty())
            return false;
        if (::poll(fds.data(), fds.size(), -1) < 0 && errno != EINTR)
            return false;
        if (fds[6].revents) {
            signalfd_siginfo said{};
            while (::read(watch, &said, sizeof said) > 0) {
            }
            if ((halted = is_halted(qube)))
                break;
        }
        for (std::size_t i = 0; i < 3; ++i) {
            if (fds[2 * i].fd >= 0 && fds[2 * i].revents)
                lanes[i].read_some(room);
            if (fds[2 * i + 1].fd >= 0 && fds[2 * i + 1].revents)
                lanes[i].write_some();
        }
        // The end of our stdin is a half-close: the output of the service goes on.
        if (lanes[0].ended && lanes[0].pending.empty() && lanes[0].from == 0) {
            ::shutdown(lanes[0].to, SHUT_WR);
            lanes[0].from = -1;
        }
        if (cut >= 0 && lanes[1].passed >= static_cast<std::uint64_t>(cut))
            break;
    }
    return halted;
}

} // namespace detail

/// Starts `what` in the qube and relays until it ends; returns the exit code as qrexec does.
inline int call(const std::string &qube, const service &what) {
    const auto faults = faults_of(qube);
    const auto fault = [&](const char *name) {
        const auto at = faults.find(name);
        return at == faults.end() ? -1 : at->second;
    };
    if (fault("start-delay") > 0)
        wait_ms(fault("start-delay"));
    if (faults.contains("refuse")) {
        std::fprintf(stderr, "Request refused\n");
        return 126;
    }
    if (faults.contains("trouble"))
        return 125;

    const std::string directory = directory_of(qube);
    const detail::running_service run = detail::start_service(directory, what);
    if (run.child < 0)
        return 125;
    // Like qrexec, set O_NONBLOCK on the files that the caller shares, and restore the flags at the
    // end.
    const int flags[2] = {::fcntl(0, F_GETFL), ::fcntl(1, F_GETFL)};
    ::signal(SIGPIPE, SIG_IGN);
    for (const int fd : {0, 1, run.in, run.out, run.err})
        detail::set_nonblocking(fd);
    const int watch = detail::watch_state();
    const std::string mark = directory + "/calls/" + std::to_string(::getpid());
    std::filesystem::create_directories(directory + "/calls");
    append(mark, std::to_string(run.child) + "\n");

    if (fault("stall") > 0)
        wait_ms(fault("stall"));
    std::array<detail::lane, 3> lanes{
        {{0, run.in, what.first_input}, {run.out, 1, {}}, {run.err, 2, {}}}};
    lanes[0].stop_after = fault("stop-writing");
    lanes[1].stop_after = fault("stop-reading");
    const long cut = fault("cut");
    const bool halted = detail::relay(qube, lanes, watch, cut);
    if (halted)
        ::kill(-run.child, SIGKILL);
    ::close(run.in);
    ::close(run.out);
    ::close(run.err);
    ::fcntl(0, F_SETFL, flags[0]);
    ::fcntl(1, F_SETFL, flags[1]);
    ::unlink(mark.c_str());
    if (cut >= 0 && !halted && !lanes[1].ended)
        return 125;
    int status = 0;
    ::waitpid(run.child, &status, 0);
    if (halted)
        return 255;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

} // namespace standin
