// SPDX-License-Identifier: GPL-2.0-or-later
#include "dom0.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <set>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <qvmremote/host/unix_socket.hpp>
#include <qvmremote/transport_abi.h>

#include "queue_program.hpp"

namespace qvm_run {
namespace {

constexpr std::size_t checks_at_once = 8; // each is a Python program
constexpr std::size_t most_problems = 64;
// When the host closes the plug-in: how long children may pass on what they hold, and how long they may
// take to end after SIGTERM.
constexpr ms close_limit = 5'000;
constexpr ms term_limit = 1'000;

// The login shell of the qube's user reads this. Every shell must understand it (sh, zsh, csh,
// fish), so it is one simple command on one line, and its single-quoted word has no quote,
// backslash, `!` or newline. With qvm-run, the stream is the rest of that shell's input. The shell
// does not read the stream, because exec replaces the shell.
constexpr std::string_view start_agent =
    "exec sh -c '"
    "command -v qvm-remote-agent >/dev/null 2>&1 && exec qvm-remote-agent; "
    "[ -x /usr/lib/qvm-remote/qvm-remote-agent ] && exec /usr/lib/qvm-remote/qvm-remote-agent; "
    "eval \"$(echo ";
constexpr std::string_view end_of_command = " | base64 -d | gzip -dc)\"'";
constexpr std::string_view no_gui = ":nogui:";

constexpr std::size_t command_size =
    start_agent.size() + queue_program.size() + end_of_command.size();
// The command must fit into one message of qrexec's control channel: a larger one ends the qube's
// qrexec daemon. With what qvm-run appends, it must also fit into one argument of Linux.
static_assert(longest_user + no_gui.size() + command_size <= 4000);
static_assert(command_size <= 120 * 1024);

[[noreturn]] void fail_errno(const std::string &what) {
    throw problem{QVMREMOTE_FAILED, what + ": " + std::strerror(errno)};
}

std::string file_name(const std::string &path) { return path.substr(path.rfind('/') + 1); }

std::string how_it_ended(const child_end &end) {
    return end.by_signal ? "was ended by signal " + std::to_string(end.number)
                         : "ended with " + std::to_string(end.number);
}

// Kinds of failures, for `telling`: how a child ended, or one of these.
enum : int { by_signal = 0x100, not_started = 0x200, no_answer, no_check, no_qubesd, bad_qubesd };

int failure_of(const child_end &end) { return end.by_signal ? by_signal + end.number : end.number; }

} // namespace

std::string command_for_qube() {
    std::string out;
    out.reserve(command_size);
    return out.append(start_agent).append(queue_program).append(end_of_command);
}

std::vector<std::string> call_of(const settings &options, const std::string &qube) {
    if (!options.qrexec_client.empty())
        return {options.qrexec_client, "-d", qube,
                (options.user.empty() ? "DEFAULT" : options.user) + std::string(no_gui) +
                    command_for_qube()};
    std::vector<std::string> out = {options.qvm_run, "--no-gui", "--no-autostart", "--pass-io"};
    if (!options.user.empty())
        out.push_back("--user=" + options.user);
    out.insert(out.end(), {qube, command_for_qube()});
    return out;
}

caller::caller(settings options, ms (*now)())
    : settings_(std::move(options)), clock_(now), epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      timer_(::timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!epoll_ || !timer_ || !wake_)
        fail_errno("cannot make an event descriptor");
    watch(timer_.get(), EPOLLIN, 0, source::timer);
    watch(wake_.get(), EPOLLIN, 0, source::wake);
}

caller::~caller() {
    for (auto &[number, each] : jobs_)
        cut(each);
    // The last bytes for a qube may still be in its child. The child passes them on, then reads the
    // end of the stream and ends.
    forget_ended(close_limit);
    for (auto &[number, each] : jobs_)
        each.process.signal(SIGTERM);
    forget_ended(term_limit);
    // The destructor of a child that has not ended kills it.
}

