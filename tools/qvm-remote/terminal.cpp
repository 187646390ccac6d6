// SPDX-License-Identifier: GPL-2.0-or-later
#include "terminal.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <qvmremote/host/clock.hpp>

namespace qvmremote::qube {

namespace {

constexpr std::string_view to_empty_row = "\r\033[K";
constexpr std::size_t usual_width = 80;

bool in_foreground(int terminal) { return ::tcgetpgrp(terminal) == ::getpgrp(); }

std::size_t width_of(int terminal) {
    winsize size{};
    return ::ioctl(terminal, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : usual_width;
}

} // namespace

bool shows_utf8() {
    for (const char *const name : {"LC_ALL", "LC_CTYPE", "LANG"})
        if (const char *const value = std::getenv(name); value && *value != '\0')
            return ::strcasestr(value, "utf-8") || ::strcasestr(value, "utf8");
    return false;
}

waiting_line::waiting_line(bool wanted) : begin_ms_(host::boottime_ms()) {
    if (wanted)
        terminal_.reset(::open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
}

void waiting_line::tick() {
    const std::uint64_t seconds = (host::boottime_ms() - begin_ms_) / 1000;
    if (!terminal_ || seconds < 2 || !in_foreground(terminal_.get()))
        return;
    std::string row = "[" + std::to_string(seconds) + " s] " + text_;
    // The last column stays free: many terminals begin a new row after it.
    row.resize(std::min(row.size(), width_of(terminal_.get()) - 1));
    row.insert(0, to_empty_row);
    shown_ = ::write(terminal_.get(), row.data(), row.size()) > 0 || shown_;
}

void waiting_line::stop() {
    if (!terminal_)
        return;
    // In the background the row is not the last one any more, since the shell has written its prompt.
    if (shown_ && in_foreground(terminal_.get()) &&
        ::write(terminal_.get(), to_empty_row.data(), to_empty_row.size()) < 0 && errno == EAGAIN)
        return; // the next call tries again
    terminal_.reset();
}

} // namespace qvmremote::qube
