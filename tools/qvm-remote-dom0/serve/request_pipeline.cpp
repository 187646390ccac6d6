// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/request_pipeline.hpp"

#include <variant>

#include "execute/execution.hpp"
#include "execute/job_table.hpp"

namespace qvmremote::dom0 {

namespace {
constexpr const char *too_many_questions = "too much waits for an operator already";
}

void request_pipeline::begin(std::size_t held_bytes) {
    if (context_.draining)
        return turn_away();
    if (const auto why = context_.admission.hopeless(from_, *header_))
        return give_up(*why);
    wait_for_slot(step::waiting_for_slot, held_bytes);
}

void request_pipeline::wait_for_slot(step waiting, std::size_t held_bytes) {
    enter(waiting);
    ticket_ = context_.scheduler.submit(from_.name.text(), held_bytes,
                                        in_this_step([](request_pipeline &self) {
                                            self.on_slot();
                                            return true;
                                        }));
    if (!ticket_)
        return waiting == step::waiting_again ? give_up({errc::busy, {}}) : turn_away();
    const auto self = shared_from_this();
    const std::uint64_t this_step = steps_taken_;
    context_.daemon.reschedule();
    if (steps_taken_ == this_step)
        limit_wait_for_slot();
}

// A short wait, as in a burst of commands, is not reported.
void request_pipeline::limit_wait_for_slot() {
    const std::uint64_t limit_ms = std::uint64_t{port_->wait_limit_s(*header_)} * 1000;
    const std::uint64_t word_ms = context_.slot_word_after_ms;
    const auto give_up_waiting = [](request_pipeline &self) {
        self.give_up({errc::slot_timeout,
                      std::to_string(self.header_->timeout_s) + " s; the command did not run"});
    };
    if (limit_ms != 0 && limit_ms <= word_ms)
        return after(limit_ms, give_up_waiting);
    after(word_ms, [=](request_pipeline &self) {
        const auto running = self.context_.scheduler.running(self.from_.name.text());
        self.port_->pend(0, "no slot is free (" + std::to_string(running) +
                                (running == 1 ? " command" : " commands") + " of this qube run" +
                                (running == 1 ? "s)" : ")"));
        self.port_->flush();
        if (limit_ms != 0)
            self.after(limit_ms - word_ms, give_up_waiting);
    });
}

// Nothing has begun yet. If the protocol lets the sender keep the request for later, the sender
// does so.
void request_pipeline::turn_away() {
    if (!port_->postpone())
        return give_up({context_.draining ? errc::draining : errc::busy, {}});
    context_.records.release(from_.name, *header_->id);
    finish();
}

void request_pipeline::on_slot() {
    ticket_.reset();
    slot_.emplace(context_, from_.name.text());
    if (held_) { // it comes back with an operator's approval
        auto back = std::exchange(held_, std::nullopt);
        place_.reset();
        return admit(std::move(back->what));
    }
    if (late_body_) {
        auto body = std::exchange(late_body_, std::nullopt);
        place_.reset();
        return admit(std::move(*body));
    }
    enter(step::waiting_for_body);
    if (port_->ask_for_body())
        port_->flush();
    else
        on_body(port_->take_body());
}

void request_pipeline::on_body(result<verified<request>> whole, const std::string &reason) {
    if (step_ != step::waiting_for_body)
        return;
    if (!whole)
        return give_up({whole.error().code, reason});
    if (slot_)
        return admit(std::move(*whole));
    late_body_.emplace(std::move(*whole));
    wait_for_slot(step::waiting_again, 0);
}

// A job has its files and its secret before START, so that the next daemon knows it.
bool request_pipeline::prepare_job(const verified<request> &what) {
    const envelope &header = what->header;
    if (!header.detach || header.dry_run || context_.execution.dry_run || job_)
        return true;
    if (!context_.jobs) {
        give_up({errc::unsupported, {}});
        return false;
    }
    auto made = context_.jobs->prepare(from_, header, key_mark_);
    if (!made) {
        give_up({errc::busy, made.error().what});
        return false;
    }
    job_ = *made;
    return true;
}

void request_pipeline::admit(verified<request> what) {
    if (!prepare_job(what))
        return;
    enter(step::admitting);
    // Not made by in_this_step(): a START that is durable needs its END, even if the request is
    // over.
    context_.admission.admit(from_, std::move(what), std::exchange(consent_, {}),
                             [self = shared_from_this()](admission::outcome answer) {
                                 self->on_admitted(std::move(answer));
                             });
}

void request_pipeline::on_admitted(admission::outcome answer) {
    admitted *const good = std::get_if<admitted>(&answer);
    if (step_ == step::over) { // the sender has gone; a refusal is in the records already
        if (good)
            context_.admission.not_run(*good, errc::session_over);
        else if (std::holds_alternative<held>(answer))
            context_.admission.abandon(from_, *header_, {errc::session_over, {}});
        return;
    }
    if (const refusal *const why = std::get_if<refusal>(&answer)) { // it is in the records already
        port_->refuse(*why);
        return finish();
    }
    if (doomed_ && good) {
        context_.admission.not_run(*good, *doomed_);
        port_->refuse({*doomed_, {}});
        return finish();
    }
    if (doomed_)
        return give_up({*doomed_, {}});
    if (good)
        return run(std::move(*good));
    on_held(std::move(std::get<held>(answer)));
}

// The session ends at once, and the job goes on without it and without its slot.
void request_pipeline::run_as_job(admitted what) {
    const auto self = shared_from_this();
    auto port = port_->execution_port(what.request());
    port->accept(what.terms().timeout_s, false);
    const bool outlives = static_cast<bool>(context_.jobs->groups());
    port->end({.cause = end_cause::detached,
               .value = outlives ? 1u : 0u,
               .text = outlives ? std::string()
                                : "it ends with dom0's daemon, since it has no cgroup: " +
                                      context_.jobs->groups().why_none},
              {});
    port->flush();
    context_.jobs->start(*std::exchange(job_, nullptr), what);
    finish();
}

void request_pipeline::run(admitted what) {
    if (job_)
        return run_as_job(std::move(what));
    enter(step::running);
    auto port = port_->execution_port(what.request());
    const auto command =
        std::make_shared<execution>(context_.execution, std::move(port), std::move(what),
                                    std::make_shared<slot>(std::move(*slot_)));
    slot_.reset();
    running_ = command;
    context_.execution.running.insert(command);
    const auto self = shared_from_this(); // a command that cannot be started ends at once
    command->start();
    port_->flush();
}

// If stdin is part of the question, it is read first.
void request_pipeline::on_held(held what) {
    slot_.reset();
    place_ = waiting_place::take(context_, from_.name.text());
    if (!place_)
        return give_up({errc::busy, too_many_questions});
    const bool reads_stdin = what.said.how.input == stdin_mode::collected;
    held_.emplace(std::move(what));
    if (!reads_stdin)
        return ask_operator();
    enter(step::collecting_stdin);
    consent_.collected.emplace();
    after(context_.stdin_patience_ms, [](request_pipeline &self) {
        self.give_up({errc::approval_timeout, "standard input did not end"});
    });
    port_->pend(0, "standard input is read first");
    port_->collect_stdin(limits::window);
    port_->flush();
}

void request_pipeline::ask_operator() {
    enter(step::asking_operator);
    const auto serial = context_.daemon.ask_operator(
        question_of(*held_, consent_.collected),
        in_this_step([](request_pipeline &self, tl::expected<approval, errc> decision) {
            self.on_decision(std::move(decision));
        }));
    if (!serial)
        return give_up({errc::busy, too_many_questions});
    question_.emplace(context_, *serial);
    port_->pend(*serial, "qvm-remote-dom0 approvals, serial " + std::to_string(*serial));
    port_->flush();
}

void request_pipeline::on_decision(tl::expected<approval, errc> decision) {
    question_.reset();
    if (!decision)
        return give_up({decision.error(), {}});
    consent_.by = std::move(*decision);
    was_asked_ = true;
    wait_for_slot(step::waiting_again, consent_.collected.value_or("").size());
    port_->flush();
}

void request_pipeline::stdin_data(bytes_view data) {
    if (const auto command = running_.lock())
        return command->stdin_data(data);
    if (step_ != step::collecting_stdin)
        return;
    std::string &collected = *consent_.collected;
    if (data.size() > limits::collected_stdin - collected.size())
        return give_up({errc::denied, "an operator is asked about 1 MiB of standard input at most; "
                                      "stdin=live in the rule passes it on unseen"});
    collected.append(as_text(data));
    port_->collect_stdin(data.size());
}

void request_pipeline::stdin_eof() {
    if (const auto command = running_.lock())
        command->stdin_eof();
    else if (step_ == step::collecting_stdin)
        ask_operator();
}

void request_pipeline::signal(int number) {
    if (const auto command = running_.lock())
        command->signal(number);
}

void request_pipeline::resize(std::uint16_t columns, std::uint16_t rows) {
    if (const auto command = running_.lock())
        command->resize(columns, rows);
}

void request_pipeline::detach() {
    // An operator who allowed it saw a command that ends with its session.
    if (const auto command = running_.lock())
        command->go_on_as_job(was_asked_ ? nullptr : context_.jobs, key_mark_);
}

void request_pipeline::more_output() {
    if (const auto command = running_.lock())
        command->more_output();
}

void request_pipeline::abandon(errc why) {
    if (step_ == step::over)
        return;
    if (const auto command = running_.lock())
        command->abandon();
    else if (step_ != step::admitting && step_ != step::running)
        context_.admission.abandon(from_, *header_, {why, {}});
    finish();
}

void request_pipeline::give_up(const refusal &why) {
    const auto self = shared_from_this();
    port_->refuse(why);
    context_.admission.abandon(from_, *header_, why);
    finish();
}

void request_pipeline::cancel(errc why) {
    const auto self = shared_from_this();
    if (const auto command = running_.lock())
        command->cancel(why);
    else if (step_ == step::admitting)
        doomed_ = why;
    else if (step_ != step::over && step_ != step::running)
        give_up({why, {}});
}

void request_pipeline::refuse_waiting(errc why) {
    if (step_ == step::running)
        return;
    if (step_ == step::waiting_for_slot && why == errc::draining)
        return turn_away();
    cancel(why);
}

void request_pipeline::check_body_time(std::uint64_t awake_ms) {
    if (step_ != step::waiting_for_body || !slot_ || !slot_->is_overdue(awake_ms))
        return;
    // The client may be stopped or the qube paused, so the request does not end; it only loses its
    // slot.
    place_ = waiting_place::take(context_, from_.name.text());
    if (!place_)
        return give_up({errc::busy, "too many requests of this qube wait for their bodies"});
    slot_.reset();
}

// After this, no handler of in_this_step() runs for the request any more.
void request_pipeline::finish() {
    const auto self = shared_from_this();
    enter(step::over);
    if (job_)
        context_.jobs->forget(*std::exchange(job_, nullptr));
    slot_.reset();
    place_.reset();
    question_.reset();
    running_.reset();
    port_->forget();
    port_->flush();
}

} // namespace qvmremote::dom0
