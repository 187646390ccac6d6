// SPDX-License-Identifier: GPL-2.0-or-later
#include "run.hpp"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/history.hpp>
#include <qvmremote/sanitize.hpp>

#include "explain.hpp"
#include "file_queue.hpp"
#include "json_output.hpp"
#include "recorder.hpp"
#include "report.hpp"
#include "terminal.hpp"
#include "terminal_session.hpp"

namespace qvmremote::qube {

namespace {

// The signal handler writes the numbers of signals here, for the loop.
int signal_pipe[2] = {-1, -1};

void on_signal(int number) {
    const int error = errno;
    const auto byte = static_cast<std::uint8_t>(number);
    [[maybe_unused]] const ssize_t n = ::write(signal_pipe[1], &byte, 1);
    errno = error;
}

// Catches the signals that end a command. Those that our caller ignores stay ignored (common/begin.hpp).
bool catch_signals() {
    if (::pipe2(signal_pipe, O_CLOEXEC | O_NONBLOCK) != 0)
        return false;
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) {
        struct sigaction before {};
        ::sigaction(number, nullptr, &before);
        if (before.sa_handler == SIG_IGN)
            continue;
        struct sigaction action {};
        action.sa_handler = on_signal;
        ::sigaction(number, &action, nullptr);
    }
    return true;
}

// Whether the answer can only come from a holder of the key.
bool is_verified(const host::run_result &r) {
    return r.how == host::run_result::kind::ended || r.how == host::run_result::kind::refused;
}

void pin(const home &where) {
    if (const auto kept = where.pin(); !kept)
        warn("cannot record that dom0 uses protocol 2: " + kept.error().what);
}

// Why a command cannot travel by protocol 1; empty when it can.
std::string needs_agent(const run_request &request) {
    constexpr const char *without = ", but dom0 has started no agent in this qube, so only "
                                    "protocol 1 is possible";
    if (request.what.dry_run)
        return std::string("--dry-run needs protocol 2") + without;
    if (request.what.detach)
        return std::string("--detach needs protocol 2") + without;
    if (request.what.tty)
        return std::string("a terminal needs protocol 2") + without;
    if (request.what.kind != request_kind::shell)
        return std::string(request.what.kind == request_kind::exec ? "--exec" : "--script") +
               " needs protocol 2" + without +
               ": give a command line or a script on standard input";
    if (request.stdin_live)
        return std::string("standard input needs protocol 2") + without +
               ": add -n if the command does not read it";
    return {};
}

// A reason that is known better than the result of a run tells it.
struct known_reason {
    error_name name;
    std::string what;
};

// Why our own output failed; 0 if it did not.
int sink_error_of(const recorded_sink &out, const recorded_sink &err) {
    if (report::instance().is_json())
        return report::instance().out().error();
    return out.broken() ? out.error() : err.error();
}

// As ssh and other tools: a reader who has enough (EPIPE) is no failure of ours.
int exit_code_of(const host::run_result &r, int sink_error) {
    return r.how == host::run_result::kind::sink_broken && sink_error != EPIPE ? 255
                                                                               : r.exit_code();
}

// One command, as shown to the user and as recorded.
class shown_run {
  public:
    shown_run(const settings &how, const home &where, const command_id &id,
              const std::string &command, int protocol)
        : how_(how), protocol_(protocol), quiet_(how.quiet),
          terminal_(::isatty(STDERR_FILENO) && !how.quiet), record_(where, id, command),
          line_(terminal_) {
        io_.out = &out_;
        io_.err = &err_;
        if (report::instance().is_json()) {
            io_.out = &json_out_.emplace("stdout", &record_);
            io_.err = &json_err_.emplace("stderr", &record_);
        }
        io_.signal_fd = signal_pipe[0];
        io_.changed = [this](host::run_state state, std::string_view untrusted_text) {
            changed(state, untrusted_text);
        };
        if (terminal_)
            io_.tick = [this] { line_.tick(); };
    }
    shown_run(const shown_run &) = delete;
    shown_run &operator=(const shown_run &) = delete;

    [[nodiscard]] host::run_streams &io() noexcept { return io_; }
    [[nodiscard]] bool on_terminal() const noexcept { return terminal_; }

    // This terminal becomes the command's terminal when dom0 reports that the command runs.
    void use_terminal(std::optional<std::uint8_t> escape) {
        out_.be_raw();
        session_.emplace(signal_pipe[1], escape);
        io_.size = [this] { return session_->size(); };
        io_.filter = &*session_;
    }

