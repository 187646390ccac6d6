// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The parts of the daemon that connections and executions share, and its one loop.

#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/scheduler.hpp>
#include <qvmremote/session.hpp>

#include "base/containment.hpp"
#include "base/dom0_limits.hpp"
#include "base/log.hpp"
#include "decide/account.hpp"
#include "decide/admission.hpp"
#include "decide/approvals.hpp"
#include "decide/keyring.hpp"
#include "execute/execution_context.hpp"
#include "execute/job_table.hpp"
#include "record/journal.hpp"

namespace qvmremote::dom0 {

class connection;

/// The functions of the daemon that connections and requests call, on the loop's thread.
class coordinator {
  public:
    /// Starts what the scheduler allows. Call it whenever that may have changed.
    virtual void reschedule() = 0;
    /// Called when a connection or an execution is over, or a queue is empty.
    virtual void something_ended() = 0;
    /// Puts a question to the operators. Returns its serial, or nothing when too many wait.
    [[nodiscard]] virtual std::optional<std::uint64_t> ask_operator(question what,
                                                                    approvals::answer answer) = 0;
    /// Called when the questions that wait have changed.
    virtual void questions_changed() = 0;
    /// Called when a connection's keep_alive_due may have changed.
    virtual void keep_alive_changed() = 0;

  protected:
    ~coordinator() = default;
};

/// Everything here lives as long as the loop, and only its thread uses it.
struct service : std::enable_shared_from_this<service> {
    service(coordinator &owner, boost::asio::io_context &on, event_log &to, journal &r,
            class admission &a, class approvals &words, warden &w)
        : daemon(owner), loop(on), log(to), records(r), admission(a),
          approvals(words), execution{.loop = on, .log = to, .records = r, .children = w} {}

    coordinator &daemon;
    boost::asio::io_context &loop;
    event_log &log;
    journal &records;
    class admission &admission;
    class approvals &approvals;
    execution_context execution;
    class scheduler scheduler {
        std::max(2u, std::thread::hardware_concurrency())
    };
    std::uint32_t features = feature::known;
    bool draining = false;
    /// How long dom0 waits for the end of standard input that an operator must see.
    std::uint64_t stdin_patience_ms = dom0::approvals::patience_ms;
    /// How long a request waits for a slot before its sender is told.
    std::uint64_t slot_word_after_ms = 1'000;
    /// How long a request may hold a slot without its body, in time that the machine is awake. After
    /// that it leaves the slot to others, and waits for another one when its body has come.
    std::uint64_t body_patience_ms = 60'000;

    /// What the windows for stdin may still grow.
    [[nodiscard]] std::shared_ptr<window_pool> wider_windows_of(const std::string &qube) {
        std::shared_ptr<window_pool> &out = wider_windows_of_[qube];
        if (!out)
            out = std::make_shared<window_pool>(limits::wider_windows_per_qube, wider_windows_);
        return out;
    }

    std::set<std::shared_ptr<connection>> connections;
    job_table *jobs = nullptr; ///< null where nothing is to be detached

    /// How many requests of each qube read its jobs or wait for them.
    std::map<std::string, std::size_t> readers_of;

    /// How many requests of each qube keep something large without a slot (waiting_place).
    std::map<std::string, std::size_t> places_of;

  private:
    std::shared_ptr<window_pool> wider_windows_ =
        std::make_shared<window_pool>(limits::wider_windows);
    std::map<std::string, std::shared_ptr<window_pool>> wider_windows_of_;
};

/// One of the scheduler's slots. The destructor gives it back.
class slot {
  public:
    slot(service &context, std::string qube)
        : context_(context.weak_from_this()), qube_(std::move(qube)), since_ms_(host::awake_ms()) {}
    slot(slot &&) noexcept = default;
    slot &operator=(slot &&) = delete;
    ~slot() {
        // Null when this was moved from, or the daemon is ending.
        const auto context = context_.lock();
        if (!context)
            return;
        context->scheduler.release(qube_);
        boost::asio::post(context->loop, [context] { context->daemon.reschedule(); });
    }

    /// Whether the time for a body to come is over.
    [[nodiscard]] bool is_overdue(std::uint64_t awake_ms) const noexcept {
        const auto context = context_.lock();
        return context && awake_ms >= since_ms_ + context->body_patience_ms;
    }

  private:
    std::weak_ptr<service> context_;
    std::string qube_;
    std::uint64_t since_ms_;
};

/// One of the places for requests that keep something large while they hold no slot: standard input
/// that is collected for an operator to see, or a body that did not come in time. They bound what a
/// qube can make dom0 keep in this way: limits::collected_stdin and limits::command for each.
class waiting_place {
  public:
    [[nodiscard]] static std::optional<waiting_place> take(service &context,
                                                           const std::string &qube) {
        std::size_t all = 0;
        for (const auto &[name, count] : context.places_of)
            all += count;
        const auto of_qube = context.places_of.find(qube);
        if (all >= approvals::most_in_all ||
            (of_qube != context.places_of.end() && of_qube->second >= approvals::most_of_a_qube))
            return std::nullopt;
        ++context.places_of[qube];
        return waiting_place(context, qube);
    }
    waiting_place(waiting_place &&) noexcept = default;
    waiting_place &operator=(waiting_place &&other) noexcept {
        std::swap(context_, other.context_);
        std::swap(qube_, other.qube_);
        return *this;
    }
    ~waiting_place() {
        // Null when this was moved from, or the daemon is ending.
        const auto context = context_.lock();
        if (!context)
            return;
        if (const auto at = context->places_of.find(qube_); --at->second == 0)
            context->places_of.erase(at);
    }

  private:
    waiting_place(service &context, std::string qube)
        : context_(context.weak_from_this()), qube_(std::move(qube)) {}

    std::weak_ptr<service> context_;
    std::string qube_;
};

/// A question to an operator. The destructor withdraws it.
class standing_question {
  public:
    standing_question(service &context, std::uint64_t serial)
        : context_(context.weak_from_this()), serial_(serial) {}
    standing_question(standing_question &&) noexcept = default;
    standing_question &operator=(standing_question &&) = delete;
    ~standing_question() {
        // Null when this was moved from, or the daemon is ending.
        const auto context = context_.lock();
        if (!context)
            return;
        context->approvals.withdraw(serial_);
        boost::asio::post(context->loop, [context] { context->daemon.questions_changed(); });
    }

    [[nodiscard]] std::uint64_t serial() const noexcept { return serial_; }

  private:
    std::weak_ptr<service> context_;
    std::uint64_t serial_;
};

} // namespace qvmremote::dom0
