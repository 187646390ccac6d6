// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/connection.hpp"

#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/sanitize.hpp>

#include "execute/execution.hpp"

namespace qvmremote::dom0 {

namespace {

// Reads of one wake-up: enough to keep a fast peer busy, few enough to let the others on.
constexpr int reads_in_a_row = 4;

// A silent stream is asked for a sign of life, and closed when none comes.
constexpr std::uint64_t busy_interval_ms = 10'000;
constexpr std::uint64_t patience_ms = 15'000;
// So many bad tokens in so long a time, then the stream is not read until that is over.
constexpr std::size_t failures_at_once = 200;
constexpr std::uint64_t failure_window_ms = 100;

void set_nonblocking(int fd) {
    const int flags = ::fcntl(fd, F_GETFL);
    ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

// A session of protocol 2, as an execution sees it.
class live_session final : public session_port {
  public:
    live_session(std::shared_ptr<connection> stream, std::uint32_t number)
        : stream_(std::move(stream)), number_(number) {}

    void accept(std::uint32_t timeout_s, bool stdin_live) override {
        machine().accept(number_, timeout_s, stdin_live);
    }
    [[nodiscard]] bool stalled() const override {
        return stream_->stream().congested() || stream_->stream().output_credit(number_) == 0;
    }
    [[nodiscard]] std::span<std::uint8_t> prepare_output(std::size_t most) override {
        return machine().prepare_output(number_, most);
    }
    void commit_output(bool is_stdout, std::size_t n) override {
        machine().commit_output(number_,
                                is_stdout ? frame_type::stdout_data : frame_type::stderr_data, n);
    }
    void output_eof(bool is_stdout) override {
        machine().output_eof(number_, is_stdout ? frame_type::stdout_eof : frame_type::stderr_eof);
    }
    void grant_stdin(std::size_t n) override { machine().grant_stdin(number_, n); }
    run_end end(run_end how, const run_record &) override {
        how = machine().end(number_, std::move(how));
        stream_->forget(number_);
        return how;
    }
    void flush() override { stream_->flush(); }

  private:
    [[nodiscard]] server_stream &machine() { return stream_->stream(); }

    std::shared_ptr<connection> stream_;
    std::uint32_t number_;
};

} // namespace

connection::connection(service &parts, host::stream from, qube_name qube, std::string transport)
    : parts_(parts), from_{std::move(qube), std::move(transport), std::move(from.argument),
                           std::nullopt},
      in_(parts.loop), out_(parts.loop), preamble_timer_(parts.loop), pause_timer_(parts.loop),
      stream_(from_.name.text(), parts.features, host::boottime_ms()),
      heard_ms_(host::boottime_ms()) {
    set_nonblocking(from.in.get());
    set_nonblocking(from.out.get());
    in_.assign(from.in.release());
    out_.assign(from.out.release());
}

void connection::start() {
    wait_for_preamble();
    read_more();
}

void connection::wait_for_preamble() {
    preamble_timer_.expires_after(std::chrono::milliseconds(limits::preamble_ms));
    preamble_timer_.async_wait([self = weak_from_this()](boost::system::error_code ec) {
        if (const auto alive = self.lock(); alive && !ec && !alive->stream_.announced())
            alive->close();
    });
}

void connection::read_more() {
    if (reading_ || closed_ || stream_.congested())
        return;
    reading_ = true;
    if (failures_ > failures_at_once) {
        failures_ = 0;
        pause_timer_.expires_after(std::chrono::milliseconds(failure_window_ms));
        pause_timer_.async_wait([self = shared_from_this()](boost::system::error_code ec) {
            self->reading_ = false;
            if (!ec)
                self->read_more();
        });
        return;
    }
    in_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                   [self = shared_from_this()](boost::system::error_code ec) {
                       self->reading_ = false;
                       if (!ec && !self->closed_)
                           self->on_readable();
                   });
}

void connection::on_readable() {
    for (int i = 0; i < reads_in_a_row && !stream_.congested(); ++i) {
        const auto room = stream_.prepare();
        const ssize_t n = ::read(in_.native_handle(), room.data(), room.size());
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            break;
        if (n <= 0) {
            close();
            return;
        }
        stream_.commit(static_cast<std::size_t>(n));
        const std::uint64_t now = host::boottime_ms();
        heard_ms_ = now;
        if (std::exchange(pinged_ms_, 0) != 0)
            parts_.keep_alive_changed();
        for (;;) {
            auto event = stream_.next(now);
            if (!event) {
                parts_.log.write(log_category::reject,
                                 "vm=" + from_.name.text() +
                                     " stream closed: " + std::string(message(event.error().code)));
                close();
                return;
            }
            if (!*event)
                break;
            handle(**event, now);
            if (closed_)
                return;
        }
        if (failures_ > failures_at_once)
            break;
        if (stream_.announced())
            preamble_timer_.cancel();
        if (static_cast<std::size_t>(n) < room.size())
            break; // most likely that was all
    }
    flush();
    if (stream_.session_count() == 0)
        stream_.release_idle_memory();
    read_more();
}

void connection::flush() {
    if (closed_ || writing_)
        return;
    out_buffer &out = stream_.output();
    while (out.size() > 0) {
        const bytes_view pending = out.pending();
        const ssize_t n = ::write(out_.native_handle(), pending.data(), pending.size());
        if (n >= 0) {
            out.consume(static_cast<std::size_t>(n));
            continue;
        }
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN && errno != EWOULDBLOCK) {
            close();
            return;
        }
        writing_ = true;
        out_.async_wait(boost::asio::posix::stream_descriptor::wait_write,
                        [self = shared_from_this()](boost::system::error_code ec) {
                            self->writing_ = false;
                            if (ec || self->closed_)
                                return;
                            self->flush();
                            if (self->stream_.congested())
                                return;
                            self->read_more();
                            std::vector<std::shared_ptr<execution>> all; // they may go meanwhile
                            for (const auto &[number, s] : self->sessions_)
                                if (s.running)
                                    all.push_back(s.running);
                            for (const auto &running : all)
                                running->more_output();
                            if (self->queue_)
                                self->queue_->more_output();
                        });
        return;
    }
}

