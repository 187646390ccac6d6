// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The daemon's control socket: one line of request, text until the end of file as answer.

#pragma once

#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <sys/types.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "base/settings.hpp"

namespace qvmremote::dom0 {

/// Who asks, as the kernel has it (SO_PEERCRED).
struct requester {
    uid_t uid;
    pid_t pid;
    host::unique_fd process; ///< a pidfd; none where the process was gone already

    [[nodiscard]] bool is_root() const noexcept { return uid == 0 || uid == ::geteuid(); }

    /// Whether the process is there still. Its number cannot have been another's until now then, and
    /// what was read of /proc by that number is about it.
    [[nodiscard]] bool lives() const noexcept;
};

/// Who made the connection to a UNIX socket; nothing for those that control_server does not answer.
[[nodiscard]] std::optional<requester> who_asks(int connection);

/// Answers root, the daemon's own user and operators: dom0's desktop users, the members of group
/// qubes. Who may ask what is the handler's business.
///
/// However many connections others hold, a new one is always read: the one that has kept its request
/// back for longest is closed for it. And what stops something (`panic`, `deny`), and `status`, is
/// always answered; every other request is refused while most_held of them are not done.
class control_server {
  public:
    static constexpr std::size_t most_unread = 64; ///< connections whose request is not here yet
    static constexpr std::size_t most_held = 64;   ///< requests that wait, or whose answer does

    /// Called once, at once or later.
    using reply = std::function<void(std::string)>;
    using handler = std::function<void(std::string_view request, const requester &, reply)>;

    [[nodiscard]] static host::outcome<std::unique_ptr<control_server>>
    open(boost::asio::io_context &loop, const paths &where, handler answer);
    ~control_server();

  private:
    struct exchange;
    // Exchanges may outlive the server.
    struct places {
        std::list<std::weak_ptr<exchange>> unread; // oldest first
        std::size_t held = 0;
    };

    control_server(boost::asio::io_context &loop, std::string path, handler answer);
    void accept();
    void take(boost::asio::local::stream_protocol::socket socket, requester who);
    void pause(); // then accept

    std::string path_;
    handler answer_;
    std::shared_ptr<places> places_ = std::make_shared<places>();
    boost::asio::local::stream_protocol::acceptor acceptor_;
    boost::asio::steady_timer pause_timer_;
};

/// Asks the running daemon, which answers with `most` bytes at most. error_number is ENOENT or ECONNREFUSED when none runs, EAGAIN when it has
/// not answered for `seconds`.
[[nodiscard]] host::outcome<std::string> ask_daemon(const paths &where, std::string_view request,
                                                    int seconds = 10,
                                                    std::size_t most = 1024 * 1024);

/// The process that listens there, as the kernel has it, whether or not it answers; nothing when
/// there is none.
[[nodiscard]] std::optional<pid_t> daemon_pid(const paths &where);

} // namespace qvmremote::dom0
