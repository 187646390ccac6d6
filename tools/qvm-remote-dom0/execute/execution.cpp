// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/execution.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/sanitize.hpp>

#include "base/dom0_limits.hpp"
#include "execute/command_launch.hpp"

namespace qvmremote::dom0 {

namespace {

using std::chrono::milliseconds;

// How long the other processes may run after output has ended (DESIGN.md §7).
constexpr milliseconds leave_limit{2000};
// The same, for processes that got SIGHUP because their terminal is gone.
constexpr milliseconds leave_limit_of_terminal{500};
// How long a command may run after a signal that asks it to end.
constexpr milliseconds patience{5000};
// How long to wait before reporting a stream that the command has closed: most commands end right then.
constexpr milliseconds early_eof{100};
// After so much from one read of a terminal, of which the kernel gives 4 KiB at most, more is there at once.
constexpr std::size_t full_read_of_terminal = 2048;

struct pipe_ends {
    host::unique_fd read, write;
};
host::outcome<pipe_ends> make_pipe() {
    int fds[2];
    if (::pipe2(fds, O_CLOEXEC) != 0)
        return host::failed("cannot make a pipe", errno);
    return pipe_ends{host::unique_fd(fds[0]), host::unique_fd(fds[1])};
}
void set_nonblocking(int fd) { ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK); }

// A file without a name with these bytes. Nobody can change it, not even the command that runs it.
host::outcome<host::unique_fd> sealed_file(std::string_view bytes) {
    host::unique_fd fd(::memfd_create("qvm-remote", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!fd)
        return host::failed("cannot make a memory file", errno);
    if (!host::write_all(fd.get(), bytes))
        return host::failed("cannot fill a memory file", errno);
    if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) !=
        0)
        return host::failed("cannot seal a memory file", errno);
    return fd;
}

} // namespace

execution::execution(execution_context &context, std::unique_ptr<session_port> port, admitted what,
                     std::shared_ptr<void> slot)
    : context_(context), port_(std::move(port)), what_(std::move(what)), slot_(std::move(slot)),
      control_(context.loop),
      stdin_(context.loop), outputs_{output(context.loop, true), output(context.loop, false)},
      limit_timer_(context.loop), patience_timer_(context.loop), leave_timer_(context.loop),
      eof_timer_(context.loop) {}

void execution::start() {
    const envelope &header = what_.request();
    started_at_ = host::local_time::now();
    started_ms_ = host::boottime_ms();
    const std::string subject = "vm=" + what_.from().name.text() + " id=" + header.id->text();
    const std::string shown = preview(command_text(header), dom0_preview);
    const bool dry = context_.dry_run || header.dry_run;
    {
        auto lines = context_.log.begin();
        lines.add(log_category::auth_ok, subject);
        lines.add(log_category::exec, subject);
        lines.add(log_category::cmd, subject + " cmd=" + shown);
        if (header.protocol == 1)
            lines.add(log_category::info,
                      subject + " protocol 1: nobody signed the command's text");
        if (dry)
            lines.add(log_category::dry, subject + " skipped");
    }
    const run_terms &terms = what_.terms();
    stdin_live_ = terms.input == stdin_mode::live && !dry;
    port_->accept(terms.timeout_s, stdin_live_);
    if (dry) {
        const std::string text = "[dry-run] " + shown + "\n";
        const auto room = port_->prepare_output(text.size());
        std::copy_n(text.begin(), room.size(), room.begin());
        port_->commit_output(true, room.size());
        outputs_[0].bytes = room.size();
        end_ = run_end{.cause = end_cause::exited};
        finish();
        return;
    }
    if (auto launched = launch_command(); !launched) {
        context_.log.write(log_category::error, subject + " " + for_log(launched.error().what));
        end_ = run_end{.cause = end_cause::not_started,
                       .value = static_cast<std::uint32_t>(launched.error().error_number),
                       .text = launched.error().what};
        finish();
        return;
    }
    if (terms.timeout_s > 0) {
        limit_timer_.expires_after(std::chrono::seconds(terms.timeout_s));
        limit_timer_.async_wait([self = shared_from_this()](boost::system::error_code ec) {
            if (!ec && !self->finished_)
                self->on_time_limit();
        });
    }
    watch_child();
    for (output &o : outputs_)
        watch_output(o);
}

