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

#include <qvmremote/sanitize.hpp>

#include "file_queue.hpp"
#include "recorder.hpp"
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

std::string reason_words(const host::run_result &r) {
    std::string out(message(r.reason));
    if (!r.untrusted_text.empty() && r.untrusted_text != out)
        out += " (" + for_terminal(r.untrusted_text, limits::reason_text) + ")";
    return out;
}

std::string remedy(errc reason) {
    switch (reason) {
    case errc::bad_token:
        return "; is this qube authorized in dom0 with the key that `qvm-remote key show` prints?";
    case errc::challenge_stale:
        return "; the request took too long on its way: try again";
    case errc::id_outdated:
        return "; set the clock or the time zone of this qube";
    case errc::bad_version:
    case errc::unsupported:
    case errc::protocol_retired:
        return "; update qvm-remote in this qube and in dom0";
    case errc::key_revoked:
        return "; in dom0: qvm-remote-dom0 authorize";
    case errc::approval_timeout:
        return "; in dom0: qvm-remote-dom0 approvals watch";
    case errc::panicked:
        return "; in dom0: qvm-remote-dom0 resume";
    case errc::id_used:
    case errc::bad_tag:
    case errc::bad_digest:
        return "; try again";
    case errc::command_too_large:
        return "; copy the data to dom0 by standard input instead";
    case errc::busy:
    case errc::draining:
        return "; try again later";
    default:
        return "";
    }
}

// Says what happened, unless the command ended by itself.
void explain(const host::run_result &r, int sink_error, bool needs_jobs = false) {
    using kind = host::run_result::kind;
    switch (r.how) {
    case kind::ended:
        break;
    case kind::refused:
        return complain(
            (r.reason == errc::slot_timeout ? "command timed out: " : "dom0 refuses: ") +
            reason_words(r) + remedy(r.reason));
    case kind::rejected:
        return complain("refused: " + reason_words(r) + " (not confirmed by dom0)" +
                        remedy(r.reason));
    case kind::not_sent:
        if (r.reason == errc::unsupported && needs_jobs)
            return complain(
                "the qvm-remote-dom0 that runs in dom0 is older and has no jobs: update "
                "it");
        if (r.reason == errc::unsupported)
            return complain(
                "the qvm-remote-dom0 that runs in dom0 is older and takes at most 1024 words "
                "and 16 KiB of them: update it, or send the data by standard input");
        return complain(std::string(message(r.reason)) + remedy(r.reason));
    case kind::lost:
        return complain("the result is incomplete: " + for_terminal(r.untrusted_text) +
                        (r.may_have_run ? "; command " + r.id +
                                              " may have run: in dom0, qvm-remote-dom0 log shows it"
                                        : "; command " + r.id + " was not sent: try again"));
    case kind::interrupted:
        if (r.signal == 0)
            return complain("left by the escape; command " + r.id + " is being ended in dom0");
        return complain("interrupted; command " + r.id +
                        (r.may_have_run ? " is being ended in dom0" : " was not started"));
    case kind::sink_broken:
        if (sink_error != EPIPE)
            complain(host::failed("cannot write the output", sink_error).value().what);
        return;
    }
    switch (r.end.cause) {
    case end_cause::timed_out:
        return complain("command timed out after " + std::to_string(r.end.value) + "s");
    case end_cause::not_found:
        return complain("no such program in dom0" +
                        (r.end.text.empty() ? "" : ": " + for_terminal(r.end.text)));
    case end_cause::not_started:
        return complain("dom0 could not start the command: " +
                        (r.end.text.empty() ? std::string(::strerror(static_cast<int>(r.end.value)))
                                            : for_terminal(r.end.text)));
    case end_cause::cancelled:
        return complain("dom0 ended the command: " +
                        (r.end.text.empty() ? std::string(message(static_cast<errc>(r.end.value)))
                                            : for_terminal(r.end.text)));
    case end_cause::detached:
        return; // run_by_stream prints the ID
    case end_cause::signalled:
        if (r.signal == 0)
            complain("the command was killed by signal " + std::to_string(r.end.value) +
                     (r.end.text.empty() ? "" : ": " + for_terminal(r.end.text)));
        return;
    default:
        return;
    }
}

// Whether the answer can only come from a holder of the key.
bool is_verified(const host::run_result &r) {
    return r.how == host::run_result::kind::ended || r.how == host::run_result::kind::refused;
}

