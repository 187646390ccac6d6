// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/entry_queue.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include <qvmremote/history.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/sanitize.hpp>

#include "execute/execution.hpp"
#include "serve/connection.hpp"

namespace qvmremote::dom0 {

namespace {

std::string subject(const peer &from, std::string_view id) {
    return "vm=" + from.name.text() + " id=" + std::string(id);
}

// What Python writes into ID.exit.
int exit_of(const run_end &how) {
    return how.cause == end_cause::signalled && how.value <= 64 ? -static_cast<int>(how.value)
                                                                : how.exit_code();
}

// What an end that is not the command's own adds to its stderr; empty for one that is.
std::string words_of(const run_end &how) {
    switch (how.cause) {
    case end_cause::timed_out:
        return "command timed out after " + std::to_string(how.value) + "s";
    case end_cause::not_found:
    case end_cause::not_started:
        return "could not start the command" + (how.text.empty() ? "" : ": " + how.text);
    case end_cause::cancelled:
        return std::string(message(static_cast<errc>(how.value)));
    default:
        return {};
    }
}

} // namespace

/// Output goes to the carrier as it comes, the rest at the end. Files are cut at 10 MiB.
class entry_port final : public session_port {
  public:
    entry_port(std::shared_ptr<connection> stream, entry_queue &queue, command_id id,
               std::string shown)
        : stream_(std::move(stream)), queue_(queue), id_(std::move(id)), shown_(std::move(shown)) {}

    void accept(std::uint32_t, bool) override {}
    [[nodiscard]] bool stalled() const override { return stream_->stream().congested(); }
    [[nodiscard]] std::span<std::uint8_t> prepare_output(std::size_t most) override {
        return queue_.machine_.prepare_output(most);
    }
    void commit_output(bool is_stdout, std::size_t n) override {
        std::uint64_t &count = is_stdout ? out_ : err_;
        const std::uint64_t room =
            limits::recorded_output - std::min<std::uint64_t>(count, limits::recorded_output);
        count += n;
        if (room > 0)
            queue_.machine_.commit_output(
                id_, is_stdout, static_cast<std::size_t>(std::min<std::uint64_t>(n, room)));
        queue_.send();
    }
    void output_eof(bool) override {}
    void grant_stdin(std::size_t) override {}

    run_end end(run_end how, const run_record &record) override {
        how.stdout_bytes = out_;
        how.stderr_bytes = err_;
        for (const bool is_stdout : {true, false})
            if (const std::uint64_t count = is_stdout ? out_ : err_;
                count > limits::recorded_output) {
                say(is_stdout, queue_cut_mark);
                queue_.parts_.log.write(log_category::trunc,
                                        std::string(is_stdout ? "stdout" : "stderr") + " (" +
                                            std::to_string(count) + " bytes)");
            }
        if (const std::string words = words_of(how); !words.empty())
            say(false, "qvm-remote-dom0: " + words + "\n");
        const int code = exit_of(how);
        queue_.machine_.result_of(
            id_, code, format_meta(id_.text(), record.started, record.duration_ms, code),
            line_started(record.started, id_.text(), code, record.duration_ms, shown_));
        queue_.entries_.erase(id_.text());
        queue_.send();
        return how;
    }
    void flush() override { stream_->flush(); }

  private:
    void say(bool is_stdout, std::string_view text) {
        const auto room = queue_.machine_.prepare_output(text.size());
        std::copy(text.begin(), text.end(), room.begin());
        queue_.machine_.commit_output(id_, is_stdout, text.size());
    }