host::outcome<void> execution::launch_command() {
    bounds_ = within(what_.bounds(), context_.ceiling);
    if (bounds_.output_bytes != 0)
        output_left_ = bounds_.output_bytes;
    auto command = launch_of(what_, context_, bounds_, std::to_string(what_.serial()));
    if (!command)
        return tl::unexpected(command.error());
    script_ = std::move(command->script);
    return what_.terms().tty ? launch_in_terminal(command->what) : launch_with_pipes(command->what);
}

host::outcome<void> execution::launch_in_terminal(launch &command) {
    const envelope &header = what_.request();
    auto made = terminal::open(header.columns, header.rows,
                               what_.as() ? std::optional(what_.as()->who.uid) : std::nullopt);
    if (!made)
        return tl::unexpected(made.error());
    auto reading = made->end();
    auto writing = made->end();
    if (!reading || !writing)
        return tl::unexpected((reading ? writing : reading).error());
    terminal_ = std::move(*made);
    command.in = command.out = command.err = terminal_->of_command();
    if (auto started = take_child(context_.children.launch(command)); !started)
        return started;
    outputs_[0].pipe.assign(reading->release());
    outputs_[0].open = true;
    if (stdin_live_)
        stdin_.assign(writing->release());
    return {};
}

host::outcome<void> execution::take_child(host::outcome<child> started) {
    if (!started)
        return tl::unexpected(started.error());
    child_.emplace(std::move(*started));
    control_.assign(child_->descriptor());
    return {};
}

host::outcome<void> execution::launch_with_pipes(launch &command) {
    auto out = make_pipe();
    auto err = make_pipe();
    if (!out || !err)
        return tl::unexpected((out ? err : out).error());
    pipe_ends in;
    if (stdin_live_) {
        auto made = make_pipe();
        if (!made)
            return tl::unexpected(made.error());
        in = std::move(*made);
    } else if (what_.terms().input == stdin_mode::collected) {
        auto file = sealed_file(what_.collected());
        if (!file)
            return tl::unexpected(file.error());
        ::lseek(file->get(), 0, SEEK_SET);
        in.read = std::move(*file);
        stdin_bytes_ = what_.collected().size();
    } else {
        in.read.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
        if (!in.read)
            return host::failed("cannot open /dev/null", errno);
    }
    command.in = in.read.get();
    command.out = out->write.get();
    command.err = err->write.get();
    if (auto started = take_child(context_.children.launch(command)); !started)
        return started;
    if (stdin_live_) {
        set_nonblocking(in.write.get());
        stdin_.assign(in.write.release());
    }
    set_nonblocking(out->read.get());
    set_nonblocking(err->read.get());
    outputs_[0].pipe.assign(out->read.release());
    outputs_[1].pipe.assign(err->read.release());
    outputs_[0].open = outputs_[1].open = true;
    return {};
}

void execution::watch_child() {
    control_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                        [self = shared_from_this()](boost::system::error_code ec) {
                            if (!ec && !self->finished_)
                                self->on_child();
                        });
}

void execution::on_child() {
    while (auto event = child_->next()) {
        switch (event->kind) {
        case child_event::started:
            break;
        case child_event::failed:
            end_ = run_end{.cause = event->error_number == ENOENT ? end_cause::not_found
                                                                  : end_cause::not_started,
                           .value = static_cast<std::uint32_t>(event->error_number),
                           .text = why_not_started(event->error_number)};
            finish();
            return;
        case child_event::exited:
            on_exit(*event);
            break;
        case child_event::empty:
            tree_empty_ = true;
            take_what_is_there();
            break;
        case child_event::lost:
            // The keeper was killed; the warden ends the command.
            if (!end_)
                end_ = run_end{.cause = end_cause::cancelled,
                               .value = static_cast<std::uint32_t>(errc::outcome_unknown),
                               .text = "the process that watched over the command was killed"};
            exited_ = tree_empty_ = terminating_ = true;
            take_what_is_there();
            return;
        }
        if (finished_)
            return;
    }
    // After the last report the socket stays at its end, so waiting for it would return at once.
    if (!tree_empty_)
        watch_child();
}

// Explains a failed start when errno alone would mislead.
std::string execution::why_not_started(int error_number) const {
    const std::string &body = what_.request().body;
    if (error_number != ENOENT || script_.path().empty() || !body.starts_with("#!"))
        return {};
    return "the interpreter that its first line names is not there: " +
           for_terminal(std::string_view(body).substr(0, body.find('\n')), 128);
}

