// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/confinement.hpp"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace qvmremote::dom0 {
namespace {

// The directories with sockets of services. /var/run is a link to /run nearly everywhere. Programs use
// /tmp to share files, so only the desktop's sockets in it are hidden.
constexpr const char *hidden[] = {"/run", "/var/run", "/tmp/.X11-unix", "/tmp/.ICE-unix"};

// Mounts an empty directory, which nobody can write to, over `directory`. It uses a descriptor of
// the directory, since anybody can write to /tmp, and a link there must not lead the mount to
// another place.
[[nodiscard]] int hide(const char *directory) noexcept {
    const int place = ::open(directory, O_PATH | O_NOFOLLOW | O_DIRECTORY | O_CLOEXEC);
    if (place < 0) // missing, or a link: there is nothing to hide
        return errno == ENOENT || errno == ENOTDIR || errno == ELOOP ? 0 : errno;
    int failure = 0;
    const int context = ::fsopen("tmpfs", FSOPEN_CLOEXEC);
    int tree = -1;
    if (context < 0 || ::fsconfig(context, FSCONFIG_SET_STRING, "mode", "0755", 0) != 0 ||
        ::fsconfig(context, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0 ||
        (tree = ::fsmount(context, FSMOUNT_CLOEXEC,
                          MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV |
                              MOUNT_ATTR_NOEXEC)) < 0 ||
        ::move_mount(tree, "", place, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) != 0)
        failure = errno;
    for (const int fd : {tree, context, place})
        if (fd >= 0)
            ::close(fd);
    return failure;
}

} // namespace

int confine() noexcept {
    if (::unshare(CLONE_NEWNS | CLONE_NEWNET) != 0 ||
        // Mounts made here are not visible outside. What dom0 unmounts is unmounted here too, so that
        // no volume stays busy. What it mounts below a hidden directory stays hidden.
        ::mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) != 0)
        return errno;
    for (const char *const directory : hidden)
        if (const int failure = hide(directory); failure != 0)
            return failure;
    return 0;
}

std::string why_no_confinement() {
    static std::atomic<bool> works = false;
    if (works)
        return {};
    // The daemon has threads, so the child only makes system calls.
    const pid_t child = ::fork();
    if (child == 0)
        ::_exit(confine());
    int status = 0;
    pid_t ended = -1;
    while (child > 0 && (ended = ::waitpid(child, &status, 0)) < 0 && errno == EINTR)
        ;
    const int failure = ended < 0 ? errno : WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
    works = failure == 0;
    return works ? std::string()
                 : std::string("dom0 cannot hide its sockets from a command: ") +
                       std::strerror(failure);
}

} // namespace qvmremote::dom0
