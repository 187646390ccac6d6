// SPDX-License-Identifier: GPL-2.0-or-later
#include "administer/typed_answer.hpp"

#include <algorithm>
#include <chrono>
#include <thread>

#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

namespace qvmremote::dom0 {

namespace {

constexpr std::chrono::seconds settling_time{1};
constexpr std::size_t longest_answer = 128;

// Reads byte by byte, so that a flush of the terminal discards everything that was typed ahead.
std::optional<std::string> read_line() {
    std::string out;
    char c = 0;
    ssize_t n;
    while ((n = ::read(STDIN_FILENO, &c, 1)) == 1 && c != '\n')
        if (out.size() < longest_answer)
            out.push_back(c);
    return n == 1 ? std::optional(out) : std::nullopt;
}

void forget_typed() { ::tcflush(STDIN_FILENO, TCIFLUSH); }

winsize screen() {
    winsize size{};
    if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0)
        size = {};
    return size;
}

} // namespace

bool is_interactive() { return ::isatty(STDIN_FILENO) == 1 && ::isatty(STDOUT_FILENO) == 1; }

std::size_t terminal_width() {
    const std::size_t columns = screen().ws_col;
    return columns == 0 ? 80 : columns;
}

std::optional<std::string> typed_line(std::FILE *to, const std::string &prompt) {
    if (::isatty(STDIN_FILENO) == 1) {
        std::fflush(stdout);
        std::this_thread::sleep_for(settling_time);
        forget_typed();
    }
    std::fputs(prompt.c_str(), to);
    std::fflush(to);
    return read_line();
}

bool show_by_pages(const std::vector<std::string> &rows) {
    const std::size_t lines = screen().ws_row == 0 ? 24 : screen().ws_row;
    const std::size_t page = std::max<std::size_t>(lines, 4) - 2; // the prompt, and one row again
    for (std::size_t at = 0; at < rows.size();) {
        const std::size_t end = std::min(rows.size(), at + page);
        for (; at < end; ++at)
            std::printf("%s\n", rows[at].c_str());
        if (at == rows.size())
            break;
        forget_typed();
        std::printf("-- %zu of %zu rows; Enter shows more, anything else is a no: ", at,
                    rows.size());
        std::fflush(stdout);
        const auto typed = read_line();
        if (!typed || !typed->empty())
            return false;
    }
    return true;
}

} // namespace qvmremote::dom0