void pin(const home &where) {
    if (const auto kept = where.pin(); !kept)
        complain("cannot record that dom0 uses protocol 2: " + kept.error().what);
}

} // namespace

namespace {
std::optional<std::vector<std::string>> held;
}

void complain(const std::string &what) {
    if (held)
        held->push_back(what);
    else
        std::fprintf(stderr, "qvm-remote: %s\n", what.c_str());
}

held_complaints::held_complaints() { held.emplace(); }
held_complaints::~held_complaints() { held.reset(); }

std::string held_complaints::text() const {
    std::string out;
    for (const std::string &line : *held)
        out += (out.empty() ? "" : "; ") + line;
    return out;
}

namespace {

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

// One command, as shown to the user and as recorded.
class shown_run {
  public:
    shown_run(const settings &how, const home &where, const command_id &id,
              const std::string &command)
        : quiet_(how.quiet), terminal_(::isatty(STDERR_FILENO) && !how.quiet),
          record_(where, id, command), line_(terminal_) {
        io_.out = &out_;
        io_.err = &err_;
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
        session_.emplace(signal_pipe[1], escape);
        io_.size = [this] { return session_->size(); };
        io_.filter = &*session_;
    }

    // Prints and records how the command ended, and returns the exit code. If there is `why`, it is
    // printed instead of our own explanation.
    int finish(const host::run_result &result, std::uint32_t timeout_s,
               const std::optional<host::failure> &why = {}, bool needs_jobs = false) {
        line_.stop();
        session_.reset();
        record_.finish(result, timeout_s);
        const int sink_error = out_.broken() ? out_.error() : err_.error();
        if (why)
            complain(why->what);
        else
            explain(result, sink_error, needs_jobs);
        if (!record_.problem().empty() && !quiet_)
            complain("the history is not complete: " + record_.problem());
        if (result.how == host::run_result::kind::sink_broken && sink_error != EPIPE)
            return 255;
        return result.exit_code();
    }

  private:
    void changed(host::run_state state, std::string_view untrusted_text) {
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
                complain(for_terminal(untrusted_text, 200));
            }
            break;
        case host::run_state::silent:
            line_.set("nothing comes from dom0; waiting (Ctrl-C twice gives up)");
            break;
        }
    }

    bool quiet_, terminal_;
    bool begun_ = false;
    recorder record_;
    waiting_line line_;
    recorded_sink out_{STDOUT_FILENO, &record_, &line_}, err_{STDERR_FILENO, &record_, &line_};
    host::run_streams io_;
    std::optional<terminal_session> session_;
};

// Runs the command by protocol 1 and returns the exit code. Returns nothing when a stream to dom0 became
// possible before the command was sent; `by` holds it then.
std::optional<int> run_by_queue(const settings &how, const home &where, route &by,
                                const run_request &request) {
    const auto refuse = [](const std::string &why) {
        complain(why);
        return 1;
    };
    if (const std::string why = needs_agent(request); !why.empty())
        return refuse(why);
    queued_command what{host::client::make_id(), request.what.body, request.what.timeout_s};
    // A script of the largest size has no room for the newline, and runs without it.
    if (!what.text.ends_with('\n') && what.text.size() < limits::command)
        what.text += '\n';
    if (const auto fits = envelope::check_entry(what.text); !fits)
        return refuse(std::string(message(fits.error().code)) + ", which protocol 1 cannot carry");
    if (how.verbose)
        std::fprintf(stderr, "qvm-remote: command %s by protocol 1, in %s\n",
                     what.id.text().c_str(), where.queue().c_str());
    shown_run shown(how, where, what.id, request.shown);
    std::function<bool()> look_for_agent;
    if (how.version == allowed_protocol::any)
        look_for_agent = [&by] {
            if (auto stream = by.way.transport->connect())
                by.stream.emplace(std::move(*stream));
            return by.stream.has_value();
        };
    const auto result = run_queued(where, *by.way.key, what, shown.io(), look_for_agent);
    if (!result) {
        complain(result.error().what);
        return 255;
    }
    if (!*result)
        return std::nullopt;
    using kind = host::run_result::kind;
    // Protocol 1 does not confirm this, and the Python program in dom0 lets the command run on.
    std::optional<host::failure> unconfirmed;
    if ((*result)->how == kind::interrupted && (*result)->may_have_run)
        unconfirmed = host::failure{"interrupted; command " + (*result)->id +
                                        " may go on in dom0: protocol 1 does not confirm its end",
                                    0};
    const int code = shown.finish(**result, what.timeout_s, unconfirmed);
    if ((*result)->how == kind::ended && (*result)->end.cause == end_cause::timed_out)
        complain(
            (*result)->may_have_run
                ? "the command may go on in dom0, if the Python program runs there: protocol 1 "
                  "cannot end it"
                : "dom0 never took the command: is qvm-remote-dom0 running there, and this qube "
                  "authorized?");
    return code;
}

