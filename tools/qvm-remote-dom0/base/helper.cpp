// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/helper.hpp"

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/unique_fd.hpp>

extern char **environ;

namespace qvmremote::dom0 {

host::outcome<helper_result> run_helper(std::vector<std::string> argv, std::size_t limit,
                                        std::chrono::milliseconds time) {
    int fds[2];
    if (::pipe2(fds, O_CLOEXEC) != 0)
        return host::failed("cannot make a pipe", errno);
    const host::unique_fd read_end(fds[0]);
    host::unique_fd write_end(fds[1]);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, write_end.get(), STDOUT_FILENO);
    ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    // The daemon ignores some signals, and blocks some in its threads; a helper begins without that.
    sigset_t all, none;
    std::memset(&all, 0xff, sizeof all); // sigfillset leaves out two
    ::sigemptyset(&none);
    posix_spawnattr_t attributes;
    ::posix_spawnattr_init(&attributes);
    ::posix_spawnattr_setsigdefault(&attributes, &all);
    ::posix_spawnattr_setsigmask(&attributes, &none);
    ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
    std::vector<char *> words;
    for (std::string &word : argv)
        words.push_back(word.data());
    words.push_back(nullptr);
    pid_t pid = 0;
    const int error = ::posix_spawnp(&pid, words[0], &actions, &attributes, words.data(), environ);
    ::posix_spawnattr_destroy(&attributes);
    ::posix_spawn_file_actions_destroy(&actions);
    if (error != 0)
        return host::failed(
            "cannot run " + argv[0] + (error == ENOENT ? " (not found in PATH)" : ""), error);
    write_end.reset();

    helper_result out;
    const auto end_ms = host::awake_ms() + static_cast<std::uint64_t>(time.count());
    std::array<char, 4096> piece;
    int failure = 0;
    for (;;) {
        const std::uint64_t now_ms = host::awake_ms();
        pollfd wait{read_end.get(), POLLIN, 0};
        if (now_ms >= end_ms) {
            failure = ETIMEDOUT;
            break;
        }
        if (::poll(&wait, 1, static_cast<int>(end_ms - now_ms)) < 1)
            continue;
        const ssize_t n = ::read(read_end.get(), piece.data(), piece.size());
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        out.untrusted_output.append(piece.data(), static_cast<std::size_t>(n));
        if (out.untrusted_output.size() > limit) {
            failure = EFBIG;
            break;
        }
    }
    int status = 0;
    pid_t ended = 0;
    // A program may close its output and not end.
    while (failure == 0 && (ended = ::waitpid(pid, &status, WNOHANG)) == 0) {
        if (host::awake_ms() >= end_ms)
            failure = ETIMEDOUT;
        else
            ::poll(nullptr, 0, 1);
    }
    if (ended == 0) {
        ::kill(pid, SIGKILL);
        ::waitpid(pid, &status, 0);
    }
    if (failure != 0)
        return host::failed(
            argv[0] + (failure == EFBIG
                           ? " prints more than " + std::to_string(limit) + " bytes"
                           : " did not end within " + std::to_string(time.count() / 1000) + " s"),
            failure);
    out.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return out;
}

} // namespace qvmremote::dom0
