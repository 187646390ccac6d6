// SPDX-License-Identifier: GPL-2.0-or-later
// The service qvmremote.Exec for a qrexec that does not support sockets as services. It connects to
// the daemon's socket, writes what qrexec would write there, and passes bytes in both directions.
// qrexec starts it as `qvmremote.Exec [ARG]`; the argument comes from the environment, which dom0
// sets.
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <qvmremote/host/files.hpp>
#include <qvmremote/host/unix_socket.hpp>

#include "descriptor.hpp"

namespace {

using qvmremote::host::connect_unix;
using qvmremote::host::unix_address;
using qvmremote::host::write_all;

constexpr int no_service = 127; // as qrexec reports it
constexpr int trouble = 125;

int fail(int code, const char *what, int error_number) {
    std::fprintf(stderr, "qvmremote.Exec: %s: %s\n", what, std::strerror(error_number));
    return code;
}

std::string variable(const char *name) {
    const char *const value = std::getenv(name);
    return value != nullptr ? value : "";
}

// Copies until one of the two ends.
void copy(int from, int to) {
    std::array<char, 65536> room;
    for (;;) {
        const ssize_t n = ::read(from, room.data(), room.size());
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0 || !write_all(to, {room.data(), static_cast<std::size_t>(n)}))
            return;
    }
}

} // namespace

int main() {
    const std::string type = variable("QREXEC_REQUESTED_TARGET_TYPE");
    std::string text =
        variable("QREXEC_SERVICE_FULL_NAME") + " " + variable("QREXEC_REMOTE_DOMAIN");
    if (!type.empty())
        text += " " + type + " " +
                variable(type == "keyword" ? "QREXEC_REQUESTED_TARGET_KEYWORD"
                                           : "QREXEC_REQUESTED_TARGET");
    if (!qrexec::parse_descriptor(text)) {
        std::fprintf(stderr, "qvmremote.Exec: qrexec starts this program, as a service\n");
        return trouble;
    }
    std::string path = variable("QVM_REMOTE_QREXEC_SOCKET");
    if (path.empty())
        path = "/run/qubes-rpc/qvmremote.Exec";
    const auto address = unix_address::of_path(path);
    if (!address)
        return fail(trouble, path.c_str(), address.error().error_number);
    const auto connected = connect_unix(*address);
    if (!connected)
        return fail(no_service, "qvm-remote-dom0 does not serve qrexec now",
                    connected.error().error_number);
    const int socket = connected->get();
    // qrexec's daemon may have blocked signals, or ignored SIGCHLD: then we could not wait for our
    // child.
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    ::signal(SIGCHLD, SIG_DFL);
    ::signal(SIGPIPE, SIG_IGN);
    if (!write_all(socket, {text.c_str(), text.size() + 1}))
        return fail(trouble, "cannot write to qvm-remote-dom0", errno);

    const pid_t child = ::fork();
    if (child < 0)
        return fail(trouble, "cannot fork", errno);
    if (child == 0) {
        copy(STDIN_FILENO, socket);
        ::shutdown(socket, SHUT_WR);
        ::_exit(0);
    }
    copy(socket, STDOUT_FILENO);
    ::kill(child, SIGKILL);
    while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }
    return 0;
}