    // Prints and records how the command ended, and returns the exit code. If there is `why`, it is
    // printed instead of our own explanation.
    int finish(const host::run_result &result, std::uint32_t timeout_s,
               const std::optional<known_reason> &why = {}, bool needs_jobs = false) {
        line_.stop();
        out_.finish(signal_pipe[0]);
        err_.finish(signal_pipe[0]);
        session_.reset();
        record_.finish(result, timeout_s);
        const int sink_error = sink_error_of(out_, err_);
        if (why)
            complain(why->name, why->what);
        else
            explain(result, sink_error, needs_jobs);
        if (json_out_)
            report_run({how_.transport, protocol_, result.id, host::boottime_ms() - begin_ms_},
                       result, *json_out_, *json_err_);
        if (!record_.problem().empty() && !quiet_)
            warn("the history is not complete: " + record_.problem());
        return exit_code_of(result, sink_error);
    }

  private:
    void changed(host::run_state state, std::string_view untrusted_text) {
        if (report::instance().has_lines())
            add_event(state, state == host::run_state::sent ? record_.id() : untrusted_text);
        switch (state) {
        case host::run_state::sent:
            line_.set("waiting for dom0");
            if (!std::exchange(begun_, true))
                record_.begin(); // while dom0 works on it
            break;
        case host::run_state::waiting:
            line_.set("waiting in dom0: " + for_terminal(untrusted_text, 200));
            break;
        case host::run_state::pending:
            line_.set("waiting for approval in dom0" +
                      (untrusted_text.empty() ? "" : ": " + for_terminal(untrusted_text, 200)));
            break;
        case host::run_state::running:
            line_.set("running in dom0");
            if (session_) {
                line_.stop();
                line_.forget();
                session_->begin();
            }
            break;
        case host::run_state::noticed:
            // Output has come and the row is gone, so this message gets a line of its own.
            if (terminal_) {
                line_.stop();
                report::print(for_terminal(untrusted_text, 200));
            }
            break;
        case host::run_state::silent:
            line_.set("nothing comes from dom0; waiting (Ctrl-C twice gives up)");
            break;
        }
    }

