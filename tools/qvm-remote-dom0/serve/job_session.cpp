// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/job_session.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include <qvmremote/host/clock.hpp>

#include "base/dom0_limits.hpp"
#include "execute/terminal.hpp"

namespace qvmremote::dom0 {

namespace {
// How many rounds, each of one piece of each stream, are sent before other sessions get their turn.
constexpr int most_pieces = 8;
} // namespace

job_session::job_session(service &context, peer from, candidate verified, job_request about,
                         std::unique_ptr<request_port> port)
    : context_(context), alive_(context.weak_from_this()), from_(std::move(from)),
      header_(std::move(verified.header)), key_mark_(verified.key_mark), about_(std::move(about)),
      request_(std::move(port)), input_(context.loop) {}

job_session::~job_session() {
    if (const auto context = alive_.lock(); context && job_)
        context->jobs->leave(*job_, *this);
}

void job_session::begin() {
    using verb = job_request::verb;
    if (const auto closed = context_.admission.shut(from_))
        return refuse(closed->reason, closed->text);
    if (!context_.jobs)
        return refuse(errc::unsupported);
    std::size_t &readers = context_.readers_of[from_.name.text()];
    // Requests to cancel have places of their own, so that readers cannot keep a job from being cancelled.
    const std::size_t more = about_.what == verb::cancel ? limits::running_per_qube : 0;
    if (readers >= limits::readers_per_qube + more)
        return refuse(errc::busy, "too many requests of this qube read its jobs");
    ++readers;
    counted_ = true;
    if (about_.what == verb::list)
        return list();
    job_ = context_.jobs->find(from_.name, *about_.id);
    if (!job_)
        return refuse(errc::no_job);
    if (about_.reads_output() && !open_output())
        return;
    context_.jobs->watch(*job_, *this);
    if (about_.what == verb::cancel)
        cancel_job();
    else if (header_->stdin_live && !job_->end)
        context_.jobs->borrow_input(*job_, *this);
    else
        accept(false);
}

void job_session::refuse(errc why, const std::string &text) {
    const auto self = shared_from_this();
    request_->refuse({why, text});
    forget();
}

void job_session::accept(bool stdin_live) {
    port_ = request_->execution_port(*header_);
    port_->accept(0, stdin_live);
    if (lanes_)
        port_->position(about_.from);
    pump();
}

void job_session::list() {
    for (job *one : context_.jobs->list(&from_.name))
        if (context_.jobs->find(one->qube, one->id))
            text_ += context_.jobs->row_of(*one).line() + "\n";
    accept(false);
}

void job_session::cancel_job() {
    if (!job_->end)
        context_.log.write_for(from_.name.text(), log_category::info,
                               "vm=" + from_.name.text() + " cancels its job " + job_->id.text());
    context_.jobs->cancel(*job_);
    accept(false);
}

// Opens the streams at the offsets that the qube names. An offset may lie in a part that is gone, but
// not beyond what the job has written.
bool job_session::open_output() {
    auto files = context_.jobs->files_of(*job_);
    if (!files) {
        refuse(errc::no_job, "its output is not there any more");
        return false;
    }
    files_ = std::move(*files);
    const auto of_out = job_output::extent_of(files_.out.get());
    const auto of_err = job_output::extent_of(files_.err.get());
    if (about_.from.out > of_out.end || about_.from.err > of_err.end) {
        refuse(errc::bad_value, "the job has written " + std::to_string(of_out.end) + " and " +
                                    std::to_string(of_err.end) + " bytes");
        return false;
    }
    lanes_.emplace(std::array<lane, 2>{lane(true, files_.out.get(), about_.from.out),
                                       lane(false, files_.err.get(), about_.from.err)});
    if (about_.what == job_request::verb::logs) {
        (*lanes_)[0].until = of_out.end;
        (*lanes_)[1].until = of_err.end;
    }
    return true;
}

// Sends what is there and may be sent. When nothing is left, the session ends, or waits for more.
void job_session::pump() {
    if (over_ || !port_ || std::exchange(pumping_, true))
        return;
    const auto self = shared_from_this();
    const bool is_done = send_what_is_there();
    pumping_ = false;
    if (over_ || !is_done) // flush() may have found that the stream is gone
        return;
    using verb = job_request::verb;
    if (about_.what == verb::list || about_.what == verb::logs)
        return end({.cause = end_cause::exited});
    if (job_->end)
        end(about_.what == verb::cancel ? run_end{.cause = end_cause::exited} : job_->end->how);
}

// Returns whether all that is there now was sent.
bool job_session::send_what_is_there() {
    send_text();
    if (over_ || !text_.empty())
        return false;
    if (!lanes_)
        return true;
    if (about_.what != job_request::verb::logs && !job_->end)
        context_.jobs->watch(*job_, *this); // first, so that nothing that comes now is missed
    bool more = true;
    for (int pieces = 0; more && !port_->stalled() && pieces < most_pieces; ++pieces) {
        more = false;
        for (lane &one : *lanes_)
            more = (!port_->stalled() && send_some(one)) || more;
    }
    const bool stalled = port_->stalled();
    port_->flush();
    if (over_)
        return false;
    // flush() has made room again, and no event will tell us, so go on from the loop.
    if ((more || stalled) && !port_->stalled())
        boost::asio::post(context_.loop, [weak = weak_from_this()] {
            if (const auto alive = weak.lock())
                alive->pump();
        });
    return !more && !stalled;
}

// Returns whether there may be more of this stream.
bool job_session::send_some(lane &of) {
    std::array<std::uint8_t, limits::frame> data;
    auto room = port_->prepare_output(limits::frame);
    const std::uint64_t at = of.output.offset();
    const std::size_t most =
        std::min<std::uint64_t>(room.size(), of.until - std::min(of.until, at));
    const auto piece = of.output.read(std::span(data).first(most));
    if (piece.skipped > 0)
        port_->position({(*lanes_)[0].output.offset() - (of.is_stdout ? piece.size : 0),
                         (*lanes_)[1].output.offset() - (of.is_stdout ? 0 : piece.size)});
    if (piece.size == 0)
        return false;
    room = port_->prepare_output(piece.size);
    std::copy_n(data.begin(), piece.size, room.begin());
    port_->commit_output(of.is_stdout, piece.size);
    return true;
}

void job_session::send_text() {
    while (!over_ && !text_.empty() && !port_->stalled()) {
        const auto room = port_->prepare_output(std::min(text_.size(), limits::frame));
        std::copy_n(text_.begin(), room.size(), room.begin());
        port_->commit_output(true, room.size());
        text_.erase(0, room.size());
        port_->flush();
    }
    if (!over_)
        port_->flush();
}

void job_session::on_input(host::outcome<host::unique_fd> input) {
    if (over_)
        return;
    const auto self = shared_from_this();
    if (!input) {
        accept(false);
        if (!over_ && port_) {
            port_->notify("your input does not reach the job: " + input.error().what);
            port_->flush();
        }
        return;
    }
    ::fcntl(input->get(), F_SETFL, ::fcntl(input->get(), F_GETFL) | O_NONBLOCK);
    input_.assign(input->release());
    accept(true);
}

void job_session::stdin_data(bytes_view data) {
    if (over_ || !port_)
        return;
    if (!input_.is_open()) {
        port_->grant_stdin(data.size());
        return;
    }
    in_line_ = data.back() != '\n' && data.back() != '\r';
    backlog_.put(data);
    write_input();
}

void job_session::write_input() {
    const auto self = shared_from_this();
    while (backlog_.size() > 0 && input_.is_open()) {
        const ssize_t n =
            ::write(input_.native_handle(), backlog_.pending().data(), backlog_.size());
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (std::exchange(writing_, true))
                return;
            input_.async_wait(boost::asio::posix::stream_descriptor::wait_write,
                              [weak = weak_from_this()](boost::system::error_code ec) {
                                  const auto alive = weak.lock();
                                  if (!alive)
                                      return;
                                  alive->writing_ = false;
                                  if (!ec)
                                      alive->write_input();
                              });
            return;
        }
        const std::size_t done = n > 0 ? static_cast<std::size_t>(n) : backlog_.size();
        backlog_.consume(done);
        if (port_ && !input_ended_) {
            port_->grant_stdin(done);
            port_->flush();
        }
        if (over_)
            return;
        if (n < 0)
            drop_input(); // the job does not read any more
    }
    backlog_.release_if_empty();
    if (input_ended_ && backlog_.size() == 0)
        drop_input();
}

