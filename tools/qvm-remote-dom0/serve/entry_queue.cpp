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

constexpr std::size_t unconfirmed_results = 1024; // at most; a failure of one of them is logged

std::string subject(const peer &from, std::string_view id) {
    return "vm=" + from.name.text() + " id=" + std::string(id);
}

// The exit code that the Python daemon writes into ID.exit.
int exit_of(const run_end &ended) {
    return ended.cause == end_cause::signalled && ended.value <= 64 ? -static_cast<int>(ended.value)
                                                                    : ended.exit_code();
}

// A line for stderr when the command did not end by itself; empty otherwise.
std::string failure_text(const run_end &ended) {
    switch (ended.cause) {
    case end_cause::timed_out:
        return "command timed out after " + std::to_string(ended.value) + "s";
    case end_cause::not_found:
    case end_cause::not_started:
        return "could not start the command" + (ended.text.empty() ? "" : ": " + ended.text);
    case end_cause::cancelled:
        return std::string(message(static_cast<errc>(ended.value)));
    default:
        return {};
    }
}

} // namespace

/// Sends output to the carrier as it comes, and the other files at the end. Files are cut at 10 MiB.
class entry_port final : public session_port {
  public:
    entry_port(std::shared_ptr<connection> stream, entry_queue &queue, command_id id,
               std::string shown)
        : stream_(std::move(stream)), queue_(queue), id_(std::move(id)), shown_(std::move(shown)) {}
    // If the entry gets no result, tells the carrier to remove the output that it has.
    ~entry_port() override {
        if (!has_ended_ && out_ + err_ > 0) {
            queue_.machine_.drop(id_);
            queue_.send();
        }
    }
    entry_port(const entry_port &) = delete;
    entry_port &operator=(const entry_port &) = delete;

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
    void notify(std::string_view) override {} // its sender looks at files

    run_end end(run_end ended, const run_record &record) override {
        has_ended_ = true;
        ended.stdout_bytes = out_;
        ended.stderr_bytes = err_;
        for (const bool is_stdout : {true, false})
            if (const std::uint64_t count = is_stdout ? out_ : err_;
                count > limits::recorded_output) {
                say(is_stdout, queue_cut_mark);
                queue_.context_.log.write(log_category::trunc,
                                          std::string(is_stdout ? "stdout" : "stderr") + " (" +
                                              std::to_string(count) + " bytes)");
            }
        if (const std::string text = failure_text(ended); !text.empty())
            say(false, "qvm-remote-dom0: " + text + "\n");
        const int code = exit_of(ended);
        queue_.machine_.result_of(
            id_, code, format_meta(id_.text(), record.started, record.duration_ms, code),
            line_started(record.started, id_.text(), code, record.duration_ms, shown_));
        queue_.confirm_later(id_);
        queue_.entries_.erase(id_.text());
        queue_.send();
        return ended;
    }
    void flush() override { stream_->flush(); }

  private:
    void say(bool is_stdout, std::string_view text) {
        const auto room = queue_.machine_.prepare_output(text.size());
        std::copy(text.begin(), text.end(), room.begin());
        queue_.machine_.commit_output(id_, is_stdout, text.size());
    }

    std::shared_ptr<connection> stream_;
    entry_queue &queue_; // of the connection
    command_id id_;
    std::string shown_;
    std::uint64_t out_ = 0, err_ = 0;
    bool has_ended_ = false;
};

/// The entry as the sender of a request. The queue owns the request, and the request owns this.
class entry_request_port final : public request_port {
  public:
    entry_request_port(entry_queue &queue, command_id id) : queue_(queue), id_(std::move(id)) {}

    [[nodiscard]] bool ask_for_body() override {
        queue_.machine_.fetch(id_);
        return true;
    }
    [[nodiscard]] result<verified<request>> take_body() override { return fail(errc::incomplete); }
    // Protocol 1 cannot tell its sender that a request waits, and has no stdin to collect.
    void pend(std::uint64_t, const std::string &) override {}
    void collect_stdin(std::size_t) override {}
    [[nodiscard]] bool postpone() override {
        queue_.machine_.later(id_);
        return true;
    }
    // The time-out is its sender's own, and dom0 does not know it.
    [[nodiscard]] std::uint32_t wait_limit_s(const envelope &) const override { return 0; }
    void refuse(const refusal &why) override { queue_.send_refusal(id_, why); }
    [[nodiscard]] std::unique_ptr<session_port> execution_port(const envelope &what) override {
        return std::make_unique<entry_port>(queue_.owner_.shared_from_this(), queue_, id_,
                                            what.body.substr(0, 4 * dom0_preview));
    }
    void forget() override { queue_.entries_.erase(id_.text()); }
    void flush() override { queue_.send(); }

  private:
    entry_queue &queue_;
    command_id id_;
};