    const settings &how_;
    int protocol_;
    bool quiet_, terminal_;
    std::uint64_t begin_ms_ = host::boottime_ms();
    bool begun_ = false;
    recorder record_;
    waiting_line line_;
    recorded_sink out_{STDOUT_FILENO, &record_, &line_}, err_{STDERR_FILENO, &record_, &line_};
    std::optional<json_sink> json_out_, json_err_; // these, with --json
    host::run_streams io_;
    std::optional<terminal_session> session_;
};

// Runs the command by protocol 1 and returns the exit code. Returns nothing when a stream to dom0 became
// possible before the command was sent; `by` holds it then.
std::optional<int> run_by_queue(const settings &how, const home &where, route &by,
                                const run_request &request) {
    const auto refuse = [](error_name name, const std::string &why) {
        complain(name, why);
        return 1;
    };
    if (const std::string why = needs_agent(request); !why.empty())
        return refuse(fault::needs_protocol_2, why);
    queued_command what{host::client::make_id(), request.what.body, request.what.timeout_s};
    // A script of the largest size has no room for the newline, and runs without it.
    if (!what.text.ends_with('\n') && what.text.size() < limits::command)
        what.text += '\n';
    if (const auto fits = envelope::check_entry(what.text); !fits)
        return refuse(fits.error().code,
                      std::string(message(fits.error().code)) + ", which protocol 1 cannot carry");
    if (how.verbose)
        std::fprintf(stderr, "qvm-remote: command %s by protocol 1, in %s\n",
                     what.id.text().c_str(), where.queue().c_str());
    shown_run shown(how, where, what.id, request.shown, 1);
    std::function<bool()> look_for_agent;
    if (how.version == allowed_protocol::any)
        look_for_agent = [&by] {
            if (auto stream = by.way.transport->connect())
                by.stream.emplace(std::move(*stream));
            return by.stream.has_value();
        };
    const auto result = run_queued(where, *by.way.key, what, shown.io(), look_for_agent);
    if (!result) {
        complain(fault::local_failure, result.error().what);
        return 255;
    }
    if (!*result)
        return std::nullopt;
    using kind = host::run_result::kind;
    // Protocol 1 does not confirm this, and the Python program in dom0 lets the command run on.
    std::optional<known_reason> unconfirmed;
    if ((*result)->how == kind::interrupted && (*result)->may_have_run)
        unconfirmed = known_reason{fault::interrupted,
                                   "interrupted; command " + (*result)->id +
                                       " may go on in dom0: protocol 1 does not confirm its end"};
    const int code = shown.finish(**result, what.timeout_s, unconfirmed);
    if ((*result)->how == kind::ended && (*result)->end.cause == end_cause::timed_out)
        warn((*result)->may_have_run
                 ? "the command may go on in dom0, if the Python program runs there: protocol 1 "
                   "cannot end it"
                 : "dom0 never took the command: is qvm-remote-dom0 running there, and this qube "
                   "authorized?");
    return code;
}

// When Qubes refuses a call, the stream ends without a byte, and the transport knows the reason.
std::optional<known_reason> why_nothing_came(route &by, const host::client &dom0,
                                             host::run_result &result) {
    if (result.how != host::run_result::kind::lost || !dom0.untrusted_peer().empty())
        return std::nullopt;
    const auto out = by.way.transport->explain();
    if (!out)
        return std::nullopt;
    if (out->error_number == EACCES)
        result.how = host::run_result::kind::rejected;
    return known_reason{out->error_number == EACCES ? fault::qubes_denied : fault::unreachable,
                        out->what};
}

// How long the way to dom0 may take for a command with this time-out.
std::uint64_t patience_ms(std::uint32_t timeout_s) {
    return std::uint64_t{timeout_s == 0 ? limits::default_timeout_s : timeout_s} * 1000;
}

bool is_detached(const host::run_result &r) {
    return r.how == host::run_result::kind::ended && r.end.cause == end_cause::detached;
}

// With --detach the ID is what was asked for. A terminal that was left has a user before it.
void say_detached(const host::run_result &r, bool asked_for) {
    if (asked_for && !report::instance().is_json())
        std::printf("%s\n", r.id.c_str());
    else if (!asked_for)
        warn("the command goes on as job " + r.id + ": qvm-remote job attach " + r.id);
    if (!r.end.text.empty())
        warn("job " + r.id + ": " + for_terminal(r.end.text));
}

int run_by_stream(const settings &how, const home &where, route &by, run_request request) {
    request.what.id = host::client::make_id();
    const std::uint32_t timeout_s = request.what.timeout_s;
    if (how.verbose)
        std::fprintf(stderr, "qvm-remote: command %s over %s\n", request.what.id->text().c_str(),
                     how.transport.c_str());
    host::client dom0(std::move(*by.stream), std::move(*by.way.key));
    shown_run shown(how, where, *request.what.id, request.shown, 2);
    shown.io().stdin_fd = request.stdin_live ? STDIN_FILENO : -1;
    if (request.what.tty)
        shown.use_terminal(request.escape);
    if (is_call(how.transport))
        dom0.wait_for_first_answer(patience_ms(timeout_s));
    const bool detach = request.what.detach;
    host::run_result result = dom0.run(std::move(request.what), shown.io());
    const auto why = why_nothing_came(by, dom0, result);
    const int code = shown.finish(result, timeout_s, why, detach);
    if (is_detached(result))
        say_detached(result, detach);
    if (by.way.private_daemon) {
        if (shown.on_terminal())
            std::fprintf(stderr, "[mock] ran here, not in dom0\n");
        return code;
    }
    if (is_verified(result))
        pin(where);
    return code;
}

} // namespace

int run_remote(const settings &how, const home &where, run_request request) {
    if (!catch_signals()) {
        complain(fault::local_failure, host::failed("cannot make a pipe", errno).value().what);
        return 1;
    }
    if (request.what.detach && how.transport == "mock" && !has_daemon(how)) {
        complain(fault::usage,
                 "--detach needs a daemon that goes on, and the one that --transport mock starts "
                 "ends with this program");
        return 1;
    }
    auto by = find_route(how, where, patience_ms(request.what.timeout_s),
                         needs_agent(request).empty(), signal_pipe[0]);
    if (!by) {
        complain(by.error().name, by.error().what);
        return by.error().exit_code;
    }
    if (!by->stream)
        if (const auto code = run_by_queue(how, where, *by, request))
            return *code;
    return run_by_stream(how, where, *by, std::move(request));
}