// Waits for the ends of the children, at most `patience` in all.
void caller::forget_ended(ms patience) {
    const ms end = qvmremote::host::boottime_ms() + patience;
    for (auto at = jobs_.begin(); at != jobs_.end();) {
        const ms now = qvmremote::host::boottime_ms();
        pollfd ended{at->second.process.descriptor(), POLLIN, 0};
        const int got = ::poll(&ended, 1, now < end ? static_cast<int>(end - now) : 0);
        if (got < 0 && errno == EINTR)
            continue;
        at = at->second.process.take_end() ? jobs_.erase(at) : std::next(at);
    }
}

int caller::listen() {
    now_ = clock_();
    is_listening_ = true;
    settle();
    return epoll_.get();
}

std::optional<taken_stream> caller::accept() {
    now_ = clock_();
    work();
    while (!ready_.empty()) {
        const auto at = jobs_.find(ready_.front());
        ready_.pop_front();
        if (at == jobs_.end() || !at->second.near || at->second.end.has_begun())
            continue;
        taken_stream out{at->second.qube, std::move(at->second.near)};
        settle();
        return out;
    }
    if (!problems_.empty()) {
        std::string text = std::move(problems_.front());
        problems_.pop_front();
        settle();
        throw problem{QVMREMOTE_UNREACHABLE, std::move(text)};
    }
    settle();
    return std::nullopt;
}

void caller::set_peers(const std::vector<std::string> &names) {
    now_ = clock_();
    std::set<std::string> wanted;
    for (const std::string &name : names) {
        // No local qube has a name of another form, and qrexec does not accept one.
        if (qube_name::parse(name))
            wanted.insert(name);
    }
    for (auto at = qubes_.begin(); at != qubes_.end();) {
        if (wanted.contains(at->first)) {
            ++at;
            continue;
        }
        if (const auto has = jobs_.find(at->second.job); has != jobs_.end()) {
            drop(has->second);
            has->second.is_revoked = true;
        }
        at = qubes_.erase(at);
    }
    bool is_any_new = false;
    for (const std::string &name : wanted) {
        const auto [at, is_new] = qubes_.try_emplace(name);
        if (!is_new)
            continue;
        is_any_new = true;
        // If a removed qube is named again, it is called when its old call has ended.
        for (const auto &[number, each] : jobs_)
            if (each.qube == name)
                at->second.job = number;
    }
    if (is_any_new && events_)
        ask_for_listing();
    settle();
}

ms caller::next_due() const {
    ms out = never;
    bool wants = false;
    for (const auto &[name, q] : qubes_) {
        if (q.job != 0)
            continue;
        wants = true;
        if (q.now == state::runs || (q.now == state::unknown && checks_ && !q.is_queued))
            out = std::min(out, q.due);
    }
    for (const auto &[number, j] : jobs_)
        out = std::min({out, j.answer_due, j.stderr_due, j.end.due()});
    if (checks_ && wants)
        out = std::min(out, round_due_);
    if (events_ || (wants && !settings_.qubesd.empty()))
        out = std::min(out, qubesd_due_);
    return out;
}

void caller::watch(int fd, std::uint32_t events, id of, source kind) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = of << 3 | static_cast<std::uint64_t>(kind);
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0 &&
        (errno != EEXIST || ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) != 0))
        fail_errno("cannot watch a descriptor");
}

