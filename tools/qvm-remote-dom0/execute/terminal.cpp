// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/terminal.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

namespace qvmremote::dom0 {

using host::unique_fd;

void describe_terminal(const run_terms &terms, std::vector<std::string> &environment) {
    bool is_named = false;
    for (const auto &[key, value] : terms.environment) {
        is_named = is_named || key == "TERM";
        if (key == "LANG")
            std::replace_if(
                environment.begin(), environment.end(),
                [](const std::string &entry) { return entry.starts_with("LANG="); },
                "LANG=" + value);
    }
    if (!is_named)
        environment.emplace_back("TERM=dumb");
    if (!terms.full)
        for (const char *const one :
             {"PAGER=cat", "SYSTEMD_PAGER=cat", "SYSTEMD_PAGERSECURE=1", "LESSSECURE=1"})
            environment.emplace_back(one);
}

host::outcome<terminal> terminal::open(std::uint16_t columns, std::uint16_t rows,
                                       std::optional<uid_t> owner) {
    constexpr int flags = O_RDWR | O_NOCTTY | O_CLOEXEC;
    unique_fd ours(::posix_openpt(flags));
    if (!ours || ::unlockpt(ours.get()) != 0)
        return host::failed("cannot make a terminal", errno);
    // Do not open it by its name: another file system may be mounted at /dev/pts.
    unique_fd command(::ioctl(ours.get(), TIOCGPTPEER, flags));
    if (!command)
        return host::failed("cannot open a terminal", errno);
    // No other user may write to it.
    if ((owner && ::fchown(command.get(), *owner, static_cast<gid_t>(-1)) != 0) ||
        ::fchmod(command.get(), 0600) != 0)
        return host::failed("cannot give a terminal to its account", errno);
    termios modes{};
    if (::tcgetattr(command.get(), &modes) == 0) {
        modes.c_iflag |= IUTF8; // erasing takes a whole character
        ::tcsetattr(command.get(), TCSANOW, &modes);
    }
    terminal out(std::move(ours), std::move(command));
    out.resize(columns, rows);
    return out;
}

host::outcome<unique_fd> terminal::end() const {
    unique_fd out(::fcntl(ours_.get(), F_DUPFD_CLOEXEC, 0));
    if (!out || ::fcntl(out.get(), F_SETFL, O_RDWR | O_NONBLOCK) != 0)
        return host::failed("cannot open a terminal", errno);
    return out;
}

void resize_terminal(int terminal, std::uint16_t columns, std::uint16_t rows) noexcept {
    const winsize size{rows, columns, 0, 0};
    ::ioctl(terminal, TIOCSWINSZ, &size);
}

void terminal::resize(std::uint16_t columns, std::uint16_t rows) noexcept {
    resize_terminal(ours_.get(), columns, rows);
}

bool terminal::interrupt(int signal) noexcept {
    return (signal == SIGINT || signal == SIGQUIT) && ::ioctl(ours_.get(), TIOCSIG, signal) == 0;
}

std::string terminal::end_of_input(bool in_line) const {
    return dom0::end_of_input(ours_.get(), in_line);
}

std::string end_of_input(int terminal, bool in_line) {
    termios modes{};
    if (::tcgetattr(terminal, &modes) != 0 || !(modes.c_lflag & ICANON) ||
        modes.c_cc[VEOF] == _POSIX_VDISABLE)
        return {};
    return std::string(in_line ? 2 : 1, static_cast<char>(modes.c_cc[VEOF]));
}

} // namespace qvmremote::dom0
