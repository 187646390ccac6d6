// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The daemon's control socket: a request is one line, and its answer is text up to the end of file.

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

/// The process that asks, as the kernel reports it (SO_PEERCRED).
struct requester {
    uid_t uid;
    pid_t pid;
    host::unique_fd process; ///< a pidfd; invalid when the process had ended already

    [[nodiscard]] bool is_root() const noexcept { return uid == 0 || uid == ::geteuid(); }

    /// Whether the process still runs. If so, its process ID was not reused, and what was read from
    /// /proc by that ID is about it.
    [[nodiscard]] bool lives() const noexcept;
};

/// The process at the other end of a UNIX socket; nothing if control_server does not answer its
/// user.
[[nodiscard]] std::optional<requester> who_asks(int connection);

/// Answers root, the daemon's own user and operators: dom0's desktop users, the members of group
/// qubes. The handler decides who may ask what.
///
/// A new connection is always read, however many are open: the oldest one without a request is closed
/// for it. Requests that stop something (`panic`, `deny`) and `status` are always answered; any other
/// request is refused while most_held of them are not done.
class control_server {
  public:
    static constexpr std::size_t most_unread = 64; ///< connections without a request yet
    /// Requests that wait, or whose answer waits to be read.
    static constexpr std::size_t most_held = 64;

    /// Called exactly once, at once or later.
    using reply = std::function<void(std::string)>;
    using handler = std::function<void(std::string_view request, const requester &, reply)>;

    [[nodiscard]] static host::outcome<std::unique_ptr<control_server>>
    open(boost::asio::io_context &loop, const paths &where, handler answer);
    ~control_server();

  private:
    struct exchange;
    // An exchange may live longer than the server.
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

/// Asks the running daemon. Its answer may have `most` bytes. error_number is ENOENT or ECONNREFUSED
/// when no daemon runs, EAGAIN when it has not answered for `seconds`.
[[nodiscard]] host::outcome<std::string> ask_daemon(const paths &where, std::string_view request,
                                                    int seconds = 10,
                                                    std::size_t most = 1024 * 1024);

/// The process that listens at the control socket, as the kernel reports it, even when it does not
/// answer. Nothing when there is none.
[[nodiscard]] std::optional<pid_t> daemon_pid(const paths &where);

} // namespace qvmremote::dom0