bool entry_queue::take(bytes_view untrusted, std::uint64_t now_ms) {
    machine_.feed(untrusted);
    for (;;) {
        auto event = machine_.next();
        if (!event) {
            context_.log.write_for(owner_.from().name.text(), log_category::reject,
                                   "vm=" + owner_.from().name.text() + " queue broken: " +
                                       std::string(message(event.error().code)));
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
        return on_failed(*event.id);
    case kind::pong:
        ++answers_;
        return;
    case kind::done:
        unconfirmed_.erase(event.id->text());
        return;
    case kind::idle:
        return context_.daemon.something_ended();
    }
}

void entry_queue::on_entry(const queue_event &event, std::uint64_t now_ms) {
    const command_id &id = *event.id;
    if (entries_.contains(id.text()))
        return; // announced twice
    auto asked = context_.admission.check_entry(owner_.from(), id, event.untrusted_token,
                                                event.length, now_ms);
    if (!asked) {
        if (asked.error())
            return refuse_entry(id, *asked.error());
        owner_.count_failure(now_ms);
        return machine_.drop(id);
    }
    const auto request =
        std::make_shared<request_pipeline>(context_, owner_.from(), std::move(*asked),
                                           std::make_unique<entry_request_port>(*this, id));
    entries_.emplace(id.text(), request);
    if (entries_.size() == 1)
        context_.daemon.keep_alive_changed();
    request->begin(sizeof *request);
}

void entry_queue::on_body(queue_event event) {
    const auto at = entries_.find(event.id->text());
    if (at == entries_.end())
        return; // refused meanwhile; its result was sent
    const auto request = at->second;
    auto whole =
        request_verifier::complete(request->verified_header(), std::move(event.untrusted_body));
    // The names that the Python daemon uses.
    const std::string reason = whole                                        ? ""
                               : whole.error().code == errc::command_empty  ? "empty-command"
                               : whole.error().code == errc::binary_content ? "binary-content"
                                                                            : "";
    request->on_body(std::move(whole), reason);
}

void entry_queue::on_gone(const std::string &id) {
    if (const auto at = entries_.find(id); at != entries_.end()) {
        const auto request = at->second;
        request->abandon(errc::session_over);
    }
}

// What the carrier says about an entry that is not ours is not logged.
void entry_queue::on_failed(const command_id &id) {
    if (unconfirmed_.erase(id.text()) == 0 && !entries_.contains(id.text()))
        return;
    context_.log.write_for(owner_.from().name.text(), log_category::error,
                           subject(owner_.from(), id.text()) +
                               " write-failed: the qube could not store the result");
}

void entry_queue::confirm_later(const command_id &id) {
    if (unconfirmed_.size() >= unconfirmed_results)
        unconfirmed_.erase(unconfirmed_.begin());
    unconfirmed_.insert(id.text());
}

// The daemon died while this ran, or its stream broke: it is unknown how far the command came.
void entry_queue::on_stale(const command_id &id) {
    if (entries_.contains(id.text()))
        return;
    if (context_.records.was_started(owner_.from().name, id)) {
        context_.log.write_for(owner_.from().name.text(), log_category::error,
                               subject(owner_.from(), id.text()) +
                                   " was left in running: outcome unknown");
        confirm_later(id);
    }
    send_failure(id, 130,
                 "the connection to dom0 ended while this command ran: its outcome is unknown");
}

void entry_queue::refuse_entry(const command_id &id, const refusal &why) {
    // The refusal of a second entry must not overwrite the result of the first one.
    if (why.reason == errc::id_used && entries_.contains(id.text()))
        return machine_.drop(id);
    send_refusal(id, why);
}

void entry_queue::send_refusal(const command_id &id, const refusal &why) {
    confirm_later(id);
    send_failure(id, 126,
                 std::string(message(why.reason)) +
                     (why.text.empty() ? "" : " (" + why.text + ")"));
}

void entry_queue::send_failure(const command_id &id, int exit_code, std::string_view text) {
    const std::string line = "qvm-remote-dom0: " + std::string(text) + "\n";
    const auto room = machine_.prepare_output(line.size());
    std::copy(line.begin(), line.end(), room.begin());
    machine_.commit_output(id, false, line.size());
    const std::string now = host::local_time::now().timestamp();
    machine_.result_of(id, exit_code, format_meta(id.text(), now, 0, exit_code),
                       line_started(now, id.text(), exit_code, 0, {}));
}

// Use a copy, since a call may end requests.
template <class Call>
void entry_queue::for_each_request(Call call) {
    const auto all = entries_;
    for (const auto &[id, request] : all)
        call(*request);
}

void entry_queue::recheck_keys() {
    for_each_request([this](request_pipeline &request) {
        if (const auto why = context_.admission.why_over(owner_.from().name, request.key_mark()))
            request.cancel(*why);
    });
}

void entry_queue::check_body_times(std::uint64_t awake_ms) {
    for_each_request([=](request_pipeline &request) { request.check_body_time(awake_ms); });
}

void entry_queue::refuse_waiting(errc why) {
    for_each_request([why](request_pipeline &request) { request.refuse_waiting(why); });
    send();
}

void entry_queue::more_output() {
    for_each_request([](request_pipeline &request) { request.more_output(); });
}

void entry_queue::close() {
    for_each_request([](request_pipeline &request) { request.abandon(errc::session_over); });
}

void entry_queue::ping() {
    machine_.ping(++pings_);
    send();
}

void entry_queue::send() {
    out_buffer &output = machine_.output();
    if (output.size() == 0)
        return;
    owner_.stream().put_queue(output.pending());
    output.consume(output.size());
    owner_.flush();
}

} // namespace qvmremote::dom0
