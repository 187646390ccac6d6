// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The daemon's control socket: one line of request, text until the end of file as answer.

#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>

#include <qvmremote/host/failure.hpp>

#include "settings.hpp"

namespace qvmremote::dom0 {

/// Answers root and the daemon's own user, and nobody else: who connects is what the kernel says
/// (SO_PEERCRED).
class control_server {
public:
    using handler = std::function<std::string(std::string_view request)>;

    [[nodiscard]] static host::outcome<std::unique_ptr<control_server>>
    open(boost::asio::io_context &loop, const paths &where, handler answer);
    ~control_server();

private:
    control_server(boost::asio::io_context &loop, std::string path, handler answer);
    void accept();

    std::string path_;
    handler answer_;
    boost::asio::local::stream_protocol::acceptor acceptor_;
};

/// Asks the running daemon. error_number is ENOENT or ECONNREFUSED when none runs.
[[nodiscard]] host::outcome<std::string> ask_daemon(const paths &where, std::string_view request);

} // namespace qvmremote::dom0