namespace {

constexpr std::uint64_t resume_ms = 60'000;
constexpr int resume_pause_ms = 200;

// Says how a request about a job ended, unless the job ended by itself.
void explain_about(const host::run_result &r, const job_run &request, int sink_error) {
    using kind = host::run_result::kind;
    const std::string id = request.about.id ? request.about.id->text() : "";
    if (r.how == kind::interrupted)
        return complain(fault::interrupted, "left; job " + id + " goes on");
    if (r.how == kind::lost)
        return complain(fault::stream_broke,
                        "the stream to dom0 broke: " + for_terminal(r.untrusted_text) + "; job " +
                            id + " goes on");
    if (r.how == kind::refused && r.reason == errc::no_job)
        return complain(errc::no_job, "this qube has no job " + id + ": see qvm-remote job list");
    if (r.how == kind::ended && r.end.cause == end_cause::cancelled &&
        r.end.value == static_cast<std::uint32_t>(errc::outcome_unknown))
        return complain(errc::outcome_unknown,
                        "nobody knows how job " + id + " ended: " + for_terminal(r.end.text));
    explain(r, sink_error, true);
}

// Whether the same request may succeed in a moment: the stream broke, or dom0's daemon ends.
bool is_worth_another(const host::run_result &r) {
    using kind = host::run_result::kind;
    return r.how == kind::lost || (r.how == kind::rejected && r.reason == errc::draining);
}

// The way to dom0 for a request about jobs, which the queue of protocol 1 cannot carry.
tl::expected<route, no_access> find_stream(const settings &how, const home &where, int signal_fd) {
    auto by = find_route(how, where, patience_ms(0), false, signal_fd);
    if (by && !by->stream)
        return tl::unexpected(
            no_access{fault::needs_protocol_2,
                      "jobs need protocol 2, but dom0 has started no agent in this qube", 1});
    return by;
}

class about_job {
  public:
    about_job(const settings &how, const home &where, job_run &request)
        : how_(how), where_(where), request_(request) {
        io_.out = &out_;
        io_.err = &err_;
        if (report::instance().is_json()) {
            io_.out = &json_out_.emplace("stdout", nullptr);
            io_.err = &json_err_.emplace("stderr", nullptr);
        }
        io_.signal_fd = signal_pipe[0];
        io_.stdin_fd = request.reads_stdin ? STDIN_FILENO : -1;
        io_.changed = [this](host::run_state state, std::string_view untrusted_text) {
            if (report::instance().has_lines())
                add_event(state, state == host::run_state::sent ? request_.about.id->text()
                                                                : untrusted_text);
            if (state == host::run_state::running && session_)
                session_->begin();
            if (state == host::run_state::noticed)
                report::print(for_terminal(untrusted_text, 200));
        };
        io_.skipped = [this](const job_offsets &gone) {
            if (json_out_) {
                json_out_->skip(gone.out);
                json_err_->skip(gone.err);
            }
            for (const auto &[n, stream] : {std::pair{gone.out, "stdout"}, {gone.err, "stderr"}})
                if (n > 0)
                    warn("[" + std::to_string(n) + " bytes of its " + stream +
                         " are gone, since it wrote more than dom0 keeps]");
        };
        if (request.has_terminal) {
            out_.be_raw();
            session_.emplace(signal_pipe[1], request.escape);
            io_.size = [this] { return session_->size(); };
            io_.filter = &*session_;
        }
    }

    // Goes on where a broken stream has stopped, as often as the next one comes within a minute.
    tl::expected<host::run_result, no_access> run() {
        const bool may_go_on = request_.about.what != job_request::verb::cancel;
        for (std::uint64_t broke_ms = 0;;) {
            auto by = find_stream(how_, where_, signal_pipe[0]);
            if (by) {
                const bool is_private = by->way.private_daemon != nullptr;
                host::client dom0(std::move(*by->stream), std::move(*by->way.key));
                host::command what;
                what.timeout_s = 0;
                what.about = request_.about;
                what.tty = request_.has_terminal;
                auto result = dom0.run(std::move(what), io_);
                if (is_verified(result) && !is_private)
                    pin(where_);
                if (!may_go_on || !is_worth_another(result))
                    return result;
                request_.about.from = result.reached;
                broke_ms = host::awake_ms();
            } else if (broke_ms == 0 || host::awake_ms() - broke_ms > resume_ms) {
                return tl::unexpected(by.error());
            }
            pollfd signal{signal_pipe[0], POLLIN, 0};
            std::uint8_t number = 0;
            if (::poll(&signal, 1, resume_pause_ms) > 0 && ::read(signal.fd, &number, 1) == 1)
                return tl::unexpected(
                    no_access{fault::interrupted, "left; the job goes on", 128 + number});
        }
    }
    [[nodiscard]] int sink_error() const { return sink_error_of(out_, err_); }

    // After the last output.
    void close(const host::run_result *result) {
        out_.finish(signal_pipe[0]);
        err_.finish(signal_pipe[0]);
        session_.reset();
        if (json_out_ && result)
            report_run(
                {how_.transport, 2, request_.about.id->text(), host::boottime_ms() - begin_ms_},
                *result, *json_out_, *json_err_);
    }