void caller::unwatch(int fd) noexcept { ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

// Handles events, then does what is due. The number of rounds is bounded, since the host has other
// work. Events that are left keep the descriptor readable.
void caller::work() {
    for (int round = 0; round < 4; ++round) {
        epoll_event events[64];
        const int n = ::epoll_wait(epoll_.get(), events, 64, 0);
        if (n < 0 && errno != EINTR)
            fail_errno("cannot ask for events");
        bool is_any = false;
        for (int i = 0; i < n; ++i) {
            const std::uint64_t key = events[i].data.u64;
            const auto kind = static_cast<source>(key & 7);
            is_any |= kind != source::wake;
            happened(events[i].events, key >> 3, kind);
        }
        if (!is_any)
            break;
    }
    settle();
}

void caller::happened(std::uint32_t events, id of, source kind) {
    switch (kind) {
    case source::timer: {
        eventfd_t times; // a timer is read like an event descriptor
        ::eventfd_read(timer_.get(), &times);
        armed_ = never;
        return;
    }
    case source::wake:
        return; // settle() reads it
    case source::events:
        return read_events();
    case source::listing:
        return read_listing();
    case source::process:
    case source::near:
    case source::far:
    case source::err:
        break;
    }
    const auto at = jobs_.find(of);
    if (at == jobs_.end())
        return;
    job &j = at->second;
    if (kind == source::process)
        return process_ended(at);
    if (kind == source::err) {
        if ((events & EPOLLIN) != 0)
            read_err(j);
        else
            j.err.reset(); // its last writer has closed it
    } else if (kind == source::near && j.near) {
        // This is the qube's first byte. The host gets the stream only now, so that it does not see
        // calls that fail.
        unwatch(j.near.get());
        j.answer_due = never;
        ready_.push_back(of);
    } else if (kind == source::far && j.far) {
        // The host has closed the stream. The child reads that, and has time to end.
        unwatch(j.far.get());
        j.far.reset();
        j.end.begin(now_);
    }
}

void caller::settle() {
    do_what_is_due();
    const bool has_something = !ready_.empty() || !problems_.empty();
    if (has_something != is_woken_) {
        eventfd_t count;
        if (has_something)
            ::eventfd_write(wake_.get(), 1);
        else
            ::eventfd_read(wake_.get(), &count);
        is_woken_ = has_something;
    }
    const ms due = is_listening_ ? next_due() : never;
    if (due == armed_)
        return;
    itimerspec when{};
    if (due != never) {
        const ms left = due > now_ ? due - now_ : 0;
        when.it_value.tv_sec = static_cast<time_t>(left / 1000);
        when.it_value.tv_nsec = static_cast<long>(left % 1000 * 1'000'000 + 1); // 0 would disarm it
    }
    if (::timerfd_settime(timer_.get(), 0, &when, nullptr) != 0)
        fail_errno("cannot set a timer");
    armed_ = due;
}

void caller::do_what_is_due() {
    if (!is_listening_)
        return;
    if (events_) {
        if (qubesd_due_ <= now_)
            lose_qubesd(bad_qubesd, "does not answer");
    } else if (qubesd_due_ <= now_ && !settings_.qubesd.empty() && is_in_want()) {
        connect_to_qubesd();
    } else if (settings_.qubesd.empty() && !checks_) {
        checks_ = true;
        round_due_ = now_;
    }
    for (auto &[number, j] : jobs_) {
        if (j.stderr_due <= now_) {
            j.stderr_due = never;
            watch(j.err.get(), EPOLLIN, number, source::err);
        }
        if (j.answer_due <= now_) {
            j.answer_due = never;
            qube *const q = find(j.qube);
            if (j.is_check) {
                j.process.signal(SIGKILL);
                if (q)
                    say(q->told, no_answer,
                        j.qube + ": " + file_name(settings_.qvm_check) + " does not end");
            } else {
                if (q && !j.is_dropped)
                    say(q->told, no_answer,
                        j.qube + ": no answer within " + std::to_string(answer_limit / 1000) +
                            " s" + (j.words.text().empty() ? "" : ": " + j.words.text()));
                drop(j);
            }
        }
        if (const int number_of_signal = j.end.step(now_))
            j.process.signal(number_of_signal);
    }
    if (checks_) {
        const bool is_round = round_due_ <= now_;
        if (is_round)
            round_due_ = is_in_want() ? now_ + check_interval : never;
        else if (round_due_ == never && is_in_want())
            round_due_ = now_ + check_interval;
        queue_checks(is_round);
        while (checking_ < checks_at_once && !to_check_.empty()) {
            const std::string name = std::move(to_check_.front());
            to_check_.pop_front();
            qube *const q = find(name);
            if (!q)
                continue;
            q->is_queued = false;
            if (q->job == 0)
                check(name, *q);
        }
    }
    for (auto &[name, q] : qubes_)
        if (q.job == 0 && q.now == state::runs && q.due <= now_)
            dial(name, q);
}

void caller::say(telling &whose, int failure, std::string text) {
    if (problems_.size() < most_problems && whose.is_new(failure, now_))
        problems_.push_back(std::move(text));
}

caller::qube *caller::find(const std::string &name) {
    const auto at = qubes_.find(name);
    return at == qubes_.end() ? nullptr : &at->second;
}

bool caller::is_in_want() const {
    return std::any_of(qubes_.begin(), qubes_.end(),
                       [](const auto &row) { return row.second.job == 0; });
}

ms caller::pause(back_off &of) const {
    std::uint32_t random = 0;
    const ssize_t n = ::getrandom(&random, sizeof random, GRND_NONBLOCK);
    return of.next(n == static_cast<ssize_t>(sizeof random) ? random : 0x80000000);
}

void caller::dial(const std::string &name, qube &to) { start(name, to, false); }

void caller::check(const std::string &name, qube &of) { start(name, of, true); }

void caller::start(const std::string &name, qube &of, bool is_check) {
    const std::vector<std::string> argv =
        is_check ? std::vector<std::string>{settings_.qvm_check, "--running", name}
                 : call_of(settings_, name);
    const auto give_up = [&](const std::string &why) {
        of.due = now_ + pause(of.pause);
        if (is_check)
            of.now = state::stands; // until the next round
        say(of.told, not_started, name + ": " + why);
    };
    int stream[2] = {-1, -1};
    int err[2];
    if (::pipe2(err, O_CLOEXEC) != 0)
        return give_up(std::string("cannot make a pipe: ") + std::strerror(errno));
    unique_fd err_read(err[0]);
    unique_fd err_write(err[1]);
    // Only our end does not block: the two ends of a pipe are separate open files, so the child's
    // end is not affected.
    if (::fcntl(err_read.get(), F_SETFL, O_NONBLOCK) != 0 ||
        (!is_check && ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stream) != 0))
        return give_up(std::string("cannot make a stream: ") + std::strerror(errno));
    unique_fd near(stream[0]);
    unique_fd far(stream[1]);
    auto process = child::start({.argv = argv,
                                 .in = far.get(),
                                 .out = far.get(),
                                 .err = err_write.get(),
                                 .directory = "/"});
    if (!process)
        return give_up(process.error().what);
    const id number = ++last_id_;
    const auto at = jobs_
                        .emplace(number, job{name,
                                             is_check,
                                             std::move(*process),
                                             now_,
                                             now_ + answer_limit,
                                             never,
                                             false,
                                             false,
                                             {},
                                             std::move(near),
                                             std::move(far),
                                             std::move(err_read),
                                             {}})
                        .first;
    job &j = at->second;
    try {
        watch(j.process.descriptor(), EPOLLIN, number, source::process);
        watch(j.err.get(), EPOLLIN, number, source::err);
        if (!is_check) {
            watch(j.near.get(), EPOLLIN, number, source::near);
            watch(j.far.get(), 0, number, source::far); // epoll always reports a hang-up
        }
    } catch (const problem &why) {
        jobs_.erase(at); // this kills the child
        return give_up(why.text);
    }
    of.job = number;
    if (is_check)
        ++checking_;
}

