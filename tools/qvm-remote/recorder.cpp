// SPDX-License-Identifier: GPL-2.0-or-later
#include "recorder.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/history.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/queue.hpp>

#include "common/queue_files.hpp"

namespace qvmremote::qube {

namespace {

constexpr std::size_t spill_at = 64 * 1024;
constexpr std::size_t filter_piece = 4 * 1024; // so that a stopped terminal stops us soon

} // namespace

recorder::recorder(const home &where, const command_id &id, std::string command)
    : where_(where), id_(id.text()), command_(std::move(command)),
      started_ms_(host::boottime_ms()) {}

recorder::~recorder() = default;

void recorder::fail(const std::string &what) {
    if (problem_.empty())
        problem_ = host::failed(what, errno).value().what;
}

void recorder::append_audit(std::string_view line) {
    const host::unique_fd fd(::open(where_.audit_log().c_str(),
                                    O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd || !host::write_all(fd.get(), line))
        fail("cannot write " + where_.audit_log());
}

// Stops at the first directory that cannot be made, so that errno still says why.
void recorder::open_entry() {
    const std::string missing = "cannot make the history entry in " + where_.history();
    const host::unique_fd base = open_directory(AT_FDCWD, where_.directory().c_str());
    if (!base)
        return fail(missing);
    const host::unique_fd history = open_directory(base.get(), "history");
    if (!history)
        return fail(missing);
    day_ = open_directory(history.get(), started_.substr(0, 10).c_str());
    if (!day_)
        return fail(missing);
    // It has a hidden name until it is complete, so that nobody reads a part of a record.
    entry_ = open_directory(day_.get(), ("." + id_).c_str());
    if (!entry_)
        fail(missing);
}

void recorder::begin() {
    const auto now = host::local_time::now();
    started_ = now.timestamp();
    open_entry();
    append_audit(line_submit(started_, id_, command_));
}

void recorder::spill(lane &l) {
    if (!entry_)
        return l.text.clear();
    if (!l.file)
        l.file.reset(::openat(entry_.get(), l.name,
                              O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!l.file || !host::write_all(l.file.get(), l.text)) {
        fail("cannot record the output in " + where_.history());
        l.bytes =
            limits::recorded_output + 1; // record nothing after a gap: the record would be wrong
    }
    l.text.clear();
}

void recorder::output(bool is_stdout, bytes_view data) {
    lane &l = is_stdout ? out_ : err_;
    if (l.bytes > limits::recorded_output)
        return;
    const auto room = static_cast<std::size_t>(limits::recorded_output - l.bytes);
    l.text.append(as_text(data.first(std::min(room, data.size()))));
    l.bytes += data.size();
    if (l.bytes > limits::recorded_output)
        l.text.append(queue_cut_mark);
    if (l.text.size() >= spill_at)
        spill(l);
}

void recorder::write_file(const char *name, std::string_view text) {
    if (!entry_)
        return;
    const host::unique_fd fd(
        ::openat(entry_.get(), name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd || !host::write_all(fd.get(), text))
        fail("cannot write the history entry in " + where_.history());
}

void recorder::finish(const host::run_result &result, std::uint32_t timeout_s) {
    if (std::exchange(finished_, true))
        return;
    const int exit = result.exit_code();
    const bool timed_out =
        (result.how == host::run_result::kind::ended && result.end.cause == end_cause::timed_out) ||
        (result.how == host::run_result::kind::refused && result.reason == errc::slot_timeout);
    if (started_.empty())
        begin();
    for (lane *l : {&out_, &err_})
        spill(*l);
    for (const lane *l : {&out_, &err_})
        if (!l->file)
            write_file(l->name, {});
    write_file("command", command_);
    write_file("meta", format_meta(id_, started_, host::boottime_ms() - started_ms_, exit));
    write_file("exit", std::to_string(exit));
    if (entry_ && ::renameat(day_.get(), ("." + id_).c_str(), day_.get(), id_.c_str()) != 0)
        fail("cannot finish the history entry in " + where_.history());
    const std::string now = host::local_time::now().timestamp();
    append_audit(timed_out ? line_timeout(now, id_, timeout_s) : line_done(now, id_, exit));
}

void recorded_sink::begin() {
    if (!std::exchange(has_begun_, true) && ::isatty(fd_))
        filter_.emplace(shows_utf8());
}

std::size_t recorded_sink::write(bytes_view data) {
    begin();
    if (!filter_)
        return inner_.take(data);
    if (data.empty())
        return 0;
    std::size_t done = std::exchange(has_first_, false) ? 1 : 0;
    while (done < data.size() && drain()) {
        const bytes_view piece = data.subspan(done, std::min(data.size() - done, filter_piece));
        filter_->push(shown_, as_text(piece));
        done += piece.size();
    }
    // While the terminal has not taken all, one byte counts as not taken, so that the caller waits for
    // the terminal and calls again.
    if (!drain() && done > 0) {
        has_first_ = true;
        --done;
    }
    return done;
}

// Writes what the terminal takes now. Returns whether nothing is left.
bool recorded_sink::drain() {
    while (!shown_.empty()) {
        const std::size_t n = inner_.take(as_bytes(shown_));
        if (n == 0)
            return false;
        shown_.erase(0, n);
    }
    return true;
}

void recorded_sink::finish(int signal_fd) {
    if (!filter_)
        return;
    filter_->end(shown_);
    while (!drain() && !inner_.broken()) {
        pollfd fds[2] = {{inner_.blocked_on(), POLLOUT, 0}, {signal_fd, POLLIN, 0}};
        ::poll(fds, 2, -1);
        std::uint8_t number = 0;
        if (fds[1].revents != 0 && ::read(signal_fd, &number, 1) == 1 && number != SIGWINCH)
            return;
    }
}

void recorded_sink::end() {
    begin();
    if (filter_) // nobody waits for the end of a terminal
        return;
    // The reader of our output sees its end when the command closes it, not only when the command ends.
    inner_.end();
    ::close(fd_);
    ::open("/dev/null", O_WRONLY); // so that no other file gets this number
}

} // namespace qvmremote::qube
