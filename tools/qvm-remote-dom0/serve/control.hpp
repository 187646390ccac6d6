// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The daemon's control socket: one line of request, text until the end of file as answer.

#pragma once

#include <functional>
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
class control_server {
  public:
    /// Called once, at once or later.
    using reply = std::function<void(std::string)>;
    using handler = std::function<void(std::string_view request, const requester &, reply)>;

    [[nodiscard]] static host::outcome<std::unique_ptr<control_server>>
    open(boost::asio::io_context &loop, const paths &where, handler answer);
    ~control_server();

  private:
    struct exchange;

    control_server(boost::asio::io_context &loop, std::string path, handler answer);
    void accept();
    void pause(); // then accept

    std::string path_;
    handler answer_;
    // How many exchanges there are: those who wait long are not to use up descriptors. They may
    // outlive this.
    std::shared_ptr<std::size_t> open_ = std::make_shared<std::size_t>(0);
    boost::asio::local::stream_protocol::acceptor acceptor_;
    boost::asio::steady_timer pause_timer_;
};

/// Asks the running daemon. error_number is ENOENT or ECONNREFUSED when none runs, EAGAIN when it has
/// not answered for `seconds`.
[[nodiscard]] host::outcome<std::string> ask_daemon(const paths &where, std::string_view request,
                                                    int seconds = 10);

/// The process that listens there, as the kernel has it, whether or not it answers; nothing when
/// there is none.
[[nodiscard]] std::optional<pid_t> daemon_pid(const paths &where);

} // namespace qvmremote::dom0