void connection::close() {
    if (closed_)
        return;
    closed_ = true;
    const auto self = shared_from_this();
    boost::system::error_code ignored;
    in_.close(ignored);
    out_.close(ignored);
    preamble_timer_.cancel();
    pause_timer_.cancel();
    while (!sessions_.empty())
        on_closed(sessions_.begin()->first, errc::session_over);
    if (queue_)
        queue_->close();
    parts_.something_ended();
    parts_.connections.erase(self);
}

void connection::handle(const server_event &event, std::uint64_t now_ms) {
    using kind = server_event::kind;
    switch (event.what) {
    case kind::open: {
        if (parts_.draining) {
            stream_.reject_open(errc::draining);
            return;
        }
        challenge fresh;
        if (::getrandom(fresh.data(), fresh.size(), 0) != static_cast<ssize_t>(fresh.size())) {
            stream_.reject_open(errc::busy);
            return;
        }
        stream_.issue_challenge(fresh, now_ms);
        return;
    }
    case kind::request:
        return on_request(event, now_ms);
    case kind::body:
        return on_body(event.session);
    case kind::closed:
        return on_closed(event.session, event.reason);
    case kind::pong:
        return;
    case kind::stdin_data:
    case kind::stdin_eof: {
        const auto collecting = sessions_.find(event.session);
        if (collecting == sessions_.end() || !collecting->second.reading_limit)
            break;
        if (event.what == kind::stdin_data)
            return collect(event.session, event.data);
        collecting->second.reading_limit.reset();
        return ask_operator(event.session);
    }
    case kind::queue:
        if (!queue_)
            queue_ = std::make_unique<entry_queue>(parts_, *this);
        if (!queue_->take(event.data, now_ms))
            close();
        return;
    default:
        break;
    }
    const auto at = sessions_.find(event.session);
    if (at == sessions_.end() || !at->second.running)
        return;
    const auto running = at->second.running;
    switch (event.what) {
    case kind::stdin_data:
        return running->stdin_data(event.data);
    case kind::stdin_eof:
        return running->stdin_eof();
    case kind::signal:
        return running->signal(event.number);
    case kind::credit:
        return running->more_output();
    default: // resize: there is no terminal yet
        return;
    }
}

