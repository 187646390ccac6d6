// SPDX-License-Identifier: GPL-2.0-or-later
#include "prune.hpp"

#include <cstdint>
#include <cstdio>
#include <ctime>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/host/files.hpp>
#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote::agent {

namespace {

using host::unique_fd;

constexpr std::uint64_t day_ms = 24 * 3600 * 1000ull;
constexpr std::uint64_t mebibyte = 1024 * 1024;
constexpr std::uint64_t most_days = 36'500;
constexpr std::uint64_t most_mebibytes = 1024 * 1024 * 1024;

// Oldest first: a day's name and an ID begin with the time.
std::vector<std::string> directories_in(int directory) {
    return host::names_in(directory, host::listed::directories)
        .value_or(std::vector<std::string>{});
}

unique_fd open_below(int directory, const std::string &name) {
    return unique_fd(
        ::openat(directory, name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
}

// Returns the size of an entry, which only holds regular files; with `remove`, removes it.
std::uint64_t visit_entry(int day, const std::string &name, bool remove) {
    const unique_fd entry = open_below(day, name);
    std::uint64_t bytes = 0;
    const auto files = host::names_in(entry.get());
    if (!files)
        return 0;
    for (const std::string &file : *files) {
        struct stat st {};
        if (::fstatat(entry.get(), file.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0 ||
            S_ISDIR(st.st_mode))
            continue;
        bytes += static_cast<std::uint64_t>(st.st_blocks) * 512;
        if (remove)
            ::unlinkat(entry.get(), file.c_str(), 0);
    }
    if (remove)
        ::unlinkat(day, name.c_str(), AT_REMOVEDIR);
    return bytes;
}

bool is_day(const std::string &name) { return parse_calendar_time(name, "YYYY-MM-DD").has_value(); }

// The first day that is kept. An empty name is before every day.
std::string first_day_kept(const history_limits &most) {
    if (!most.days)
        return {};
    const time_t oldest = ::time(nullptr) - static_cast<time_t>(*most.days) * 24 * 3600;
    tm fields{};
    ::localtime_r(&oldest, &fields);
    char text[16];
    const std::size_t size = ::strftime(text, sizeof text, "%Y-%m-%d", &fields);
    return {text, size};
}

void prune(int history, const history_limits &most) {
    const std::string limit = first_day_kept(most);
    struct sized {
        std::string day, entry;
        std::uint64_t bytes;
    };
    std::vector<sized> kept;
    std::uint64_t total = 0, removed = 0;
    for (const std::string &day : directories_in(history)) {
        if (!is_day(day))
            continue;
        const bool remove = day < limit;
        const unique_fd open = open_below(history, day);
        for (const std::string &entry : directories_in(open.get())) {
            const std::uint64_t bytes = visit_entry(open.get(), entry, remove);
            if (remove) {
                ++removed;
                continue;
            }
            total += bytes;
            // A hidden entry is not complete: its client may still write it. Only its age removes it.
            if (!entry.starts_with('.'))
                kept.push_back({day, entry, bytes});
        }
        if (remove)
            ::unlinkat(history, day.c_str(), AT_REMOVEDIR);
    }
    for (const sized &s : kept) {
        if (!most.mebibytes || total <= *most.mebibytes * mebibyte)
            break;
        visit_entry(open_below(history, s.day).get(), s.entry, true);
        ::unlinkat(history, s.day.c_str(), AT_REMOVEDIR); // fails while another entry is in it
        total -= s.bytes;
        ++removed;
    }
    if (removed != 0)
        std::fprintf(stderr,
                     "qvm-remote-agent: removed %llu entries of the history that are beyond "
                     "QVM_REMOTE_HISTORY_DAYS or QVM_REMOTE_HISTORY_MIB\n",
                     static_cast<unsigned long long>(removed));
}

host::outcome<std::optional<std::uint64_t>> limit_of(const config &settings, const char *name,
                                                     std::uint64_t largest) {
    const auto text = settings.get(name);
    if (!text)
        return std::optional<std::uint64_t>{};
    const auto value = parse_decimal<std::uint64_t>(*text);
    if (!value || *value == 0 || *value > largest)
        return host::failed(std::string(name) + " is not a whole number from 1 to " +
                            std::to_string(largest));
    return std::optional<std::uint64_t>{*value};
}

} // namespace

host::outcome<history_limits> history_limits_of(const config &settings) {
    auto days = limit_of(settings, "QVM_REMOTE_HISTORY_DAYS", most_days);
    if (!days)
        return tl::unexpected(days.error());
    auto mebibytes = limit_of(settings, "QVM_REMOTE_HISTORY_MIB", most_mebibytes);
    if (!mebibytes)
        return tl::unexpected(mebibytes.error());
    return history_limits{*days, *mebibytes};
}

std::uint64_t prune_history(const std::string &base, std::uint64_t now_ms,
                            const history_limits &most) {
    if (!most.days && !most.mebibytes)
        return UINT64_MAX;
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
    // Do this in a process of its own: a hundred thousand entries take seconds, and sessions must
    // not wait.
    if (::fork() == 0) {
        ::setpriority(PRIO_PROCESS, 0, 19);
        prune(history.get(), most);
        ::_exit(0);
    }
    return now_ms + day_ms;
}

} // namespace qvmremote::agent
