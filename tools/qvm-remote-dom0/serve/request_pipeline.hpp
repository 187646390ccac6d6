// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Takes a request from its verified header to its end, in a session of protocol 2 or as an entry
/// of the queue.

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <boost/asio/steady_timer.hpp>

#include <qvmremote/error.hpp>

#include "decide/admission.hpp"
#include "execute/session_port.hpp"
#include "serve/service.hpp"

namespace qvmremote::dom0 {

class execution;
struct job;

/// How the pipeline talks to the sender of a request. Each protocol implements it. It lives as long
/// as its request.
class request_port {
  public:
    virtual ~request_port() = default;

    /// Asks for the body, which then comes through request_pipeline::on_body. Returns false when
    /// the body came with the header; then take_body() returns it at once.
    [[nodiscard]] virtual bool ask_for_body() = 0;
    [[nodiscard]] virtual result<verified<request>> take_body() = 0;

    /// Says that the request waits for an operator; `serial` is 0 while it waits for something else.
    virtual void pend(std::uint64_t serial, const std::string &text) = 0;
    /// Lets the sender send `more` bytes of standard input, before the command is accepted.
    virtual void collect_stdin(std::size_t more) = 0;

    /// When there is no room for the request: leaves it with its sender, to be sent again later.
    /// Returns false when the protocol cannot do that.
    [[nodiscard]] virtual bool postpone() = 0;
    /// How many seconds it may wait for a slot; 0: for as long as its sender does.
    [[nodiscard]] virtual std::uint32_t wait_limit_s(const envelope &what) const = 0;
    /// Tells the sender why the request does not run. Nothing else is sent after that.
    virtual void refuse(const refusal &why) = 0;
    /// Makes the port that the running command uses.
    [[nodiscard]] virtual std::unique_ptr<session_port> execution_port(const envelope &what) = 0;

    /// Removes the request from its owner's table.
    virtual void forget() = 0;
    /// Sends what was queued.
    virtual void flush() = 0;
};

/// One request. Its owner (the stream or the queue that it came on) holds it in a table, passes on
/// what comes for it, and calls abandon() when its sender is gone.
///
/// Every handler that runs later is made by `in_this_step`. So it does nothing after the request
/// has taken another step, even if both were ready in the same round of the loop.
class request_pipeline : public std::enable_shared_from_this<request_pipeline> {
  public:
    request_pipeline(service &context, peer from, candidate verified,
                     std::unique_ptr<request_port> port)
        : context_(context), from_(std::move(from)), header_(std::move(verified.header)),
          key_mark_(verified.key_mark), port_(std::move(port)) {}

    /// Begins: refuses a request that could not run even with a slot, and otherwise waits for a
    /// slot. `held_bytes` is how much memory the request uses until then.
    void begin(std::size_t held_bytes);

    // Input from the sender. Input that does not belong to the present step is dropped.

    /// Takes the body that the port asked for. If that is an error, `reason` is added to the
    /// refusal.
    void on_body(result<verified<request>> whole, const std::string &reason = {});
    void stdin_data(bytes_view data);
    void stdin_eof();
    void signal(int number);
    void resize(std::uint16_t columns, std::uint16_t rows);
    /// The command in the terminal shall go on as a job.
    void detach();
    /// There is room for output again.
    void more_output();
    /// Call it when the sender is gone: nothing is sent any more, and a running command ends.
    void abandon(errc why);

    // Decisions of dom0.

    /// Refuses a request that does not run yet.
    void give_up(const refusal &why);
    /// Ends the request: refuses it while it waits, cancels it while it runs. While its START is
    /// being written, it is refused after that.
    void cancel(errc why);
    /// Refuses it unless it runs. While the daemon drains, a request that only waits for a slot is
    /// postponed if its protocol can do that: the next daemon finds it.
    void refuse_waiting(errc why);
    /// Gives its slot back when its body has not come in time. Refuses it if its qube has too many
    /// such requests.
    void check_body_time(std::uint64_t awake_ms);

    [[nodiscard]] const envelope &header() const noexcept { return *header_; }
    [[nodiscard]] const verified<envelope> &verified_header() const noexcept { return header_; }
    [[nodiscard]] const digest256 &key_mark() const noexcept { return key_mark_; }

  private:
    enum class step : std::uint8_t {
        begun,
        waiting_for_slot,
        waiting_for_body, ///< with a slot, until that takes too long
        admitting,        ///< START is on its way to the disk
        collecting_stdin, ///< for an operator to see
        asking_operator,
        waiting_again, ///< for a slot, with an operator's approval or a late body
        running,
        over
    };

    void enter(step next) {
        step_ = next;
        ++steps_taken_;
        step_timer_.reset();
        if (const auto waited = std::exchange(ticket_, std::nullopt))
            context_.scheduler.withdraw(from_.name.text(), *waited);
    }
    /// Makes a handler from `call` that runs only while the request is alive and still in this
    /// step. A handler that does not run returns the default of its result, such as false.
    template <class Call>
    [[nodiscard]] auto in_this_step(Call call) {
        return [weak = weak_from_this(), taken = steps_taken_,
                call = std::move(call)](auto &&...arguments) mutable {
            using result_type = decltype(call(*std::declval<request_pipeline *>(),
                                              std::forward<decltype(arguments)>(arguments)...));
            const auto alive = weak.lock();
            if (!alive || alive->steps_taken_ != taken)
                return result_type();
            return call(*alive, std::forward<decltype(arguments)>(arguments)...);
        };
    }

    /// Runs `call` after `ms`, if the request is still in this step.
    template <class Call>
    void after(std::uint64_t ms, Call call) {
        step_timer_.emplace(context_.loop, std::chrono::milliseconds(ms));
        step_timer_->async_wait(in_this_step(
            [call = std::move(call)](request_pipeline &self, boost::system::error_code ec) {
                if (!ec)
                    call(self);
            }));
    }

    void wait_for_slot(step waiting, std::size_t held_bytes);
    void limit_wait_for_slot();
    void on_slot();
    void turn_away();
    void admit(verified<request> what);
    void on_admitted(admission::outcome answer);
    void on_held(held what);
    void ask_operator();
    void on_decision(tl::expected<approval, errc> decision);
    void run(admitted what);
    void run_as_job(admitted what);
    [[nodiscard]] bool prepare_job(const verified<request> &what);
    void finish();

    service &context_;
    const peer from_;
    verified<envelope> header_;
    digest256 key_mark_;
    std::unique_ptr<request_port> port_;
    step step_ = step::begun;
    std::uint64_t steps_taken_ = 0;

    std::optional<scheduler::ticket> ticket_; // while it waits for a slot
    std::optional<slot> slot_;
    std::optional<errc> doomed_;       // it must not run, even if admission allows it
    std::weak_ptr<execution> running_; // the context's set holds it until it is over
    job *job_ = nullptr;               // its files are made, and it has not started

    // Set while an operator is asked. The request holds no slot meanwhile.
    std::optional<held> held_;
    // Set while the request keeps something large and holds no slot.
    std::optional<waiting_place> place_;
    std::optional<verified<request>> late_body_; // it came after the slot was given back
    std::optional<standing_question> question_;
    std::optional<boost::asio::steady_timer> step_timer_;
    consent consent_;
    bool was_asked_ = false; // an operator allowed it
};

} // namespace qvmremote::dom0
