// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/log.hpp"

#include <cerrno>
#include <cstdio>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/host/clock.hpp>

#include "base/dom0_limits.hpp"

namespace qvmremote::dom0 {

host::outcome<event_log> event_log::open(const std::string &path, bool echo) {
    event_log out(path, echo);
    if (auto opened = out.reopen(); !opened)
        return tl::unexpected(std::move(opened.error()));
    return out;
}

host::outcome<void> event_log::reopen() {
    host::unique_fd fd(::open(
        path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
    struct stat st = {};
    if (!fd || ::fstat(fd.get(), &st) != 0)
        return host::failed("cannot open the log " + path_, errno);
    fd_ = std::move(fd);
    size_ = static_cast<std::uint64_t>(st.st_size);
    return {};
}

bool event_log::path_names_open_file() const {
    struct stat opened = {}, named = {};
    return ::fstat(fd_.get(), &opened) == 0 && ::lstat(path_.c_str(), &named) == 0 &&
           opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
}

void event_log::put(std::string_view text) {
    if (text.empty())
        return;
    if (!path_names_open_file()) {
        // If this fails, the open file stays in use, and the next put() tries again.
        [[maybe_unused]] const auto opened = reopen();
    }
    // If the open file has another name, this would give its old name to a file of another program.
    if (size_ >= limits::event_log_file && path_names_open_file()) {
        // If this fails, the open file grows, and the next put() tries again.
        [[maybe_unused]] const int renamed = std::rename(path_.c_str(), (path_ + ".1").c_str());
        [[maybe_unused]] const auto opened = reopen();
    }
    if (const ssize_t n = ::write(fd_.get(), text.data(), text.size()); n > 0)
        size_ += static_cast<std::uint64_t>(n);
    if (echo_) {
        [[maybe_unused]] const ssize_t m = ::write(STDERR_FILENO, text.data(), text.size());
    }
}

void event_log::write(log_category category, std::string_view text) { begin().add(category, text); }

void event_log::write_for(const std::string &peer, log_category category, std::string_view text) {
    const bool was_counting = gate_.due_ms().has_value();
    if (gate_.take(peer, {}, true, host::boottime_ms()))
        write(category, text);
    else if (!was_counting && on_counting_)
        on_counting_();
}

std::optional<std::uint64_t> event_log::write_counts(bool all) {
    while (const auto sum = gate_.next_sum(host::boottime_ms(), all))
        write(log_category::info, (sum->first.empty() ? "other qubes" : "vm=" + sum->first) + ": " +
                                      std::to_string(sum->second.count) +
                                      " more lines about refusals and failures were left out");
    return gate_.due_ms();
}

event_log::lines event_log::begin() { return lines(*this); }

event_log::lines::lines(event_log &log)
    : log_(log), timestamp_(host::local_time::now().timestamp()) {}

event_log::lines &event_log::lines::add(log_category category, std::string_view text) {
    text_ += log_line(timestamp_, category, text);
    return *this;
}

} // namespace qvmremote::dom0