void connection::on_request(const server_event &event, std::uint64_t now_ms) {
    auto asked = parts_.admission.check(stream_, event, from_, now_ms);
    if (!asked) {
        if (asked.error().code == errc::bad_token || asked.error().code == errc::no_key)
            count_failure(now_ms);
        return;
    }
    was_asked_ = true;
    const std::uint32_t number = event.session;
    const envelope &what = *asked->header;
    const std::size_t held = event.data.size();
    const request_kind kind = what.kind;
    const auto at = sessions_.emplace(number, session(std::move(*asked))).first;
    if (sessions_.size() == 1)
        parts_.keep_alive_changed();
    if (kind == request_kind::ping || kind == request_kind::status) {
        answer_directly(number, *at->second.asked.header);
        return;
    }
    if (parts_.draining) // its challenge was given out before
        return give_up(number, {errc::draining, {}});
    // What no slot would change is said at once.
    if (const auto why = parts_.admission.hopeless(from_, *at->second.asked.header))
        return give_up(number, *why);
    // Beside what waits and runs: commands that have ended and whose output nobody reads.
    if (sessions_.size() > limits::waiting_per_qube + limits::running_per_qube)
        return give_up(number, {errc::busy, {}});
    submit(number, held);
}

void connection::submit(std::uint32_t number, std::size_t held_bytes) {
    const bool queued =
        parts_.scheduler.submit(from_.name.text(), held_bytes, [self = weak_from_this(), number] {
            const auto alive = self.lock();
            return alive && alive->on_slot(number);
        });
    if (!queued)
        return give_up(number, {errc::busy, {}});
    parts_.reschedule();
}

bool connection::on_slot(std::uint32_t number) {
    const auto at = sessions_.find(number);
    if (closed_ || at == sessions_.end())
        return false;
    session &s = at->second;
    s.turn.emplace(parts_, from_.name.text());
    if (s.waits) { // and comes back with an operator's word
        const auto back = std::exchange(s.waits, std::nullopt);
        admit(number, std::move(back->what));
        return true;
    }
    if (!stream_.take_body(number))
        on_body(number);
    else
        flush();
    return true;
}

void connection::on_body(std::uint32_t number) {
    session &s = sessions_.at(number);
    auto whole = stream_.complete(number, s.asked.header);
    if (!whole) {
        parts_.admission.abandon(from_, *s.asked.header, {whole.error().code, {}});
        sessions_.erase(number);
        return;
    }
    admit(number, std::move(*whole));
}

void connection::admit(std::uint32_t number, verified<request> what) {
    session &s = sessions_.at(number);
    s.admitting = true;
    parts_.admission.admit(from_, std::move(what), std::exchange(s.given, {}),
                           [self = shared_from_this(), number](admission::outcome answer) {
                               self->on_admitted(number, std::move(answer));
                           });
}

void connection::on_admitted(std::uint32_t number, admission::outcome answer) {
    const auto at = sessions_.find(number);
    admitted *const good = std::get_if<admitted>(&answer);
    if (at == sessions_.end()) {
        // The client went while START was written. It stands in the audit log as what it is.
        if (good)
            parts_.admission.not_run(*good, errc::session_over);
        return;
    }
    session &s = at->second;
    s.admitting = false;
    if (s.doomed && !std::holds_alternative<refusal>(answer)) {
        const refusal why{*s.doomed, {}};
        good ? parts_.admission.not_run(*good, why.reason)
             : parts_.admission.abandon(from_, *s.asked.header, why);
        answer = why;
    }
    if (held *const waits = std::get_if<held>(&answer))
        return on_held(number, std::move(*waits));
    if (const refusal *const why = std::get_if<refusal>(&answer)) {
        stream_.refuse(number, why->reason, why->text);
        sessions_.erase(at);
        flush();
        return;
    }
    s.running = std::make_shared<execution>(
        parts_.execution, std::make_unique<live_session>(shared_from_this(), number),
        std::move(std::get<admitted>(answer)), std::make_shared<slot>(std::move(*s.turn)));
    s.turn.reset();
    parts_.execution.running.insert(s.running);
    const auto running = s.running;
    running->start();
    flush();
}

