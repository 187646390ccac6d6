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
#include "execute/keeper_wire.hpp"
#include "execute/launch_message.hpp"
#include "execute/process_tree.hpp"
#include "execute/warden.hpp"

namespace qvmremote::dom0 {

namespace {

using host::unique_fd;

constexpr std::uint64_t grace_ms = 2000;

class keeper {
  public:
    keeper(unique_fd control, const command_cgroup &group) noexcept
        : control_(std::move(control)), group_(group) {}

    [[nodiscard]] bool start(preparation &p, const cgroup_home &home) noexcept {
        // If the daemon dropped the command before it began, nobody would read its output.
        char byte;
        if (::recv(control_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
            return false;
        unique_fd group;
        if (group_) {
            auto opened = group_.limit(p.most, home).and_then([&] { return group_.open(); });
            if (!opened) {
                const int why = opened.error().error_number;
                fail(why == ENOENT ? EIO : why); // ENOENT must mean that the program does not exist
                return false;
            }
            group = std::move(*opened);
        }
        p.cgroup = group.get();
        memory_is_bounded_ = p.most.memory_bytes != 0 && home.memory;
        first_ = group ? start_process_in_group(p) : start_process(p);
        if (p.error != 0) {
            fail(p.error);
            return false;
        }
        send_report({child_event::started, first_, p.directory_missing});
        return true;
    }

    void fail(int error_number) noexcept { send_report({child_event::failed, error_number, 0}); }

    // Waits until no process of the tree is left. Returns whether it ended by itself.
    bool watch() {
        for (;;) {
            std::array<pollfd, 1> watched{{{deaf_ ? -1 : control_.get(), POLLIN, 0}}};
            wait_for(watched, wake_ms());
            if (child_ended && !childless_ && reap_all()) {
                childless_ = true;
                if (group_.remove())
                    break;
                begin_to_kill(); // processes in the group that were never below us
            }
            if (watched[0].revents != 0)
                take_order();
            if (now_is(kill_at_ms_))
                begin_to_kill();
            if (killing_ && clock_.due()) {
                kill_tree();
                if (childless_ && group_.remove())
                    break;
            }
        }
        send_report({child_event::empty, 0, 0});
        return !killing_;
    }

  private:
    void send_report(const report &what) noexcept { send_one(control_.get(), what); }

    [[nodiscard]] static bool now_is(std::uint64_t at_ms) noexcept {
        return at_ms != never && now_ms() >= at_ms;
    }
    [[nodiscard]] std::uint64_t wake_ms() const noexcept {
        return killing_ ? clock_.next() : kill_at_ms_;
    }

    // Returns whether no process is left. Without a child there is no descendant: a process that
    // loses its parent becomes our child.
    [[nodiscard]] bool reap_all() {
        int status = 0, first_status = 0;
        bool first_ended = false;
        pid_t pid;
        while ((pid = reap(status)) > 0)
            if (pid == first_) {
                first_ = 0; // another process or group may get this number now
                first_ended = true;
                first_status = status;
            }
        if (first_ended)
            send_report(
                {child_event::exited, first_status,
                 (pid < 0 ? flag_empty : 0) |
                     (memory_is_bounded_ && group_.out_of_memory() ? flag_out_of_memory : 0)});
        return pid < 0;
    }

    void take_order() {
        order received{};
        const ssize_t n = receive(control_.get(), &received, sizeof received);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n != sizeof received) {
            // Reports are still sent: the daemon may only have closed its side for writing.
            deaf_ = true;
            begin_to_kill();
        } else if (received == order_terminate) {
            terminate();
        } else {
            signal(received);
        }
    }

    void signal(int number) {
        if (first_ != 0)
            ::kill(-first_, number);
        else
            for (const pid_t pid : processes_below(::getpid()))
                ::kill(pid, number);
    }

    void terminate() {
        if (killing_ || kill_at_ms_ != never)
            return;
        kill_at_ms_ = now_ms() + grace_ms;
        for (const pid_t pid : processes_below(::getpid())) {
            ::kill(pid, SIGTERM);
            ::kill(pid, SIGCONT); // so that a stopped process gets the signal
        }
    }

    void begin_to_kill() noexcept {
        kill_at_ms_ = never;
        if (killing_)
            return;
        killing_ = true;
        clock_.start();
        // Raise our priority, so that a fork bomb cannot starve the process that kills it. Only root
        // may do this; without it we go on.
        ::setpriority(PRIO_PROCESS, 0, -20);
    }

    void kill_tree() {
        group_.kill();
        // A signal to a group is atomic with respect to fork, so this alone ends most trees, however
        // fast they grow.
        if (first_ != 0)
            ::kill(-first_, SIGKILL);
        kill_all_below_us();
    }

    unique_fd control_;
    const command_cgroup &group_;
    pid_t first_ = 0; // 0 once it is reaped
    bool memory_is_bounded_ = false;
    bool childless_ = false;
    std::uint64_t kill_at_ms_ = never;
    bool killing_ = false;
    bool deaf_ = false;
    kill_clock clock_;
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
    keeper self(std::move(received.front()), group);
    preparation p;
    const bool is_mapped = block.empty() && received.size() > 4;
    if (is_mapped) {
        block = map_block(received.back().get());
        received.pop_back();
    }
    int error = 0;
    if (!take_launch(block, p) || received.size() != p.descriptors.size() + 1)
        error = EMFILE; // some did not arrive, since this process may not have so many
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

void lend(int link, int socket) noexcept {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> ancillary{};
    char byte = 0;
    iovec part{&byte, 1};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = ancillary.data();
    message.msg_controllen = ancillary.size();
    cmsghdr *const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof socket);
    std::memcpy(CMSG_DATA(header), &socket, sizeof socket);
    ::sendmsg(link, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
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