// Shuts the stream down, so that both ends see its end even if another process has inherited the
// child's descriptor. For the same reason, epoll would keep a descriptor that is only closed here.
void caller::cut(job &which) {
    if (!which.far)
        return;
    unwatch(which.far.get());
    ::shutdown(which.far.get(), SHUT_RDWR);
    which.far.reset();
}

// Ends the stream at once, and gives the child time to end.
void caller::drop(job &which) {
    which.is_dropped = true;
    which.near.reset();
    cut(which);
    which.answer_due = which.is_check ? which.answer_due : never;
    which.end.begin(now_);
}

// A qube can write to this pipe without end. Read it only at intervals, so that this costs little.
// A pipe that is full between two reads delays only that qube's call.
void caller::read_err(job &which) {
    char buffer[4096];
    for (int i = 0; i < 16; ++i) {
        const ssize_t n = ::read(which.err.get(), buffer, sizeof buffer);
        if (n == 0)
            which.err.reset();
        if (n <= 0)
            break;
        which.words.feed({buffer, static_cast<std::size_t>(n)});
    }
    if (!which.err)
        return;
    unwatch(which.err.get());
    which.stderr_due = now_ + stderr_rest;
}

void caller::process_ended(jobs::iterator which) {
    const auto end = which->second.process.take_end();
    if (!end)
        return;
    job ended = std::move(which->second);
    jobs_.erase(which);
    if (ended.err)
        read_err(ended);
    cut(ended);
    if (ended.is_check)
        check_ended(ended, *end);
    else
        call_ended(ended, *end);
}

