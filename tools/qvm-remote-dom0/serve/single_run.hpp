// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// `--once`: decides when a daemon that serves the running qubes has served them all.

#pragma once

#include <functional>
#include <set>
#include <string>
#include <utility>

#include <boost/asio/steady_timer.hpp>

#include "base/settings.hpp"
#include "serve/service.hpp"
#include "serve/ways_in.hpp"

namespace qvmremote::dom0 {

/// Knows which qubes are expected, and when the last of them has been served.
class single_run {
  public:
    /// After `wait_s` seconds, `on_timeout` is called with an exit code.
    single_run(service &context, const ways_in &ways, const settings &config, unsigned wait_s,
               std::function<void(int)> on_timeout)
        : context_(context), ways_(ways), settings_(config), wait_s_(wait_s),
          on_timeout_(std::move(on_timeout)), timer_(context.loop) {}

    /// Notes which qubes run now, and starts the timer.
    void start();
    void stream_came() { any_stream_came_ = true; }
    /// Call it after a stream or a command has ended; `idle` says that nothing runs. True when every
    /// expected qube has been served and nothing runs.
    [[nodiscard]] bool is_over(bool idle);

  private:
    [[nodiscard]] std::set<std::string> running_qubes() const;
    void time_is_up();

    service &context_;
    const ways_in &ways_;
    const settings &settings_;
    const unsigned wait_s_;
    std::function<void(int)> on_timeout_;
    boost::asio::steady_timer timer_;
    std::set<std::string> expected_; // qubes that are not served yet
    bool any_stream_came_ = false;
};

} // namespace qvmremote::dom0
