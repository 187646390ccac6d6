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

/// One transport.
struct way_in {
    way_in(boost::asio::io_context &on, host::transport t)
        : transport(std::move(t)), incoming(on), pause(on) {}

    host::transport transport;
    std::vector<std::string> peers; ///< the qubes that may use it
    boost::asio::posix::stream_descriptor incoming;
    boost::asio::steady_timer pause; ///< after a failure
};

/// Accepts a qube that has a key, is served, and uses the transport that it is configured for. Each
/// accepted stream becomes a connection.
class ways_in {
  public:
    /// `config` may change; call tell_peers() then.
    ways_in(service &context, const daemon_options &options, const settings &config,
            const keyring &keys, std::function<void()> on_stream)
        : context_(context), options_(options), settings_(config), keys_(keys),
          on_stream_(std::move(on_stream)) {}

    /// Loads the transports, tells them their peers, and listens.
    [[nodiscard]] host::outcome<void> open();

    /// Tells the transports which qubes may connect.
    [[nodiscard]] host::outcome<void> tell_peers();
    /// The same, if a removed qube was kept for its results. Call it when something ended.
    [[nodiscard]] host::outcome<void> forget_leaving();

    /// Accepts no more streams.
    void close();

    [[nodiscard]] const std::vector<std::unique_ptr<way_in>> &all() const noexcept { return ways_; }
    [[nodiscard]] std::string text() const;

  private:
    [[nodiscard]] host::transport_options transport_options(const std::string &name) const;
    void await_streams(way_in &way);
    void take_streams(way_in &way);
    void take_stream(const std::string &transport, host::stream from);

    service &context_;
    const daemon_options &options_;
    const settings &settings_;
    const keyring &keys_;
    std::function<void()> on_stream_;
    std::vector<std::unique_ptr<way_in>> ways_;
    bool some_leave_ = false; // a removed qube is kept for its results
};

} // namespace qvmremote::dom0