void caller::call_ended(job &which, const child_end &end) {
    qube *const q = find(which.qube);
    if (!q)
        return;
    q->job = 0;
    if (checks_)
        q->now = state::unknown;
    if (which.is_revoked) // and the qube was authorised again after that
        return;
    const bool is_proven =
        now_ - which.started >= proven_after && which.answer_due == never && !which.is_dropped;
    if (is_proven) {
        q->pause.reset();
        q->told.forget();
    } else if (const bool is_silent = which.answer_due != never && !which.is_dropped;
               !which.end.has_begun() && (is_silent || end.by_signal || end.number != 0)) {
        say(q->told, failure_of(end),
            which.qube + ": " +
                file_name(settings_.qrexec_client.empty() ? settings_.qvm_run
                                                          : settings_.qrexec_client) +
                " " + how_it_ended(end) + (is_silent ? " before the qube sent a byte" : "") +
                (which.words.text().empty() ? "" : ": " + which.words.text()));
    }
    q->due = now_ + pause(q->pause);
}

void caller::check_ended(const job &which, const child_end &end) {
    --checking_;
    qube *const q = find(which.qube);
    if (!q)
        return;
    q->job = 0;
    if (checks_)
        q->now = !end.by_signal && end.number == 0 ? state::runs : state::stands;
}

// Queues the qubes to check. With `all`, these are the qubes without a call. Otherwise, these are
// the ones whose state is unknown and whose pause is over.
void caller::queue_checks(bool all) {
    for (auto &[name, q] : qubes_) {
        if (q.job != 0 || q.is_queued || !(all || (q.now == state::unknown && q.due <= now_)))
            continue;
        q.is_queued = true;
        to_check_.push_back(name);
    }
}

unique_fd caller::ask_qubesd(std::string_view request, int &error) const {
    auto connected = qvmremote::host::connect_unix(settings_.qubesd, SOCK_STREAM | SOCK_NONBLOCK);
    if (!connected) {
        error = connected.error().error_number;
        return {};
    }
    unique_fd out = std::move(*connected);
    ucred who{};
    socklen_t size = sizeof who;
    error = 0;
    if (::getsockopt(out.get(), SOL_SOCKET, SO_PEERCRED, &who, &size) != 0)
        error = errno;
    else if (who.uid != 0 && who.uid != ::geteuid())
        error = EPERM;
    else if (::send(out.get(), request.data(), request.size(), MSG_NOSIGNAL) !=
                 static_cast<ssize_t>(request.size()) ||
             ::shutdown(out.get(), SHUT_WR) != 0)
        error = errno;
    if (error != 0)
        out.reset();
    return out;
}

