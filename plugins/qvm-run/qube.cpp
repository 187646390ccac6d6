// SPDX-License-Identifier: GPL-2.0-or-later
// The client has this compiled in and runs for milliseconds. So it makes system calls directly,
// without helpers that cost time.
#include "qube.hpp"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>

#include <pwd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/host/unix_socket.hpp>

namespace qvm_run {
namespace {

using qvmremote::host::unique_fd;
using qvmremote::host::unix_address;

struct qube {
    unix_address address;
    char path[unix_address::longest_path + 1]; // for messages
};

constexpr timeval longest_connect = {15, 0};

template <std::size_t N>
bool set_path(char (&path)[N], const char *directory, const char *file) {
    const int size = std::snprintf(path, N, "%s%s", directory, file);
    return size > 0 && static_cast<std::size_t>(size) < N;
}

bool limit_waiting(int socket, timeval most) {
    return ::setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof most) == 0;
}

} // namespace

extern "C" {
int32_t qvm_run_qube_open(const qvmremote_options *options, void **self, char *error,
                          uint32_t error_size) {
    const char *path = nullptr;
    for (uint32_t i = 0; i < options->count; ++i) {
        if (std::strcmp(options->items[i].key, "socket") != 0) {
            std::snprintf(error, error_size, "unknown option '%s': the only option here is socket",
                          options->items[i].key);
            return QVMREMOTE_BAD_OPTION;
        }
        path = options->items[i].value;
    }
    char whole[unix_address::longest_path + 1];
    bool fits = false;
    if (path != nullptr) {
        fits = set_path(whole, path, "");
    } else {
        // Find the home directory as the client does for its own files.
        const char *home = std::getenv("HOME");
        if (home == nullptr || *home != '/') {
            const passwd *const who = ::getpwuid(::geteuid());
            home = who != nullptr && who->pw_dir != nullptr ? who->pw_dir : "";
        }
        if (*home == '\0') {
            std::snprintf(error, error_size, "there is no home directory: set HOME");
            return QVMREMOTE_FAILED;
        }
        fits = set_path(whole, home, "/.qvm-remote/agent.sock");
    }
    const auto address = fits ? std::optional(unix_address::of_path(whole)) : std::nullopt;
    if (!address || !*address) {
        std::snprintf(error, error_size,
                      "option 'socket': the path of the agent's socket exceeds %zu bytes; choose a "
                      "shorter one",
                      unix_address::longest_path);
        return QVMREMOTE_BAD_OPTION;
    }
    auto *const made = new (std::nothrow) qube{**address, {}};
    if (made == nullptr) {
        std::snprintf(error, error_size, "out of memory");
        return QVMREMOTE_FAILED;
    }
    std::memcpy(made->path, whole, sizeof whole);
    *self = made;
    return QVMREMOTE_OK;
}

void qvm_run_qube_close(void *self) { delete static_cast<qube *>(self); }

int32_t qvm_run_qube_connect(void *self, qvmremote_stream *out, char *error, uint32_t error_size) {
    const unix_address &address = static_cast<const qube *>(self)->address;
    const char *const path = static_cast<const qube *>(self)->path;
    unique_fd made(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    // Without a limit, connect() would block for ever when the agent hangs and its queue of
    // connections is full.
    if (!made || !limit_waiting(made.get(), longest_connect)) {
        std::snprintf(error, error_size, "cannot make a socket: %s", std::strerror(errno));
        return QVMREMOTE_FAILED;
    }
    if (::connect(made.get(), address.get(), address.size()) != 0) {
        switch (errno) {
        case ENOENT:
        case ECONNREFUSED:
            std::snprintf(error, error_size,
                          "dom0 has not connected to this qube yet: no agent listens at %s; is "
                          "qvm-remote-dom0 running there, and this qube authorized?",
                          path);
            return QVMREMOTE_UNREACHABLE;
        case EAGAIN:
            std::snprintf(
                error, error_size,
                "the agent at %s does not accept connections; end it, and dom0 starts another",
                path);
            return QVMREMOTE_UNREACHABLE;
        case EACCES:
            std::snprintf(error, error_size, "%s belongs to another user; run as that user", path);
            return QVMREMOTE_REFUSED;
        default:
            std::snprintf(error, error_size, "cannot connect to %s: %s", path,
                          std::strerror(errno));
            return QVMREMOTE_FAILED;
        }
    }
    ucred who{};
    socklen_t size = sizeof who;
    if (::getsockopt(made.get(), SOL_SOCKET, SO_PEERCRED, &who, &size) != 0 ||
        (who.uid != ::geteuid() && who.uid != 0)) {
        std::snprintf(error, error_size,
                      "the process that listens at %s runs as neither this user nor root; find out "
                      "who made that socket",
                      path);
        return QVMREMOTE_REFUSED;
    }
    if (!limit_waiting(made.get(), timeval{})) {
        std::snprintf(error, error_size, "cannot set up a socket: %s", std::strerror(errno));
        return QVMREMOTE_FAILED;
    }
    out->in_fd = out->out_fd = made.release();
    return QVMREMOTE_OK;
}
}

} // namespace qvm_run