void job_session::stdin_eof() {
    if (over_ || !input_.is_open())
        return;
    input_ended_ = true;
    if (job_->tty)
        backlog_.put(as_bytes(end_of_input(input_.native_handle(), in_line_)));
    write_input();
}

void job_session::drop_input() {
    boost::system::error_code ignored;
    input_.close(ignored);
    backlog_.consume(backlog_.size());
    backlog_.release_if_empty();
    if (input_ended_ && !job_->tty)
        context_.jobs->end_input(*job_, *this);
}

void job_session::signal(int number) {
    if (!over_ && job_ && job_->tty && input_.is_open() && (number == SIGINT || number == SIGQUIT))
        context_.jobs->interrupt(*job_, number);
}

void job_session::resize(std::uint16_t columns, std::uint16_t rows) {
    if (!over_ && job_ && job_->tty && input_.is_open())
        resize_terminal(input_.native_handle(), columns, rows);
}

void job_session::more_output() { pump(); }

void job_session::abandon() {
    const auto self = shared_from_this();
    forget();
}

void job_session::cancel(errc why) {
    if (over_)
        return;
    if (!port_)
        return refuse(why);
    end({.cause = end_cause::cancelled,
         .value = static_cast<std::uint32_t>(why),
         .text = std::string(message(why))});
}

void job_session::end(run_end how) {
    const auto self = shared_from_this();
    how.stdout_bytes = how.stderr_bytes = 0; // END counts what was sent in this session
    port_->end(std::move(how), {});
    port_->flush();
    forget();
}

void job_session::forget() {
    if (std::exchange(over_, true))
        return;
    boost::system::error_code ignored;
    input_.close(ignored);
    if (job_)
        context_.jobs->leave(*std::exchange(job_, nullptr), *this);
    if (counted_)
        if (const auto at = context_.readers_of.find(from_.name.text());
            at != context_.readers_of.end() && --at->second == 0)
            context_.readers_of.erase(at);
    port_.reset();
    context_.records.release(from_.name, *header_->id);
    request_->forget();
    request_->flush();
}

} // namespace qvmremote::dom0
