// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/warden.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "execute/cgroups.hpp"
#include "execute/keeper.hpp"
#include "execute/keeper_wire.hpp"
#include "execute/launch_message.hpp"
#include "execute/process_tree.hpp"

namespace qvmremote::dom0 {
namespace {

using host::unique_fd;

// Makes sure that a keeper waits for the next message. fork takes longer than everything else
// between launch and exec, so a keeper is forked in advance. A keeper that has finished its command
// is used again. The warden itself reads a message only when it cannot fork.
class warden_process {
  public:
    warden_process(unique_fd socket, const cgroup_home &home) noexcept
        : socket_(std::move(socket)), home_(home), self_(::getpid()) {}

    // Runs until the daemon and all keepers have ended.
    void run() {
        std::vector<pollfd> watched;
        while (socket_ || !keepers_.empty() || orphans_) {
            if (socket_ && idle() == 0)
                make_keeper();
            // poll() always reports the end of the socket. Ask for messages only while no keeper waits
            // for one.
            watched.assign(1, {socket_.get(), static_cast<short>(idle() > 0 ? 0 : POLLIN), 0});
            for (const auto &[pid, k] : keepers_)
                watched.push_back({k.link.get(), POLLIN, 0});
            wait_for(watched, orphans_ ? clock_.next() : never);
            auto ready = watched.begin() + 1;
            for (auto &[pid, k] : keepers_)
                if ((ready++)->revents != 0)
                    listen(k);
            if (watched[0].revents & (POLLHUP | POLLERR))
                socket_.reset();
            else if (watched[0].revents != 0 && !make_keeper())
                refuse_one(errno);
            if (child_ended)
                reap_all();
            if (orphans_ && clock_.due())
                orphans_ = clear_up();
        }
    }

  private:
    struct kept {
        std::uint64_t group; // the number of its cgroup
        unique_fd link;      // closed: it has died or is about to end
        bool waits = true;
    };
    static constexpr std::ptrdiff_t most_idle = 2;

    [[nodiscard]] std::ptrdiff_t idle() const {
        return std::count_if(keepers_.begin(), keepers_.end(),
                             [](const auto &row) { return row.second.waits; });
    }

    void listen(kept &k) {
        keeper_word word{};
        const ssize_t n = receive(k.link.get(), &word, sizeof word);
        if (n < 0 && errno == EAGAIN)
            return;
        k.waits = false;
        if (n == sizeof word && word == keeper_word::taken)
            return;
        if (n == sizeof word && socket_ && idle() < most_idle) {
            k.waits = true;
            lend(k.link.get(), socket_.get());
        } else {
            k.link.reset();
        }
    }

    // Returns false, with errno, when that fails.
    bool make_keeper() {
        int ends[2];
        if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
            return false;
        unique_fd ours(ends[0]), theirs(ends[1]);
        const pid_t pid = ::fork();
        if (pid < 0)
            return false;
        if (pid == 0) {
            // A keeper must not hold the links to other keepers. Descriptor 3 is the socket
            // (settle_in).
            constexpr int own = 4;
            if (theirs.get() != own)
                ::dup3(theirs.release(), own, O_CLOEXEC);
            else
                (void)theirs.release();
            ::syscall(SYS_close_range, own + 1U, ~0U, 0);
            child_ended = 0;
            be_keeper(std::move(socket_), unique_fd(own), self_, home_, made_);
        }
        keepers_.emplace(pid, kept{made_++, std::move(ours)});
        return true;
    }

    // Kills processes whose keeper has died. Returns whether some are left.
    bool clear_up() {
        std::erase_if(abandoned_, [](const command_cgroup &group) {
            group.kill();
            return group.remove();
        });
        return kill_all_below_us([this](pid_t pid) { return keepers_.contains(pid); }) ||
               !abandoned_.empty();
    }

    void refuse_one(int error_number) {
        if (const auto message = take_message(socket_.get(), MSG_DONTWAIT);
            message && !message->received.empty())
            send_one(message->received.front().get(), report{child_event::failed, error_number, 0});
    }

    void reap_all() {
        int status = 0;
        pid_t pid;
        while ((pid = reap(status)) > 0) {
            const auto keeper = keepers_.extract(pid);
            if (!keeper)
                continue; // an orphan
            // When a keeper ends by itself, no process is left.
            if (status != 0) {
                abandoned_.emplace_back(home_, keeper.mapped().group);
                orphans_ = true;
                clock_.start();
            }
        }
    }

