// SPDX-License-Identifier: GPL-2.0-or-later
#include "home.hpp"

#include <cerrno>
#include <cstdlib>

#include <fcntl.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/crypto.h>

#include <qvmremote/history.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/limits.hpp>

#include "common/queue_files.hpp"

namespace qvmremote::qube {

namespace {

constexpr std::size_t spill_at = 64 * 1024;
constexpr std::size_t largest_key_file = 256;

std::string user_name() {
    const passwd *const who = ::getpwuid(::geteuid());
    return who && who->pw_name ? who->pw_name : std::to_string(::geteuid());
}

} // namespace

host::outcome<home> home::find() {
    std::string base;
    if (const char *const set = std::getenv("HOME"); set && *set == '/')
        base = set;
    else if (const passwd *const who = ::getpwuid(::geteuid()); who && who->pw_dir)
        base = who->pw_dir;
    if (base.empty())
        return host::failed("there is no home directory for " + user_name() + ": set HOME");
    home out;
    out.directory_ = base + "/.qvm-remote";
    if (::access(out.directory_.c_str(), F_OK) != 0 && errno == ENOENT) {
        const std::string old = base + "/.qubes-remote";
        if (::access(old.c_str(), F_OK) == 0 && ::rename(old.c_str(), out.directory_.c_str()) != 0)
            return host::failed("cannot rename " + old + " to " + out.directory_, errno);
    }
    return out;
}

host::outcome<secret> home::load_key() const {
    const std::string path = key_file();
    const host::unique_fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!fd && errno == ENOENT) {
        if (::access("/etc/qubes-release", F_OK) == 0)
            return host::failed(
                "this is dom0, where a command needs no qvm-remote: it is for qubes");
        return tl::unexpected(
            host::failure{"there is no key for " + user_name() + " at " + path +
                              "; make one with `qvm-remote key gen` and register it in dom0 with "
                              "`qvm-remote-dom0 authorize`",
                          ENOENT});
    }
    if (!fd && errno == ELOOP)
        return host::failed("the key file " + path +
                            " is a symbolic link; put the key itself there");
    if (!fd)
        return host::failed("cannot read the key of " + user_name() + " at " + path, errno);
    struct stat st {};
    if (::fstat(fd.get(), &st) != 0 || !S_ISREG(st.st_mode))
        return host::failed("the key " + path + " is not a regular file");
    if (st.st_uid != ::geteuid() && st.st_uid != 0)
        return host::failed("the key " + path + " belongs to somebody else: chown " + user_name() +
                            " " + path);
    if ((st.st_mode & 077) != 0)
        return host::failed("the key " + path + " can be read by others: chmod 600 " + path);
    std::array<char, largest_key_file + 1> text{};
    const ssize_t n = ::read(fd.get(), text.data(), text.size());
    if (n < 0)
        return host::failed("cannot read " + path, errno);
    auto key = secret::parse({text.data(), static_cast<std::size_t>(n)});
    OPENSSL_cleanse(text.data(), text.size());
    if (!key)
        return host::failed(path + " holds no key: byte " + std::to_string(key.error().offset + 1) +
                            " does not fit; a key is 64 digits of 0-9 and a-f, without 0x, sign or "
                            "separators: `qvm-remote key import` or `qvm-remote key gen`");
    return std::move(*key);
}

host::outcome<void> home::store_key(const secret &key) const {
    if (auto made = host::make_directories(directory_, 0700); !made)
        return made;
    std::string text(as_text(key.text()));
    text.push_back('\n');
    auto written = host::write_atomically(key_file(), text, 0600, host::durability::synced);
    OPENSSL_cleanse(text.data(), text.size());
    if (written && ::unlink(pin_file().c_str()) != 0 && errno != ENOENT)
        return host::failed("cannot remove " + pin_file(), errno);
    return written;
}

bool home::is_pinned() const { return ::access(pin_file().c_str(), F_OK) == 0 || errno != ENOENT; }

host::outcome<void> home::pin() const {
    if (::access(pin_file().c_str(), F_OK) == 0)
        return {};
    return host::write_atomically(pin_file(), {}, 0600, host::durability::synced);
}

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
    if (!fd || ::write(fd.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()))
        fail("cannot write " + where_.audit_log());
}

void recorder::begin() {
    const auto now = host::local_time::now();
    started_ = now.timestamp();
    const host::unique_fd base = open_directory(AT_FDCWD, where_.directory().c_str());
    const host::unique_fd history = open_directory(base.get(), "history");
    day_ = open_directory(history.get(), now.date().c_str());
    // Under a hidden name until it is whole, so that nobody takes half a record for one.
    entry_ = open_directory(day_.get(), ("." + id_).c_str());
    if (!entry_)
        fail("cannot make the history entry in " + where_.history());
    append_audit(line_submit(started_, id_, command_));
}

void recorder::spill(lane &l) {
    if (!entry_)
        return l.text.clear();
    if (!l.file)
        l.file.reset(::openat(entry_.get(), l.name,
                              O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    std::string_view left = l.text;
    while (!left.empty()) {
        const ssize_t n = ::write(l.file.get(), left.data(), left.size());
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            fail("cannot record the output in " + where_.history());
            break;
        }
        left.remove_prefix(static_cast<std::size_t>(n));
    }
    l.text.clear();
}

void recorder::output(bool is_stdout, bytes_view data) {
    lane &l = is_stdout ? out_ : err_;
    if (l.bytes >= limits::recorded_output)
        return;
    const auto room = static_cast<std::size_t>(limits::recorded_output - l.bytes);
    l.text.append(as_text(data.first(std::min(room, data.size()))));
    l.bytes += data.size();
    if (l.bytes >= limits::recorded_output && data.size() > room)
        l.text.append("\n[truncated at " + std::to_string(limits::recorded_output) + " bytes]\n");
    if (l.text.size() >= spill_at)
        spill(l);
}

void recorder::write_file(const char *name, std::string_view text) {
    if (!entry_)
        return;
    const host::unique_fd fd(
        ::openat(entry_.get(), name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd || ::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
        fail("cannot write the history entry in " + where_.history());
}

void recorder::finish(const host::run_result &result, std::uint32_t timeout_s) {
    if (std::exchange(finished_, true))
        return;
    const int exit = result.exit_code();
    const bool timed_out =
        result.how == host::run_result::kind::ended && result.end.cause == end_cause::timed_out;
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

void recorded_sink::end() {
    // Who reads our output sees its end when the command has closed it, not when it has ended.
    inner_.end();
    ::close(fd_);
    ::open("/dev/null", O_WRONLY); // the number must not be taken by something else
}

} // namespace qvmremote::qube