// When Qubes refuses a call, the stream ends without a byte, and the transport knows the reason.
std::optional<host::failure> why_nothing_came(route &by, const host::client &dom0,
                                              host::run_result &result) {
    if (result.how != host::run_result::kind::lost || !dom0.untrusted_peer().empty())
        return std::nullopt;
    auto out = by.way.transport->explain();
    if (out && out->error_number == EACCES)
        result.how = host::run_result::kind::rejected;
    return out;
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
    if (asked_for)
        std::printf("%s\n", r.id.c_str());
    else
        complain("the command goes on as job " + r.id + ": qvm-remote job attach " + r.id);
    if (!r.end.text.empty())
        complain("job " + r.id + ": " + for_terminal(r.end.text));
}

int run_by_stream(const settings &how, const home &where, route &by, run_request request) {
    request.what.id = host::client::make_id();
    const std::uint32_t timeout_s = request.what.timeout_s;
    if (how.verbose)
        std::fprintf(stderr, "qvm-remote: command %s over %s\n", request.what.id->text().c_str(),
                     how.transport.c_str());
    host::client dom0(std::move(*by.stream), std::move(*by.way.key));
    shown_run shown(how, where, *request.what.id, request.shown);
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
        complain(host::failed("cannot make a pipe", errno).value().what);
        return 1;
    }
    if (request.what.detach && how.transport == "mock" && !has_daemon(how)) {
        complain("--detach needs a daemon that goes on, and the one that --transport mock starts "
                 "ends with this program");
        return 1;
    }
    auto by = find_route(how, where, patience_ms(request.what.timeout_s),
                         needs_agent(request).empty(), signal_pipe[0]);
    if (!by) {
        complain(by.error().what);
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
void explain_about(const host::run_result &r, const job_run &request) {
    using kind = host::run_result::kind;
    const std::string id = request.about.id ? request.about.id->text() : "";
    if (r.how == kind::interrupted)
        return complain("left; job " + id + " goes on");
    if (r.how == kind::lost)
        return complain("the stream to dom0 broke: " + for_terminal(r.untrusted_text) + "; job " +
                        id + " goes on");
    if (r.how == kind::refused && r.reason == errc::no_job)
        return complain("this qube has no job " + id + ": see qvm-remote job list");
    if (r.how == kind::ended && r.end.cause == end_cause::cancelled &&
        r.end.value == static_cast<std::uint32_t>(errc::outcome_unknown))
        return complain("nobody knows how job " + id + " ended: " + for_terminal(r.end.text));
    explain(r, 0, true);
}

// Whether the same request may succeed in a moment: the stream broke, or dom0's daemon ends.
bool is_worth_another(const host::run_result &r) {
    using kind = host::run_result::kind;
    return r.how == kind::lost || (r.how == kind::rejected && r.reason == errc::draining);
}

class about_job {
  public:
    about_job(const settings &how, const home &where, job_run &request)
        : how_(how), where_(where), request_(request),
          line_(::isatty(STDERR_FILENO) && !how.quiet && !request.has_terminal) {
        io_.out = &out_;
        io_.err = &err_;
        io_.signal_fd = signal_pipe[0];
        io_.stdin_fd = request.reads_stdin ? STDIN_FILENO : -1;
        io_.changed = [this](host::run_state state, std::string_view untrusted_text) {
            if (state == host::run_state::running && session_)
                session_->begin();
            if (state == host::run_state::noticed)
                complain(for_terminal(untrusted_text, 200));
        };
        io_.skipped = [](const job_offsets &gone) {
            for (const auto &[n, stream] : {std::pair{gone.out, "stdout"}, {gone.err, "stderr"}})
                if (n > 0)
                    complain("[" + std::to_string(n) + " bytes of its " + stream +
                             " are gone, since it wrote more than dom0 keeps]");
        };
        if (request.has_terminal) {
            session_.emplace(signal_pipe[1], request.escape);
            io_.size = [this] { return session_->size(); };
            io_.filter = &*session_;
        }
    }

    // Goes on where a broken stream has stopped, as often as the next one comes within a minute.
    tl::expected<host::run_result, no_access> run() {
        const bool may_go_on = request_.about.what != job_request::verb::cancel;
        for (std::uint64_t broke_ms = 0;;) {
            auto by = find_route(how_, where_, patience_ms(0), false, signal_pipe[0]);
            if (by && !by->stream)
                return tl::unexpected(no_access{no_agent, 1});
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
                return tl::unexpected(no_access{"left; the job goes on", 128 + number});
        }
    }
    void close() {
        session_.reset();
        line_.stop();
    }

    static constexpr const char *no_agent =
        "jobs need protocol 2, but dom0 has started no agent in this qube";

  private:
    const settings &how_;
    const home &where_;
    job_run &request_;
    waiting_line line_;
    recorded_sink out_{STDOUT_FILENO, nullptr, &line_}, err_{STDERR_FILENO, nullptr, &line_};
    host::run_streams io_;
    std::optional<terminal_session> session_;
};

} // namespace

