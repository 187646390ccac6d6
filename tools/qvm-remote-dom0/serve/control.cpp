// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/control.hpp"

#include <array>
#include <cerrno>
#include <cstring>
#include <optional>

#include <grp.h>
#include <poll.h>
#include <pwd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/write.hpp>

#include <qvmremote/host/files.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/host/unix_socket.hpp>

namespace qvmremote::dom0 {

namespace {

host::outcome<host::unix_address> address_of(const std::string &path) {
    auto out = host::unix_address::of_path(path);
    if (!out)
        return host::failed("the path " + path + " is too long for a socket: use a shorter --root");
    return out;
}

constexpr std::size_t longest_request = 256;
constexpr int patience_seconds = 10;                   // to send a request, and to read an answer
constexpr std::chrono::milliseconds accept_pause{100}; // when this process has no descriptor left
constexpr const char *operators = "qubes";             // the group

using socket_type = boost::asio::local::stream_protocol::socket;

bool is_operator(uid_t uid) {
    const group *const members = ::getgrnam(operators);
    const passwd *const who = members ? ::getpwuid(uid) : nullptr;
    if (!who)
        return false;
    if (who->pw_gid == members->gr_gid)
        return true;
    for (char *const *name = members->gr_mem; *name; ++name)
        if (std::strcmp(*name, who->pw_name) == 0)
            return true;
    return false;
}

// The process that connected. Before Linux 6.5, the process that has its number now.
host::unique_fd process_of(int connection, pid_t pid) {
    constexpr int so_peerpidfd = 77; // SO_PEERPIDFD, which the headers of Debian 12 lack
    int pidfd = -1;
    socklen_t length = sizeof pidfd;
    if (::getsockopt(connection, SOL_SOCKET, so_peerpidfd, &pidfd, &length) != 0 &&
        errno == ENOPROTOOPT)
        pidfd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
    return host::unique_fd(pidfd);
}

} // namespace

bool requester::lives() const noexcept {
    pollfd ended{process.get(), POLLIN, 0};
    return process && ::poll(&ended, 1, 0) == 0;
}

std::optional<requester> who_asks(int connection) {
    ucred who{};
    socklen_t length = sizeof who;
    if (::getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &who, &length) != 0)
        return std::nullopt;
    requester out{who.uid, who.pid, process_of(connection, who.pid)};
    if (!out.is_root() && !is_operator(out.uid))
        return std::nullopt;
    return out;
}

namespace {
bool is_always_answered(std::string_view request) {
    const std::string_view verb = request.substr(0, request.find(' '));
    return verb == "panic" || verb == "deny" || verb == "status";
}
} // namespace

// One request and its answer. It ends by itself when the other end is too slow.
struct control_server::exchange : std::enable_shared_from_this<exchange> {
    exchange(control_server &of, socket_type s, requester w)
        : handle(of.answer_), taken(of.places_), socket(std::move(s)), timer(socket.get_executor()),
          who(std::move(w)) {}
    ~exchange() {
        leave_unread();
        taken->held -= is_held;
    }

    void run() {
        place = taken->unread.insert(taken->unread.end(), weak_from_this());
        limit();
        boost::asio::async_read_until(
            socket, boost::asio::dynamic_buffer(untrusted_request, longest_request), '\n',
            [self = shared_from_this()](boost::system::error_code ec, std::size_t n) {
                self->timer.cancel();
                self->leave_unread();
                if (!ec)
                    self->answer_to(std::string_view(self->untrusted_request).substr(0, n - 1));
            });
    }
    // Closes this connection, to make room for another.
    void give_way() {
        leave_unread();
        close();
    }

  private:
    void close() {
        boost::system::error_code ignored;
        socket.close(ignored);
    }
    void leave_unread() {
        if (place)
            taken->unread.erase(*place);
        place.reset();
    }
    void answer_to(std::string_view request) {
        if (!is_always_answered(request)) {
            if (taken->held >= most_held)
                return send(
                    "the daemon answers too many other requests now, perhaps of approvals watch; "
                    "end some of them, or try again in a minute\n");
            is_held = true;
            ++taken->held;
        }
        handle(request, who,
               [self = shared_from_this()](std::string text) { self->send(std::move(text)); });
    }
    void limit() {
        timer.expires_after(std::chrono::seconds(patience_seconds));
        timer.async_wait([self = weak_from_this()](boost::system::error_code ec) {
            if (const auto alive = self.lock(); alive && !ec)
                alive->close();
        });
    }
    void send(std::string text) {
        answer = std::move(text);
        limit();
        boost::asio::async_write(
            socket, boost::asio::buffer(answer),
            [self = shared_from_this()](boost::system::error_code, std::size_t) {
                self->timer.cancel();
            });
    }

