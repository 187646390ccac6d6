// SPDX-License-Identifier: GPL-2.0-or-later
// qrexec-client-vm TARGET SERVICE[+ARG] in the qube that QVMREMOTE_QUBE names. It plays the rest of
// qrexec too: the policy, dom0's services in the directory that the machine's file `services`
// names, the descriptor that a socket gets, and the environment that a program gets.
//
// Faults of the qube: `refuse`, `trouble` and `hang` happen instead of a call. `cut N` ends the
// call after N bytes from dom0. These change the descriptor that a socket gets: `descriptor-cut N`
// sends only N bytes of it and ends the direction, `descriptor-long N` makes an argument of N
// bytes, `descriptor-service` names another service, `descriptor-no-nul` leaves out the NUL, and
// `descriptor-name` makes a bad name of the qube.
#include <sys/stat.h>
#include <sys/un.h>

#include "call.hpp"

namespace {

// The longest service with its argument that qrexec passes on. With one more byte the real agent
// hangs for good.
constexpr std::size_t longest = 3935;
constexpr std::size_t chunk = 65536;

bool is_service_character(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("_.+-").find(c) != std::string_view::npos;
}

int connect_to(const std::string &path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path)
        return -1;
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (::connect(fd, reinterpret_cast<const sockaddr *>(&address), sizeof address) == 0)
        return fd;
    ::close(fd);
    return -1;
}

// If dom0 has no such service, qrexec closes the call's output. If both descriptors are one socket,
// it stays open, and the program waits for the caller.
int end_without_service() {
    struct stat in {
    }, out{};
    const bool is_one = ::fstat(0, &in) == 0 && ::fstat(1, &out) == 0 && in.st_ino == out.st_ino;
    ::close(1);
    char room[4096];
    while (is_one && ::read(0, room, sizeof room) > 0) {
    }
    return 127;
}

bool send_all(int fd, std::string_view text) {
    while (!text.empty()) {
        const ssize_t n = ::send(fd, text.data(), text.size(), MSG_NOSIGNAL);
        if (n <= 0)
            return false;
        text.remove_prefix(static_cast<std::size_t>(n));
    }
    return true;
}

struct direction {
    int from, to;
    std::uint64_t most = UINT64_MAX; // ends after so many bytes
    std::string pending{};
    bool ended = most == 0;
    bool broken = false;

    void read() {
        char room[chunk];
        const ssize_t n = ::read(from, room, std::min<std::uint64_t>(sizeof room, most));
        if (n > 0) {
            most -= static_cast<std::uint64_t>(n);
            ended = most == 0;
            if (!broken)
                pending.assign(room, static_cast<std::size_t>(n));
            write();
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            ended = true;
        }
    }
    void write() {
        if (pending.empty())
            return;
        const ssize_t n = ::write(to, pending.data(), pending.size());
        if (n > 0) {
            pending.erase(0, static_cast<std::size_t>(n));
        } else if (n < 0 && errno != EAGAIN && errno != EINTR) {
            broken = true; // drop the rest, as qrexec does
            pending.clear();
        }
    }
};

// Relays until the service has closed its output, or until its first `cut` bytes have passed.
void relay(int service_in, int service_out, long cut) {
    const int flags[2] = {::fcntl(0, F_GETFL), ::fcntl(1, F_GETFL)};
    for (const int fd : {0, 1, service_in, service_out})
        standin::detail::set_nonblocking(fd);
    direction up{0, service_in};
    direction down{service_out, 1, cut < 0 ? UINT64_MAX : static_cast<std::uint64_t>(cut)};
    bool is_shut = false;
    while (!down.ended || !down.pending.empty()) {
        pollfd fds[4] = {{up.ended || !up.pending.empty() ? -1 : up.from, POLLIN, 0},
                         {up.pending.empty() ? -1 : up.to, POLLOUT, 0},
                         {down.ended || !down.pending.empty() ? -1 : down.from, POLLIN, 0},
                         {down.pending.empty() ? -1 : down.to, POLLOUT, 0}};
        if (::poll(fds, 4, -1) < 0)
            continue;
        if (fds[0].fd >= 0 && fds[0].revents)
            up.read();
        if (fds[1].fd >= 0 && fds[1].revents)
            up.write();
        if (up.ended && up.pending.empty() && !is_shut) {
            is_shut = true; // a half-close: the service may still send output
            ::shutdown(service_in, SHUT_WR);
        }
        if (fds[2].fd >= 0 && fds[2].revents)
            down.read();
        if (fds[3].fd >= 0 && fds[3].revents)
            down.write();
    }
    ::fcntl(0, F_SETFL, flags[0]);
    ::fcntl(1, F_SETFL, flags[1]);
}