  private:
    const settings &how_;
    const home &where_;
    job_run &request_;
    std::uint64_t begin_ms_ = host::boottime_ms();
    recorded_sink out_{STDOUT_FILENO, nullptr, nullptr}, err_{STDERR_FILENO, nullptr, nullptr};
    std::optional<json_sink> json_out_, json_err_; // these, with --json
    host::run_streams io_;
    std::optional<terminal_session> session_;
};

} // namespace

int run_about_job(const settings &how, const home &where, job_run request) {
    if (!catch_signals()) {
        complain(fault::local_failure, host::failed("cannot make a pipe", errno).value().what);
        return 1;
    }
    about_job asked(how, where, request);
    const auto result = asked.run();
    asked.close(result ? &*result : nullptr);
    if (!result) {
        complain(result.error().name, result.error().what);
        return result.error().exit_code;
    }
    explain_about(*result, request, asked.sink_error());
    return exit_code_of(*result, asked.sink_error());
}

tl::expected<std::vector<job_row>, int> list_jobs(const settings &how, const home &where) {
    auto by = find_stream(how, where, -1);
    if (!by) {
        complain(by.error().name, by.error().what);
        return tl::unexpected(by.error().exit_code);
    }
    host::client dom0(std::move(*by->stream), std::move(*by->way.key));
    host::command what;
    what.about.emplace();
    const auto done = dom0.collect(std::move(what));
    if (done.result.exit_code() != 0) {
        explain(done.result, 0, true);
        return tl::unexpected(done.result.exit_code());
    }
    std::vector<job_row> out;
    for (const std::string_view line : tail_lines(done.out, SIZE_MAX))
        if (auto row = job_row::parse(line))
            out.push_back(std::move(*row));
    return out;
}

std::optional<std::string_view> answer_of_dom0::value(std::string_view key) const {
    for (const std::string_view line : tail_lines(untrusted_text, SIZE_MAX))
        if (line.starts_with(key) && line.substr(key.size()).starts_with(": "))
            return line.substr(key.size() + 2);
    return std::nullopt;
}

tl::expected<answer_of_dom0, int> converse(const settings &how, const home &where,
                                           request_kind kind) {
    if (!catch_signals()) {
        complain(fault::local_failure, host::failed("cannot make a pipe", errno).value().what);
        return tl::unexpected(1);
    }
    constexpr std::uint32_t timeout_s = 10;
    auto by = find_route(how, where, timeout_s * 1000, true, signal_pipe[0]);
    if (!by) {
        complain(by.error().name, by.error().what);
        return tl::unexpected(1);
    }
    answer_of_dom0 answer;
    const std::uint64_t begin = host::boottime_ms();
    host::run_result result;
    std::optional<known_reason> why;
    if (!by->stream) {
        answer.protocol = 1;
        // Use the form of the Python client, since the Python programs do not archive such IDs.
        timespec now{};
        ::clock_gettime(CLOCK_REALTIME, &now);
        const auto id =
            command_id::parse("ping-" + std::to_string(now.tv_sec * 1'000'000'000 + now.tv_nsec) +
                              "-" + std::to_string(::getpid()));
        host::string_sink out, err;
        host::run_streams io;
        io.out = &out;
        io.err = &err;
        io.signal_fd = signal_pipe[0];
        const auto done =
            run_queued(where, *by->way.key, {id.value(), "true\n", timeout_s, false}, io, {});
        if (!done) {
            complain(fault::local_failure, done.error().what);
            return tl::unexpected(1);
        }
        result = **done;
    } else {
        host::client dom0(std::move(*by->stream), std::move(*by->way.key));
        if (is_call(how.transport))
            dom0.wait_for_first_answer(timeout_s * 1000);
        auto done = dom0.collect({.kind = kind,
                                  .body = {},
                                  .arguments = {},
                                  .environment = {},
                                  .timeout_s = timeout_s,
                                  .id = {}});
        result = done.result;
        answer.untrusted_text = std::move(done.out);
        why = why_nothing_came(*by, dom0, result);
        if (!by->way.private_daemon && is_verified(result))
            pin(where);
    }
    answer.took_ms = host::boottime_ms() - begin;
    if (why)
        complain(why->name, why->what);
    else if (result.how == host::run_result::kind::ended &&
             result.end.cause == end_cause::timed_out)
        complain(fault::timed_out,
                 "dom0 did not answer within " + std::to_string(timeout_s) +
                     " s: is qvm-remote-dom0 running there, and this qube authorized?");
    else
        explain(result, 0);
    if (result.exit_code() != 0)
        return tl::unexpected(1);
    return answer;
}

} // namespace qvmremote::qube
