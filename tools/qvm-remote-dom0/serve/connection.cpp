// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/connection.hpp"

#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/sanitize.hpp>

#include "common/installed.hpp"
#include "execute/execution.hpp"

namespace qvmremote::dom0 {

namespace {

// How many reads follow one wake-up: enough to keep a fast peer busy, and few enough that other
// streams get their turn.
constexpr int reads_in_a_row = 4;

// When nothing comes from a stream, we send a ping. Without an answer the stream counts as silent,
// but it stays open: its qube may be paused, or its agent or client may be stopped.
constexpr std::uint64_t busy_interval_ms = 10'000;
constexpr std::uint64_t patience_ms = 15'000;
// After more bad tokens than this within the window, the stream is not read for as long as the
// window.
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
    void notify(std::string_view text) override { machine().notify(number_, text); }
    void position(const job_offsets &at) override { machine().position(number_, at); }
    run_end end(run_end ended, const run_record &) override {
        ended = machine().end(number_, std::move(ended));
        stream_->forget(number_);
        return ended;
    }
    void flush() override { stream_->flush(); }

  private:
    [[nodiscard]] server_stream &machine() { return stream_->stream(); }

    std::shared_ptr<connection> stream_;
    std::uint32_t number_;
};

// The same session, as its request uses it. The connection owns the request, and the request owns
// this.
class session_request_port final : public request_port {
  public:
    session_request_port(connection &stream, std::uint32_t number)
        : stream_(stream), number_(number) {}

    [[nodiscard]] bool ask_for_body() override { return machine().take_body(number_); }
    [[nodiscard]] result<verified<request>> take_body() override {
        return stream_.take_body(number_);
    }
    void pend(std::uint64_t serial, const std::string &text) override {
        machine().pend(number_, serial, text);
    }
    void collect_stdin(std::size_t more) override { machine().collect_stdin(number_, more); }
    [[nodiscard]] bool postpone() override { return false; }
    [[nodiscard]] std::uint32_t wait_limit_s(const envelope &what) const override {
        return what.timeout_s;
    }
    void refuse(const refusal &why) override {
        if (machine().has(number_)) // a body that does not match has ended the session already
            machine().refuse(number_, why.reason, why.text);
    }
    [[nodiscard]] std::unique_ptr<session_port> execution_port(const envelope &) override {
        return std::make_unique<live_session>(stream_.shared_from_this(), number_);
    }
    void forget() override { stream_.forget(number_); }
    void flush() override { stream_.flush(); }

  private:
    [[nodiscard]] server_stream &machine() { return stream_.stream(); }

    connection &stream_;
    std::uint32_t number_;
};

} // namespace

