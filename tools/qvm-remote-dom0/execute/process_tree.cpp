// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/process_tree.hpp"

#include <algorithm>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <qvmremote/amounts.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote::dom0 {

namespace {

constexpr std::size_t processes_per_pass = 4096;

// Processes and their children, from /proc.
class process_table {
  public:
    explicit process_table(listing kind) : kind_(kind) {
        if (kind_ == listing::whole_proc)
            scan();
    }

    // The list is complete only while no child ends, so a caller that must not miss one asks again.
    void append_children(pid_t of, std::vector<pid_t> &to) const {
        if (kind_ == listing::whole_proc) {
            const auto [first, last] = children_.equal_range(of);
            for (auto at = first; at != last; ++at)
                to.push_back(at->second);
            return;
        }
        // Each thread has its own children.
        const std::string tasks = "/proc/" + std::to_string(of) + "/task/";
        for (const pid_t thread : numbers_in(tasks)) {
            const std::string text = read_file(tasks + std::to_string(thread) + "/children");
            for (std::string_view left = text; !left.empty();) {
                const std::size_t end = std::min(left.find(' '), left.size());
                if (const auto pid = parse_decimal<pid_t>(left.substr(0, end)))
                    to.push_back(*pid);
                left.remove_prefix(std::min(end + 1, left.size()));
            }
        }
    }

  private:
    [[nodiscard]] static std::vector<pid_t> numbers_in(const std::string &directory) {
        std::vector<pid_t> out;
        for (const std::string &name :
             host::names_in(directory).value_or(std::vector<std::string>{}))
            if (const auto number = parse_decimal<pid_t>(name))
                out.push_back(*number);
        return out;
    }

    [[nodiscard]] static std::string read_file(const std::string &path) {
        std::string out;
        const host::unique_fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
        char piece[4096];
        ssize_t n;
        while (fd && (n = ::read(fd.get(), piece, sizeof piece)) > 0)
            out.append(piece, static_cast<std::size_t>(n));
        return out;
    }

    void scan() {
        for (const pid_t pid : numbers_in("/proc")) {
            const std::string text = read_file("/proc/" + std::to_string(pid) + "/stat");
            // "PID (NAME) STATE PPID ...": the name may hold any byte, also ")".
            const std::size_t name_end = text.rfind(')');
            if (name_end == std::string::npos || text.size() < name_end + 5)
                continue;
            const std::string_view left = std::string_view(text).substr(name_end + 4);
            children_.emplace(parse_decimal<pid_t>(left.substr(0, left.find(' '))).value_or(0),
                              pid);
        }
    }

    listing kind_;
    std::multimap<pid_t, pid_t> children_; // by parent; only for whole_proc
};

[[nodiscard]] listing best_listing() noexcept {
    static const auto best = ::access("/proc/thread-self/children", R_OK) == 0
                                 ? listing::children_files
                                 : listing::whole_proc;
    return best;
}

} // namespace

std::vector<pid_t> processes_below(pid_t root, listing kind) {
    const process_table table(kind);
    std::vector<pid_t> found;
    table.append_children(root, found);
    for (std::size_t i = 0; i < found.size() && i < processes_per_pass; ++i)
        table.append_children(found[i], found);
    return found;
}

std::vector<pid_t> processes_below(pid_t root) { return processes_below(root, best_listing()); }

// Stop, list, kill; parents first. A stopped process does not fork or reap, so the list of its children
// is complete, and no process ID in it is reused. The children of a killed process become ours, and we
// reap only between passes. A process that is missed (made by another thread, or by a chain of
// processes that fork and end) is found in the next pass. A process that restarts its children is dead
// before it sees that they died.
bool kill_all_below_us(const std::function<bool(pid_t)> &spare) {
    const process_table table(best_listing());
    std::vector<pid_t> found;
    table.append_children(::getpid(), found);
    if (spare)
        std::erase_if(found, spare);
    for (std::size_t i = 0; i < found.size() && i < processes_per_pass; ++i) {
        const pid_t pid = found[i];
        ::kill(pid, SIGSTOP);
        table.append_children(pid, found);
        ::kill(pid, SIGKILL);
    }
    return !found.empty();
}

volatile std::sig_atomic_t child_ended = 0;
void on_child_ended(int) { child_ended = 1; }

void wait_for(std::span<pollfd> watched, std::uint64_t until_ms) noexcept {
    sigset_t all_but_child;
    ::sigfillset(&all_but_child);
    ::sigdelset(&all_but_child, SIGCHLD);
    timespec left{};
    if (until_ms != never) {
        const std::uint64_t now = now_ms();
        const std::uint64_t ms = until_ms > now ? until_ms - now : 0;
        left.tv_sec = static_cast<time_t>(ms / 1000);
        left.tv_nsec = static_cast<long>(ms % 1000 * 1'000'000);
    }
    if (::ppoll(watched.data(), watched.size(), until_ms == never ? nullptr : &left,
                &all_but_child) < 0)
        for (pollfd &one : watched)
            one.revents = 0;
}

pid_t reap(int &status) noexcept {
    child_ended = 0;
    return ::waitpid(-1, &status, WNOHANG | __WALL);
}

} // namespace qvmremote::dom0
