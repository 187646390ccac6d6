// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/job_link.hpp"

#include <cerrno>
#include <cstring>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <qvmremote/digest.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/host/unix_socket.hpp>

#include "execute/keeper_wire.hpp"

namespace qvmremote::dom0 {

namespace {

using host::unique_fd;

constexpr int patience_ms = 2000;
constexpr int backlog = 16;

} // namespace

std::string job_socket(const std::string &sockets, const std::string &name) {
    return sockets + "/" + name;
}

host::outcome<unique_fd> listen_for_job(const std::string &sockets, const std::string &name) {
    const auto at = host::unix_address::of_path(job_socket(sockets, name));
    if (!at)
        return tl::unexpected(at.error());
    auto out = host::bind_unix(*at, SOCK_SEQPACKET, 0600);
    if (out && ::listen(out->get(), backlog) != 0)
        return host::failed("cannot listen at " + at->text(), errno);
    return out;
}

host::outcome<job_link> job_link::connect(const std::string &sockets, const job_record &of) {
    const auto at = host::unix_address::of_path(job_socket(sockets, of.name));
    if (!at)
        return tl::unexpected(at.error());
    unique_fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    // The kernel adds to each message who sent it. SO_PEERCRED would name whoever called listen,
    // which was an earlier daemon.
    const int yes = 1;
    if (!socket || ::setsockopt(socket.get(), SOL_SOCKET, SO_PASSCRED, &yes, sizeof yes) != 0)
        return host::failed("cannot make a socket", errno);
    if (::connect(socket.get(), at->get(), at->size()) != 0)
        return host::failed("no keeper answers at " + at->text(), errno);
    return job_link(std::move(socket), of);
}

host::outcome<void> job_link::check(const cgroup_home &jobs) {
    pollfd ready{socket_.get(), POLLIN, 0};
    if (::poll(&ready, 1, patience_ms) != 1)
        return host::failed("its keeper does not answer", ETIMEDOUT);
    if (const auto first = next(); (first && first->kind == event::gone) || keeper_ == 0)
        return host::failed("what answers is not its keeper", EPERM);
    const unique_fd process(static_cast<int>(::syscall(SYS_pidfd_open, keeper_, 0)));
    const bool is_there = is_keeper_of_jobs(keeper_, jobs);
    // While it has not ended, its number is not another's.
    pollfd ended{process.get(), POLLIN, 0};
    if (!is_there || !process || ::poll(&ended, 1, 0) != 0)
        return host::failed("its keeper is not in the group of keepers", EPERM);
    return {};
}

void kill_jobs(const std::string &sockets, errc why) {
    for (const std::string &name : host::names_in(sockets).value_or(std::vector<std::string>{})) {
        job_record of;
        of.name = name;
        if (const auto link = job_link::connect(sockets, of))
            link->order(job_order::kill, static_cast<int>(why));
    }
}

bool job_link::is_hello(bytes_view message, const ucred &sender) noexcept {
    job_hello hello{};
    if (message.size() != sizeof hello || (sender.uid != 0 && sender.uid != ::geteuid()) ||
        sender.pid <= 0)
        return false;
    std::memcpy(&hello, message.data(), sizeof hello);
    if (hello.version != 1 || !equal_constant_time(hello.secret, secret_))
        return false;
    keeper_ = sender.pid;
    return true;
}

std::optional<job_link::event> job_link::next() {
    for (;;) {
        alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(ucred))>
            ancillary{};
        std::array<std::uint8_t, sizeof(job_hello)> data{};
        iovec part{data.data(), data.size()};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = ancillary.data();
        message.msg_controllen = ancillary.size();
        const ssize_t n = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n < 0 && (errno == EINTR || errno == ECONNRESET))
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return {};
        unique_fd fd;
        ucred sender{};
        for (cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&message) : nullptr; c;
             c = CMSG_NXTHDR(&message, c)) {
            if (c->cmsg_level != SOL_SOCKET)
                continue;
            if (c->cmsg_type == SCM_CREDENTIALS && c->cmsg_len == CMSG_LEN(sizeof sender))
                std::memcpy(&sender, CMSG_DATA(c), sizeof sender);
            if (c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int))) {
                int number;
                std::memcpy(&number, CMSG_DATA(c), sizeof number);
                fd.reset(number);
            }
        }
        if (n <= 0)
            return event{event::gone};
        const bytes_view received(data.data(), static_cast<std::size_t>(n));
        if (keeper_ == 0) {
            if (!is_hello(received, sender))
                return event{event::gone};
            continue;
        }
        job_report report{};
        if (received.size() != sizeof report)
            return event{event::gone};
        std::memcpy(&report, received.data(), sizeof report);
        if (report.kind == job_report::ended)
            return event{event::ended};
        if (report.kind == job_report::input)
            return event{event::input,
                         fd                   ? 0
                         : report.number != 0 ? report.number
                                              : EPIPE,
                         std::move(fd)};
        return event{event::more}; // or of a newer keeper: there is no harm in looking
    }
}

void job_link::order(job_order::order_kind kind, int number) const noexcept {
    send_one(socket_.get(), job_order{kind, number});
}

void job_link::await_end(int patience) const noexcept {
    pollfd ended{socket_.get(), 0, 0}; // POLLHUP
    ::poll(&ended, 1, patience);
}

} // namespace qvmremote::dom0