void execution::on_exit(const child_event &event) {
    exited_ = true;
    tree_empty_ = tree_empty_ || event.tree_empty;
    if (!end_) {
        if (WIFSIGNALED(event.wait_status))
            end_ = run_end{.cause = end_cause::signalled,
                           .value = static_cast<std::uint32_t>(WTERMSIG(event.wait_status))};
        else
            end_ = run_end{.cause = end_cause::exited,
                           .value = static_cast<std::uint32_t>(WEXITSTATUS(event.wait_status))};
        if (event.out_of_memory)
            end_->text = "it needed more than the " + std::to_string(bounds_.most.memory_bytes) +
                         " bytes of memory that dom0 allows";
    }
    // Send the signals before the output is taken: a process that goes on writing would keep it
    // open.
    if (terminal_)
        for (const int number : {SIGHUP, SIGCONT})
            child_->signal(number);
    // What it wrote last is in the pipes already.
    for (output &o : outputs_)
        if (o.open && !finished_)
            read_output(o);
    settle();
}

bool execution::stalled() const { return port_ && port_->stalled(); }

// Decides what to wait for after the first process has ended: for the end of output, as ssh does, and
// then for the other processes.
void execution::settle() {
    if (finished_ || !exited_)
        return;
    // Nothing runs any more, so the slot is free, even if the client does not read its output.
    if (tree_empty_)
        slot_.reset();
    if (outputs_open())
        return tell_of_held_output();
    if (tree_empty_)
        return finish();
    if (terminating_ || leaving_)
        return;
    if (!port_ || what_.request().ends_with_first_process())
        return terminate();
    leaving_ = true;
    leave_timer_.expires_after(terminal_ ? leave_limit_of_terminal : leave_limit);
    leave_timer_.async_wait([self = shared_from_this()](boost::system::error_code ec) {
        if (!ec && !self->finished_)
            self->terminate();
    });
}

// Tells the client after a while that other processes still hold the output, since the command
// would look as if it hangs. It does not do so when only a slow client delays the output.
void execution::tell_of_held_output() {
    if (takes_what_is_there() || std::exchange(held_output_told_, true))
        return;
    leave_timer_.expires_after(leave_limit);
    leave_timer_.async_wait([self = shared_from_this()](boost::system::error_code ec) {
        if (ec || self->finished_ || !self->port_ || !self->outputs_open() || self->tree_empty_ ||
            self->stalled())
            return;
        self->port_->notify("the command has ended; processes that it left running still hold its "
                            "output, and are waited for");
        self->port_->flush();
    });
}

// Whether an empty pipe counts as ended, even if another process still has it open.
bool execution::takes_what_is_there() const {
    return exited_ && (terminal_ || what_.request().ends_with_first_process() ||
                       (tree_empty_ && (time_is_up_ || terminating_)));
}

void execution::take_what_is_there() {
    for (output &o : outputs_)
        if (o.open && !finished_ && takes_what_is_there())
            read_output(o);
    settle();
}

// The keeper sends TERM to all processes that are left, and KILL 2 s later.
void execution::terminate() {
    if (!std::exchange(terminating_, true))
        child_->terminate();
}

void execution::on_time_limit() {
    time_is_up_ = true;
    // If no process is left, only the client delays the end, and that is not a time-out.
    if (!exited_ || !tree_empty_)
        terminate_because(end_cause::timed_out, what_.terms().timeout_s, {});
    take_what_is_there();
}

void execution::watch_output(output &from) {
    if (from.waiting || !from.open || stalled())
        return;
    from.waiting = true;
    from.pipe.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                         [self = shared_from_this(), &from](boost::system::error_code ec) {
                             from.waiting = false;
                             if (!ec && from.open)
                                 self->read_output(from);
                         });
}

void execution::read_output(output &from) {
    if (!port_)
        return;
    // Send two large pieces, or what a terminal has meanwhile, in one write, since each write wakes every
    // process on the way. Then let the others go on.
    for (std::size_t sent = 0;
         from.open && !stalled() && sent < 2 * host::bulk_pipe::large_piece;) {
        const auto room = port_->prepare_output(limits::frame);
        const ssize_t n = ::read(from.pipe.native_handle(), room.data(), room.size());
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) && !takes_what_is_there())
            break;
        if (n <= 0) {
            on_output_end(from);
            break;
        }
        const std::size_t got = std::min(static_cast<std::uint64_t>(n), output_left_);
        from.shown.feed(as_text(room.first(got)));
        from.bytes += got;
        const bool large = from.size.saw(from.pipe.native_handle(), got);
        if (got > 0)
            port_->commit_output(from.is_stdout, got);
        if (output_left_ != UINT64_MAX)
            output_left_ -= got;
        if (got < static_cast<std::size_t>(n)) {
            on_too_much_output();
            break;
        }
        if (exited_)
            continue;
        sent += got;
        if (!large && !(what_.terms().tty && got >= full_read_of_terminal))
            break;
    }
    if (!finished_ && port_)
        port_->flush();
    watch_output(from);
}