int run_about_job(const settings &how, const home &where, job_run request) {
    if (!catch_signals()) {
        complain(host::failed("cannot make a pipe", errno).value().what);
        return 1;
    }
    about_job asked(how, where, request);
    const auto result = asked.run();
    asked.close();
    if (!result) {
        complain(result.error().what);
        return result.error().exit_code;
    }
    explain_about(*result, request);
    return result->exit_code();
}

tl::expected<std::vector<job_row>, int> list_jobs(const settings &how, const home &where) {
    auto by = find_route(how, where, patience_ms(0), false, -1);
    if (by && !by->stream)
        by = tl::unexpected(no_access{about_job::no_agent, 1});
    if (!by) {
        complain(by.error().what);
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
    for (std::string_view left = done.out; !left.empty();) {
        const std::size_t end = std::min(left.find('\n'), left.size());
        if (auto row = job_row::parse(left.substr(0, end)))
            out.push_back(std::move(*row));
        left.remove_prefix(std::min(end + 1, left.size()));
    }
    return out;
}

int converse(const settings &how, const home &where, request_kind kind, std::string &answer,
             std::uint64_t &took_ms, std::string &over) {
    if (!catch_signals()) {
        complain(host::failed("cannot make a pipe", errno).value().what);
        return 1;
    }
    constexpr std::uint32_t timeout_s = 10;
    auto by = find_route(how, where, timeout_s * 1000, true, signal_pipe[0]);
    if (!by) {
        complain(by.error().what);
        return 1;
    }
    const std::uint64_t begin = host::boottime_ms();
    host::run_result result;
    std::optional<host::failure> why;
    if (!by->stream) {
        over = "protocol 1";
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
            complain(done.error().what);
            return 1;
        }
        result = **done;
    } else {
        over = how.transport;
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
        answer = std::move(done.out);
        why = why_nothing_came(*by, dom0, result);
        if (!by->way.private_daemon && is_verified(result))
            pin(where);
    }
    took_ms = host::boottime_ms() - begin;
    if (why)
        complain(why->what);
    else if (result.how == host::run_result::kind::ended &&
             result.end.cause == end_cause::timed_out)
        complain("dom0 did not answer within " + std::to_string(timeout_s) +
                 " s: is qvm-remote-dom0 running there, and this qube authorized?");
    else
        explain(result, 0);
    return result.exit_code() == 0 ? 0 : 1;
}

int ping(const settings &how, const home &where) {
    std::string answer;
    std::string over;
    std::uint64_t took_ms = 0;
    const int code = converse(how, where, request_kind::ping, answer, took_ms, over);
    if (code == 0)
        std::printf("dom0 answers over %s in %llu ms\n", over.c_str(),
                    static_cast<unsigned long long>(took_ms));
    return code;
}

int status(const settings &how, const home &where) {
    std::string answer;
    std::string over;
    std::uint64_t took_ms = 0;
    const int code = converse(how, where, request_kind::status, answer, took_ms, over);
    if (code == 0 && answer.empty())
        answer = "dom0 answers over " + over + ", which has no status\n";
    for (std::string_view left = answer; !left.empty();) {
        const std::size_t end = left.find('\n');
        std::printf("%s\n", for_terminal(left.substr(0, end)).c_str());
        left.remove_prefix(end == left.npos ? left.size() : end + 1);
    }
    return code;
}

} // namespace qvmremote::qube
