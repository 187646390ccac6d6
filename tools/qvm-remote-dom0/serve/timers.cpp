// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/timers.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <vector>

#include <sys/timerfd.h>
#include <unistd.h>

#include <qvmremote/host/clock.hpp>

#include "base/notify.hpp"
#include "serve/connection.hpp"

namespace qvmremote::dom0 {

namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t round_ms = 60'000; // between two keep-alives of idle streams

} // namespace

host::outcome<void> keep_alive_timer::start() {
    const int timer = ::timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    if (timer < 0)
        return host::failed("cannot make a timer", errno);
    timer_.assign(timer);
    next_round_ms_ = host::boottime_ms() + round_ms;
    arm();
    await();
    return {};
}

void keep_alive_timer::await() {
    timer_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                      [this](boost::system::error_code ec) {
                          if (!ec)
                              fire();
                      });
}

void keep_alive_timer::fire() {
    std::uint64_t expirations = 0;
    [[maybe_unused]] const ssize_t n =
        ::read(timer_.native_handle(), &expirations, sizeof expirations);
    const std::uint64_t now = host::boottime_ms();
    const bool all = now >= next_round_ms_;
    if (all)
        next_round_ms_ = now - now % round_ms + round_ms;
    const auto connections = context_.connections;
    for (const auto &c : connections)
        c->keep_alive(now, all);
    armed_ms_ = 0;
    arm();
    await();
}

void keep_alive_timer::arm() {
    std::uint64_t due = context_.connections.empty() ? UINT64_MAX : next_round_ms_;
    for (const auto &c : context_.connections)
        due = std::min(due, c->keep_alive_due());
    if (due == armed_ms_)
        return;
    armed_ms_ = due;
    itimerspec when{};
    if (due != UINT64_MAX) {
        when.it_value.tv_sec = static_cast<time_t>(due / 1000);
        when.it_value.tv_nsec = static_cast<long>(due % 1000) * 1'000'000;
    }
    ::timerfd_settime(timer_.native_handle(), TFD_TIMER_ABSTIME, &when, nullptr);
}

host::outcome<void> expiry_timer::start() {
    const int timer = ::timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    if (timer < 0)
        return host::failed("cannot make a timer", errno);
    timer_.assign(timer);
    arm();
    await();
    return {};
}

void expiry_timer::await() {
    timer_.async_wait(
        boost::asio::posix::stream_descriptor::wait_read, [this](boost::system::error_code ec) {
            if (ec)
                return;
            std::uint64_t times = 0;
            [[maybe_unused]] const ssize_t n = ::read(timer_.native_handle(), &times, sizeof times);
            on_due_();
            await();
        });
}

void expiry_timer::arm() {
    const std::int64_t now = host::local_time::now().seconds;
    std::int64_t due = 0;
    const auto qubes = keys_.list();
    for (const qube_name &qube : qubes.value_or(std::vector<qube_name>()))
        for (const auto &ends : {keys_.until(qube), keys_.previous_until(qube)})
            if (ends && *ends > now)
                due = due == 0 ? *ends : std::min(due, *ends);
    itimerspec when{};
    when.it_value.tv_sec = static_cast<time_t>(due);
    ::timerfd_settime(timer_.native_handle(), TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &when,
                      nullptr);
}

void watchdog::start() {
    const auto interval = watchdog_interval_us();
    if (!interval)
        return;
    notify_supervisor("WATCHDOG=1");
    timer_.expires_after(std::chrono::microseconds(*interval));
    timer_.async_wait([this](boost::system::error_code ec) {
        if (!ec)
            start();
    });
}

void counts_timer::write() {
    const auto due = log_.write_counts();
    if (!due)
        return;
    const std::uint64_t now = host::boottime_ms();
    timer_.expires_after(milliseconds(*due > now ? *due - now : 0));
    timer_.async_wait([this](boost::system::error_code ec) {
        if (!ec)
            write();
    });
}

} // namespace qvmremote::dom0