connection::connection(service &context, host::stream from, qube_name qube, std::string transport)
    : context_(context), from_{std::move(qube), std::move(transport), std::move(from.argument),
                               std::nullopt},
      in_(context.loop), out_(context.loop), preamble_timer_(context.loop),
      pause_timer_(context.loop), stream_(from_.name.text(), context.features, host::boottime_ms(),
                                          context.wider_windows_of(from_.name.text())),
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
                       if (ec || self->closed_)
                           return;
                       self->on_readable();
                       self->context_.admission.drop_keys();
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
            context_.daemon.keep_alive_changed();
        if (std::exchange(silent_, false))
            context_.log.write_for(from_.name.text(), log_category::info,
                                   "vm=" + from_.name.text() + " answers again");
        for (;;) {
            auto event = stream_.next(now);
            if (!event) {
                context_.log.write_for(from_.name.text(), log_category::reject,
                                       "vm=" + from_.name.text() + " stream closed: " +
                                           std::string(message(event.error().code)));
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
        out_.async_wait(
            boost::asio::posix::stream_descriptor::wait_write,
            [self = shared_from_this()](boost::system::error_code ec) {
                self->writing_ = false;
                if (ec || self->closed_)
                    return;
                self->flush();
                if (self->stream_.congested())
                    return;
                self->read_more();
                self->for_each_request([](request_pipeline &request) { request.more_output(); });
                self->for_each_reader([](job_session &reader) { reader.more_output(); });
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
    for_each_request([](request_pipeline &request) { request.abandon(errc::session_over); });
    for_each_reader([](job_session &reader) { reader.abandon(); });
    if (queue_)
        queue_->close();
    context_.daemon.something_ended();
    context_.connections.erase(self);
}

void connection::handle(const server_event &event, std::uint64_t now_ms) {
    using kind = server_event::kind;
    switch (event.what) {
    case kind::open: {
        if (context_.draining) {
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
    case kind::pong:
        return;
    case kind::queue:
        if (!queue_)
            queue_ = std::make_unique<entry_queue>(context_, *this);
        if (!queue_->take(event.data, now_ms))
            close();
        return;
    default:
        break;
    }
    if (const auto reader = readers_.find(event.session); reader != readers_.end()) {
        const auto alive = reader->second; // it may end meanwhile
        return pass_to_reader(*alive, event);
    }
    const auto at = requests_.find(event.session);
    if (at == requests_.end())
        return;
    const auto request = at->second; // it may end meanwhile
    switch (event.what) {
    case kind::body:
        return request->on_body(take_body(event.session));
    case kind::stdin_data:
        return request->stdin_data(event.data);
    case kind::stdin_eof:
        return request->stdin_eof();
    case kind::signal:
        return request->signal(event.number);
    case kind::credit:
        return request->more_output();
    case kind::closed:
        if (event.reason != errc::session_over)
            context_.log.write_for(from_.name.text(), log_category::reject,
                                   "vm=" + from_.name.text() +
                                       " id=" + request->header().id->text() +
                                       " session ended: " + std::string(message(event.reason)));
        return request->abandon(event.reason);
    case kind::resize:
        return request->resize(event.columns, event.rows);
    case kind::detach:
        return request->detach();
    default:
        return;
    }
}

void connection::pass_to_reader(job_session &reader, const server_event &event) {
    using kind = server_event::kind;
    switch (event.what) {
    case kind::stdin_data:
        return reader.stdin_data(event.data);
    case kind::stdin_eof:
        return reader.stdin_eof();
    case kind::signal:
        return reader.signal(event.number);
    case kind::resize:
        return reader.resize(event.columns, event.rows);
    case kind::credit:
        return reader.more_output();
    case kind::closed:
        return reader.abandon();
    default:
        return;
    }
}

result<verified<request>> connection::take_body(std::uint32_t number) {
    return stream_.complete(number, requests_.at(number)->verified_header());
}

// Use a copy, since a call may end requests.
template <class Call>
void connection::for_each_request(Call call) {
    const auto all = requests_;
    for (const auto &[number, request] : all)
        call(*request);
}

template <class Call>
void connection::for_each_reader(Call call) {
    const auto all = readers_;
    for (const auto &[number, reader] : all)
        call(*reader);
}

void connection::on_request(const server_event &event, std::uint64_t now_ms) {
    auto asked = context_.admission.check(stream_, event, from_, now_ms);
    if (!asked) {
        if (asked.error().code == errc::bad_token || asked.error().code == errc::no_key)
            count_failure(now_ms);
        return;
    }
    was_asked_ = true;
    const std::uint32_t number = event.session;
    const request_kind kind = asked->header->kind;
    if (kind == request_kind::ping || kind == request_kind::status)
        return answer_directly(number, *asked);
    if (kind == request_kind::job)
        return answer_about_job(number, std::move(*asked));
    const auto request = std::make_shared<request_pipeline>(
        context_, from_, std::move(*asked), std::make_unique<session_request_port>(*this, number));
    requests_.emplace(number, request);
    if (requests_.size() == 1)
        context_.daemon.keep_alive_changed();
    // More than these can exist, because a command that has ended keeps its request until its
    // output is read.
    if (requests_.size() > limits::waiting_per_qube + limits::running_per_qube)
        return request->give_up({errc::busy, {}});
    request->begin(event.data.size());
}

// What any qube with a key may know, as lines KEY: VALUE (doc/PROTOCOL.md, "Status").
std::string connection::status() const {
    std::string out =
        "qube: " + from_.name.text() + "\ntransport: " + from_.transport +
        "\nlevel: " + context_.admission.level(from_.name) +
        "\nrunning: " + std::to_string(context_.scheduler.running(from_.name.text())) +
        "\nwaiting: " + std::to_string(context_.scheduler.waiting(from_.name.text())) +
        "\nversion: " QVMREMOTE_VERSION "\ntime: " +
        std::to_string(host::local_time::now().seconds) + "\n";
    if (const auto why = context_.admission.shut(from_))
        out += "refuses: " + (why->text.empty() ? std::string(message(why->reason)) : why->text) +
               "\n";
    else if (!context_.records.trouble().empty())
        out += "refuses: " + std::string(message(errc::not_recorded)) + "\n";
    return out;
}

void connection::answer_directly(std::uint32_t number, const candidate &asked) {
    const envelope &header = *asked.header;
    stream_.accept(number, header.timeout_s, false);
    if (header.kind == request_kind::status) {
        const std::string text = status();
        const auto room = stream_.prepare_output(number, text.size());
        std::copy_n(text.begin(), room.size(), room.begin());
        stream_.commit_output(number, frame_type::stdout_data, room.size());
    }
    stream_.end(number, {.cause = end_cause::exited});
    context_.records.release(from_.name, *header.id);
    context_.log.write_for(from_.name.text(), log_category::auth_ok,
                           "vm=" + from_.name.text() + " id=" + header.id->text() + " (" +
                               std::string(name(header.kind)) + ")");
}

void connection::answer_about_job(std::uint32_t number, candidate asked) {
    auto about = job_request::parse(asked.header->arguments); // decode() has checked it
    if (!about)
        return stream_.refuse(number, about.error().code, {});
    const auto reader =
        std::make_shared<job_session>(context_, from_, std::move(asked), std::move(*about),
                                      std::make_unique<session_request_port>(*this, number));
    readers_.emplace(number, reader);
    reader->begin();
    context_.daemon.keep_alive_changed();
}

void connection::count_failure(std::uint64_t now_ms) {
    if (now_ms >= failures_since_ms_ + failure_window_ms) {
        failures_since_ms_ = now_ms;
        failures_ = 0;
    }
    ++failures_;
}

void connection::check_body_times(std::uint64_t awake_ms) {
    for_each_request([=](request_pipeline &request) { request.check_body_time(awake_ms); });
    if (queue_)
        queue_->check_body_times(awake_ms);
}

void connection::keep_alive(std::uint64_t now_ms, bool all) {
    check_body_times(host::awake_ms());
    if (pinged_ms_ != 0) {
        if (!silent_ && now_ms >= pinged_ms_ + patience_ms) {
            silent_ = true;
            context_.log.write_for(
                from_.name.text(), log_category::info,
                "vm=" + from_.name.text() +
                    " gives no sign of life; its stream stays open until it ends");
        }
        return;
    }
    if (!stream_.announced() || (!all && now_ms < keep_alive_due()))
        return;
    pinged_ms_ = now_ms;
    if (stream_.queue_only() && queue_)
        queue_->ping();
    else if (stream_.queue_only())
        pinged_ms_ = 0; // its carrier sends the first message
    else
        stream_.ping(now_ms);
    flush();
}

std::uint64_t connection::keep_alive_due() const {
    if (silent_)
        return UINT64_MAX;
    if (pinged_ms_ != 0)
        return pinged_ms_ + patience_ms;
    return is_busy() ? heard_ms_ + busy_interval_ms : UINT64_MAX;
}

void connection::recheck_keys() {
    for_each_request([this](request_pipeline &request) {
        if (const auto why = context_.admission.why_over(from_.name, request.key_mark()))
            request.cancel(*why);
    });
    for_each_reader([this](job_session &reader) {
        if (const auto why = context_.admission.why_over(from_.name, reader.key_mark()))
            reader.cancel(*why);
    });
    if (queue_)
        queue_->recheck_keys();
    flush();
}

void connection::refuse_waiting(errc why) {
    for_each_request([why](request_pipeline &request) { request.refuse_waiting(why); });
    if (why == errc::panicked)
        for_each_reader([why](job_session &reader) { reader.cancel(why); });
    if (queue_)
        queue_->refuse_waiting(why);
    flush();
}

} // namespace qvmremote::dom0
