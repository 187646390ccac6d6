// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/keeper.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "execute/become.hpp"
#include "execute/cgroups.hpp"
#include "execute/command_tree.hpp"
#include "execute/job_keeper.hpp"
#include "execute/keeper_wire.hpp"
#include "execute/launch_message.hpp"
#include "execute/process_tree.hpp"
#include "execute/warden.hpp"

namespace qvmremote::dom0 {

namespace {

using host::unique_fd;

class keeper {
  public:
    keeper(unique_fd control, const command_cgroup &group) noexcept
        : control_(std::move(control)), tree_(group) {}

    [[nodiscard]] bool start(preparation &p, const cgroup_home &home) noexcept {
        // If the daemon dropped the command before it began, nobody would read its output.
        char byte;
        if (::recv(control_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
            return false;
        if (const int why = tree_.start(p, home); why != 0) {
            fail(why);
            return false;
        }
        send_report({child_event::started, tree_.first(), p.directory_missing});
        return true;
    }

    void fail(int error_number) noexcept { send_report({child_event::failed, error_number, 0}); }

    // Waits until no process of the tree is left. Returns whether it ended by itself, and not as a job.
    bool watch() {
        while (!tree_.is_over()) {
            std::array<pollfd, 1> watched{{{deaf_ ? -1 : control_.get(), POLLIN, 0}}};
            wait_for(watched, tree_.wake_ms());
            if (child_ended)
                if (const auto end = tree_.reap_ended())
                    send_report({child_event::exited, end->wait_status,
                                 (end->tree_empty ? flag_empty : 0) |
                                     (end->out_of_memory ? flag_out_of_memory : 0)});
            if (watched[0].revents != 0 && !take_order())
                return false;
            tree_.act();
        }
        send_report({child_event::empty, 0, 0});
        return !tree_.was_killed();
    }

  private:
    void send_report(const report &what) noexcept { send_one(control_.get(), what); }

    // Returns false when the command went on as a job, and has ended.
    bool take_order() {
        order received{};
        const ssize_t waiting =
            ::recv(control_.get(), nullptr, 0, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);
        if (waiting > static_cast<ssize_t>(sizeof received)) {
            auto message = take_message(control_.get(), MSG_DONTWAIT);
            const auto job = message ? take_job(message->block) : std::nullopt;
            if (job && message->received.size() == 6) {
                control_.reset();
                go_on_as_job(std::move(message->received), *job, std::move(tree_));
                return false;
            }
            tree_.kill();
            return true;
        }
        const ssize_t n = receive(control_.get(), &received, sizeof received);
        if (n < 0 && errno == EAGAIN)
            return true;
        if (n != sizeof received) {
            // Reports are still sent: the daemon may only have closed its side for writing.
            deaf_ = true;
            tree_.kill();
        } else if (received == order_terminate) {
            tree_.terminate();
        } else {
            tree_.signal(received);
        }
        return true;
    }

    unique_fd control_;
    command_tree tree_;
    bool deaf_ = false;
};

// Returns limits only for resources without a controller, since a controller limits better.
[[nodiscard]] std::vector<std::pair<int, rlim_t>> rlimits_for(const preparation &p,
                                                              const cgroup_home &home) {
    std::vector<std::pair<int, rlim_t>> out;
    if (p.most.bounded() || p.user)
        out.emplace_back(RLIMIT_CORE, 0);
    if (p.most.memory_bytes != 0 && !home.memory)
        out.emplace_back(RLIMIT_DATA, p.most.memory_bytes);
    if (p.most.pids != 0 && !home.pids && p.user && p.user->uid != 0)
        out.emplace_back(RLIMIT_NPROC, p.most.pids);
    return out;
}

// Runs one command, from its message to its end. Returns whether this process can run another one.
bool keep(launch_message message, const command_cgroup &group, const cgroup_home &home) noexcept {
    auto &[received, block] = message;
    preparation p;
    const bool is_mapped = block.empty() && received.size() > 4;
    if (is_mapped) {
        block = map_block(received.back().get());
        received.pop_back();
    }
    int error = 0;
    if (!take_launch(block, p) || received.size() != p.descriptors.size() + 1 + (p.job ? 2 : 0))
        error = EMFILE; // some did not arrive, since this process may not have so many
    if (p.job && error == 0) {
        p.rlimits = rlimits_for(p, p.job->home);
        keep_job(std::move(received), p);
        return false;
    }
    keeper self(std::move(received.front()), group);
    // A source must not have the number of another target, so all are moved above the targets.
    int above = 0;
    for (const auto &[from, to] : p.descriptors)
        above = std::max(above, to + 1);
    for (std::size_t i = 0; error == 0 && i < p.descriptors.size(); ++i) {
        unique_fd &from = received[i + 1];
        if (from.get() < above) {
            from.reset(::fcntl(from.get(), F_DUPFD_CLOEXEC, above));
            if (!from)
                error = errno;
        }
        p.descriptors[i].first = from.get();
    }
    std::sort(p.descriptors.begin(), p.descriptors.end(),
              [](const auto &a, const auto &b) { return a.second < b.second; });
    if (error != 0) {
        self.fail(error);
        return false;
    }
    p.rlimits = rlimits_for(p, home);
    const bool started = self.start(p, home);
    // Only the command keeps its ends of the pipes, or their end would never be seen.
    received.clear();
    return started && self.watch() && !is_mapped;
}

} // namespace

bool send_with_descriptor(int link, void *message_bytes, std::size_t size, int fd) noexcept {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> ancillary{};
    iovec part{message_bytes, size};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = ancillary.data();
    message.msg_controllen = ancillary.size();
    cmsghdr *const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
    return ::sendmsg(link, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == static_cast<ssize_t>(size);
}

void lend(int link, int socket) noexcept {
    char byte = 0;
    send_with_descriptor(link, &byte, 1, socket);
}

void be_keeper(unique_fd socket, unique_fd link, pid_t warden, const cgroup_home &home,
               std::uint64_t number) noexcept {
    ::prctl(PR_SET_NAME, "qvm-remote-keep", 0, 0, 0);
    // This cannot fail, since it did not fail in the warden.
    ::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    command_cgroup group(home, number);
    while (socket) {
        // While we wait we hold the socket too, so the daemon would not see that the warden died.
        ::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        if (::getppid() != warden)
            break;
        // Make the group in advance, while nobody waits for it. If it cannot be made, the command
        // does not start.
        (void)group.make();
        std::optional<launch_message> message;
        do
            message = take_message(socket.get(), 0);
        while (message &&
               message->received.empty()); // out of descriptors: the control socket was closed
        if (!message)
            break;
        // From now on this process watches a command to its end, with or without a warden.
        ::prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0);
        socket.reset();
        send_one(link.get(), keeper_word::taken);
        if (!keep(std::move(*message), group, home) || !group.remove() ||
            !send_one(link.get(), keeper_word::done))
            break;
        auto answer = take_message(link.get(), 0);
        if (answer && !answer->received.empty())
            socket = std::move(answer->received.front());
    }
    ::_exit(group.remove() ? 0 : 1);
}

} // namespace qvmremote::dom0
