// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The transports that the daemon serves, and the streams that come over them.

#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/plugin.hpp>

#include "base/settings.hpp"
#include "decide/keyring.hpp"
#include "serve/daemon_options.hpp"
#include "serve/service.hpp"

namespace qvmremote::dom0 {

/// One of the ways in.
struct way_in {
    way_in(boost::asio::io_context &on, host::transport t)
        : transport(std::move(t)), incoming(on), pause(on) {}

    host::transport transport;
    std::vector<std::string> peers; ///< who may come through it
    boost::asio::posix::stream_descriptor incoming;
    boost::asio::steady_timer pause; ///< after a failure
};

/// Lets a qube in when it has a key, is served, and comes over the transport that it is configured
/// for. Each stream that is let in becomes a connection.
class ways_in {
  public:
    /// `config` may change; tell_peers() takes it up.
    ways_in(service &parts, const daemon_options &options, const settings &config,
            const keyring &keys, std::function<void()> on_stream)
        : parts_(parts), options_(options), settings_(config), keys_(keys),
          on_stream_(std::move(on_stream)) {}

    /// Loads the transports, tells them their peers, and listens.
    [[nodiscard]] host::outcome<void> open();

    /// Tells the transports which qubes may come in.
    [[nodiscard]] host::outcome<void> tell_peers();
    /// The same, if a qube was named for its last words alone. To be called when something ended.
    [[nodiscard]] host::outcome<void> forget_leaving();

    /// Takes no more streams.
    void close();

    [[nodiscard]] const std::vector<std::unique_ptr<way_in>> &all() const noexcept { return ways_; }
    [[nodiscard]] std::string text() const;

  private:
    [[nodiscard]] host::transport_options transport_options(const std::string &name) const;
    void await_streams(way_in &way);
    void take_streams(way_in &way);
    void take_stream(const std::string &transport, host::stream from);

    service &parts_;
    const daemon_options &options_;
    const settings &settings_;
    const keyring &keys_;
    std::function<void()> on_stream_;
    std::vector<std::unique_ptr<way_in>> ways_;
    bool some_leave_ = false; // qubes are named to a transport for their last words alone
};

} // namespace qvmremote::dom0
