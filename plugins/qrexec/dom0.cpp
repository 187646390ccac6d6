// SPDX-License-Identifier: GPL-2.0-or-later
#include "dom0.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <qvmremote/host/files.hpp>
#include <qvmremote/host/unix_socket.hpp>
#include <qvmremote/transport_abi.h>

namespace qrexec {
namespace {

using qvmremote::host::unix_address;

constexpr int backlog = 128;
constexpr const char *qubes_group = "qubes";

// Kinds of failures, for `telling`.
enum : int { wrong_user, bad_descriptor, too_slow };

[[noreturn]] void fail_errno(const std::string &what) {
    throw problem{QVMREMOTE_FAILED, what + ": " + std::strerror(errno)};
}

// Finds the user for dom0's services in the same way as qrexec (QUBES.md §4).
uid_t user_of_qrexec(const std::string &configured) {
    std::string name = configured;
    if (name.empty()) {
        const group *const all = ::getgrnam(qubes_group);
        if (all == nullptr || all->gr_mem[0] == nullptr)
            throw problem{
                QVMREMOTE_BAD_OPTION,
                "nobody is in the group qubes, so qrexec runs services as nobody; is this "
                "dom0? Option 'user' names another"};
        name = all->gr_mem[0];
    }
    const passwd *const who = ::getpwnam(name.c_str());
    if (who == nullptr)
        throw problem{QVMREMOTE_BAD_OPTION, "there is no user '" + name +
                                                "' to run qrexec's services; option 'user' "
                                                "names another"};
    return who->pw_uid;
}

unix_address address_of(const std::string &path) {
    const auto out = unix_address::of_path(path);
    if (!out)
        throw problem{QVMREMOTE_BAD_OPTION, "option 'socket': " + out.error().what};
    return *out;
}

} // namespace

server::server(settings chosen, ms (*now)()) : settings_(std::move(chosen)), clock_(now) {
    user_ = user_of_qrexec(settings_.user);
    static_cast<void>(address_of(settings_.socket));
}

server::~server() {
    // Remove only our own socket: another daemon may have put its socket there.
    struct stat at {};
    if (listener_ && ::lstat(settings_.socket.c_str(), &at) == 0 && S_ISSOCK(at.st_mode) &&
        at.st_ino == inode_)
        ::unlink(settings_.socket.c_str());
}

int server::listen() {
    epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
    timer_.reset(::timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK));
    if (!epoll_ || !timer_)
        fail_errno("cannot make an epoll descriptor");
    watch(timer_.get());
    open_socket();
    watch(listener_.get());
    return epoll_.get();
}

void server::open_socket() {
    const unix_address address = address_of(settings_.socket);
    const std::string directory = settings_.socket.substr(0, settings_.socket.rfind('/'));
    if (auto made = qvmremote::host::make_directories(directory, 0755); !made)
        throw problem{QVMREMOTE_FAILED, made.error().what};
    // A socket without a listener was left by a daemon that was killed. Any other file stays, and then
    // bind fails.
    const auto probe = qvmremote::host::connect_unix(address, SOCK_STREAM | SOCK_NONBLOCK);
    const int error = probe ? 0 : probe.error().error_number;
    if (probe || error == EAGAIN)
        throw problem{QVMREMOTE_FAILED,
                      "another daemon listens at " + settings_.socket + "; end it first"};
    struct stat at {};
    if (error == ECONNREFUSED && ::lstat(settings_.socket.c_str(), &at) == 0 &&
        S_ISSOCK(at.st_mode))
        ::unlink(settings_.socket.c_str());

    // The group gets access after we know that the file is ours.
    auto made = qvmremote::host::bind_unix(address, SOCK_STREAM | SOCK_NONBLOCK, 0600);
    if (!made)
        throw problem{QVMREMOTE_FAILED, made.error().what};
    const unique_fd file(::open(settings_.socket.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
    if (!file || ::fstat(file.get(), &at) != 0 || !S_ISSOCK(at.st_mode))
        fail_errno("cannot look at " + settings_.socket);
    inode_ = at.st_ino;
    listener_ = std::move(*made); // from now on the destructor removes the file
    const group *const all = ::getgrnam(qubes_group);
    const std::string by_number = "/proc/self/fd/" + std::to_string(file.get());
    // Without root we may not be allowed to set this group; then its members have no access.
    if (all != nullptr &&
        ::fchownat(file.get(), "", static_cast<uid_t>(-1), all->gr_gid, AT_EMPTY_PATH) != 0 &&
        ::geteuid() == 0)
        fail_errno("cannot give " + settings_.socket + " to the group qubes");
    if (::chmod(by_number.c_str(), 0660) != 0 || ::listen(listener_.get(), backlog) != 0)
        fail_errno("cannot listen at " + settings_.socket);
}

void server::watch(int fd) const {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0)
        fail_errno("cannot watch a socket");
}

std::optional<taken_stream> server::accept() {
    now_ = clock_();
    std::uint64_t expirations = 0;
    [[maybe_unused]] const ssize_t n = ::read(timer_.get(), &expirations, sizeof expirations);
    while (!half_way_.empty() && half_way_.front().due <= now_) {
        half_way_.pop_front();
        complain(too_slow, "a call to the service did not say within " +
                               std::to_string(descriptor_limit / 1000) +
                               " s where it comes from; closed");
    }
    take_new();
    for (auto at = half_way_.begin(); at != half_way_.end();) {
        const progress got = read(*at);
        if (got == progress::more) {
            ++at;
            continue;
        }
        connection done = std::move(*at);
        at = half_way_.erase(at);
        auto from = got == progress::whole ? parse_descriptor(done.untrusted_text) : std::nullopt;
        if (!from) {
            complain(bad_descriptor,
                     "what came to " + settings_.socket +
                         " does not begin as a call of qrexec to qvmremote.Exec does; closed");
            continue;
        }
        ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, done.socket.get(), nullptr);
        settle();
        return taken_stream{std::move(*from), std::move(done.socket)};
    }
    settle();
    if (problem_) {
        problem out{QVMREMOTE_REFUSED, std::move(*problem_)};
        problem_.reset();
        throw out;
    }
    return std::nullopt;
}

