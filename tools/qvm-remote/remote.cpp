// SPDX-License-Identifier: GPL-2.0-or-later
#include "remote.hpp"

#include <cerrno>
#include <csignal>
#include <cstring>
#include <cstdio>
#include <cstdlib>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/sanitize.hpp>

namespace qvmremote::qube {

namespace {

// Where the handler puts the signals' numbers for the loop.
int signal_pipe[2] = {-1, -1};

void on_signal(int number) {
    const int error = errno;
    const auto byte = static_cast<std::uint8_t>(number);
    [[maybe_unused]] const ssize_t n = ::write(signal_pipe[1], &byte, 1);
    errno = error;
}

// The signals that end a command. One that our caller ignores (nohup) stays ignored.
bool catch_signals() {
    if (::pipe2(signal_pipe, O_CLOEXEC | O_NONBLOCK) != 0)
        return false;
    ::signal(SIGPIPE, SIG_IGN);
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

// Elapsed time for a person who waits, on a line that goes away again.
class waiting_line {
public:
    explicit waiting_line(bool wanted) : wanted_(wanted), begin_ms_(host::boottime_ms()) {}
    ~waiting_line() { clear(); }

    void set(std::string text) { text_ = std::move(text); }
    void tick() {
        const std::uint64_t seconds = (host::boottime_ms() - begin_ms_) / 1000;
        if (!wanted_ || seconds < 2)
            return;
        std::fprintf(stderr, "\r\033[K[%llu s] %s", static_cast<unsigned long long>(seconds),
                     text_.c_str());
        std::fflush(stderr);
        shown_ = true;
    }
    // Before anything else is written, and once output has come.
    void clear() {
        if (std::exchange(shown_, false)) {
            std::fprintf(stderr, "\r\033[K");
            std::fflush(stderr);
        }
    }
    void stop() {
        clear();
        wanted_ = false;
    }

private:
    bool wanted_;
    bool shown_ = false;
    std::uint64_t begin_ms_;
    std::string text_ = "waiting for dom0";
};

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
        return "; something between held the request back: try again";
    case errc::id_outdated:
        return "; set the clock or the time zone of this qube";
    case errc::frame_too_large:
        return "; give the command as a script: qvm-remote --script FILE";
    case errc::command_too_large:
        return "; copy the data to dom0 by standard input instead";
    case errc::busy:
    case errc::draining:
        return "; try again later";
    default:
        return "";
    }
}

// Says what happened when it was not simply the command's own end (SPEC §1.2).
void explain(const host::run_result &r, int sink_error) {
    using kind = host::run_result::kind;
    switch (r.how) {
    case kind::ended:
        break;
    case kind::refused:
        return complain("dom0 refuses: " + reason_words(r) + remedy(r.reason));
    case kind::rejected:
        return complain("refused: " + reason_words(r) + " (not confirmed by dom0)" +
                        remedy(r.reason));
    case kind::not_sent:
        return complain(std::string(message(r.reason)) + remedy(r.reason));
    case kind::lost:
        return complain("the result is incomplete: " + for_terminal(r.untrusted_text) +
                        (r.may_have_run ? "; command " + r.id + " may have run"
                                        : "; command " + r.id + " was not accepted before that"));
    case kind::interrupted:
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
        return complain("no such program in dom0");
    case end_cause::not_started:
        return complain("dom0 could not start the command: " +
                        (r.end.text.empty() ? std::string(::strerror(static_cast<int>(r.end.value)))
                                            : for_terminal(r.end.text)));
    case end_cause::cancelled:
        return complain("dom0 ended the command: " +
                        std::string(message(static_cast<errc>(r.end.value))));
    case end_cause::signalled:
        if (r.signal == 0)
            complain("the command was killed by signal " + std::to_string(r.end.value));
        return;
    default:
        return;
    }
}

} // namespace

void complain(const std::string &what) { std::fprintf(stderr, "qvm-remote: %s\n", what.c_str()); }