// It waits without a slot; when its stdin is part of the question, that is read first.
void connection::on_held(std::uint32_t number, held what) {
    session &s = sessions_.at(number);
    s.turn.reset();
    const auto asking = std::count_if(sessions_.begin(), sessions_.end(),
                                      [](const auto &row) { return row.second.waits.has_value(); });
    if (static_cast<std::size_t>(asking) >= approvals::most_of_a_qube)
        return give_up(number, {errc::busy, "too much waits for an operator already"});
    const bool reads = what.said.how.input == stdin_mode::collected;
    s.waits.emplace(std::move(what));
    if (!reads)
        return ask_operator(number);
    s.given.collected.emplace();
    s.reading_limit = std::make_shared<boost::asio::steady_timer>(parts_.loop);
    s.reading_limit->expires_after(std::chrono::milliseconds(approvals::patience_ms));
    s.reading_limit->async_wait([self = weak_from_this(), number](boost::system::error_code ec) {
        const auto alive = self.lock();
        if (!alive || ec)
            return;
        alive->give_up(number, {errc::approval_timeout, "standard input did not end"});
        alive->flush();
    });
    stream_.pend(number, 0, "standard input is read first");
    stream_.collect_stdin(number, limits::window);
    flush();
}

void connection::collect(std::uint32_t number, bytes_view data) {
    std::string &collected = *sessions_.at(number).given.collected;
    if (data.size() > limits::collected_stdin - collected.size())
        return give_up(number,
                       {errc::denied, "an operator is asked about 1 MiB of standard input at "
                                      "most; stdin=live in the rule passes it on unseen"});
    collected.append(as_text(data));
    stream_.collect_stdin(number, data.size());
}

void connection::ask_operator(std::uint32_t number) {
    session &s = sessions_.at(number);
    const auto serial =
        parts_.ask_operator(question_of(*s.waits, s.given.collected),
                            [self = weak_from_this(), number](tl::expected<approval, errc> word) {
                                if (const auto alive = self.lock())
                                    alive->on_word(number, std::move(word));
                            });
    if (!serial) {
        give_up(number, {errc::busy, "too much waits for an operator already"});
    } else {
        s.asked_as.emplace(parts_, *serial);
        stream_.pend(number, *serial,
                     "qvm-remote-dom0 approvals, serial " + std::to_string(*serial));
    }
    flush();
}

void connection::on_word(std::uint32_t number, tl::expected<approval, errc> word) {
    const auto at = sessions_.find(number);
    if (at == sessions_.end() || !at->second.asked_as)
        return;
    at->second.asked_as.reset();
    if (word) {
        at->second.given.by = std::move(*word);
        submit(number, at->second.given.collected.value_or("").size());
    } else {
        give_up(number, {word.error(), {}});
    }
    flush();
}

void connection::answer_directly(std::uint32_t number, const envelope &what) {
    stream_.accept(number, what.timeout_s, false);
    if (what.kind == request_kind::status) {
        const std::string text =
            "qube: " + from_.name.text() + "\ntransport: " + from_.transport +
            "\nlevel: " + parts_.admission.level(from_.name) +
            "\nrunning: " + std::to_string(parts_.scheduler.running(from_.name.text())) +
            "\nwaiting: " + std::to_string(parts_.scheduler.waiting(from_.name.text())) + "\n";
        const auto room = stream_.prepare_output(number, text.size());
        std::copy_n(text.begin(), room.size(), room.begin());
        stream_.commit_output(number, frame_type::stdout_data, room.size());
    }
    stream_.end(number, {.cause = end_cause::exited});
    parts_.records.release(from_.name, *what.id);
    parts_.log.write(log_category::auth_ok, "vm=" + from_.name.text() + " id=" + what.id->text() +
                                                " (" + std::string(name(what.kind)) + ")");
    sessions_.erase(number);
}

