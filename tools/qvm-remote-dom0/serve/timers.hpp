// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The daemon's timers.

#pragma once

#include <cstdint>
#include <functional>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>

#include <qvmremote/host/failure.hpp>

#include "base/log.hpp"
#include "decide/keyring.hpp"
#include "serve/service.hpp"

namespace qvmremote::dom0 {

/// One timer for the keep-alives of all streams: idle ones are asked together, once a minute, so that
/// 64 quiet qubes wake this process as often as one does. It is a timerfd of our own, since it can be
/// postponed. Asio's timer would fire at the first time that was set, and its clock stops during a
/// suspend.
class keep_alive_timer {
  public:
    explicit keep_alive_timer(service &context) : context_(context), timer_(context.loop) {}

    [[nodiscard]] host::outcome<void> start();
    /// Call it when there is another connection, or when a connection's keep_alive_due may have
    /// changed.
    void arm();

  private:
    void await();
    void fire();

    service &context_;
    boost::asio::posix::stream_descriptor timer_;
    std::uint64_t next_round_ms_ = 0, armed_ms_ = 0;
};

/// Keys expire at a time of day (`authorize --until`, rotate). This timer uses that clock, and also
/// fires when the clock is set.
class expiry_timer {
  public:
    expiry_timer(boost::asio::io_context &loop, const keyring &keys, std::function<void()> on_due)
        : keys_(keys), on_due_(std::move(on_due)), timer_(loop) {}

    [[nodiscard]] host::outcome<void> start();
    /// Call it when the keys may have changed.
    void arm();

  private:
    void await();

    const keyring &keys_;
    std::function<void()> on_due_;
    boost::asio::posix::stream_descriptor timer_;
};

/// Tells systemd that the loop runs, if the unit asks for it.
class watchdog {
  public:
    explicit watchdog(boost::asio::io_context &loop) : timer_(loop) {}
    void start();

  private:
    boost::asio::steady_timer timer_;
};

/// Writes to the log, from time to time, how many lines were left out.
class counts_timer {
  public:
    counts_timer(boost::asio::io_context &loop, event_log &log) : log_(log), timer_(loop) {}
    void write();

  private:
    event_log &log_;
    boost::asio::steady_timer timer_;
};

} // namespace qvmremote::dom0
