// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The loop of client::run, which moves bytes between dom0 and the streams of one command.

#pragma once

namespace qvmremote::host {

// One run of a command: waits with poll, and handles the events of the stream.
class client::running {
  public:
    running(client &owner, command what, const run_streams &io)
        : c_(owner), what_(std::move(what)), io_(io) {}

    run_result go() {
        if (!what_.id)
            what_.id = make_id();
        if (what_.about)
            result_.reached = what_.about->from;
        result_.id = what_.id->text();
        if (!c_.usable_) {
            result_.untrusted_text = "the stream to dom0 is closed";
            return std::move(result_);
        }
        c_.machine_.open();
        heard_ms_ = host::awake_ms();
        while (!done_) {
            flush();
            if (!done_)
                wait();
        }
        deliver_rest();
        return std::move(result_);
    }

  private:
    using kind = run_result::kind;

    // After this time without a byte from dom0 the user is told. After half of it dom0 gets a PING.
    static constexpr std::uint64_t silence_ms = 30'000;
    // If a wait takes this much longer than its time-out, this process was stopped meanwhile.
    static constexpr std::uint64_t stopped_ms = 1'000;
    static constexpr std::size_t most_reads = 4;

    void finish(kind how) {
        result_.how = how;
        done_ = true;
    }
    void lose(std::string why) {
        c_.usable_ = false;
        result_.untrusted_text = std::move(why);
        finish(kind::lost);
    }

    void flush() {
        out_buffer &out = c_.machine_.output();
        while (out.size() > 0) {
            const bytes_view pending = out.pending();
            const ssize_t n = ::write(c_.link_.out.get(), pending.data(), pending.size());
            if (n >= 0) {
                out.consume(static_cast<std::size_t>(n));
            } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
                return;
            } else if (errno != EINTR) {
                // Do not end the run: what dom0 wrote before it closed the stream may still be
                // there to read.
                writable_ = false;
                out.consume(out.size());
            }
        }
    }

    void wait() {
        std::array<pollfd, 6> fds{};
        nfds_t count = 0;
        const auto watch = [&](int fd, short events) {
            fds[count] = {fd, events, 0};
            return count++;
        };
        const auto in = watch(c_.link_.in.get(), POLLIN);
        if (c_.machine_.output().size() > 0)
            watch(c_.link_.out.get(), POLLOUT);
        // poll ignores a negative descriptor.
        const auto input = watch(wants_stdin() ? io_.stdin_fd : -1, POLLIN);
        const auto signals = watch(io_.signal_fd, POLLIN);
        int timeout = static_cast<int>(silence_ms / 2);
        if (!c_.answered_)
            timeout = static_cast<int>(
                std::min<std::uint64_t>(c_.first_answer_ms_, static_cast<unsigned>(timeout)));
        if (io_.tick)
            timeout = std::min(timeout, io_.tick_ms);
        for (const lane *l : {&out_, &err_})
            if (!l->pending.empty()) {
                const int fd = sink(*l).blocked_on();
                if (fd >= 0)
                    watch(fd, POLLOUT);
                else
                    timeout = std::min(timeout, 10);
            }

        const std::uint64_t began_ms = host::awake_ms();
        const int ready = ::poll(fds.data(), count, timeout);
        if (ready < 0 && errno != EINTR)
            return lose("poll failed");
        const std::uint64_t now = host::awake_ms();
        if (now - began_ms > static_cast<std::uint64_t>(timeout) + stopped_ms)
            heard_ms_ = now; // start again: we could not read while stopped
        if (io_.tick && now - ticked_ms_ >= static_cast<std::uint64_t>(io_.tick_ms)) {
            ticked_ms_ = now;
            io_.tick();
        }
        if (ready > 0 && fds[signals].revents)
            take_signals();
        for (lane *l : {&out_, &err_})
            if (!l->pending.empty() && !done_)
                deliver(*l);
        if (ready > 0 && fds[in].revents && !done_)
            receive(now);
        else if (!done_)
            check_silence(now);
        // Collect several frames for one write, because each write wakes up every process on the
        // way.
        for (bool more = ready > 0 && fds[input].revents; more && !done_ && wants_stdin();) {
            more = send_stdin();
            pollfd again{io_.stdin_fd, POLLIN, 0};
            more = more && ::poll(&again, 1, 0) == 1;
        }
    }