void server::take_new() {
    while (half_way_.size() < most_half_way) {
        unique_fd made(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (!made) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            if (errno != EAGAIN)
                fail_errno("cannot accept a connection at " + settings_.socket);
            return;
        }
        ucred who{};
        socklen_t size = sizeof who;
        if (::getsockopt(made.get(), SOL_SOCKET, SO_PEERCRED, &who, &size) != 0 ||
            (who.uid != user_ && who.uid != 0)) {
            complain(wrong_user, "user " + std::to_string(who.uid) + " called " + settings_.socket +
                                     ", but qrexec does not run as that user; closed");
            continue;
        }
        watch(made.get());
        half_way_.push_back({std::move(made), now_ + descriptor_limit, {}});
    }
}

// The bytes after the NUL are for the host. So peek first, and read only up to the NUL.
server::progress server::read(connection &from) const {
    std::array<char, longest_descriptor + 1> room;
    for (;;) {
        const std::size_t left = longest_descriptor + 1 - from.untrusted_text.size();
        ssize_t n = ::recv(from.socket.get(), room.data(), left, MSG_PEEK);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return progress::more;
        if (n <= 0)
            return progress::bad;
        const void *const nul = std::memchr(room.data(), '\0', static_cast<std::size_t>(n));
        const std::size_t text =
            nul == nullptr ? static_cast<std::size_t>(n)
                           : static_cast<std::size_t>(static_cast<const char *>(nul) - room.data());
        n = ::recv(from.socket.get(), room.data(), text + (nul != nullptr), 0);
        if (n != static_cast<ssize_t>(text + (nul != nullptr)))
            return progress::bad;
        from.untrusted_text.append(room.data(), text);
        if (nul != nullptr)
            return progress::whole;
        if (from.untrusted_text.size() > longest_descriptor)
            return progress::bad;
    }
}

// Lets epoll wait for new connections only while there is room, and sets the timer.
void server::settle() {
    if (const bool full = half_way_.size() >= most_half_way; full != is_full_) {
        is_full_ = full;
        epoll_event event{};
        event.events = full ? 0u : std::uint32_t{EPOLLIN};
        event.data.fd = listener_.get();
        ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, listener_.get(), &event);
    }
    // A problem that waits to be reported makes the timer due at once.
    const ms due = problem_ ? 0 : next_due();
    if (due == armed_ && due != 0)
        return;
    armed_ = due;
    itimerspec when{};
    if (due != plugins::never) {
        const ms at = std::max<ms>(due, 1);
        when.it_value.tv_sec = static_cast<time_t>(at / 1000);
        when.it_value.tv_nsec = static_cast<long>(at % 1000) * 1'000'000;
    }
    ::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &when, nullptr);
}

void server::complain(int failure, std::string text) {
    if (told_.is_new(failure, now_))
        problem_ = std::move(text);
}

} // namespace qrexec
