// SPDX-License-Identifier: GPL-2.0-or-later
#include "carrier.hpp"

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/host/files.hpp>
#include <qvmremote/limits.hpp>

namespace qvmremote::agent {

namespace {

using host::unique_fd;

// A command whose token does not come within this time is announced without one.
constexpr std::uint64_t token_patience_ms = 5'000;
constexpr std::uint64_t later_ms = 1'000;
constexpr std::uint64_t look_again_ms = 1'000;
// Our client leaves an entry when it finds no agent, and takes the entry back when it sees one. To
// give it time for that, entries that exist when we begin, or come within this time, wait.
constexpr std::uint64_t take_back_ms = 500;
} // namespace

host::outcome<carrier> carrier::open(const std::string &base, std::uint64_t now_ms) {
    carrier out(base);
    out.take_back_until_ms_ = now_ms + take_back_ms;
    if (auto opened = out.open_directories(); !opened)
        return tl::unexpected(opened.error());
    out.files_.sweep();
    if (!out.inotify_) {
        std::fprintf(stderr,
                     "qvm-remote-agent: cannot watch %s/queue: %s. It is looked at once a second, "
                     "until fs.inotify.max_user_instances is raised\n",
                     base.c_str(), std::strerror(errno));
        out.look_due_ms_ = now_ms + look_again_ms;
    }
    out.publish_results();
    for (const std::string &name : names_in(out.files_.running.get())) {
        struct stat st {};
        const auto id = command_id::parse(name);
        if (!id || !is_regular(out.files_.running.get(), name, st))
            continue;
        // An entry that has its result would have been removed a moment later. That result is
        // valid.
        if (is_regular(out.files_.results.get(), name + ".exit", st))
            ::unlinkat(out.files_.running.get(), name.c_str(), 0);
        else
            out.machine_.stale(*id);
    }
    for (const std::string &name : names_in(out.files_.pending.get()))
        if (command_id::parse(name))
            out.consider(name, now_ms);
    out.say_idle();
    return out;
}

// Opens the directories and watches them. Without inotify this succeeds, inotify_ is empty, and
// errno says why.
host::outcome<void> carrier::open_directories() {
    auto opened = queue_directories::open(base_);
    if (!opened)
        return tl::unexpected(opened.error());
    files_ = std::move(*opened);
    inotify_.reset(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
    constexpr std::uint32_t gone = IN_DELETE | IN_MOVED_FROM;
    // A directory that we hold open does not report its removal; the directory above it does.
    const host::unique_fd queue = open_directory(files_.base.get(), "queue");
    const auto watches = [&](const host::unique_fd &directory, std::uint32_t events) {
        return watch_directory(inotify_.get(), directory.get(), events) >= 0;
    };
    if (inotify_ && (!watches(files_.pending, gone | IN_CLOSE_WRITE | IN_MOVED_TO) ||
                     !watches(files_.running, gone) || !watches(files_.base, IN_MOVE_SELF) ||
                     !watches(queue, gone | IN_DELETE_SELF | IN_MOVE_SELF)))
        inotify_.reset();
    // A directory that was removed before it was watched is never reported.
    struct stat st {};
    for (const int directory :
         {queue.get(), files_.pending.get(), files_.running.get(), files_.results.get()})
        if (::fstat(directory, &st) != 0 || st.st_nlink == 0)
            return host::failed("a directory of " + base_ + "/queue was removed");
    return {};
}

// Makes the directories of the queue again, after somebody removed or moved one. Entries that ran
// from the old one count as withdrawn.
void carrier::reopen(std::uint64_t now_ms) {
    look_due_ms_ = UINT64_MAX;
    if (!open_directories() || !inotify_)
        look_due_ms_ = now_ms + look_again_ms;
    scan(now_ms);
}

// Publishes exit codes that an earlier agent left hidden. An exit code is complete when its entry
// is not in running/ any more.
void carrier::publish_results() const {
    for (const std::string &name : names_in(files_.results.get())) {
        if (!name.starts_with('.') || !name.ends_with(".exit"))
            continue;
        const auto id = command_id::parse(std::string_view(name).substr(1, name.size() - 6));
        if (struct stat st{}; id && is_regular(files_.results.get(), name, st) &&
                              !is_regular(files_.running.get(), id->text(), st))
            static_cast<void>(publish(files_.results.get(), name.substr(1)));
    }
}

void carrier::scan(std::uint64_t now_ms) {
    for (const std::string &name : names_in(files_.pending.get()))
        if (command_id::parse(name))
            consider(name, now_ms);
    std::vector<std::string> known;
    for (const auto &[id, e] : entries_)
        known.push_back(id);
    for (const std::string &id : known)
        consider(id, now_ms);
    say_idle();
}

void carrier::look(std::uint64_t now_ms) {
    alignas(inotify_event) std::array<char, 16 * 1024> buffer;
    bool overflow = false, lost = false;
    for (;;) {
        const ssize_t n = ::read(inotify_.get(), buffer.data(), buffer.size());
        if (n <= 0)
            break;
        for (std::size_t at = 0; at < static_cast<std::size_t>(n);) {
            const auto *const event = reinterpret_cast<const inotify_event *>(buffer.data() + at);
            at += sizeof *event + event->len;
            if (event->mask & IN_Q_OVERFLOW) {
                overflow = true;
                continue;
            }
            lost = lost || (event->mask & (IN_ISDIR | IN_DELETE_SELF | IN_MOVE_SELF)) != 0;
            if (event->len == 0)
                continue;
            std::string name = event->name;
            if (name.ends_with(".auth"))
                name.resize(name.size() - 5);
            if (command_id::parse(name))
                consider(name, now_ms);
        }
    }
    if (lost)
        return reopen(now_ms);
    if (overflow)
        scan(now_ms);
    say_idle();
}

std::string carrier::token_of(const std::string &id) const {
    struct stat st {};
    const unique_fd fd = open_regular(files_.pending.get(), id + ".auth", st);
    if (!fd)
        return {};
    std::array<char, 256> text{};
    const ssize_t n = ::read(fd.get(), text.data(), text.size());
    std::string_view token(text.data(), n > 0 ? static_cast<std::size_t>(n) : 0);
    constexpr std::string_view blanks = " \t\r\n\v\f";
    const std::size_t begin = token.find_first_not_of(blanks);
    if (begin == token.npos)
        return {};
    token = token.substr(begin, token.find_last_not_of(blanks) + 1 - begin);
    if (token.size() != 64 || token.find_first_not_of("0123456789abcdef") != token.npos)
        return {};
    return std::string(token);
}

// Looks at one name again: whether the entry exists, is ready, or is gone.
void carrier::consider(const std::string &id, std::uint64_t now_ms) {
    using stage = entry::stage;
    struct stat st {};
    const auto at = entries_.find(id);
    const bool fetched = at != entries_.end() && at->second.at == stage::fetched;
    if (!is_regular(fetched ? files_.running.get() : files_.pending.get(), id, st)) {
        if (at == entries_.end())
            return;
        if (at->second.at == stage::announced || fetched)
            machine_.gone(command_id::parse(id).value());
        entries_.erase(at);
        return;
    }
    if (at != entries_.end() && at->second.at != stage::seen)
        return;
    entry &e = at != entries_.end() ? at->second : entries_[id];
    if (e.seen_ms == 0) {
        e.seen_ms = now_ms;
        if (now_ms < take_back_until_ms_)
            e.not_before_ms = take_back_until_ms_;
    }
    if (now_ms < e.not_before_ms)
        return;
    e.not_before_ms = 0; // from now on, only the token can be missing
    const std::string token = token_of(id);
    if (token.empty() && now_ms < e.seen_ms + token_patience_ms)
        return;
    machine_.entry(command_id::parse(id).value(), token, static_cast<std::uint64_t>(st.st_size));
    e.at = stage::announced;
    idle_ = false;
}

std::uint64_t carrier::due_ms() const {
    std::uint64_t due = look_due_ms_;
    for (const auto &[id, e] : entries_)
        if (e.at == entry::stage::seen)
            due = std::min(due,
                           e.not_before_ms != 0 ? e.not_before_ms : e.seen_ms + token_patience_ms);
    return due;
}

void carrier::tick(std::uint64_t now_ms) {
    if (now_ms >= look_due_ms_)
        return reopen(now_ms);
    std::vector<std::string> waiting;
    for (const auto &[id, e] : entries_)
        if (e.at == entry::stage::seen)
            waiting.push_back(id);
    for (const std::string &id : waiting)
        consider(id, now_ms);
    say_idle();
}

bool carrier::take(bytes_view from_dom0, std::uint64_t now_ms) {
    machine_.feed(from_dom0);
    for (;;) {
        const auto order = machine_.next();
        if (!order)
            return false;
        if (!*order)
            break;
        obey(**order, now_ms);
    }
    say_idle();
    return true;
}

void carrier::obey(const queue_order &order, std::uint64_t now_ms) {
    using kind = queue_order::kind;
    switch (order.what) {
    case kind::ping:
        return machine_.pong(order.number);
    case kind::fetch:
        return fetch(*order.id);
    case kind::output:
        return write_output(order);
    case kind::result:
        return write_result(order);
    case kind::drop:
        for (const char *suffix : {"", ".auth", ".cmd"})
            ::unlinkat(files_.pending.get(), (order.id->text() + suffix).c_str(), 0);
        forget_output(order.id->text());
        entries_.erase(order.id->text());
        return;
    case kind::later:
        if (const auto at = entries_.find(order.id->text()); at != entries_.end()) {
            at->second.at = entry::stage::seen;
            at->second.not_before_ms = now_ms + later_ms;
        }
        return;
    }
}

void carrier::fetch(const command_id &id) {
    const std::string &name = id.text();
    const auto at = entries_.find(name);
    if (at == entries_.end() || at->second.at != entry::stage::announced)
        return; // our `gone` and dom0's question crossed
    const auto refuse = [&] {
        // It stays where it is. It would be lost if it counted as done, and announced without end
        // if it counted as new.
        at->second.at = entry::stage::ignored;
        machine_.gone(id);
    };
    struct stat st {};
    if (!is_regular(files_.pending.get(), name, st) ||
        ::renameat(files_.pending.get(), name.c_str(), files_.running.get(), name.c_str()) != 0)
        return refuse();
    const unique_fd fd = open_regular(files_.running.get(), name, st);
    std::string body;
    bool good = static_cast<bool>(fd);
    while (good && body.size() <= limits::command) {
        const std::size_t had = body.size();
        body.resize(std::min(had + 64 * 1024, limits::command + 1));
        const ssize_t n = ::read(fd.get(), body.data() + had, body.size() - had);
        body.resize(had + (n > 0 ? static_cast<std::size_t>(n) : 0));
        if (n < 0 && errno != EINTR)
            good = false;
        if (n == 0)
            break;
    }
    if (!good || body.size() > limits::command) {
        ::renameat(files_.running.get(), name.c_str(), files_.pending.get(), name.c_str());
        return refuse();
    }
    ::unlinkat(files_.pending.get(), (name + ".auth").c_str(), 0);
    at->second.at = entry::stage::fetched;
    machine_.body(id, as_bytes(body));
}

// Removes output that has no result yet.
void carrier::forget_output(const std::string &id) const {
    for (const char *suffix : {".out", ".err"})
        ::unlinkat(files_.results.get(), ("." + id + suffix).c_str(), 0);
}

void carrier::write_output(const queue_order &order) {
    const std::string &name = order.id->text();
    entry &e = entries_[name]; // a stale entry is not in entries_ yet
    if (e.at == entry::stage::seen)
        e.at = entry::stage::announced;
    if (!std::exchange(e.written, true))
        forget_output(name);
    const std::string file = "." + name + (order.is_stdout ? ".out" : ".err");
    const unique_fd fd(::openat(files_.results.get(), file.c_str(),
                                O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd || !host::write_all(fd.get(), as_text(order.data)))
        e.failed = true;
}

void carrier::write_result(const queue_order &order) {
    const std::string &name = order.id->text();
    bool good = !entries_[name].failed;
    // A command that wrote nothing has no files yet. O_TRUNC removes what an earlier attempt left
    // in them.
    const int fresh = entries_[name].written ? 0 : O_TRUNC;
    for (const char *suffix : {".out", ".err"}) {
        const std::string temporary = "." + name + suffix;
        const unique_fd fd(::openat(files_.results.get(), temporary.c_str(),
                                    O_WRONLY | O_CREAT | fresh | O_CLOEXEC | O_NOFOLLOW, 0600));
        good = good && fd;
    }
    good = write_file(files_.results.get(), name + ".meta", order.meta) && good;
    for (const char *suffix : {".out", ".err"})
        good = publish(files_.results.get(), name + suffix) && good;
    // Publish the exit code last, when nothing else of the entry is left, since the client waits
    // for it. After a crash, the next agent publishes it.
    const bool has_exit = write_hidden(files_.results.get(), name + ".exit",
                                       std::to_string(good ? order.exit_code : 255));
    const unique_fd audit(::openat(files_.base.get(), "audit.log",
                                   O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    good = audit && host::write_all(audit.get(), order.audit) && good;
    ::unlinkat(files_.running.get(), name.c_str(), 0);
    for (const char *suffix : {"", ".auth"})
        ::unlinkat(files_.pending.get(), (name + suffix).c_str(), 0);
    good = has_exit && publish(files_.results.get(), name + ".exit") && good;
    entries_.erase(name);
    good ? machine_.done(*order.id) : machine_.failed(*order.id);
}

void carrier::say_idle() {
    const bool empty = std::none_of(entries_.begin(), entries_.end(), [](const auto &row) {
        return row.second.at != entry::stage::ignored;
    });
    if (empty && !idle_)
        machine_.idle();
    idle_ = empty;
}

} // namespace qvmremote::agent
