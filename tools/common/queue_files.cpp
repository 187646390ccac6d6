// SPDX-License-Identifier: GPL-2.0-or-later
#include "queue_files.hpp"

#include <cerrno>
#include <ctime>

#include <fcntl.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <qvmremote/host/files.hpp>

namespace qvmremote {

namespace {

constexpr time_t sweep_age_s = 3600;

void sweep_one(int directory) {
    const time_t oldest = ::time(nullptr) - sweep_age_s;
    for (const std::string &name : names_in(directory))
        if (struct stat st{}; is_regular(directory, name, st) && st.st_mtime < oldest)
            ::unlinkat(directory, name.c_str(), 0);
}

} // namespace

host::outcome<queue_directories> queue_directories::open(const std::string &base) {
    queue_directories out;
    out.base = open_directory(AT_FDCWD, base.c_str());
    const host::unique_fd queue = open_directory(out.base.get(), "queue");
    out.pending = open_directory(queue.get(), "pending");
    out.running = open_directory(queue.get(), "running");
    out.results = open_directory(queue.get(), "results");
    if (!out.pending || !out.running || !out.results)
        return host::failed("cannot make the directories of " + base + "/queue", errno);
    return out;
}

void queue_directories::sweep() const {
    for (const host::unique_fd *directory : {&pending, &running, &results})
        sweep_one(directory->get());
}

host::unique_fd open_directory(int parent, const char *name) {
    constexpr int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW;
    host::unique_fd fd(::openat(parent, name, flags));
    if (!fd && errno == ENOENT && (::mkdirat(parent, name, 0700) == 0 || errno == EEXIST))
        fd.reset(::openat(parent, name, flags));
    return fd;
}

host::unique_fd open_regular(int directory, const std::string &name, struct stat &st) {
    host::unique_fd fd(
        ::openat(directory, name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (fd && (::fstat(fd.get(), &st) != 0 || !S_ISREG(st.st_mode)))
        fd.reset();
    return fd;
}

bool is_regular(int directory, const std::string &name, struct stat &st) {
    return ::fstatat(directory, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode);
}

std::vector<std::string> names_in(int directory) {
    return host::names_in(directory).value_or(std::vector<std::string>{});
}

bool write_hidden(int directory, const std::string &name, std::string_view text) {
    const std::string hidden = "." + name;
    const host::unique_fd fd(::openat(directory, hidden.c_str(),
                                      O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (fd && host::write_all(fd.get(), text))
        return true;
    const int error = errno;
    if (fd)
        ::unlinkat(directory, hidden.c_str(), 0);
    errno = error;
    return false;
}

bool publish(int directory, const std::string &name) {
    return ::renameat(directory, ("." + name).c_str(), directory, name.c_str()) == 0;
}

bool write_file(int directory, const std::string &name, std::string_view text) {
    if (!write_hidden(directory, name, text))
        return false;
    if (publish(directory, name))
        return true;
    const int error = errno;
    ::unlinkat(directory, ("." + name).c_str(), 0);
    errno = error;
    return false;
}

int watch_directory(int inotify, int directory, std::uint32_t events) {
    const std::string path = "/proc/self/fd/" + std::to_string(directory);
    return ::inotify_add_watch(inotify, path.c_str(), events | IN_ONLYDIR);
}

} // namespace qvmremote