    unique_fd socket_;
    const cgroup_home &home_;
    const pid_t self_;
    std::map<pid_t, kept> keepers_;
    std::uint64_t made_ = 1;
    std::vector<command_cgroup> abandoned_;
    bool orphans_ = false; // there may be some
    kill_clock clock_;
};

// Prepares the forked process: of the daemon's descriptors it keeps only stderr. Returns 0, or errno.
[[nodiscard]] int settle_in(unique_fd &socket) noexcept {
    // Leave the daemon's process group: a kill -9 of that group ends only the daemon, and we clean up
    // after it.
    ::setsid();
    ::prctl(PR_SET_NAME, "qvm-remote-ward", 0, 0, 0);
    if (::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0 || ::chdir("/") != 0)
        return errno;

    // Block all signals: no signal for the daemon or for a command may end us. SIGCHLD is unblocked
    // while we wait.
    sigset_t all;
    ::sigfillset(&all);
    ::sigprocmask(SIG_SETMASK, &all, nullptr);
    // A direct system call (8 is the size of the mask), since glibc does not allow signals 32 and 33,
    // and the daemon may have been started with them ignored. All zero is SIG_DFL; KILL and STOP cannot
    // be set.
    const std::array<std::uint64_t, 8> by_default{};
    for (int n = 1; n < NSIG; ++n)
        ::syscall(SYS_rt_sigaction, n, by_default.data(), nullptr, std::size_t{8});
    struct sigaction on_child {};
    on_child.sa_handler = on_child_ended;
    if (::sigaction(SIGCHLD, &on_child, nullptr) != 0)
        return errno;

    const int high = ::fcntl(socket.get(), F_DUPFD_CLOEXEC, 4);
    const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    if (high < 0 || null < 0)
        return errno;
    ::dup2(null, 0);
    ::dup2(null, 1);
    if (::fcntl(2, F_GETFD) < 0)
        ::dup2(null, 2);
    ::dup3(high, 3, O_CLOEXEC);
    // Its old number is closed below or overwritten above.
    (void)socket.release();
    socket.reset(3);
    return ::syscall(SYS_close_range, 4U, ~0U, 0) == 0 ? 0 : errno;
}

[[noreturn]] void be_warden(unique_fd socket, const cgroup_home &home) noexcept {
    const std::int32_t error = settle_in(socket);
    send_one(socket.get(), error);
    if (error == 0)
        warden_process(std::move(socket), home).run();
    ::_exit(error == 0 ? 0 : 1);
}

struct socket_pair {
    unique_fd ours, theirs;
};

[[nodiscard]] host::outcome<socket_pair> make_socket_pair() {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return host::failed("cannot make a pair of sockets", errno);
    return socket_pair{unique_fd(ends[0]), unique_fd(ends[1])};
}

} // namespace

std::optional<child_event> child::next() {
    if (over_)
        return {};
    report received{};
    const ssize_t n = receive(control_.get(), &received, sizeof received);
    if (n < 0 && errno == EAGAIN)
        return {};
    child_event out{};
    if (n != sizeof received) {
        out.kind = child_event::lost;
    } else {
        out.kind = static_cast<child_event::event_kind>(received.kind);
        switch (out.kind) {
        case child_event::started:
            out.pid = received.number;
            out.directory_missing = received.flag != 0;
            break;
        case child_event::failed:
            out.error_number = received.number;
            break;
        case child_event::exited:
            out.wait_status = received.number;
            out.tree_empty = (received.flag & flag_empty) != 0;
            out.out_of_memory = (received.flag & flag_out_of_memory) != 0;
            break;
        case child_event::empty:
        case child_event::lost:
            break;
        }
    }
    over_ = out.kind == child_event::failed || out.kind == child_event::empty ||
            out.kind == child_event::lost;
    return out;
}

void child::signal(int number) noexcept {
    if (number > 0)
        send_one(control_.get(), order{number});
}

void child::terminate() noexcept {
    // Do not wait for a keeper that does not read.
    if (!send_one(control_.get(), order_terminate))
        kill();
}

void child::kill() noexcept { ::shutdown(control_.get(), SHUT_WR); }

host::outcome<void> child::go_on_as(const job_launch &job,
                                    const std::array<int, 6> &descriptors) noexcept {
    return send_job(control_.get(), job, descriptors);
}

host::outcome<warden> warden::start() { return start(cgroup_home()); }

host::outcome<warden> warden::start(const cgroup_home &home) {
    auto pair = make_socket_pair();
    if (!pair)
        return tl::unexpected(pair.error());
    const pid_t pid = ::fork();
    if (pid < 0)
        return host::failed("cannot fork the process that starts commands", errno);
    if (pid == 0)
        be_warden(std::move(pair->theirs), home);
    pair->theirs.reset();
    warden out(std::move(pair->ours), pid);
    std::int32_t error = ECHILD;
    ssize_t n;
    do
        n = ::recv(out.socket_.get(), &error, sizeof error, 0);
    while (n < 0 && errno == EINTR);
    if (n != sizeof error || error != 0) {
        out.stop();
        return host::failed("the process that starts commands cannot begin", error);
    }
    return out;
}

host::outcome<child> warden::launch(const dom0::launch &what) {
    if (const char *why = why_not(what))
        return host::failed(why, EINVAL);
    auto control = make_socket_pair();
    if (!control)
        return tl::unexpected(control.error());
    if (auto sent = send_launch(socket_.get(), control->theirs.get(), what); !sent)
        return tl::unexpected(sent.error());
    return child(std::move(control->ours));
}

bool warden::alive() const noexcept {
    pollfd p{socket_.get(), POLLIN, 0};
    return ::poll(&p, 1, 0) == 0;
}

void warden::stop() noexcept {
    socket_.reset();
    const pid_t pid = std::exchange(pid_, 0);
    while (pid > 0 && ::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
}

warden::~warden() {
    socket_.reset();
    if (pid_ > 0)
        ::waitpid(pid_, nullptr, WNOHANG);
}

} // namespace qvmremote::dom0
