// SPDX-License-Identifier: GPL-2.0-or-later
#include "file_queue.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <qvmremote/config.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/queue.hpp>
#include <qvmremote/token.hpp>

#include "common/queue_files.hpp"

namespace qvmremote::qube {

namespace {

using host::run_result;
using host::unique_fd;

// The Python daemon writes .meta after .exit, or never when the disk is full.
constexpr std::uint64_t meta_patience_ms = 2'000;
// An entry that is in no directory was refused, unless a slow dom0 is between two steps.
constexpr std::uint64_t gone_patience_ms = 5'000;
constexpr int look_again_ms = 1'000;

class entry {
  public:
    enum class place { pending, running, nowhere, finished };

    static host::outcome<entry> leave(const home &where, const secret &key,
                                      const queued_command &what) {
        auto opened = queue_directories::open(where.directory());
        if (!opened)
            return tl::unexpected(opened.error());
        opened->sweep();
        entry out(std::move(*opened), what.id.text());
        out.inotify_.reset(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
        const auto watch = [&](const unique_fd &directory, std::uint32_t events) {
            return !out.inotify_ ? -1
                                 : watch_directory(out.inotify_.get(), directory.get(), events);
        };
        out.pending_watch_ = watch(out.files_.pending, IN_MOVED_FROM | IN_DELETE);
        // Without inotify the directories are looked at once a second.
        if (out.pending_watch_ < 0 || watch(out.files_.running, IN_MOVED_TO | IN_DELETE) < 0 ||
            watch(out.files_.results, IN_MOVED_TO | IN_CLOSE_WRITE) < 0 ||
            watch(out.files_.base, IN_MOVED_TO | IN_CREATE) < 0)
            out.inotify_.reset();
        // The entry itself comes last, so that a reader who finds it also finds its token.
        const int pending = out.files_.pending.get();
        if (!write_file(pending, out.id_ + ".auth", token_v1(key, what.id)) ||
            (what.keep_copy && !write_file(pending, out.id_ + ".cmd", what.text)) ||
            !write_file(pending, out.id_, what.text)) {
            const int error = errno;
            out.remove_token_and_copy();
            return host::failed("cannot leave the command in " + where.queue() + "/pending", error);
        }
        out.is_left_ = true;
        return out;
    }

    entry(entry &&) = default;
    entry(const entry &) = delete;
    entry &operator=(const entry &) = delete;
    ~entry() {
        if (files_.pending && is_left_) // else it was moved from
            take_back();
    }

    [[nodiscard]] int descriptor() const noexcept { return inotify_.get(); }
    [[nodiscard]] bool was_taken() const noexcept { return was_taken_; }

    // Reads all events and ignores them: the directories show what has happened.
    void read_events() {
        alignas(inotify_event) std::array<char, 16 * 1024> buffer;
        for (ssize_t n; (n = ::read(inotify_.get(), buffer.data(), buffer.size())) > 0;)
            for (std::size_t at = 0; at < static_cast<std::size_t>(n);) {
                const auto *const event =
                    reinterpret_cast<const inotify_event *>(buffer.data() + at);
                at += sizeof *event + event->len;
                // The entry may have been in running/ for too short a time to be seen there.
                if (event->wd == pending_watch_ && (event->mask & IN_MOVED_FROM) != 0 &&
                    event->len > 0 && event->name == id_)
                    was_taken_ = true;
            }
    }

    [[nodiscard]] place look() {
        struct stat st {};
        if (read_exit_code())
            return place::finished;
        if (is_regular(files_.pending.get(), id_, st))
            return place::pending;
        if (is_regular(files_.running.get(), id_, st)) {
            was_taken_ = true;
            return place::running;
        }
        return read_exit_code() ? place::finished : place::nowhere;
    }

    // The exit code in .exit; nothing until it holds a number.
    [[nodiscard]] std::optional<int> read_exit_code() const {
        const std::string text = read_result(".exit", 16);
        const auto number = qvmremote::parse_decimal<std::int32_t>(text);
        return number && *number >= -255 && *number <= 255 ? number : std::nullopt;
    }
    // Whether all of the result is written.
    [[nodiscard]] bool is_whole() const {
        return read_result(".meta", limits::queue_text).find("\nexit_code=") != std::string::npos;
    }
    [[nodiscard]] unique_fd open_output(const char *suffix, struct stat &st) const {
        return open_regular(files_.results.get(), id_ + suffix, st);
    }

    // Withdraws the entry. True when dom0 had not taken it, and now cannot take it.
    [[nodiscard]] bool withdraw() {
        const std::string hidden = "." + id_;
        if (::renameat(files_.pending.get(), id_.c_str(), files_.pending.get(), hidden.c_str()) !=
            0)
            return false;
        ::unlinkat(files_.pending.get(), hidden.c_str(), 0);
        remove_token_and_copy();
        is_left_ = false;
        return true;
    }
    // Removes the entry, wherever it is. True when it never ran.
    bool take_back() {
        if (withdraw())
            return true;
        ::unlinkat(files_.running.get(), id_.c_str(), 0);
        remove_token_and_copy();
        is_left_ = false;
        return false;
    }
    // Removes the result, and the rest of the entry.
    void clear() {
        for (const char *suffix : {".out", ".err", ".exit", ".meta"})
            ::unlinkat(files_.results.get(), (id_ + suffix).c_str(), 0);
        remove_token_and_copy();
        is_left_ = false;
    }

  private:
    entry(queue_directories files, std::string id) : files_(std::move(files)), id_(std::move(id)) {}

    void remove_token_and_copy() const {
        for (const char *suffix : {".auth", ".cmd"})
            ::unlinkat(files_.pending.get(), (id_ + suffix).c_str(), 0);
    }
    [[nodiscard]] std::string read_result(const char *suffix, std::size_t most) const {
        struct stat st {};
        std::string out;
        if (const unique_fd fd = open_output(suffix, st)) {
            out.resize(most);
            const ssize_t n = ::read(fd.get(), out.data(), most);
            out.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
        }
        return out;
    }

    queue_directories files_;
    unique_fd inotify_;
    std::string id_;
    int pending_watch_ = -1;
    bool is_left_ = false;
    bool was_taken_ = false;
};

// Waits for the descriptor or a signal. Returns the signal, or 0.
int wait_for(pollfd descriptor, int signal_fd, int most_ms) {
    pollfd fds[2] = {descriptor, {signal_fd, POLLIN, 0}};
    ::poll(fds, 2, most_ms);
    std::uint8_t number = 0;
    return signal_fd >= 0 && ::read(signal_fd, &number, 1) == 1 ? number : 0;
}

// Passes one file of the result to its sink. False when that was not possible; then `r` says why.
bool pour(const entry &from, const char *suffix, host::output_sink &to, int signal_fd,
          run_result &r) {
    struct stat st {};
    const unique_fd fd = from.open_output(suffix, st);
    const auto lose = [&](const char *why) {
        r.how = run_result::kind::lost;
        r.untrusted_text = why;
        return false;
    };
    if (!fd)
        return lose("dom0 left an exit code and no output; is there room in this qube's home?");
    std::array<std::uint8_t, 64 * 1024> piece;
    std::string end;
    std::uint64_t size = 0;
    for (;;) {
        const ssize_t n = ::read(fd.get(), piece.data(), piece.size());
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return lose("the output cannot be read");
        if (n == 0)
            break;
        bytes_view left(piece.data(), static_cast<std::size_t>(n));
        size += left.size();
        end += as_text(left.last(std::min(left.size(), queue_cut_mark.size())));
        end.erase(0, end.size() - std::min(end.size(), queue_cut_mark.size()));
        while (!left.empty()) {
            left = left.subspan(to.take(left));
            if (to.broken()) {
                r.how = run_result::kind::sink_broken;
                return false;
            }
            if (!left.empty()) {
                const int signal = wait_for({to.blocked_on(), POLLOUT, 0}, signal_fd,
                                            to.blocked_on() < 0 ? 10 : look_again_ms);
                if (signal != 0) {
                    r.how = run_result::kind::interrupted;
                    r.signal = signal;
                    return false;
                }
            }
        }
    }
    if (size > limits::recorded_output && end == queue_cut_mark)
        return lose("dom0 cut the output at 10 MiB, which is all that protocol 1 carries");
    return true;
}

} // namespace

host::outcome<std::optional<run_result>> run_queued(const home &where, const secret &key,
                                                    const queued_command &what,
                                                    const host::run_streams &io,
                                                    const std::function<bool()> &agent_is_there) {
    auto left = entry::leave(where, key, what);
    if (!left)
        return tl::unexpected(left.error());
    entry &e = *left;
    const std::string socket = where.directory() + "/agent.sock";
    const std::uint64_t begin_ms = host::awake_ms();
    const std::uint64_t end_ms =
        what.timeout_s > 0 ? begin_ms + std::uint64_t{what.timeout_s} * 1000 : UINT64_MAX;
    std::uint64_t gone_ms = 0, finished_ms = 0, tick_ms = begin_ms;
    bool said_running = false;
    run_result r;
    r.id = what.id.text();
    for (;;) {
        e.read_events();
        const entry::place now_at = e.look();
        const std::uint64_t now_ms = host::awake_ms();
        std::uint64_t next_ms = std::min(now_ms + look_again_ms, end_ms);
        r.may_have_run = e.was_taken();
        if (now_at == entry::place::finished) {
            finished_ms = finished_ms == 0 ? now_ms : finished_ms;
            if (e.is_whole() || now_ms >= finished_ms + meta_patience_ms)
                break;
            next_ms = std::min(next_ms, finished_ms + meta_patience_ms);
        } else if (now_at == entry::place::nowhere) {
            gone_ms = gone_ms == 0 ? now_ms : gone_ms;
            if (now_ms >= gone_ms + gone_patience_ms) {
                r.how = r.may_have_run ? run_result::kind::lost : run_result::kind::rejected;
                r.reason = errc::bad_token;
                r.untrusted_text = "dom0 took the command away and left no result";
                e.clear();
                return r;
            }
            next_ms = std::min(next_ms, gone_ms + gone_patience_ms);
        } else {
            gone_ms = 0;
            if (now_at == entry::place::running && !std::exchange(said_running, true) &&
                io.changed) {
                io.changed(host::run_state::sent, {});
                io.changed(host::run_state::running, {});
            }
            if (now_at == entry::place::pending && agent_is_there &&
                ::access(socket.c_str(), F_OK) == 0 && agent_is_there() && e.withdraw())
                return std::optional<run_result>();
        }
        if (now_ms >= end_ms) {
            r.may_have_run = !e.take_back();
            r.how = run_result::kind::ended;
            r.end.cause = end_cause::timed_out;
            r.end.value = what.timeout_s;
            return r;
        }
        if (io.tick && now_ms >= tick_ms + static_cast<std::uint64_t>(io.tick_ms)) {
            tick_ms = now_ms;
            io.tick();
        }
        const int signal = wait_for({e.descriptor(), POLLIN, 0}, io.signal_fd,
                                    static_cast<int>(next_ms - now_ms) + 1);
        if (signal != 0) {
            r.may_have_run = !e.take_back();
            r.how = run_result::kind::interrupted;
            r.signal = signal;
            return r;
        }
    }
    r.may_have_run = true;
    r.how = run_result::kind::ended;
    const int code = e.read_exit_code().value_or(255);
    r.end.cause = code < 0 ? end_cause::signalled : end_cause::exited;
    r.end.value = static_cast<std::uint32_t>(code < 0 ? -code : code);
    if (pour(e, ".out", *io.out, io.signal_fd, r))
        pour(e, ".err", *io.err, io.signal_fd, r);
    e.clear();
    return r;
}

} // namespace qvmremote::qube
