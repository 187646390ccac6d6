// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/helper.hpp"

#include <array>
#include <cerrno>
#include <cstdint>
#include <optional>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <qvmremote/host/child.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote {

host::outcome<helper_result> run_helper(std::vector<std::string> argv, std::size_t limit,
                                        std::chrono::milliseconds time, helper_messages messages) {
    int fds[2];
    if (::pipe2(fds, O_CLOEXEC) != 0)
        return host::failed("cannot make a pipe", errno);
    const host::unique_fd read_end(fds[0]);
    host::unique_fd write_end(fds[1]);
    host::child_plan plan;
    plan.argv = std::move(argv);
    plan.out = write_end.get();
    plan.err = messages == helper_messages::shown ? STDERR_FILENO : -1;
    // In our group: a Ctrl-C of the administrator ends the program too.
    plan.group = host::child_group::ours;
    auto process = host::child::start(plan);
    const std::string &name = plan.argv.front();
    if (!process) {
        const int error = process.error().error_number;
        return host::failed("cannot run " + name + (error == ENOENT ? " (not found in PATH)" : ""),
                            error);
    }
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
    // A program may close its output and not end.
    std::optional<host::child_end> end;
    while (failure == 0 && !(end = process->take_end())) {
        const std::uint64_t now_ms = host::awake_ms();
        pollfd wait{process->descriptor(), POLLIN, 0};
        if (now_ms >= end_ms)
            failure = ETIMEDOUT;
        else
            ::poll(&wait, 1, static_cast<int>(end_ms - now_ms));
    }
    if (failure != 0) // the destructor kills it
        return host::failed(
            name + (failure == EFBIG
                        ? " prints more than " + std::to_string(limit) + " bytes"
                        : " did not end within " + std::to_string(time.count() / 1000) + " s"),
            failure);
    out.exit_code = end->by_signal ? 128 + end->number : end->number;
    return out;
}

} // namespace qvmremote