    // A stream on which nothing has ever come is given up after a while. One on which dom0 has
    // answered ends only when it is closed: dom0 may be suspended or busy, and the command goes on.
    void check_silence(std::uint64_t now) {
        if (!c_.answered_ && now - heard_ms_ > c_.first_answer_ms_)
            return lose("dom0 does not answer");
        if (now - heard_ms_ > silence_ms && !silent_) {
            silent_ = true;
            changed(run_state::silent, {});
        }
        if (now - heard_ms_ > silence_ms / 2 && pinged_ms_ < heard_ms_ + 1) {
            pinged_ms_ = now;
            c_.machine_.ping(now);
        }
    }

    void receive(std::uint64_t now) {
        for (std::size_t i = 0; i < most_reads && !done_; ++i) {
            const auto room = c_.machine_.prepare();
            const ssize_t n = ::read(c_.link_.in.get(), room.data(), room.size());
            if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
                return;
            if (n <= 0)
                return lose("the stream to dom0 ended");
            heard_ms_ = now;
            if (std::exchange(silent_, false))
                changed(state_, std::string(state_text_));
            c_.machine_.commit(static_cast<std::size_t>(n));
            while (!done_) {
                auto event = c_.machine_.next();
                if (!event)
                    return lose("what came from dom0 is not protocol 2: " +
                                std::string(message(event.error().code)));
                if (!*event)
                    break;
                handle(**event);
            }
            if (static_cast<std::size_t>(n) < room.size())
                return;
        }
    }

    void handle(client_event &event) {
        using what = client_event::kind;
        switch (event.what) {
        case what::hello:
            c_.answered_ = true;
            c_.untrusted_peer_ = std::move(event.text);
            return;
        case what::challenged:
            return send_request(event.session);
        case what::pong:
            return;
        case what::rejected:
            result_.reason = event.reason;
            result_.untrusted_text = std::move(event.text);
            return finish(kind::rejected);
        default:
            break;
        }
        if (event.session != session_ || session_ == 0)
            return;
        switch (event.what) {
        case what::refused:
            result_.may_have_run = false;
            result_.reason = event.reason;
            result_.untrusted_text = std::move(event.text);
            return finish(kind::refused);
        case what::pending:
            return changed(event.number == 0 ? run_state::waiting : run_state::pending, event.text);
        case what::notice:
            if (io_.changed)
                io_.changed(run_state::noticed, event.text); // not a state, so it is not stored
            return;
        case what::accepted:
            accepted_ = true;
            changed(run_state::running, {});
            return resize();
        case what::position:
            return take_position(event.at);
        case what::stdout_data:
            result_.reached.out += event.data.size();
            return pass_on(out_, event.data);
        case what::stderr_data:
            result_.reached.err += event.data.size();
            return pass_on(err_, event.data);
        case what::stdout_eof:
            out_.ended = true;
            return deliver(out_);
        case what::stderr_eof:
            err_.ended = true;
            return deliver(err_);
        case what::ended:
            result_.end = std::move(event.end);
            return finish(kind::ended);
        case what::closed:
            result_.reason = event.reason;
            result_.untrusted_text = "the session broke off: " + std::string(message(event.reason));
            return finish(kind::lost);
        default:
            return;
        }
    }

