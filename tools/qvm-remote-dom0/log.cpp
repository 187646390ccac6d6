// SPDX-License-Identifier: GPL-2.0-or-later
#include "log.hpp"

#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <unistd.h>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/sanitize.hpp>

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

void output_digest::feed(std::string_view untrusted) {
    while (newlines_ < 3 && !untrusted.empty()) {
        const std::size_t end = untrusted.find('\n');
        const std::string_view piece = untrusted.substr(0, end);
        const std::size_t line_begin = head_.rfind('\n') + 1; // 0 when there is none
        const std::size_t held = head_.size() - line_begin;
        head_.append(piece.substr(0, output_preview - std::min(output_preview, held)));
        if (end == untrusted.npos)
            return;
        head_.push_back('\n');
        ++newlines_;
        untrusted.remove_prefix(end + 1);
    }
    if (untrusted.empty())
        return;
    newlines_ += static_cast<std::size_t>(std::count(untrusted.begin(), untrusted.end(), '\n'));
    // The last line, which may be the one before a final newline.
    const bool ends = untrusted.back() == '\n';
    const std::size_t before = ends && untrusted.size() > 1
                                   ? untrusted.rfind('\n', untrusted.size() - 2)
                                   : ends ? untrusted.npos : untrusted.rfind('\n');
    if (before != untrusted.npos || tail_ended_)
        tail_.clear();
    const std::string_view last =
        untrusted.substr(before == untrusted.npos ? 0 : before + 1);
    tail_.append(last.substr(0, output_preview - std::min(output_preview, tail_.size())));
    tail_ended_ = ends;
    if (ends && !tail_.empty() && tail_.back() == '\n')
        tail_.pop_back();
}

void output_digest::log(event_log::lines &to, log_category category,
                        std::string_view prefix) const {
    const auto show = [&](std::string_view line) {
        to.add(category, std::string(prefix) + preview(line, output_preview));
    };
    std::string_view head = head_;
    if (newlines_ > 3 || (newlines_ == 3 && !tail_.empty())) {
        const std::size_t lines = newlines_ + (tail_ended_ ? 0 : 1);
        show(head.substr(0, head.find('\n')));
        to.add(category,
               std::string(prefix) + "... (" + std::to_string(lines - 2) + " more lines)");
        show(tail_);
        return;
    }
    if (head.ends_with('\n'))
        head.remove_suffix(1);
    else if (head.empty())
        return;
    for (;;) {
        const std::size_t end = head.find('\n');
        show(head.substr(0, end));
        if (end == head.npos)
            return;
        head.remove_prefix(end + 1);
    }
}

} // namespace qvmremote::dom0
