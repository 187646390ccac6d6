// SPDX-License-Identifier: GPL-2.0-or-later
#include "terminal_session.hpp"

#include <cerrno>
#include <csignal>

#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <qvmremote/bytes.hpp>

namespace qvmremote::qube {

namespace {

// For the signal handlers, which cannot reach the object.
struct {
    int signals = -1;
    termios before{}, raw{};
    bool is_known = false; // before and raw are set
    volatile std::sig_atomic_t is_raw = 0;
} handler_state;

// Signals that would end this program while the terminal is raw. Those that run.cpp catches are not
// in this list.
constexpr int deadly[] = {SIGABRT, SIGALRM,   SIGBUS, SIGFPE,   SIGILL,  SIGPOLL,
                          SIGPROF, SIGSEGV,   SIGSYS, SIGTRAP,  SIGUSR1, SIGUSR2,
                          SIGXCPU, SIGVTALRM, SIGPWR, SIGSTKFLT};

// A terminal that is not the controlling one has no foreground.
bool in_foreground() {
    const pid_t group = ::tcgetpgrp(STDIN_FILENO);
    return group < 0 || group == ::getpgrp();
}

// Restores the modes, but not in the background: there the shell has set them for another program,
// and setting them would stop us.
void restore() {
    const int error = errno;
    if (handler_state.is_raw != 0 && in_foreground())
        ::tcsetattr(STDIN_FILENO, TCSANOW, &handler_state.before);
    handler_state.is_raw = 0;
    errno = error;
}

void make_raw() {
    static termios
        now; // static: gcc 12 at -O3 takes the copy of a local one for a dangling pointer
    if (handler_state.is_raw != 0 || !in_foreground() || ::tcgetattr(STDIN_FILENO, &now) != 0)
        return;
    // If a parent without job control stopped us, the modes are still our own.
    if (!handler_state.is_known || now.c_lflag != handler_state.raw.c_lflag ||
        now.c_iflag != handler_state.raw.c_iflag)
        handler_state.before = now;
    handler_state.is_known = true;
    handler_state.raw = handler_state.before;
    ::cfmakeraw(&handler_state.raw);
    handler_state.raw.c_cc[VMIN] = 1;
    handler_state.raw.c_cc[VTIME] = 0;
    handler_state.is_raw = 1; // set it first: a signal in between restores unchanged modes
    ::tcsetattr(STDIN_FILENO, TCSANOW, &handler_state.raw);
}

void handle(int number, void (*handler)(int)) {
    struct sigaction action {};
    action.sa_handler = handler;
    ::sigaction(number, &action, nullptr);
}

void look_at_terminal(int) {
    const int error = errno;
    const std::uint8_t byte = SIGWINCH;
    [[maybe_unused]] const ssize_t n = ::write(handler_state.signals, &byte, 1);
    errno = error;
}

// This also runs after SIGSTOP, which no handler sees: another program may have set the modes
// meanwhile.
void on_continue(int number) {
    handler_state.is_raw = 0;
    look_at_terminal(number);
}

void end_by(int number) {
    restore();
    ::signal(number, SIG_DFL);
    ::raise(number); // takes effect when its handler returns
}

void stop(int) {
    restore();
    sigset_t only;
    ::sigemptyset(&only);
    ::sigaddset(&only, SIGTSTP);
    handle(SIGTSTP, SIG_DFL);
    sigset_t blocked;
    ::sigprocmask(SIG_UNBLOCK, &only, &blocked);
    ::raise(SIGTSTP);
    ::sigprocmask(SIG_SETMASK, &blocked, nullptr);
    handle(SIGTSTP, stop);
    // We go on. No SIGCONT has come if the kernel did not stop us, as in an orphaned process group.
    look_at_terminal(SIGTSTP);
}

} // namespace

terminal_session::terminal_session(int signals, std::optional<std::uint8_t> escape)
    : scanner_(escape), escape_(escape.value_or('~')) {
    handler_state.signals = signals;
}

terminal_session::~terminal_session() {
    if (!begun_)
        return;
    restore();
    for (const int number : {SIGWINCH, SIGCONT, SIGTSTP})
        handle(number, SIG_DFL);
    for (const int number : deadly)
        handle(number, SIG_DFL);
}

void terminal_session::begin() {
    begun_ = true;
    handle(SIGWINCH, look_at_terminal);
    if (!::isatty(STDIN_FILENO))
        return;
    handle(SIGCONT, on_continue);
    handle(SIGTSTP, stop);
    for (const int number : deadly)
        handle(number, end_by);
    make_raw();
}

host::terminal_size terminal_session::size() {
    if (begun_)
        make_raw();
    winsize now{};
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
        if (::ioctl(fd, TIOCGWINSZ, &now) == 0)
            break;
    return {now.ws_col, now.ws_row};
}

host::input_filter::passed terminal_session::pass(std::span<std::uint8_t> data, std::size_t n) {
    using then = host::input_filter::action;
    make_raw(); // in case this program was in the background before
    if (!::isatty(STDIN_FILENO))
        return {n, then::go_on};
    typed_.assign(as_text(data.first(n)));
    std::size_t written = 0;
    for (bytes_view left = as_bytes(typed_); !left.empty();) {
        const auto done = scanner_.push(left, data.subspan(written));
        left = left.subspan(done.used);
        written += done.written;
        switch (done.what) {
        case escape_scanner::action::leave:
            return {written, then::leave};
        case escape_scanner::action::detach:
            return {written, then::detach};
        case escape_scanner::action::suspend:
            stop(SIGTSTP);
            break;
        case escape_scanner::action::help:
            show_help();
            break;
        case escape_scanner::action::none:
            break;
        }
    }
    return {written, then::go_on};
}

void terminal_session::show_help() const {
    const std::string e = escape_ < 0x20 ? std::string("^") + static_cast<char>(escape_ + 0x40)
                                         : std::string(1, static_cast<char>(escape_));
    const std::string text = e + "?\r\nEscapes, each at the beginning of a line:\r\n " + e +
                             ".   leave: the command ends, a job goes on\r\n " + e +
                             "d   leave the command running as a job\r\n " + e +
                             "^Z  suspend qvm-remote\r\n " + e + "?   this text\r\n " + e + e +
                             "   send the character itself\r\n";
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
}

} // namespace qvmremote::qube