    void send_request(std::uint32_t session) {
        session_ = session;
        envelope e;
        fill_random(e.nonce);
        e.kind = what_.about ? request_kind::job : what_.kind;
        e.detach = what_.detach;
        e.stdin_live = what_.detach ? what_.job_input : io_.stdin_fd >= 0;
        e.dry_run = what_.dry_run;
        e.timeout_s = what_.timeout_s;
        e.features = feature::gmac | feature::notices | (what_.no_wait ? feature::no_wait : 0) |
                     (what_.tty && !what_.about ? feature::terminal : 0) |
                     (what_.tty || what_.detach || what_.about ? feature::jobs : 0);
        e.tty = what_.tty && !what_.about;
        if (what_.tty && io_.size)
            size_ = io_.size();
        e.columns = e.tty ? size_.columns : 0;
        e.rows = e.tty ? size_.rows : 0;
        if (what_.about)
            size_ = {}; // dom0 does not know it yet
        e.id = what_.id;
        e.environment = what_.environment;
        e.arguments = what_.about ? what_.about->words() : what_.arguments;
        e.set_body(std::move(what_.body));
        auto sent = e.make_header_fit();
        if (sent)
            sent = c_.machine_.send_request(session, std::move(e), c_.key_);
        if (!sent) {
            c_.machine_.close(session);
            result_.reason = sent.error().code;
            return finish(kind::not_sent);
        }
        // If the stream breaks from now on, dom0 may have started the command although we never saw
        // ACCEPTED.
        result_.may_have_run = true;
        flush();
        changed(run_state::sent, {});
    }

    void changed(run_state state, std::string_view text) {
        if (state != run_state::silent) {
            state_ = state;
            state_text_ = text;
        }
        if (io_.changed)
            io_.changed(state, text);
    }

    bool wants_stdin() {
        return io_.stdin_fd >= 0 && session_ != 0 && !stdin_ended_ && writable_ &&
               !c_.machine_.congested() &&
               c_.machine_.stdin_credit(session_) > (io_.filter ? 1u : 0u);
    }
    // Sends one piece of stdin. Returns whether it was large, because then more is likely to be
    // ready.
    bool send_stdin() {
        const auto room = c_.machine_.prepare_stdin(session_);
        const ssize_t n = ::read(io_.stdin_fd, room.data(), room.size() - (io_.filter ? 1u : 0u));
        if (n > 0 && io_.filter) {
            const auto passed = io_.filter->pass(room, static_cast<std::size_t>(n));
            if (passed.n > 0)
                c_.machine_.commit_stdin(session_, passed.n);
            if (passed.next == input_filter::action::leave)
                give_up();
            else if (passed.next == input_filter::action::detach)
                detach();
            return false;
        }
        if (n > 0) {
            c_.machine_.commit_stdin(session_, static_cast<std::size_t>(n));
            return stdin_pipe_.saw(io_.stdin_fd, static_cast<std::size_t>(n));
        }
        if (n == 0 || (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK)) {
            stdin_ended_ = true;
            c_.machine_.stdin_eof(session_);
        }
        return false;
    }

    void take_signals() {
        std::uint8_t number = 0;
        while (!done_ && ::read(io_.signal_fd, &number, 1) == 1) {
            if (number == SIGWINCH) {
                resize();
            } else if (what_.tty && accepted_ && number != SIGHUP && number != SIGTERM) {
                // Like a key: the programs in the terminal go on.
                c_.machine_.send_signal(session_, number);
            } else {
                const bool second = result_.signal != 0;
                if (!second)
                    result_.signal = number;
                // A job is left, and goes on.
                if (second || what_.tty || what_.about || !accepted_)
                    return give_up();
                c_.machine_.send_signal(session_, number);
            }
            pollfd more{io_.signal_fd, POLLIN, 0};
            if (::poll(&more, 1, 0) != 1)
                return;
        }
    }

