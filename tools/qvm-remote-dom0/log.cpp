// SPDX-License-Identifier: GPL-2.0-or-later
#include "log.hpp"

#include <cerrno>

#include <fcntl.h>
#include <unistd.h>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/files.hpp>

namespace qvmremote::dom0 {

host::outcome<event_log> event_log::open(const std::string &path, bool echo) {
    host::unique_fd fd(
        ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd)
        return host::failed("cannot open the log " + path, errno);
    return event_log(std::move(fd), echo);
}

void event_log::put(std::string_view text) {
    if (text.empty())
        return;
    [[maybe_unused]] const ssize_t n = ::write(fd_.get(), text.data(), text.size());
    if (echo_) {
        [[maybe_unused]] const ssize_t m = ::write(STDERR_FILENO, text.data(), text.size());
    }
}

void event_log::write(log_category category, std::string_view text) { begin().add(category, text); }

event_log::lines event_log::begin() { return lines(*this); }

event_log::lines::lines(event_log &log)
    : log_(log), timestamp_(host::local_time::now().timestamp()) {}

event_log::lines &event_log::lines::add(log_category category, std::string_view text) {
    text_ += log_line(timestamp_, category, text);
    return *this;
}

} // namespace qvmremote::dom0