void execution::on_too_much_output() {
    // The result is not complete, even if the command has ended meanwhile.
    end_ = run_end{.cause = end_cause::cancelled,
                   .value = static_cast<std::uint32_t>(errc::denied),
                   .text = "it wrote more than the " + std::to_string(bounds_.output_bytes) +
                           " bytes that dom0 allows"};
    close_outputs();
    terminate();
    settle();
}

void execution::output::close() {
    boost::system::error_code ignored;
    pipe.close(ignored);
    open = false;
}

void execution::close_outputs() {
    for (output &o : outputs_)
        o.close();
    close_terminal();
}

// When the last descriptor of our end is closed, the kernel sends SIGHUP to the session's leader
// and to the job in the foreground.
void execution::close_terminal() {
    if (terminal_) {
        drop_stdin();
        terminal_->hang_up();
    }
}

void execution::on_output_end(output &from) {
    from.close();
    close_terminal();
    if (exited_) {
        settle();
        return;
    }
    eof_timer_.expires_after(early_eof);
    eof_timer_.async_wait([self = shared_from_this()](boost::system::error_code ec) {
        if (!ec)
            self->tell_early_eof();
    });
}

void execution::tell_early_eof() {
    if (finished_ || exited_ || !port_)
        return;
    for (output &o : outputs_) {
        if (o.open || o.eof_told)
            continue;
        o.eof_told = true;
        port_->output_eof(o.is_stdout);
    }
    port_->flush();
}

void execution::stdin_data(bytes_view data) {
    if (!port_) // the session is over
        return;
    stdin_bytes_ += data.size();
    if (!stdin_.is_open()) { // the command no longer reads
        port_->grant_stdin(data.size());
        return;
    }
    stdin_size_.saw(stdin_.native_handle(), data.size());
    in_line_ = data.back() != '\n' && data.back() != '\r';
    if (stdin_backlog_.size() == 0) {
        const ssize_t n = ::write(stdin_.native_handle(), data.data(), data.size());
        if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
            drop_stdin();
            port_->grant_stdin(data.size());
            return;
        }
        if (n > 0) {
            port_->grant_stdin(static_cast<std::size_t>(n));
            data = data.subspan(static_cast<std::size_t>(n));
        }
    }
    if (data.empty())
        return;
    stdin_backlog_.put(data);
    write_stdin();
}

void execution::write_stdin() {
    if (stdin_waiting_ || !stdin_.is_open())
        return;
    stdin_waiting_ = true;
    stdin_.async_wait(boost::asio::posix::stream_descriptor::wait_write,
                      [self = shared_from_this()](boost::system::error_code ec) {
                          self->stdin_waiting_ = false;
                          if (ec || !self->stdin_.is_open())
                              return;
                          out_buffer &left = self->stdin_backlog_;
                          const ssize_t n = ::write(self->stdin_.native_handle(),
                                                    left.pending().data(), left.size());
                          std::size_t done = 0;
                          if (n > 0) {
                              done = static_cast<std::size_t>(n);
                              left.consume(done);
                          } else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
                              done = left.size();
                              self->drop_stdin();
                          }
                          if (self->port_ && done > 0 && !self->stdin_ended_) {
                              self->port_->grant_stdin(done);
                              self->port_->flush();
                          }
                          left.release_if_empty();
                          if (left.size() > 0)
                              self->write_stdin();
                          else if (self->stdin_ended_)
                              self->drop_stdin();
                      });
}

void execution::stdin_eof() {
    stdin_ended_ = true;
    if (terminal_ && stdin_.is_open()) // a terminal has no end of input, but a key for it
        stdin_backlog_.put(as_bytes(terminal_->end_of_input(in_line_)));
    if (stdin_backlog_.size() == 0)
        drop_stdin();
    else
        write_stdin();
}

void execution::drop_stdin() {
    boost::system::error_code ignored;
    stdin_.close(ignored);
    stdin_backlog_.consume(stdin_backlog_.size());
    stdin_backlog_.release_if_empty();
}

