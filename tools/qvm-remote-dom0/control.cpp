// SPDX-License-Identifier: GPL-2.0-or-later
#include "control.hpp"

#include <array>
#include <cerrno>
#include <cstring>

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>

#include <qvmremote/host/files.hpp>
#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote::dom0 {

namespace {

constexpr std::size_t longest_request = 256;
constexpr std::size_t longest_answer = 1024 * 1024;
constexpr int answer_seconds = 10;

using socket_type = boost::asio::local::stream_protocol::socket;

// One request and its answer; ends by itself when the other end dawdles.
struct exchange : std::enable_shared_from_this<exchange> {
    exchange(socket_type s, const control_server::handler &h)
        : socket(std::move(s)), timer(socket.get_executor()), answer(h) {}

    void run() {
        timer.expires_after(std::chrono::seconds(answer_seconds));
        timer.async_wait([self = weak_from_this()](boost::system::error_code ec) {
            boost::system::error_code ignored;
            if (const auto alive = self.lock(); alive && !ec)
                alive->socket.close(ignored);
        });
        boost::asio::async_read_until(
            socket, boost::asio::dynamic_buffer(text, longest_request), '\n',
            [self = shared_from_this()](boost::system::error_code ec, std::size_t n) {
                if (ec)
                    return;
                self->text = self->answer(std::string_view(self->text).substr(0, n - 1));
                boost::asio::async_write(
                    self->socket, boost::asio::buffer(self->text),
                    [self](boost::system::error_code, std::size_t) { self->timer.cancel(); });
            });
    }

    socket_type socket;
    boost::asio::steady_timer timer;
    const control_server::handler &answer;
    std::string text;
};

bool may_ask(int fd) {
    ucred who{};
    socklen_t length = sizeof who;
    return ::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &length) == 0 &&
           (who.uid == 0 || who.uid == ::geteuid());
}

} // namespace

control_server::control_server(boost::asio::io_context &loop, std::string path, handler answer)
    : path_(std::move(path)), answer_(std::move(answer)), acceptor_(loop) {}

control_server::~control_server() { ::unlink(path_.c_str()); }

host::outcome<std::unique_ptr<control_server>>
control_server::open(boost::asio::io_context &loop, const paths &where, handler answer) {
    const std::string path = where.control_socket();
    if (path.size() >= sizeof(sockaddr_un::sun_path))
        return host::failed("the path " + path + " is too long for a socket: use a shorter --root");
    ::unlink(path.c_str());
    std::unique_ptr<control_server> out(new control_server(loop, path, std::move(answer)));
    boost::system::error_code ec;
    const boost::asio::local::stream_protocol::endpoint endpoint(path);
    out->acceptor_.open(endpoint.protocol(), ec);
    if (!ec) {
        const mode_t before = ::umask(0177);
        out->acceptor_.bind(endpoint, ec);
        ::umask(before);
    }
    if (!ec)
        out->acceptor_.listen(16, ec);
    if (ec)
        return host::failed("cannot listen at " + path + ": " + ec.message());
    out->accept();
    return out;
}

void control_server::accept() {
    acceptor_.async_accept([this](boost::system::error_code ec, socket_type socket) {
        if (ec)
            return;
        if (may_ask(socket.native_handle()))
            std::make_shared<exchange>(std::move(socket), answer_)->run();
        accept();
    });
}

host::outcome<std::string> ask_daemon(const paths &where, std::string_view request) {
    sockaddr_un address{};
    const std::string path = where.control_socket();
    if (path.size() >= sizeof address.sun_path)
        return host::failed("the path " + path + " is too long for a socket: use a shorter --root");
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.c_str(), path.size());
    const host::unique_fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const timeval limit{answer_seconds, 0};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (::connect(fd.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address) != 0)
        return host::failed("no daemon answers at " + path, errno);
    const std::string line = std::string(request) + "\n";
    if (::send(fd.get(), line.data(), line.size(), MSG_NOSIGNAL) !=
        static_cast<ssize_t>(line.size()))
        return host::failed("the daemon does not listen", errno);
    return host::read_all(fd.get(), longest_answer);
}

} // namespace qvmremote::dom0