void caller::connect_to_qubesd() {
    int error = 0;
    unique_fd made = ask_qubesd(ask_events, error);
    if (!made) {
        qubesd_due_ = now_ + pause(qubesd_pause_);
        if (error == ENOENT && !checks_) {
            checks_ = true;
            round_due_ = now_;
        }
        if (error != ENOENT)
            say(qubesd_told_, no_qubesd,
                "cannot ask " + settings_.qubesd + " which qubes run: " + std::strerror(error));
        return;
    }
    watch(made.get(), EPOLLIN, 0, source::events);
    events_ = std::move(made);
    reader_ = {};
    checks_ = false;
    round_due_ = never;
    qubesd_since_ = now_;
    qubesd_due_ = now_ + answer_limit;
}

// The states of qubes came from qubesd, so they are unknown now.
void caller::lose_qubesd(int failure, const std::string &why) {
    events_.reset();
    listing_.reset();
    untrusted_listing_ = {};
    for (auto &[name, q] : qubes_)
        q.now = state::unknown;
    if (now_ - qubesd_since_ >= proven_after && qubesd_due_ == never)
        qubesd_pause_.reset();
    qubesd_due_ = now_ + pause(qubesd_pause_);
    if (failure != 0)
        say(qubesd_told_, failure, settings_.qubesd + " " + why + "; trying again");
}

void caller::ask_for_listing() {
    int error = 0;
    unique_fd made = ask_qubesd(ask_listing, error);
    if (!made)
        return lose_qubesd(no_qubesd,
                           std::string("does not accept a request: ") + std::strerror(error));
    watch(made.get(), EPOLLIN, 0, source::listing);
    listing_ = std::move(made);
    untrusted_listing_.clear();
    for (auto &[name, q] : qubes_)
        q.is_news = false;
    qubesd_due_ = now_ + answer_limit;
}

void caller::read_events() {
    char buffer[4096];
    for (int i = 0; i < 16 && events_; ++i) {
        const ssize_t n = ::recv(events_.get(), buffer, sizeof buffer, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0)
            return lose_qubesd(0, {}); // qubesd restarts
        std::string_view untrusted(buffer, static_cast<std::size_t>(n));
        while (!untrusted.empty() && events_) {
            const auto got = reader_.next(untrusted);
            if (!got)
                return lose_qubesd(bad_qubesd, "sends something that is not an event");
            if (*got)
                heard(**got);
        }
    }
}

void caller::heard(const event &e) {
    if (e.what == news::connected)
        return ask_for_listing();
    qube *const q = find(e.qube);
    if (!q)
        return;
    q->is_news = true;
    q->now = e.what == news::runs ? state::runs : state::stands;
    if (q->now == state::runs) {
        q->pause.reset();
        q->due = now_;
    }
}

void caller::read_listing() {
    char buffer[4096];
    for (int i = 0; i < 16 && listing_; ++i) {
        const ssize_t n = ::recv(listing_.get(), buffer, sizeof buffer, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n < 0)
            return lose_qubesd(no_qubesd,
                               std::string("ends the connection: ") + std::strerror(errno));
        if (n > 0) {
            untrusted_listing_.append(buffer, static_cast<std::size_t>(n));
            if (untrusted_listing_.size() > largest_listing)
                return lose_qubesd(bad_qubesd, "lists more qubes than there can be");
            continue;
        }
        const auto running = running_qubes(untrusted_listing_);
        listing_.reset();
        untrusted_listing_ = {};
        if (!running)
            return lose_qubesd(bad_qubesd, "sends a listing that cannot be parsed");
        qubesd_due_ = never;
        qubesd_told_.forget();
        for (auto &[name, q] : qubes_)
            if (!q.is_news)
                q.now = std::binary_search(running->begin(), running->end(), name) ? state::runs
                                                                                   : state::stands;
    }
}

} // namespace qvm_run
