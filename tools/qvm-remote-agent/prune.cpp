// SPDX-License-Identifier: GPL-2.0-or-later
#include <algorithm>
#include <cstdint>
#include <ctime>
#include <string>
#include <vector>

#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/host/unique_fd.hpp>

#include "carrier.hpp"

namespace qvmremote::agent {

namespace {

using host::unique_fd;

constexpr std::uint64_t day_ms = 24 * 3600 * 1000ull;
constexpr int keep_days = 90;
constexpr std::uint64_t keep_bytes = 1024ull * 1024 * 1024;

std::vector<std::string> directories_in(int directory) {
    std::vector<std::string> out;
    DIR *const open = ::fdopendir(::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!open)
        return out;
    while (const dirent *entry = ::readdir(open))
        if (entry->d_name[0] != '.' && entry->d_type != DT_REG)
            out.emplace_back(entry->d_name);
    ::closedir(open);
    std::sort(out.begin(), out.end()); // a day's name and an ID begin with the time
    return out;
}

unique_fd open_below(int directory, const std::string &name) {
    return unique_fd(
        ::openat(directory, name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
}

// An entry holds plain files alone. Returns how large it is, or was.
std::uint64_t visit_entry(int day, const std::string &name, bool remove) {
    const unique_fd entry = open_below(day, name);
    std::uint64_t bytes = 0;
    DIR *const open =
        entry ? ::fdopendir(::openat(entry.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC))
              : nullptr;
    if (!open)
        return 0;
    while (const dirent *file = ::readdir(open)) {
        struct stat st {};
        if (::fstatat(entry.get(), file->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
            S_ISDIR(st.st_mode))
            continue;
        bytes += static_cast<std::uint64_t>(st.st_blocks) * 512;
        if (remove)
            ::unlinkat(entry.get(), file->d_name, 0);
    }
    ::closedir(open);
    if (remove)
        ::unlinkat(day, name.c_str(), AT_REMOVEDIR);
    return bytes;
}

bool is_day(const std::string &name) {
    return name.size() == 10 && name[4] == '-' && name[7] == '-' &&
           name.find_first_not_of("0123456789-") == name.npos;
}

void prune(int history) {
    const time_t oldest = ::time(nullptr) - keep_days * 24 * 3600;
    tm fields{};
    ::localtime_r(&oldest, &fields);
    char limit[16];
    ::strftime(limit, sizeof limit, "%Y-%m-%d", &fields);
    struct sized {
        std::string day, entry;
        std::uint64_t bytes;
    };
    std::vector<sized> kept;
    std::uint64_t total = 0;
    for (const std::string &day : directories_in(history)) {
        if (!is_day(day))
            continue;
        const bool remove = day < limit;
        const unique_fd open = open_below(history, day);
        for (const std::string &entry : directories_in(open.get())) {
            const std::uint64_t bytes = visit_entry(open.get(), entry, remove);
            if (remove)
                continue;
            kept.push_back({day, entry, bytes});
            total += bytes;
        }
        if (remove)
            ::unlinkat(history, day.c_str(), AT_REMOVEDIR);
    }
    for (const sized &s : kept) {
        if (total <= keep_bytes)
            break;
        visit_entry(open_below(history, s.day).get(), s.entry, true);
        ::unlinkat(history, s.day.c_str(), AT_REMOVEDIR); // fails while it holds another
        total -= s.bytes;
    }
}

} // namespace

std::uint64_t prune_history(const std::string &base, std::uint64_t now_ms) {
    const unique_fd history = open_below(AT_FDCWD, base + "/history");
    if (!history)
        return now_ms + day_ms;
    struct stat st {};
    const time_t age = ::fstatat(history.get(), ".pruned", &st, AT_SYMLINK_NOFOLLOW) == 0
                           ? ::time(nullptr) - st.st_mtime
                           : static_cast<time_t>(day_ms / 1000);
    if (age >= 0 && static_cast<std::uint64_t>(age) * 1000 < day_ms)
        return now_ms + day_ms - static_cast<std::uint64_t>(age) * 1000;
    const unique_fd mark(::openat(history.get(), ".pruned",
                                  O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    ::futimens(mark.get(), nullptr);
    // A hundred thousand entries take seconds, and sessions are not to notice.
    if (::fork() == 0) {
        ::setpriority(PRIO_PROCESS, 0, 19);
        prune(history.get());
        ::_exit(0);
    }
    return now_ms + day_ms;
}

} // namespace qvmremote::agent