    const handler &handle; // of the server, which lives as long as the loop
    std::shared_ptr<places> taken;
    std::optional<std::list<std::weak_ptr<exchange>>::iterator> place; // in the list of unread ones
    bool is_held = false;
    socket_type socket;
    boost::asio::steady_timer timer;
    requester who;
    std::string untrusted_request, answer;
};

control_server::control_server(boost::asio::io_context &loop, std::string path, handler answer)
    : path_(std::move(path)), answer_(std::move(answer)), acceptor_(loop), pause_timer_(loop) {}

control_server::~control_server() { ::unlink(path_.c_str()); }

host::outcome<std::unique_ptr<control_server>>
control_server::open(boost::asio::io_context &loop, const paths &where, handler answer) {
    const std::string path = where.control_socket();
    const auto address = address_of(path);
    if (!address)
        return tl::unexpected(address.error());
    ::unlink(path.c_str());
    std::unique_ptr<control_server> out(new control_server(loop, path, std::move(answer)));
    auto made = host::bind_unix(*address, SOCK_STREAM, 0600);
    if (!made)
        return tl::unexpected(made.error());
    // Give it to the group of operators, if there is one.
    if (const group *const members = ::getgrnam(operators);
        members && ::chown(path.c_str(), static_cast<uid_t>(-1), members->gr_gid) == 0)
        ::chmod(path.c_str(), 0660);
    if (::listen(made->get(), 16) != 0)
        return host::failed("cannot listen at " + path, errno);
    boost::system::error_code ec;
    out->acceptor_.assign(boost::asio::local::stream_protocol(), made->get(), ec);
    if (ec)
        return host::failed("cannot listen at " + path + ": " + ec.message());
    static_cast<void>(made->release()); // the acceptor closes it
    out->accept();
    return out;
}

void control_server::accept() {
    acceptor_.async_accept([this](boost::system::error_code ec, socket_type socket) {
        if (ec == boost::asio::error::operation_aborted)
            return;
        if (ec)
            return pause();
        if (auto who = who_asks(socket.native_handle()))
            take(std::move(socket), std::move(*who));
        accept();
    });
}

void control_server::take(socket_type socket, requester who) {
    if (places_->unread.size() >= most_unread) {
        if (const auto oldest = places_->unread.front().lock())
            oldest->give_way();
    }
    std::make_shared<exchange>(*this, std::move(socket), std::move(who))->run();
}

void control_server::pause() {
    pause_timer_.expires_after(accept_pause);
    pause_timer_.async_wait([this](boost::system::error_code ec) {
        if (!ec)
            accept();
    });
}

namespace {

host::outcome<host::unique_fd> connect_to_daemon(const paths &where) {
    const std::string path = where.control_socket();
    const auto address = address_of(path);
    if (!address)
        return tl::unexpected(address.error());
    auto fd = host::connect_unix(*address);
    if (!fd)
        return tl::unexpected(host::failure{"no daemon answers at " + path + " (" +
                                                std::strerror(fd.error().error_number) +
                                                "): start it with systemctl start qvm-remote-dom0",
                                            fd.error().error_number});
    return fd;
}

} // namespace

host::outcome<std::string> ask_daemon(const paths &where, std::string_view request, int seconds,
                                      std::size_t most) {
    const auto fd = connect_to_daemon(where);
    if (!fd)
        return tl::unexpected(fd.error());
    const timeval limit{seconds, 0};
    ::setsockopt(fd->get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    const std::string line = std::string(request) + "\n";
    // The daemon closes the connection of a user who may not ask, at once or after the question.
    const auto shut = [] {
        return host::failed("the daemon answers only root and members of the group qubes", EACCES);
    };
    if (::send(fd->get(), line.data(), line.size(), MSG_NOSIGNAL) !=
        static_cast<ssize_t>(line.size()))
        return errno == EPIPE || errno == ECONNRESET
                   ? shut()
                   : host::failed("the daemon does not read the request", errno);
    auto answer = host::read_all(fd->get(), most);
    if (!answer && answer.error().error_number == ECONNRESET)
        return shut();
    if (!answer && answer.error().error_number == EAGAIN)
        return tl::unexpected(host::failure{
            "the daemon does not answer within " + std::to_string(seconds) + " s", EAGAIN});
    return answer;
}

std::optional<pid_t> daemon_pid(const paths &where) {
    const auto fd = connect_to_daemon(where);
    ucred who{};
    socklen_t length = sizeof who;
    if (!fd || ::getsockopt(fd->get(), SOL_SOCKET, SO_PEERCRED, &who, &length) != 0 || who.pid <= 0)
        return std::nullopt;
    return who.pid;
}

} // namespace qvmremote::dom0