int run_program(const std::string &path, const std::string &full, const std::string &argument,
                const std::string &qube, bool is_keyword, const std::string &target, long cut) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return 125;
    const pid_t child = ::fork();
    if (child == 0) {
        for (const char *const name : {"QVMREMOTE_QUBE", "HOME"})
            ::unsetenv(name);
        ::setenv("QREXEC_SERVICE_FULL_NAME", full.c_str(), 1);
        ::setenv("QREXEC_SERVICE_ARGUMENT", argument.c_str(), 1);
        ::setenv("QREXEC_REMOTE_DOMAIN", qube.c_str(), 1);
        ::setenv("QREXEC_REQUESTED_TARGET_TYPE", is_keyword ? "keyword" : "name", 1);
        ::setenv(is_keyword ? "QREXEC_REQUESTED_TARGET_KEYWORD" : "QREXEC_REQUESTED_TARGET",
                 target.c_str(), 1);
        ::setsid();
        ::signal(SIGPIPE, SIG_DFL);
        ::dup2(ends[1], 0);
        ::dup2(ends[1], 1);
        const int log = ::open((standin::machine() + "/qrexec.log").c_str(),
                               O_WRONLY | O_APPEND | O_CREAT, 0600);
        ::dup2(log, 2); // stderr never goes to the qube
        ::close_range(3, ~0u, 0);
        ::execl(path.c_str(), path.c_str(), argument.empty() ? nullptr : argument.c_str(), nullptr);
        ::_exit(125);
    }
    ::close(ends[1]);
    relay(ends[0], ends[0], cut);
    ::close(ends[0]);
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

} // namespace

int main(int argc, char **argv) {
    std::string target, full;
    for (int at = 1; at < argc; ++at) {
        const std::string word = argv[at];
        if (word[0] == '-' && target.empty())
            continue;
        if (target.empty())
            target = word;
        else if (full.empty())
            full = word;
        else
            return 2; // a local program, which we do not use
    }
    const char *const set = std::getenv("QVMREMOTE_QUBE");
    const std::string qube = set != nullptr ? set : "";
    standin::note_call("qrexec-client-vm", qube, argv);
    ::signal(SIGPIPE, SIG_IGN);
    if (full.empty() || !standin::exists(qube) || standin::state_of(qube) != "Running") {
        std::fprintf(stderr, "qrexec-client-vm: connect: No such file or directory\n");
        return 125;
    }
    if (full.size() > longest) {
        standin::append(standin::machine() + "/violations", "too-long\n");
        for (;;)
            ::pause();
    }
    for (char &c : full)
        if (!is_service_character(c))
            c = '_';
    if (full.find('+') == full.npos)
        full += '+';
    const std::string name = full.substr(0, full.find('+'));
    const std::string argument = full.substr(name.size() + 1);

    const auto faults = standin::faults_of(qube);
    const auto fault = [&](const char *of) {
        const auto at = faults.find(of);
        return at == faults.end() ? -1 : at->second;
    };
    if (faults.contains("hang"))
        for (;;)
            ::pause();
    if (faults.contains("trouble")) {
        std::fprintf(stderr, "vchan connection failed\n");
        return 125;
    }
    if (faults.contains("refuse") || (target != "dom0" && target != "@adminvm")) {
        std::fprintf(stderr, "Request refused\n");
        return 126;
    }
    const std::string directory = standin::read_line(standin::machine() + "/services");
    std::string path = directory + "/" + full;
    struct stat at {};
    if (::stat(path.c_str(), &at) != 0)
        path = directory + "/" + name;
    if (directory.empty() || ::stat(path.c_str(), &at) != 0)
        return end_without_service();
    const bool is_keyword = target[0] == '@';
    const std::string asked = is_keyword ? target.substr(1) : target;
    if (!S_ISSOCK(at.st_mode))
        return run_program(path, full, argument, qube, is_keyword, asked, fault("cut"));

    const int service = connect_to(path);
    if (service < 0)
        return 125;
    std::string told = full;
    if (fault("descriptor-long") >= 0)
        told = name + "+" + std::string(static_cast<std::size_t>(fault("descriptor-long")), 'a');
    if (faults.contains("descriptor-service"))
        told = "qubes.VMShell+" + argument;
    std::string descriptor = told + " " + (faults.contains("descriptor-name") ? "../" : "") + qube +
                             (is_keyword ? " keyword " : " name ") + asked;
    if (!faults.contains("descriptor-no-nul"))
        descriptor += '\0';
    if (fault("descriptor-cut") >= 0) {
        descriptor.resize(static_cast<std::size_t>(fault("descriptor-cut")));
        send_all(service, descriptor);
        ::shutdown(service, SHUT_WR);
    } else {
        send_all(service, descriptor);
    }
    relay(service, service, fault("cut"));
    return 0;
}