    void give_up() {
        c_.machine_.close(session_);
        flush();
        c_.usable_ = c_.usable_ && session_ != 0;
        finish(kind::interrupted);
    }
    void detach() {
        if (what_.about) // a job is left, and goes on
            return give_up();
        if ((c_.machine_.features().value_or(0) & feature::jobs) != 0)
            c_.machine_.send_detach(session_);
        else if (io_.changed)
            io_.changed(run_state::noticed, "this dom0 has no jobs");
    }
    void take_position(const job_offsets &at) {
        const job_offsets gone{at.out - std::min(at.out, result_.reached.out),
                               at.err - std::min(at.err, result_.reached.err)};
        result_.reached = at;
        if (io_.skipped && gone != job_offsets{})
            io_.skipped(gone);
    }
    void resize() {
        if (!what_.tty || !accepted_ || !io_.size)
            return;
        const terminal_size now = io_.size();
        if (now != size_)
            c_.machine_.send_resize(session_, now.columns, now.rows);
        size_ = now;
    }

    // One of the two output streams, with the bytes that its sink has not taken yet. They are at
    // most limits::widest_window, since dom0 gets credit only for bytes that a sink took.
    struct lane {
        std::string pending;
        bool ended = false;
        bool told = false;
        bool is_stdout;
    };
    output_sink &sink(const lane &l) const { return l.is_stdout ? *io_.out : *io_.err; }

    void pass_on(lane &l, bytes_view data) {
        if (l.pending.empty()) {
            const std::size_t n = sink(l).take(data);
            c_.machine_.grant_output(session_, n);
            data = data.subspan(n);
        }
        if (!data.empty())
            l.pending.append(as_text(data));
        check_sink(l);
    }
    void deliver(lane &l) {
        if (!l.pending.empty()) {
            const std::size_t n = sink(l).take(as_bytes(l.pending));
            l.pending.erase(0, n);
            c_.machine_.grant_output(session_, n);
        }
        if (l.pending.empty() && l.ended && !std::exchange(l.told, true))
            sink(l).end();
        check_sink(l);
    }
    void check_sink(const lane &l) {
        if (!sink(l).broken() || done_)
            return;
        c_.machine_.close(session_);
        flush();
        finish(kind::sink_broken);
    }

    // After the command has ended, waits until the sinks have taken the rest of its output.
    void deliver_rest() {
        if (result_.how == kind::sink_broken || result_.how == kind::interrupted)
            return;
        for (lane *l : {&out_, &err_}) {
            while (!l->pending.empty() && !sink(*l).broken()) {
                const std::size_t n = sink(*l).take(as_bytes(l->pending));
                l->pending.erase(0, n);
                if (n > 0)
                    continue;
                std::array<pollfd, 2> fds{
                    {{sink(*l).blocked_on(), POLLOUT, 0}, {io_.signal_fd, POLLIN, 0}}};
                ::poll(fds.data(), fds.size(), fds[0].fd >= 0 ? -1 : 10);
                if (fds[1].revents & POLLIN) {
                    std::uint8_t number = 0;
                    if (::read(io_.signal_fd, &number, 1) != 1 || number == SIGWINCH)
                        continue;
                    result_.signal = number;
                    result_.how = kind::interrupted;
                    return;
                }
            }
            if (sink(*l).broken() && result_.how == kind::ended)
                result_.how = kind::sink_broken;
        }
    }

    client &c_;
    command what_;
    const run_streams &io_;
    run_result result_;
    std::uint32_t session_ = 0;
    bool accepted_ = false;
    terminal_size size_; // the size that dom0 knows
    bool silent_ = false;
    run_state state_ = run_state::sent; // the last state other than silent
    std::string state_text_;
    bool stdin_ended_ = false;
    bulk_pipe stdin_pipe_;
    bool writable_ = true;
    bool done_ = false;
    lane out_{{}, false, false, true}, err_{{}, false, false, false};
    std::uint64_t heard_ms_ = 0, pinged_ms_ = 0, ticked_ms_ = host::awake_ms();
};

inline run_result client::run(command what, const run_streams &io) {
    return running(*this, std::move(what), io).go();
}

} // namespace qvmremote::host