void connection::on_closed(std::uint32_t number, errc why) {
    const auto at = sessions_.find(number);
    if (at == sessions_.end())
        return;
    const session s = std::move(at->second);
    sessions_.erase(at);
    if (why != errc::session_over)
        parts_.log.write(log_category::reject, "vm=" + from_.name.text() +
                                                   " id=" + s.asked.header->id->text() +
                                                   " session ended: " + std::string(message(why)));
    if (s.running)
        s.running->abandon();
    else if (!s.admitting)
        parts_.admission.abandon(from_, *s.asked.header, {why, {}});
}

void connection::give_up(std::uint32_t number, const refusal &why) {
    const auto at = sessions_.find(number);
    stream_.refuse(number, why.reason, why.text);
    parts_.admission.abandon(from_, *at->second.asked.header, why);
    sessions_.erase(at);
}

void connection::count_failure(std::uint64_t now_ms) {
    if (now_ms >= failures_since_ms_ + failure_window_ms) {
        failures_since_ms_ = now_ms;
        failures_ = 0;
    }
    ++failures_;
}

void connection::drop_late_bodies(std::uint64_t now_ms) {
    std::vector<std::uint32_t> late;
    for (const auto &[number, s] : sessions_)
        if (s.turn && !s.admitting && s.turn->is_overdue(now_ms))
            late.push_back(number);
    for (const std::uint32_t number : late)
        give_up(number, late_body());
    if (!late.empty())
        flush();
    if (queue_)
        queue_->drop_late_bodies(now_ms);
}

void connection::keep_alive(std::uint64_t now_ms, bool all) {
    drop_late_bodies(now_ms);
    if (pinged_ms_ != 0) {
        if (now_ms >= pinged_ms_ + patience_ms) {
            parts_.log.write(log_category::error,
                             "vm=" + from_.name.text() + " gives no sign of life; stream closed");
            close();
        }
        return;
    }
    if (!stream_.announced() || (!all && now_ms < keep_alive_due()))
        return;
    pinged_ms_ = now_ms;
    if (stream_.queue_only() && queue_)
        queue_->ping();
    else if (stream_.queue_only())
        pinged_ms_ = 0; // it speaks first
    else
        stream_.ping(now_ms);
    flush();
}

std::uint64_t connection::keep_alive_due() const {
    if (pinged_ms_ != 0)
        return pinged_ms_ + patience_ms;
    return is_busy() ? heard_ms_ + busy_interval_ms : UINT64_MAX;
}

void connection::recheck_keys() {
    std::map<std::uint32_t, errc> over;
    for (const auto &[number, s] : sessions_)
        if (const auto why = parts_.admission.why_over(from_.name, s.asked.key_mark))
            over.emplace(number, *why);
    for (const auto &[number, why] : over) {
        const auto at = sessions_.find(number);
        if (at == sessions_.end())
            break; // the stream broke over the last answer
        if (const auto running = at->second.running)
            running->cancel(why);
        else if (at->second.admitting)
            at->second.doomed = why;
        else
            give_up(number, {why, {}});
    }
    if (queue_)
        queue_->recheck_keys();
    flush();
}

void connection::refuse_waiting(errc why) {
    std::vector<std::uint32_t> numbers;
    for (auto &[number, s] : sessions_)
        if (s.admitting)
            s.doomed = why;
        else if (!s.running)
            numbers.push_back(number);
    for (const std::uint32_t number : numbers)
        give_up(number, {why, {}});
    if (queue_)
        queue_->refuse_waiting(why);
    flush();
}

} // namespace qvmremote::dom0