    std::shared_ptr<connection> stream_;
    entry_queue &queue_; // the connection's
    command_id id_;
    std::string shown_;
    std::uint64_t out_ = 0, err_ = 0;
};

bool entry_queue::take(bytes_view untrusted, std::uint64_t now_ms) {
    machine_.feed(untrusted);
    for (;;) {
        auto event = machine_.next();
        if (!event) {
            parts_.log.write(log_category::reject,
                             "vm=" + owner_.from().name.text() +
                                 " queue broken: " + std::string(message(event.error().code)));
            return false;
        }
        if (!*event)
            break;
        handle(std::move(**event), now_ms);
    }
    send();
    return true;
}

void entry_queue::handle(queue_event event, std::uint64_t now_ms) {
    using kind = queue_event::kind;
    said_idle_ = event.what == kind::idle || (said_idle_ && event.what == kind::pong);
    switch (event.what) {
    case kind::entry:
        return on_entry(event, now_ms);
    case kind::body:
        return on_body(std::move(event));
    case kind::gone:
        return on_gone(event.id->text());
    case kind::stale:
        return on_stale(*event.id);
    case kind::failed:
        parts_.log.write(log_category::error,
                         subject(owner_.from(), event.id->text()) +
                             " write-failed: the qube could not store the result");
        return;
    case kind::pong:
        ++answers_;
        return;
    case kind::done:
        return;
    case kind::idle:
        return parts_.something_ended();
    }
}

void entry_queue::on_entry(const queue_event &event, std::uint64_t now_ms) {
    const command_id &id = *event.id;
    if (entries_.contains(id.text()))
        return; // said twice
    auto asked = parts_.admission.check_entry(owner_.from(), id, event.untrusted_token,
                                              event.length, now_ms);
    if (!asked) {
        if (asked.error())
            return finish_refused(id, *asked.error());
        owner_.count_failure(now_ms);
        return machine_.drop(id);
    }
    const auto at = entries_.emplace(id.text(), entry(std::move(*asked))).first;
    if (entries_.size() == 1)
        parts_.keep_alive_changed();
    if (parts_.draining)
        return postpone(at);
    if (const auto why = parts_.admission.hopeless(owner_.from(), *at->second.asked.header))
        return give_up(at, *why);
    submit(at);
}

void entry_queue::submit(std::map<std::string, entry>::iterator at) {
    const bool queued =
        parts_.scheduler.submit(owner_.from().name.text(), sizeof(entry),
                                [self = owner_.weak_from_this(), this, key = at->first] {
                                    const auto alive = self.lock();
                                    return alive && on_slot(key);
                                });
    if (!queued && at->second.waits)
        return give_up(at, {errc::busy, {}});
    if (!queued)
        return postpone(at);
    parts_.reschedule();
}

bool entry_queue::on_slot(const std::string &id) {
    const auto at = entries_.find(id);
    if (at == entries_.end())
        return false;
    at->second.turn.emplace(parts_, owner_.from().name.text());
    if (at->second.waits) { // and comes back with an operator's word
        auto back = std::exchange(at->second.waits, std::nullopt);
        admit(*at->second.asked.header->id, std::move(back->what));
        return true;
    }
    machine_.fetch(*at->second.asked.header->id);
    send();
    return true;
}

void entry_queue::on_body(queue_event event) {
    const auto at = entries_.find(event.id->text());
    if (at == entries_.end())
        return; // refused in between; its result is on its way
    auto whole =
        request_verifier::complete(at->second.asked.header, std::move(event.untrusted_body));
    if (!whole) {
        const errc why = whole.error().code;
        return give_up(at, {why, why == errc::command_empty    ? "empty-command"
                                 : why == errc::binary_content ? "binary-content"
                                                               : std::string()});
    }
    admit(*event.id, std::move(*whole));
}

void entry_queue::admit(const command_id &id, verified<request> what) {
    entry &e = entries_.at(id.text());
    e.admitting = true;
    parts_.admission.admit(owner_.from(), std::move(what),
                           {std::exchange(e.word, std::nullopt), std::nullopt},
                           [self = owner_.shared_from_this(), this, id](admission::outcome answer) {
                               on_admitted(id, std::move(answer));
                           });
}

void entry_queue::on_admitted(const command_id &id, admission::outcome answer) {
    const auto at = entries_.find(id.text());
    admitted *const good = std::get_if<admitted>(&answer);
    if (at == entries_.end()) {
        if (good)
            parts_.admission.not_run(*good, errc::session_over);
        return;
    }
    at->second.admitting = false;
    if (at->second.doomed && !std::holds_alternative<refusal>(answer)) {
        const refusal why{*at->second.doomed, {}};
        good ? parts_.admission.not_run(*good, why.reason)
             : parts_.admission.abandon(owner_.from(), *at->second.asked.header, why);
        answer = why;
    }
    if (held *const waits = std::get_if<held>(&answer))
        return ask_operator(id, std::move(*waits));
    if (const refusal *const why = std::get_if<refusal>(&answer)) {
        const refusal said = *why;
        entries_.erase(at);
        finish_refused(id, said);
        send();
        return;
    }
    admitted &may = std::get<admitted>(answer);
    std::string shown = may.request().body.substr(0, 4 * dom0_preview);
    const auto running = std::make_shared<execution>(
        parts_.execution,
        std::make_unique<entry_port>(owner_.shared_from_this(), *this, id, std::move(shown)),
        std::move(may), std::make_shared<slot>(std::move(*at->second.turn)));
    at->second.turn.reset();
    at->second.running = running;
    parts_.execution.running.insert(running);
    running->start();
    send();
}

// Protocol 1 cannot tell its sender that it waits.
void entry_queue::ask_operator(const command_id &id, held what) {
    const auto at = entries_.find(id.text());
    at->second.turn.reset();
    const auto serial = parts_.ask_operator(
        question_of(what, std::nullopt),
        [self = owner_.weak_from_this(), this, key = id.text()](tl::expected<approval, errc> word) {
            if (const auto alive = self.lock())
                on_word(key, std::move(word));
        });
    if (!serial)
        return give_up(at, {errc::busy, "too much waits for an operator already"});
    at->second.waits.emplace(std::move(what));
    at->second.asked_as.emplace(parts_, *serial);
}

void entry_queue::on_word(const std::string &id, tl::expected<approval, errc> word) {
    const auto at = entries_.find(id);
    if (at == entries_.end() || !at->second.asked_as)
        return;
    at->second.asked_as.reset();
    if (!word)
        return give_up(at, {word.error(), {}});
    at->second.word = std::move(*word);
    submit(at);
}

void entry_queue::on_gone(const std::string &id) {
    const auto at = entries_.find(id);
    if (at == entries_.end())
        return;
    const entry e = std::move(at->second);
    entries_.erase(at);
    if (e.running)
        e.running->abandon();
    else if (!e.admitting)
        parts_.admission.abandon(owner_.from(), *e.asked.header, {errc::session_over, {}});
}

// A daemon died while this ran, or its stream broke; nobody can say how far the command came.
void entry_queue::on_stale(const command_id &id) {
    if (entries_.contains(id.text()))
        return;
    parts_.log.write(log_category::error,
                     subject(owner_.from(), id.text()) + " was left in running: outcome unknown");
    send_failure(id, 130,
                 "the connection to dom0 ended while this command ran: its outcome is unknown");
}

void entry_queue::finish_refused(const command_id &id, const refusal &why) {
    // A result of the first one must not be overwritten by the refusal of the second.
    if (why.reason == errc::id_used && entries_.contains(id.text()))
        return machine_.drop(id);
    send_failure(id, 126,
                 std::string(message(why.reason)) +
                     (why.text.empty() ? "" : " (" + why.text + ")"));
}

void entry_queue::send_failure(const command_id &id, int exit_code, std::string_view text) {
    const std::string words = "qvm-remote-dom0: " + std::string(text) + "\n";
    const auto room = machine_.prepare_output(words.size());
    std::copy(words.begin(), words.end(), room.begin());
    machine_.commit_output(id, false, words.size());
    const std::string now = host::local_time::now().timestamp();
    machine_.result_of(id, exit_code, format_meta(id.text(), now, 0, exit_code),
                       line_started(now, id.text(), exit_code, 0, {}));
}

void entry_queue::give_up(std::map<std::string, entry>::iterator at, const refusal &why) {
    const command_id id = *at->second.asked.header->id;
    parts_.admission.abandon(owner_.from(), *at->second.asked.header, why);
    entries_.erase(at);
    finish_refused(id, why);
    send();
}

void entry_queue::recheck_keys() {
    std::map<std::string, errc> over;
    for (const auto &[id, e] : entries_)
        if (const auto why = parts_.admission.why_over(owner_.from().name, e.asked.key_mark))
            over.emplace(id, *why);
    for (const auto &[id, why] : over) {
        const auto at = entries_.find(id);
        if (at == entries_.end())
            continue; // the stream broke over the last answer
        if (const auto running = at->second.running)
            running->cancel(why);
        else if (at->second.admitting)
            at->second.doomed = why;
        else
            give_up(at, {why, {}});
    }
}

void entry_queue::drop_late_bodies(std::uint64_t now_ms) {
    std::vector<std::string> ids;
    for (const auto &[id, e] : entries_)
        if (e.turn && !e.admitting && e.turn->is_overdue(now_ms))
            ids.push_back(id);
    for (const std::string &id : ids)
        if (const auto at = entries_.find(id); at != entries_.end())
            give_up(at, late_body());
}

void entry_queue::refuse_waiting(errc why) {
    std::vector<std::string> ids;
    for (auto &[id, e] : entries_)
        if (e.admitting)
            e.doomed = why;
        else if (!e.running)
            ids.push_back(id);
    for (const std::string &id : ids) {
        const auto at = entries_.find(id);
        if (at == entries_.end())
            continue;
        if (at->second.turn || at->second.waits || why != errc::draining)
            give_up(at, {why, {}});
        else
            postpone(at); // it still lies in the qube, for the next daemon
    }
    send();
}

void entry_queue::more_output() {
    std::vector<std::shared_ptr<execution>> all; // they may go meanwhile
    for (const auto &[id, e] : entries_)
        if (e.running)
            all.push_back(e.running);
    for (const auto &running : all)
        running->more_output();
}

void entry_queue::close() {
    while (!entries_.empty())
        on_gone(entries_.begin()->first);
}

void entry_queue::postpone(std::map<std::string, entry>::iterator at) {
    const command_id id = *at->second.asked.header->id;
    parts_.records.release(owner_.from().name, id);
    entries_.erase(at);
    machine_.later(id);
}

void entry_queue::ping() {
    machine_.ping(++pings_);
    send();
}

void entry_queue::send() {
    out_buffer &said = machine_.output();
    if (said.size() == 0)
        return;
    owner_.stream().put_queue(said.pending());
    said.consume(said.size());
    owner_.flush();
}

} // namespace qvmremote::dom0
