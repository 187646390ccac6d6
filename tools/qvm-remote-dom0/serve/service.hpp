// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What connections and executions share: the daemon's parts, and its one loop.

#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>

#include <qvmremote/host/clock.hpp>

#include "base/containment.hpp"
#include "base/log.hpp"
#include "decide/account.hpp"
#include "decide/admission.hpp"
#include "decide/approvals.hpp"
#include "decide/keyring.hpp"
#include "execute/execution_context.hpp"
#include "record/journal.hpp"
#include "serve/scheduler.hpp"

namespace qvmremote::dom0 {

class connection;

/// Everything here lives as long as the loop and is touched by its thread alone.
struct service : std::enable_shared_from_this<service> {
    service(boost::asio::io_context &on, event_log &to, journal &r, class admission &a,
            class approvals &words, warden &w)
        : loop(on), log(to), records(r), admission(a),
          approvals(words), execution{.loop = on, .log = to, .records = r, .children = w} {}

    boost::asio::io_context &loop;
    event_log &log;
    journal &records;
    class admission &admission;
    class approvals &approvals;
    execution_context execution;
    class scheduler scheduler {
        std::max(2u, std::thread::hardware_concurrency())
    };
    std::uint32_t features = feature::gmac;
    bool draining = false;

    std::set<std::shared_ptr<connection>> connections;

    /// Starts what the scheduler lets start. Called whenever that may have changed.
    std::function<void()> reschedule;
    /// Called when a connection or an execution is over, or a queue is empty.
    std::function<void()> something_ended;
    /// Puts a question to the operators; the serial, or nothing when too many wait.
    std::function<std::optional<std::uint64_t>(question, approvals::answer)> ask_operator;
    /// Called when the questions that wait have changed.
    std::function<void()> questions_changed;
    /// Called when a connection's keep_alive_due may have changed.
    std::function<void()> keep_alive_changed;
};

/// From the slot on: what runs has a time-out, and what only says that it will must not go without.
inline constexpr std::uint64_t body_patience_ms = 60'000;
/// What is said of one that did not come. It is looked for with the keep-alives.
inline refusal late_body() { return {errc::incomplete, "its body did not come within a minute"}; }

/// One of the scheduler's slots, for as long as something may run in it.
class slot {
  public:
    slot(service &parts, std::string qube)
        : parts_(parts.weak_from_this()), qube_(std::move(qube)), since_ms_(host::boottime_ms()) {}
    slot(slot &&) noexcept = default;
    slot &operator=(slot &&) = delete;
    ~slot() {
        const auto parts = parts_.lock(); // gone: moved from, or the daemon is ending
        if (!parts)
            return;
        parts->scheduler.release(qube_);
        boost::asio::post(parts->loop, parts->reschedule);
    }

    /// Whether who has it has had all the time that there is for a body to come.
    [[nodiscard]] bool is_overdue(std::uint64_t now_ms) const noexcept {
        return now_ms >= since_ms_ + body_patience_ms;
    }

  private:
    std::weak_ptr<service> parts_;
    std::string qube_;
    std::uint64_t since_ms_;
};

/// A question that an operator was asked, for as long as somebody wants to know.
class standing_question {
  public:
    standing_question(service &parts, std::uint64_t serial)
        : parts_(parts.weak_from_this()), serial_(serial) {}
    standing_question(standing_question &&) noexcept = default;
    standing_question &operator=(standing_question &&) = delete;
    ~standing_question() {
        const auto parts = parts_.lock(); // gone: moved from, or the daemon is ending
        if (!parts)
            return;
        parts->approvals.withdraw(serial_);
        boost::asio::post(parts->loop, parts->questions_changed);
    }

    [[nodiscard]] std::uint64_t serial() const noexcept { return serial_; }

  private:
    std::weak_ptr<service> parts_;
    std::uint64_t serial_;
};

} // namespace qvmremote::dom0
