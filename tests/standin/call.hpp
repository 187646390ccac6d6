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
};

inline void set_nonblocking(int fd) { ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK); }

} // namespace detail

/// Starts `what` in the qube and relays until it ends; returns the exit code as qrexec does.
inline int call(const std::string &qube, const service &what) {
    using detail::lane;
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

    int in[2], out[2], err[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, in) != 0 ||
        ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, out) != 0 ||
        ::pipe2(err, O_CLOEXEC) != 0)
        return 125;
    const std::string directory = directory_of(qube), home = directory + "/home";
    if (what.with_profile) {
        const std::string chatter = read_file(directory + "/profile");
        [[maybe_unused]] const ssize_t n = ::write(out[1], chatter.data(), chatter.size());
    }
    const std::string extra = read_line(directory + "/path");
    const passwd *const who = ::getpwuid(::geteuid());
    const std::string user = who ? who->pw_name : "user";
    const char *const language = std::getenv("LANG");
    std::vector<std::string> environment = {
        "HOME=" + home, "USER=" + user, "LOGNAME=" + user,
        "PATH=" + (extra.empty() ? "" : extra + ":") + "/usr/local/bin:/usr/bin:/bin",
        std::string("LANG=") + (language ? language : "C.UTF-8")};
    const pid_t child = ::fork();
    if (child < 0)
        return 125;
    if (child == 0) {
        ::setsid();
        // Use the system call, since glibc skips two signals that a parent may have ignored.
        const std::array<std::uint64_t, 8> by_default{};
        for (int n = 1; n <= 64; ++n)
            ::syscall(SYS_rt_sigaction, n, by_default.data(), nullptr, std::size_t{8});
        sigset_t none;
        ::sigemptyset(&none);
        ::sigprocmask(SIG_SETMASK, &none, nullptr);
        ::dup2(in[1], 0);
        ::dup2(out[1], 1);
        ::dup2(err[1], 2);
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
    ::close(in[1]);
    ::close(out[1]);
    ::close(err[1]);
    // Like qrexec, set O_NONBLOCK on the files that the caller shares, and restore the flags at the
    // end.
    const int flags[2] = {::fcntl(0, F_GETFL), ::fcntl(1, F_GETFL)};
    ::signal(SIGPIPE, SIG_IGN);
    for (const int fd : {0, 1, in[0], out[0], err[0]})
        detail::set_nonblocking(fd);
    // A program that changes the qube's state sends SIGUSR2. inotify would not do: a user has 128
    // instances, and a test has 64 qubes whose agents need theirs.
    sigset_t changed;
    ::sigemptyset(&changed);
    ::sigaddset(&changed, SIGUSR2);
    ::sigprocmask(SIG_BLOCK, &changed, nullptr);
    const int watch = ::signalfd(-1, &changed, SFD_CLOEXEC | SFD_NONBLOCK);
    const std::string mark = directory + "/calls/" + std::to_string(::getpid());
    std::filesystem::create_directories(directory + "/calls");
    append(mark, std::to_string(child) + "\n");

    if (fault("stall") > 0)
        wait_ms(fault("stall"));
    lane lanes[3] = {{0, in[0], what.first_input}, {out[0], 1, {}}, {err[0], 2, {}}};
    lanes[0].stop_after = fault("stop-writing");
    lanes[1].stop_after = fault("stop-reading");
    const long cut = fault("cut");
    const auto is_halted = [&] {
        return state_of(qube) != "Running" && state_of(qube) != "Paused";
    };
    bool halted = is_halted(); // it may have halted before the call was noted
    std::vector<char> room(256 * 1024);
    while (!halted) {
        std::array<pollfd, 7> fds{};
        for (int i = 0; i < 3; ++i) {
            lane &l = lanes[i];
            const bool stalled =
                l.stop_after >= 0 && l.passed >= static_cast<std::uint64_t>(l.stop_after);
            const std::size_t at = static_cast<std::size_t>(2 * i);
            fds[at] = {l.ended || stalled || l.pending.size() > room.size() ? -1 : l.from, POLLIN,
                       0};
            fds[at + 1] = {l.pending.empty() || l.broken ? -1 : l.to, POLLOUT, 0};
        }
        fds[6] = {watch, POLLIN, 0};
        if (lanes[1].ended && lanes[2].ended && lanes[1].pending.empty() &&
            lanes[2].pending.empty())
            break;
        if (::poll(fds.data(), fds.size(), -1) < 0 && errno != EINTR)
            break;
        if (fds[6].revents) {
            signalfd_siginfo said{};
            while (::read(watch, &said, sizeof said) > 0) {
            }
            if ((halted = is_halted()))
                break;
        }
        for (int i = 0; i < 3; ++i) {
            lane &l = lanes[i];
            const std::size_t at = static_cast<std::size_t>(2 * i);
            if (fds[at].fd >= 0 && fds[at].revents) {
                const ssize_t n = ::read(l.from, room.data(), room.size());
                if (n > 0) {
                    l.passed += static_cast<std::uint64_t>(n);
                    std::string_view data(room.data(), static_cast<std::size_t>(n));
                    if (!l.broken && l.pending.empty()) {
                        const ssize_t w = ::write(l.to, data.data(), data.size());
                        if (w > 0)
                            data.remove_prefix(static_cast<std::size_t>(w));
                        else if (w < 0 && errno != EAGAIN)
                            l.broken = true;
                    }
                    if (!l.broken)
                        l.pending.append(data);
                } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
                    l.ended = true;
                }
            }
            if (fds[at + 1].fd >= 0 && fds[at + 1].revents) {
                const ssize_t w = ::write(l.to, l.pending.data(), l.pending.size());
                if (w > 0)
                    l.pending.erase(0, static_cast<std::size_t>(w));
                else if (w < 0 && errno != EAGAIN && errno != EINTR)
                    l.broken = true;
            }
            if (l.broken)
                l.pending.clear();
        }
        // The end of our stdin is a half-close: the output of the service goes on.
        if (lanes[0].ended && lanes[0].pending.empty() && lanes[0].from == 0) {
            ::shutdown(in[0], SHUT_WR);
            lanes[0].from = -1;
        }
        if (cut >= 0 && lanes[1].passed >= static_cast<std::uint64_t>(cut))
            break;
    }
    if (halted)
        ::kill(-child, SIGKILL);
    ::close(in[0]);
    ::close(out[0]);
    ::close(err[0]);
    ::fcntl(0, F_SETFL, flags[0]);
    ::fcntl(1, F_SETFL, flags[1]);
    ::unlink(mark.c_str());
    if (cut >= 0 && !halted && !lanes[1].ended)
        return 125;
    int status = 0;
    ::waitpid(child, &status, 0);
    if (halted)
        return 255;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

} // namespace standin