void execution::signal(int number) {
    if (finished_ || !child_)
        return;
    if (terminal_ && terminal_->interrupt(number)) // the program in the foreground may ignore it
        return;
    child_->signal(number);
    if (number != SIGINT && number != SIGTERM && number != SIGHUP && number != SIGQUIT)
        return;
    // Counts from the first signal: more signals do not give more time.
    if (std::exchange(told_to_end_, true))
        return;
    patience_timer_.expires_after(patience);
    patience_timer_.async_wait([self = shared_from_this()](boost::system::error_code ec) {
        if (!ec && !self->finished_)
            self->terminate();
    });
}

void execution::resize(std::uint16_t columns, std::uint16_t rows) {
    if (terminal_)
        terminal_->resize(columns, rows);
}

void execution::more_output() {
    for (output &o : outputs_)
        if (o.open && !o.waiting && !finished_)
            read_output(o);
    settle();
}

void execution::terminate_because(end_cause cause, std::uint32_t value, std::string text) {
    if (finished_)
        return;
    // After the first process has ended, only a time-out replaces its exit code, since output is
    // missing.
    if (!end_ || cause == end_cause::timed_out)
        end_ = run_end{.cause = cause, .value = value, .text = std::move(text)};
    terminate();
}

void execution::abandon() {
    if (finished_)
        return;
    port_.reset();
    drop_stdin();
    close_outputs();
    if (!exited_) {
        terminate_because(end_cause::cancelled, static_cast<std::uint32_t>(errc::session_over), {});
        return;
    }
    settle();
}

void execution::cancel(errc why) {
    if (finished_)
        return;
    end_ = run_end{.cause = end_cause::cancelled,
                   .value = static_cast<std::uint32_t>(why),
                   .text = std::string(message(why))};
    // A client that does not read its output may never read it.
    close_outputs();
    terminating_ = true;
    child_->kill();
    settle();
}

void execution::record_end(const run_end &ended, std::uint64_t duration_ms) {
    journal_entry entry;
    entry.kind = audit_kind::end;
    entry.peer = what_.from().name.text();
    entry.id = what_.request().id->text();
    entry.of = what_.serial();
    entry.exit = ended.exit_code();
    entry.cause = name(ended.cause);
    if (ended.cause == end_cause::cancelled)
        entry.reason = name(static_cast<errc>(ended.value));
    entry.stdin_bytes = stdin_bytes_;
    entry.stdout_bytes = ended.stdout_bytes;
    entry.stderr_bytes = ended.stderr_bytes;
    entry.started = started_at_.precise();
    entry.duration_ms = duration_ms;
    context_.records.note(std::move(entry));

    const std::string subject =
        "vm=" + what_.from().name.text() + " id=" + what_.request().id->text();
    {
        auto lines = context_.log.begin();
        for (const std::string &text : outputs_[0].shown.show("  stdout: "))
            lines.add(log_category::out, text);
        for (const std::string &text : outputs_[1].shown.show("  stderr: "))
            lines.add(log_category::err, text);
        if (ended.cause == end_cause::timed_out)
            lines.add(log_category::timeout,
                      subject + " after=" + std::to_string(ended.value) + "s");
        lines.add(ended.exit_code() == 0 ? log_category::done : log_category::done_fail,
                  subject + " exit=" + std::to_string(ended.exit_code()) +
                      " duration=" + std::to_string(duration_ms) + "ms");
    }
}

void execution::finish() {
    if (finished_)
        return;
    finished_ = true;
    const auto self = shared_from_this();
    limit_timer_.cancel();
    patience_timer_.cancel();
    leave_timer_.cancel();
    eof_timer_.cancel();
    drop_stdin();
    close_outputs();
    script_ = {};
    if (control_.is_open())
        (void)control_.release(); // child_ closes it
    child_.reset();

    const std::uint64_t duration_ms = host::boottime_ms() - started_ms_;
    run_end ended = *end_;
    if (port_) {
        ended = port_->end(std::move(ended), {started_at_.timestamp(), duration_ms});
        port_->flush();
    } else {
        ended.stdout_bytes = outputs_[0].bytes;
        ended.stderr_bytes = outputs_[1].bytes;
    }

    if (!goes_on_)
        record_end(ended, duration_ms);
    port_.reset();
    context_.running.erase(self);
    context_.on_end();
}

} // namespace qvmremote::dom0