int run_remote(const settings &how, const home &where, run_request request) {
    if (!catch_signals()) {
        complain("cannot make a pipe");
        return 1;
    }
    auto reached = reach_dom0(how, where);
    if (!reached) {
        complain(reached.error().what);
        return reached.error().exit_code;
    }
    host::client dom0(std::move(*reached->stream), std::move(*reached->key));

    request.what.id = host::client::make_id();
    const std::uint32_t timeout_s = request.what.timeout_s;
    recorder record(where, *request.what.id, std::move(request.shown));
    const bool terminal = ::isatty(STDERR_FILENO) && !how.quiet;
    waiting_line line(terminal);
    recorded_sink out(STDOUT_FILENO, &record), err(STDERR_FILENO, &record);
    if (how.verbose)
        std::fprintf(stderr, "qvm-remote: command %s over %s\n", request.what.id->text().c_str(),
                     how.transport.c_str());

    host::run_streams io;
    io.out = &out;
    io.err = &err;
    io.stdin_fd = request.stdin_live ? STDIN_FILENO : -1;
    io.signal_fd = signal_pipe[0];
    io.changed = [&](host::run_state state, std::string_view untrusted_text) {
        switch (state) {
        case host::run_state::sent:
            record.begin(); // dom0 is at work meanwhile
            break;
        case host::run_state::pending:
            line.set("waiting for approval in dom0" +
                     (untrusted_text.empty() ? "" : ": " + for_terminal(untrusted_text, 200)));
            break;
        case host::run_state::running:
            line.set("running in dom0");
            break;
        }
    };
    if (terminal)
        io.tick = [&] { out.any() || err.any() ? line.stop() : line.tick(); };
    const host::run_result result = dom0.run(std::move(request.what), io);
    line.stop();

    record.finish(result, timeout_s);
    explain(result, out.broken() ? out.error() : err.error());
    if (!record.problem().empty() && !how.quiet)
        complain("the history is not complete: " + record.problem());
    if (reached->private_daemon && terminal)
        std::fprintf(stderr, "[mock] ran here, not in dom0\n");
    if (result.how == host::run_result::kind::sink_broken &&
        (out.broken() ? out.error() : err.error()) != EPIPE)
        return 255;
    return result.exit_code();
}

namespace {

// One request that runs nothing. The answer is dom0's own words, which is no reason to trust them.
int converse(const settings &how, const home &where, request_kind kind, std::string &answer,
             std::uint64_t &took_ms) {
    ::signal(SIGPIPE, SIG_IGN);
    auto reached = reach_dom0(how, where);
    if (!reached) {
        complain(reached.error().what);
        return 1;
    }
    host::client dom0(std::move(*reached->stream), std::move(*reached->key));
    const std::uint64_t begin = host::boottime_ms();
    auto done = dom0.collect(
        {.kind = kind, .body = {}, .arguments = {}, .environment = {}, .timeout_s = 10, .id = {}});
    took_ms = host::boottime_ms() - begin;
    explain(done.result, 0);
    answer = std::move(done.out);
    return done.result.exit_code() == 0 ? 0 : 1;
}

} // namespace

int ping(const settings &how, const home &where) {
    std::string answer;
    std::uint64_t took_ms = 0;
    const int code = converse(how, where, request_kind::ping, answer, took_ms);
    if (code == 0)
        std::printf("dom0 answers over %s in %llu ms\n", how.transport.c_str(),
                    static_cast<unsigned long long>(took_ms));
    return code;
}

int status(const settings &how, const home &where) {
    std::string answer;
    std::uint64_t took_ms = 0;
    const int code = converse(how, where, request_kind::status, answer, took_ms);
    for (std::string_view left = answer; !left.empty();) {
        const std::size_t end = left.find('\n');
        std::printf("%s\n", for_terminal(left.substr(0, end)).c_str());
        left.remove_prefix(end == left.npos ? left.size() : end + 1);
    }
    return code;
}

} // namespace qvmremote::qube
