// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/warden.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <string_view>

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/sched.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include <qvmremote/bytes.hpp>

#include "base/confinement.hpp"
#include "execute/cgroups.hpp"

namespace qvmremote::dom0 {
namespace {

using host::unique_fd;

constexpr std::array<std::string_view, 4> program_directories = {
    "/usr/local/sbin/", "/usr/local/bin/", "/usr/sbin/", "/usr/bin/"};
constexpr std::size_t inline_block = 64 * 1024;        // what a default socket buffer surely takes
constexpr std::size_t largest_block = 8 * 1024 * 1024; // execve's own limit lies below
constexpr std::size_t most_extra = 16;
constexpr std::size_t most_descriptors = 4 + most_extra + 1;
constexpr std::uint64_t grace_ms = 2000;
constexpr std::uint64_t longest_interval_ms = 64;
constexpr std::size_t processes_per_pass = 4096;
constexpr int busy_tries = 500; // 2 ms apart
constexpr long busy_wait_ns = 2'000'000;

// What goes over a control socket. Both ends are this very program, so structs go as they are.
struct report { // keeper to daemon
    std::int32_t kind;
    std::int32_t number;
    std::int32_t flag;
};
constexpr std::int32_t flag_empty = 1, flag_out_of_memory = 2; // of exited
using order = std::int32_t; // daemon to keeper: a signal's number, or
constexpr order order_terminate = 0;
// There is no order to kill: that is the end of the socket, which never fails for lack of room.

[[nodiscard]] std::uint64_t now_ms() noexcept {
    timespec t{};
    ::clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<std::uint64_t>(t.tv_sec) * 1000 +
           static_cast<std::uint64_t>(t.tv_nsec) / 1'000'000;
}

// -1 with errno, 0 at the other end's end. A peer that closed with something of ours unread shows
// as ECONNRESET, once and ahead of what it had sent before: that is still to be read.
[[nodiscard]] ssize_t receive(int fd, void *to, std::size_t size) noexcept {
    for (;;) {
        const ssize_t n = ::recv(fd, to, size, MSG_DONTWAIT);
        if (n >= 0 || (errno != EINTR && errno != ECONNRESET))
            return n;
    }
}

template <class T>
bool send_one(int fd, const T &what) noexcept {
    ssize_t n;
    do
        n = ::send(fd, &what, sizeof what, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n == static_cast<ssize_t>(sizeof what);
}

// The launch block: `launch` as bytes, without its descriptors. Each string has its NUL with it, so
// that argv can point into the block.

void put_string(byte_writer &to, std::string_view text) {
    to.u32(static_cast<std::uint32_t>(text.size() + 1));
    to.put(text);
    to.u8(0);
}

void put_strings(byte_writer &to, const std::vector<std::string> &strings) {
    to.u32(static_cast<std::uint32_t>(strings.size()));
    for (const std::string &s : strings)
        put_string(to, s);
}

enum : std::uint8_t { has_user = 1, has_oom_score = 2, has_no_new_privs = 4, is_confined = 8 };

void put_launch(byte_writer &to, const launch &what) {
    to.u8(static_cast<std::uint8_t>(
        (what.user ? has_user : 0) | (what.oom_score_adj ? has_oom_score : 0) |
        (what.no_new_privs ? has_no_new_privs : 0) | (what.confined ? is_confined : 0)));
    to.u32(what.umask);
    to.u32(static_cast<std::uint32_t>(what.oom_score_adj.value_or(0)));
    to.u64(what.most.memory_bytes);
    to.u32(what.most.pids);
    to.u32(what.most.cpu_percent);
    const identity as = what.user.value_or(identity{});
    to.u32(as.uid);
    to.u32(as.gid);
    to.u32(static_cast<std::uint32_t>(as.groups.size()));
    for (const gid_t g : as.groups)
        to.u32(g);
    to.u32(static_cast<std::uint32_t>(what.extra.size()));
    for (const auto &[from, number] : what.extra)
        to.u32(static_cast<std::uint32_t>(number));
    put_string(to, what.program);
    put_string(to, what.directory);
    put_strings(to, what.argv);
    put_strings(to, what.environment);
}

[[nodiscard]] bool has_nul(const std::string &text) { return text.find('\0') != std::string::npos; }

// What could not be carried out as it is written. A NUL above all: the kernel would cut there, and
// what runs would not be what was approved.
[[nodiscard]] const char *why_not(const launch &what) {
    if (what.program.empty() || what.argv.empty())
        return "a command needs a program and an argv";
    if (has_nul(what.program) || has_nul(what.directory) ||
        std::any_of(what.argv.begin(), what.argv.end(), has_nul) ||
        std::any_of(what.environment.begin(), what.environment.end(), has_nul))
        return "a command holds a NUL byte";
    if (what.in < 0 || what.out < 0 || what.err < 0 || what.extra.size() > most_extra)
        return "a command lacks a descriptor or has too many";
    for (auto at = what.extra.begin(); at != what.extra.end(); ++at)
        if (at->first < 0 || at->second < 3 || at->second > 1023 ||
            std::any_of(what.extra.begin(), at,
                        [&](const auto &other) { return other.second == at->second; }))
            return "a command's descriptor has no number of its own";
    return nullptr;
}

// All that the new process needs, ready before vfork: from there on nothing may be allocated.
struct preparation {
    std::vector<std::string> places; // where the program may be
    std::vector<char *> argv, environment;
    const char *directory = nullptr;
    mode_t mask = 0;
    std::string oom_score; // empty: as it is
    bool no_new_privs = false;
    bool confined = false;
    resources most;
    std::vector<std::pair<int, rlim_t>> rlimits; // RLIMIT_…, of what has no controller
    int cgroup = -1;                             // a directory; none: the keeper's own
    std::optional<identity> user;
    std::vector<std::pair<int, int>> descriptors; // from -> to, in order of `to`
    sigset_t no_signals{};

    // Written by the new process, in our memory, which is how we learn of it.
    volatile int error = 0;
    volatile bool directory_missing = false;
};

[[nodiscard]] char *take_string(byte_reader &from) {
    const auto size = from.u32();
    const auto text = from.take(size.value_or(0));
    if (!text || text->empty() || text->back() != 0)
        return nullptr;
    // execve takes char *const and leaves it alone.
    return const_cast<char *>(as_text(*text).data());
}

[[nodiscard]] bool take_strings(byte_reader &from, std::vector<char *> &to) {
    const std::uint32_t n = from.u32().value_or(0);
    if (n > from.left())
        return false;
    to.reserve(n + 1);
    for (std::uint32_t i = 0; i < n; ++i)
        if (to.emplace_back(take_string(from)) == nullptr)
            return false;
    to.push_back(nullptr);
    return true;
}

// The reverse of put_launch; `p` points into the block afterwards. `descriptors` holds the numbers
// alone. The block is the daemon's own, so the checks are against our faults.
[[nodiscard]] bool take_launch(bytes_view block, preparation &p) {
    byte_reader from(block);
    const std::uint8_t has = from.u8().value_or(0);
    p.mask = from.u32().value_or(077);
    const auto score = static_cast<std::int32_t>(from.u32().value_or(0));
    if (has & has_oom_score)
        p.oom_score = std::to_string(score);
    p.no_new_privs = has & has_no_new_privs;
    p.confined = has & is_confined;
    p.most.memory_bytes = from.u64().value_or(0);
    p.most.pids = from.u32().value_or(0);
    p.most.cpu_percent = from.u32().value_or(0);
    const auto uid = from.u32();
    const auto gid = from.u32();
    const auto groups = from.u32();
    if (!groups || *groups > from.left())
        return false;
    identity as{*uid, *gid, {}};
    for (std::uint32_t i = 0; i < *groups; ++i)
        as.groups.push_back(from.u32().value_or(0));
    if (has & has_user)
        p.user = std::move(as);
    const auto extra = from.u32();
    if (!extra || *extra > most_extra)
        return false;
    p.descriptors = {{-1, 0}, {-1, 1}, {-1, 2}};
    for (std::uint32_t i = 0; i < *extra; ++i)
        p.descriptors.emplace_back(-1, static_cast<int>(from.u32().value_or(0)));
    const char *program = take_string(from);
    p.directory = take_string(from);
    if (!program || !p.directory || !take_strings(from, p.argv) ||
        !take_strings(from, p.environment) || from.left() != 0)
        return false;
    if (std::strchr(program, '/'))
        p.places.emplace_back(program);
    else
        for (const std::string_view directory : program_directories)
            p.places.push_back(std::string(directory) + program);
    return true;
}

// Runs in the new process between vfork and exec: on the keeper's memory, while the keeper stands
// still. So only system calls, and nothing is written but the two answers.
[[noreturn, gnu::noinline]] void become(preparation &p) noexcept {
    const auto give_up = [&p] {
        p.error = errno;
        ::_exit(127);
    };
    ::setsid();
    for (const auto &[from, to] : p.descriptors)
        if (::dup2(from, to) < 0)
            give_up();
    // All else is close-on-exec already; this holds even where somebody forgets it once.
    unsigned first = 0;
    for (const auto &[from, to] : p.descriptors) {
        const auto kept = static_cast<unsigned>(to);
        if (kept > first)
            ::syscall(SYS_close_range, first, kept - 1, 0);
        first = kept + 1;
    }
    ::syscall(SYS_close_range, first, ~0U, 0);
    ::umask(p.mask);
    for (const auto &[what, most] : p.rlimits) {
        const rlimit both{most, most};
        if (::syscall(SYS_prlimit64, 0, what, &both, nullptr) != 0)
            give_up();
    }
    if (!p.oom_score.empty()) { // while we may: lowering it needs a privilege
        const int fd = ::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
        if (fd >= 0) {
            // A command that is killed later, or earlier, than it might be is no reason against it.
            [[maybe_unused]] const ssize_t n = ::write(fd, p.oom_score.data(), p.oom_score.size());
            ::close(fd);
        }
    }
    if (p.confined) // while we may: as the account we could not
        if (const int failure = confine(); failure != 0) {
            errno = failure;
            give_up();
        }
    if (p.user) {
        // The system calls themselves: glibc's functions of these names change all threads of a
        // process, by a protocol that knows nothing of vfork.
        const identity &as = *p.user;
        if (::syscall(SYS_setgroups, as.groups.size(), as.groups.data()) != 0 ||
            ::syscall(SYS_setresgid, as.gid, as.gid, as.gid) != 0 ||
            ::syscall(SYS_setresuid, as.uid, as.uid, as.uid) != 0)
            give_up();
    }
    // As the user that it runs as, who may see less than root, or on a network more.
    if (*p.directory == '\0' || ::chdir(p.directory) != 0) {
        p.directory_missing = *p.directory != '\0';
        if (::chdir("/") != 0)
            give_up();
    }
    if (p.no_new_privs && ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        give_up();
    ::sigprocmask(SIG_SETMASK, &p.no_signals, nullptr);
    // As execvp: a program that may not be run counts when there is none behind it that may. But
    // what is no program (ENOEXEC) is not handed to a shell.
    int why = ENOENT;
    for (const std::string &place : p.places) {
        ::execve(place.c_str(), p.argv.data(), p.environment.data());
        // A script that was just written: a helper that the daemon started at that moment holds a copy of
        // the descriptor that wrote it, until its own exec.
        for (int i = 0; errno == ETXTBSY && i < busy_tries; ++i) {
            const timespec moment{0, busy_wait_ns};
            ::nanosleep(&moment, nullptr);
            ::execve(place.c_str(), p.argv.data(), p.environment.data());
        }
        if (errno == EACCES)
            why = EACCES;
        else if (errno != ENOENT && errno != ENOTDIR) {
            why = errno;
            break;
        }
    }
    errno = why;
    give_up();
    __builtin_unreachable();
}

// vfork lends our memory to the new process and wakes us when it has called exec or ended, so the
// cost does not depend on what we hold, and errno needs no pipe. A frame of its own, since the new
// process must not return from the one that called vfork.
[[gnu::noinline]] pid_t start_process(preparation &p) noexcept {
    const pid_t pid = ::vfork();
    if (pid == 0)
        become(p);
    if (pid < 0)
        p.error = errno;
    return pid;
}

// The same into a cgroup. A process that moves there by itself waits 10 ms for all others to notice
// (the write lock on cgroup_threadgroup_rwsem); one that is born there waits for nobody. glibc has
// no such call, and vfork's other half is to leave nothing on the stack that the new process could
// write over: the call itself is inline, and what follows it in the new process does not return.
[[gnu::noinline]] pid_t start_process_in_group(preparation &p) noexcept {
    clone_args how{};
    how.flags = CLONE_VM | CLONE_VFORK | CLONE_INTO_CGROUP;
    how.exit_signal = SIGCHLD;
    how.cgroup = static_cast<std::uint64_t>(p.cgroup);
#if defined(__x86_64__)
    long pid;
    asm volatile("syscall"
                 : "=a"(pid)
                 : "0"(long{SYS_clone3}), "D"(&how), "S"(sizeof how)
                 : "rcx", "r11", "memory");
    if (pid == 0)
        become(p);
#if defined(__SANITIZE_ADDRESS__)
    // What its frames were marked with lies below ours; for vfork the sanitizer does this itself.
    constexpr std::size_t deep = 256 * 1024;
    __asan_unpoison_memory_region(static_cast<char *>(__builtin_frame_address(0)) - deep, deep);
#endif
    if (pid < 0)
        p.error = static_cast<int>(-pid);
    return static_cast<pid_t>(pid);
#else
    p.error = ENOSYS; // claim_cgroup knows
    return -1;
#endif
}

// Processes and their children, as /proc has it.
class process_table {
  public:
    explicit process_table(detail::listing how) : how_(how) {
        if (how_ == detail::listing::whole_proc)
            scan();
    }

    // The kernel promises all children only while none of them ends; who must not miss one asks
    // again.
    void append_children(pid_t of, std::vector<pid_t> &to) const {
        if (how_ == detail::listing::whole_proc) {
            const auto [first, last] = children_.equal_range(of);
            for (auto at = first; at != last; ++at)
                to.push_back(at->second);
            return;
        }
        // Each thread has its own children.
        const std::string tasks = "/proc/" + std::to_string(of) + "/task/";
        for_each_number(tasks.c_str(), [&](const char *thread) {
            const std::string text = read_file(tasks + thread + "/children");
            const char *at = text.data();
            const char *const end = at + text.size();
            while (at != end) {
                pid_t pid = 0;
                const auto [next, error] = std::from_chars(at, end, pid);
                if (error == std::errc())
                    to.push_back(pid);
                at = next == at ? at + 1 : next;
            }
        });
    }

  private:
    template <class Take>
    static void for_each_number(const char *directory, Take take) {
        const std::unique_ptr<DIR, int (*)(DIR *)> open(::opendir(directory), ::closedir);
        while (const dirent *entry = open ? ::readdir(open.get()) : nullptr)
            if (is_digit(entry->d_name[0]))
                take(entry->d_name);
    }

    [[nodiscard]] static std::string read_file(const std::string &path) {
        std::string out;
        const unique_fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
        char piece[4096];
        ssize_t n;
        while (fd && (n = ::read(fd.get(), piece, sizeof piece)) > 0)
            out.append(piece, static_cast<std::size_t>(n));
        return out;
    }

    void scan() {
        for_each_number("/proc", [this](const char *number) {
            const std::string text = read_file(std::string("/proc/") + number + "/stat");
            // "PID (NAME) STATE PPID …": a name may hold anything, ")" too.
            const std::size_t name_end = text.rfind(')');
            if (name_end == std::string::npos || text.size() < name_end + 5)
                return;
            pid_t parent = 0;
            std::from_chars(text.data() + name_end + 4, text.data() + text.size(), parent);
            children_.emplace(parent, static_cast<pid_t>(std::atoi(number)));
        });
    }

    detail::listing how_;
    std::multimap<pid_t, pid_t> children_; // of parent; whole_proc alone
};

[[nodiscard]] detail::listing best_listing() noexcept {
    static const auto best = ::access("/proc/thread-self/children", R_OK) == 0
                                 ? detail::listing::children_files
                                 : detail::listing::whole_proc;
    return best;
}

// One pass over what is below us: stop, list, kill, parents first. A stopped process neither forks
// nor reaps, so its list is complete and the numbers on it stay whose they are; the killed one's
// children become ours, and we reap between passes alone. What slips through (another thread of the
// same process, a chain that forks and ends) is there in the next pass. Whoever restarts what dies
// is dead before it learns of it.
// Returns whether there was anybody; `spare` are children of ours to leave alone, with all below.
template <class Spare = std::map<pid_t, bool>>
bool kill_all_below_us(const Spare &spare = {}) {
    const process_table table(best_listing());
    std::vector<pid_t> found;
    table.append_children(::getpid(), found);
    std::erase_if(found, [&](pid_t pid) { return spare.contains(pid); });
    for (std::size_t i = 0; i < found.size() && i < processes_per_pass; ++i) {
        const pid_t pid = found[i];
        ::kill(pid, SIGSTOP);
        table.append_children(pid, found);
        ::kill(pid, SIGKILL);
    }
    return !found.empty();
}

// When to kill again: soon, then less and less often, for what does not die at once (a process in
// the middle of a write to a broken disk, one of another user).
class kill_clock {
  public:
    void start() noexcept { interval_ = 1; }
    [[nodiscard]] bool due() noexcept {
        const std::uint64_t now = now_ms();
        if (now < next_)
            return false;
        next_ = now + interval_;
        interval_ = std::min(interval_ * 2, longest_interval_ms);
        return true;
    }
    [[nodiscard]] std::uint64_t next() const noexcept { return next_; }

  private:
    std::uint64_t next_ = 0;
    std::uint64_t interval_ = 1;
};

volatile std::sig_atomic_t child_ended = 0;
void on_child_ended(int) { child_ended = 1; }

constexpr std::uint64_t never = ~std::uint64_t{0};

// Waits until a descriptor (-1: none) is ready, a child has ended, or the time has come. All
// signals are blocked elsewhere, so no end of a child is missed between looking and waiting.
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

// The children that have ended, one a call; 0 when none has now, -1 when there is no child. __WALL:
// whatever signal the child was to send us at its end.
[[nodiscard]] pid_t reap(int &status) noexcept {
    child_ended = 0;
    return ::waitpid(-1, &status, WNOHANG | __WALL);
}

class keeper {
  public:
    keeper(unique_fd control, const command_cgroup &group) noexcept
        : control_(std::move(control)), group_(group) {}

    [[nodiscard]] bool start(preparation &p, const cgroup_home &home) noexcept {
        // Dropped before it began: nobody would hear of it.
        char byte;
        if (::recv(control_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
            return false;
        unique_fd group;
        if (group_) {
            auto opened = group_.limit(p.most, home).and_then([&] { return group_.open(); });
            if (!opened) {
                const int why = opened.error().error_number;
                fail(why == ENOENT ? EIO : why); // it is not the program that does not exist
                return false;
            }
            group = std::move(*opened);
        }
        p.cgroup = group.get();
        memory_is_bounded_ = p.most.memory_bytes != 0 && home.memory;
        first_ = group ? start_process_in_group(p) : start_process(p);
        if (p.error != 0) {
            fail(p.error);
            return false;
        }
        tell({child_event::started, first_, p.directory_missing});
        return true;
    }

    void fail(int error_number) noexcept { tell({child_event::failed, error_number, 0}); }

    // Until nothing is left of the tree; returns whether it went by itself.
    bool watch() {
        for (;;) {
            std::array<pollfd, 1> watched{{{deaf_ ? -1 : control_.get(), POLLIN, 0}}};
            wait_for(watched, wake_ms());
            if (child_ended && !childless_ && reap_all()) {
                childless_ = true;
                if (group_.remove())
                    break;
                begin_to_kill(); // who is in the group and was never below us
            }
            if (watched[0].revents != 0)
                take_order();
            if (now_is(kill_at_ms_))
                begin_to_kill();
            if (killing_ && clock_.due()) {
                kill_tree();
                if (childless_ && group_.remove())
                    break;
            }
        }
        tell({child_event::empty, 0, 0});
        return !killing_;
    }

  private:
    void tell(const report &what) noexcept { send_one(control_.get(), what); }

    [[nodiscard]] static bool now_is(std::uint64_t at_ms) noexcept {
        return at_ms != never && now_ms() >= at_ms;
    }
    [[nodiscard]] std::uint64_t wake_ms() const noexcept {
        return killing_ ? clock_.next() : kill_at_ms_;
    }

    // Whether nothing is left. No child means no descendant: whoever loses its parent is ours.
    [[nodiscard]] bool reap_all() {
        int status = 0, first_status = 0;
        bool first_ended = false;
        pid_t pid;
        while ((pid = reap(status)) > 0)
            if (pid == first_) {
                first_ = 0; // the number may be another's from now on, also as a group
                first_ended = true;
                first_status = status;
            }
        if (first_ended)
            tell({child_event::exited, first_status,
                  (pid < 0 ? flag_empty : 0) |
                      (memory_is_bounded_ && group_.out_of_memory() ? flag_out_of_memory : 0)});
        return pid < 0;
    }

    void take_order() {
        order what{};
        const ssize_t n = receive(control_.get(), &what, sizeof what);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n != sizeof what) {
            // Reports still go out: the daemon may only have closed its half.
            deaf_ = true;
            begin_to_kill();
        } else if (what == order_terminate) {
            terminate();
        } else {
            signal(what);
        }
    }

    void signal(int number) {
        if (first_ != 0)
            ::kill(-first_, number);
        else
            for (const pid_t pid : detail::processes_below(::getpid()))
                ::kill(pid, number);
    }

    void terminate() {
        if (killing_ || kill_at_ms_ != never)
            return;
        kill_at_ms_ = now_ms() + grace_ms;
        for (const pid_t pid : detail::processes_below(::getpid())) {
            ::kill(pid, SIGTERM);
            ::kill(pid, SIGCONT); // a stopped process would not learn of it
        }
    }

    void begin_to_kill() noexcept {
        kill_at_ms_ = never;
        if (killing_)
            return;
        killing_ = true;
        clock_.start();
        // Who ends a crowd should not queue behind it. Only root may, others do without.
        ::setpriority(PRIO_PROCESS, 0, -20);
    }

    void kill_tree() {
        group_.kill();
        // A signal to a group reaches all of it or none of it against fork, so this alone ends most
        // trees however fast they grow.
        if (first_ != 0)
            ::kill(-first_, SIGKILL);
        kill_all_below_us();
    }

    unique_fd control_;
    const command_cgroup &group_;
    pid_t first_ = 0; // 0 once it is reaped
    bool memory_is_bounded_ = false;
    bool childless_ = false;
    std::uint64_t kill_at_ms_ = never;
    bool killing_ = false;
    bool deaf_ = false;
    kill_clock clock_;
};

// Maps what did not fit into the message; it stays for as long as argv points into it.
[[nodiscard]] bytes_view map_block(int fd) noexcept {
    struct stat at {};
    if (::fstat(fd, &at) != 0 || at.st_size <= 0)
        return {};
    const auto size = static_cast<std::size_t>(at.st_size);
    const void *data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    return data == MAP_FAILED ? bytes_view()
                              : bytes_view(static_cast<const std::uint8_t *>(data), size);
}

// A launch as it has arrived: control, stdin, stdout, stderr, the extra ones and, when there is no
// block, the file that it is in. No descriptors: nothing has arrived.
struct launch_message {
    std::vector<unique_fd> received;
    bytes_view block;
};

// None when the daemon is gone. The block lies in memory that the next call overwrites.
[[nodiscard]] std::optional<launch_message> take_message(int socket, int flags) {
    // Not on the stack, and the kernel gives memory only to what is written.
    static std::array<std::uint8_t, inline_block> text;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * most_descriptors)> ancillary;
    iovec part{text.data(), text.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = ancillary.data();
    message.msg_controllen = ancillary.size();
    const ssize_t n = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | flags);
    launch_message out;
    if (n < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNRESET))
        return out;
    if (n <= 0)
        return {};
    for (cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (std::size_t i = 0; i < count; ++i) {
            int fd;
            std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            out.received.emplace_back(fd);
        }
    }
    // Without its first byte, which says nothing: an empty message would be taken for the end.
    out.block = bytes_view(text.data(), static_cast<std::size_t>(n)).subspan(1);
    return out;
}

// What a controller does better is left to it.
[[nodiscard]] std::vector<std::pair<int, rlim_t>> rlimits_for(const preparation &p,
                                                              const cgroup_home &home) {
    std::vector<std::pair<int, rlim_t>> out;
    if (p.most.bounded() || p.user)
        out.emplace_back(RLIMIT_CORE, 0);
    if (p.most.memory_bytes != 0 && !home.memory)
        out.emplace_back(RLIMIT_DATA, p.most.memory_bytes);
    if (p.most.pids != 0 && !home.pids && p.user && p.user->uid != 0)
        out.emplace_back(RLIMIT_NPROC, p.most.pids);
    return out;
}

// From a message to the end of the command; returns whether this process is as it was before.
bool keep(launch_message message, const command_cgroup &group, const cgroup_home &home) noexcept {
    auto &[received, block] = message;
    keeper self(std::move(received.front()), group);
    preparation p;
    const bool is_mapped = block.empty() && received.size() > 4;
    if (is_mapped) {
        block = map_block(received.back().get());
        received.pop_back();
    }
    int error = 0;
    if (!take_launch(block, p) || received.size() != p.descriptors.size() + 1)
        error = EMFILE; // some did not arrive, as this process may not hold so many
    // No source may stand where another's target is: all are moved above the targets.
    int above = 0;
    for (const auto &[from, to] : p.descriptors)
        above = std::max(above, to + 1);
    for (std::size_t i = 0; error == 0 && i < p.descriptors.size(); ++i) {
        unique_fd &from = received[i + 1];
        if (from.get() < above) {
            from.reset(::fcntl(from.get(), F_DUPFD_CLOEXEC, above));
            if (!from)
                error = errno;
        }
        p.descriptors[i].first = from.get();
    }
    std::sort(p.descriptors.begin(), p.descriptors.end(),
              [](const auto &a, const auto &b) { return a.second < b.second; });
    if (error != 0) {
        self.fail(error);
        return false;
    }
    p.rlimits = rlimits_for(p, home);
    const bool started = self.start(p, home);
    // The command's own ends stay with it alone, or nobody would see them end.
    received.clear();
    return started && self.watch() && !is_mapped;
}

// Between a keeper and the warden, over a socket of theirs: the keeper says which it does from now
// on, and asks with `done` for the socket to wait at again. The end is a no.
enum class keeper_word : std::uint8_t { taken, done };

void lend(int link, int socket) noexcept {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> ancillary{};
    char byte = 0;
    iovec part{&byte, 1};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = ancillary.data();
    message.msg_controllen = ancillary.size();
    cmsghdr *const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof socket);
    std::memcpy(CMSG_DATA(header), &socket, sizeof socket);
    ::sendmsg(link, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

// The life of a keeper: it waits for a message, sees a command through, and waits again if the warden
// has use for it. Out of memory ends it (noexcept), and the warden clears up; so it does behind one
// that cannot remove its group.
[[noreturn]] void be_keeper(unique_fd socket, unique_fd link, pid_t warden, const cgroup_home &home,
                            std::uint64_t number) noexcept {
    ::prctl(PR_SET_NAME, "qvm-remote-keep", 0, 0, 0);
    // Cannot fail where it did not fail the warden.
    ::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    command_cgroup group(home, number);
    while (socket) {
        // While we wait we have the socket too: should the warden die, the daemon would not see it.
        ::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        if (::getppid() != warden)
            break;
        // While nobody waits for it. Where it cannot be made, the command does not start.
        (void)group.make();
        std::optional<launch_message> message;
        do
            message = take_message(socket.get(), 0);
        while (message && message->received.empty()); // out of descriptors; the control socket ends
        if (!message)
            break;
        // From here on there is a tree to see through, with or without a warden.
        ::prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0);
        socket.reset();
        send_one(link.get(), keeper_word::taken);
        if (!keep(std::move(*message), group, home) || !group.remove() ||
            !send_one(link.get(), keeper_word::done))
            break;
        auto answer = take_message(link.get(), 0);
        if (answer && !answer->received.empty())
            socket = std::move(answer->received.front());
    }
    ::_exit(group.remove() ? 0 : 1);
}

// Sees to it that a keeper waits for the next message: fork takes longer than all else of ours
// between launch and exec, so it is done beforehand, and not at all while a keeper comes back from a
// command before. The warden itself reads no message, unless it cannot fork.
class warden_process {
  public:
    warden_process(unique_fd socket, const cgroup_home &home) noexcept
        : socket_(std::move(socket)), home_(home), self_(::getpid()) {}

    // Until the daemon is gone and all keepers with it.
    void run() {
        std::vector<pollfd> watched;
        while (socket_ || !keepers_.empty() || orphans_) {
            if (socket_ && idle() == 0)
                make_keeper();
            // The socket's end shows unasked, a message only while nobody else is there to take it.
            watched.assign(1, {socket_.get(), static_cast<short>(idle() > 0 ? 0 : POLLIN), 0});
            for (const auto &[pid, k] : keepers_)
                watched.push_back({k.link.get(), POLLIN, 0});
            wait_for(watched, orphans_ ? clock_.next() : never);
            auto heard = watched.begin() + 1;
            for (auto &[pid, k] : keepers_)
                if ((heard++)->revents != 0)
                    listen(k);
            if (watched[0].revents & (POLLHUP | POLLERR))
                socket_.reset();
            else if (watched[0].revents != 0 && !make_keeper())
                refuse_one(errno);
            if (child_ended)
                reap_all();
            if (orphans_ && clock_.due())
                orphans_ = clear_up();
        }
    }

  private:
    struct kept {
        std::uint64_t group; // the number of its cgroup
        unique_fd link;      // none: it has died or is about to end
        bool waits = true;
    };
    static constexpr std::ptrdiff_t most_idle = 2;

    [[nodiscard]] std::ptrdiff_t idle() const {
        return std::count_if(keepers_.begin(), keepers_.end(),
                             [](const auto &row) { return row.second.waits; });
    }

    void listen(kept &k) {
        keeper_word said{};
        const ssize_t n = receive(k.link.get(), &said, sizeof said);
        if (n < 0 && errno == EAGAIN)
            return;
        k.waits = false;
        if (n == sizeof said && said == keeper_word::taken)
            return;
        if (n == sizeof said && socket_ && idle() < most_idle) {
            k.waits = true;
            lend(k.link.get(), socket_.get());
        } else {
            k.link.reset();
        }
    }

    // False with errno.
    bool make_keeper() {
        int ends[2];
        if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
            return false;
        unique_fd ours(ends[0]), theirs(ends[1]);
        const pid_t pid = ::fork();
        if (pid < 0)
            return false;
        if (pid == 0) {
            // The links to the others are not its business, and 3 is the socket (settle_in).
            constexpr int own = 4;
            if (theirs.get() != own)
                ::dup3(theirs.release(), own, O_CLOEXEC);
            else
                (void)theirs.release();
            ::syscall(SYS_close_range, own + 1U, ~0U, 0);
            child_ended = 0;
            be_keeper(std::move(socket_), unique_fd(own), self_, home_, made_);
        }
        keepers_.emplace(pid, kept{made_++, std::move(ours)});
        return true;
    }

    // Whether anything is left of commands whose keeper is gone.
    bool clear_up() {
        std::erase_if(abandoned_, [](const command_cgroup &group) {
            group.kill();
            return group.remove();
        });
        return kill_all_below_us(keepers_) || !abandoned_.empty();
    }

    void refuse_one(int error_number) {
        if (const auto message = take_message(socket_.get(), MSG_DONTWAIT);
            message && !message->received.empty())
            send_one(message->received.front().get(), report{child_event::failed, error_number, 0});
    }

    void reap_all() {
        int status = 0;
        pid_t pid;
        while ((pid = reap(status)) > 0) {
            const auto keeper = keepers_.extract(pid);
            if (!keeper)
                continue; // an orphan
            // A keeper that ends by itself leaves nothing behind.
            if (status != 0) {
                abandoned_.emplace_back(home_, keeper.mapped().group);
                orphans_ = true;
                clock_.start();
            }
        }
    }

    unique_fd socket_;
    const cgroup_home &home_;
    const pid_t self_;
    std::map<pid_t, kept> keepers_;
    std::uint64_t made_ = 1;
    std::vector<command_cgroup> abandoned_;
    bool orphans_ = false; // there may be some
    kill_clock clock_;
};

// From fork to a process that holds nothing of the daemon but stderr: 0, or errno.
[[nodiscard]] int settle_in(unique_fd &socket) noexcept {
    // Out of the daemon's process group: a kill -9 of that group ends the daemon alone, and we
    // clear up behind it.
    ::setsid();
    ::prctl(PR_SET_NAME, "qvm-remote-ward", 0, 0, 0);
    if (::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0 || ::chdir("/") != 0)
        return errno;

    // Blocked for good: no signal that was meant for the daemon or for a command ends us. SIGCHLD
    // is let in while we wait.
    sigset_t all;
    ::sigfillset(&all);
    ::sigprocmask(SIG_SETMASK, &all, nullptr);
    // The kernel's own call (for 8 bytes of mask), since glibc lets nobody touch signals 32 and 33 and
    // whoever started the daemon may have them ignored. All zero is SIG_DFL; KILL and STOP refuse.
    const std::array<std::uint64_t, 8> by_default{};
    for (int n = 1; n < NSIG; ++n)
        ::syscall(SYS_rt_sigaction, n, by_default.data(), nullptr, std::size_t{8});
    struct sigaction on_child {};
    on_child.sa_handler = on_child_ended;
    if (::sigaction(SIGCHLD, &on_child, nullptr) != 0)
        return errno;

    const int high = ::fcntl(socket.get(), F_DUPFD_CLOEXEC, 4);
    const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    if (high < 0 || null < 0)
        return errno;
    ::dup2(null, 0);
    ::dup2(null, 1);
    if (::fcntl(2, F_GETFD) < 0)
        ::dup2(null, 2);
    ::dup3(high, 3, O_CLOEXEC);
    // Whatever number it had, it is closed below or overwritten above.
    (void)socket.release();
    socket.reset(3);
    return ::syscall(SYS_close_range, 4U, ~0U, 0) == 0 ? 0 : errno;
}

[[noreturn]] void be_warden(unique_fd socket, const cgroup_home &home) noexcept {
    const std::int32_t error = settle_in(socket);
    send_one(socket.get(), error);
    if (error == 0)
        warden_process(std::move(socket), home).run();
    ::_exit(error == 0 ? 0 : 1);
}

struct socket_pair {
    unique_fd ours, theirs;
};

[[nodiscard]] host::outcome<socket_pair> make_socket_pair() {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return host::failed("cannot make a pair of sockets", errno);
    return socket_pair{unique_fd(ends[0]), unique_fd(ends[1])};
}

[[nodiscard]] host::outcome<unique_fd> file_of(bytes_view data) {
    unique_fd out(::memfd_create("qvm-remote launch", MFD_CLOEXEC));
    if (!out)
        return host::failed("cannot make a file in memory", errno);
    while (!data.empty()) {
        const ssize_t n = ::write(out.get(), data.data(), data.size());
        if (n < 0 && errno != EINTR)
            return host::failed("cannot write a file in memory", errno);
        if (n > 0)
            data = data.subspan(static_cast<std::size_t>(n));
    }
    return out;
}

} // namespace

std::vector<pid_t> detail::processes_below(pid_t root, listing how) {
    const process_table table(how);
    std::vector<pid_t> found;
    table.append_children(root, found);
    for (std::size_t i = 0; i < found.size() && i < processes_per_pass; ++i)
        table.append_children(found[i], found);
    return found;
}

std::optional<child_event> child::next() {
    if (over_)
        return {};
    report what{};
    const ssize_t n = receive(control_.get(), &what, sizeof what);
    if (n < 0 && errno == EAGAIN)
        return {};
    child_event out{};
    if (n != sizeof what) {
        out.kind = child_event::lost;
    } else {
        out.kind = static_cast<child_event::event_kind>(what.kind);
        switch (out.kind) {
        case child_event::started:
            out.pid = what.number;
            out.directory_missing = what.flag != 0;
            break;
        case child_event::failed:
            out.error_number = what.number;
            break;
        case child_event::exited:
            out.wait_status = what.number;
            out.tree_empty = (what.flag & flag_empty) != 0;
            out.out_of_memory = (what.flag & flag_out_of_memory) != 0;
            break;
        case child_event::empty:
        case child_event::lost:
            break;
        }
    }
    over_ = out.kind == child_event::failed || out.kind == child_event::empty ||
            out.kind == child_event::lost;
    return out;
}

void child::signal(int number) noexcept {
    if (number > 0)
        send_one(control_.get(), order{number});
}

void child::terminate() noexcept {
    // A keeper that does not read is not waited for.
    if (!send_one(control_.get(), order_terminate))
        kill();
}

void child::kill() noexcept { ::shutdown(control_.get(), SHUT_WR); }

std::vector<pid_t> detail::processes_below(pid_t root) {
    return processes_below(root, best_listing());
}

host::outcome<warden> warden::start() { return start(cgroup_home()); }

host::outcome<warden> warden::start(const cgroup_home &home) {
    auto pair = make_socket_pair();
    if (!pair)
        return tl::unexpected(pair.error());
    const pid_t pid = ::fork();
    if (pid < 0)
        return host::failed("cannot fork the process that starts commands", errno);
    if (pid == 0)
        be_warden(std::move(pair->theirs), home);
    pair->theirs.reset();
    warden out(std::move(pair->ours), pid);
    std::int32_t error = ECHILD;
    ssize_t n;
    do
        n = ::recv(out.socket_.get(), &error, sizeof error, 0);
    while (n < 0 && errno == EINTR);
    if (n != sizeof error || error != 0) {
        out.stop();
        return host::failed("the process that starts commands cannot", error);
    }
    return out;
}

host::outcome<child> warden::launch(const dom0::launch &what) {
    if (const char *why = why_not(what))
        return host::failed(why, EINVAL);
    bytes block;
    byte_writer to(block);
    to.u8(0); // see take_message
    put_launch(to, what);
    if (block.size() > largest_block)
        return host::failed("a command is too long", E2BIG);

    auto control = make_socket_pair();
    if (!control)
        return tl::unexpected(control.error());
    std::vector<int> descriptors = {control->theirs.get(), what.in, what.out, what.err};
    for (const auto &[fd, number] : what.extra)
        descriptors.push_back(fd);
    unique_fd file;
    if (block.size() > inline_block) {
        auto made = file_of(bytes_view(block).subspan(1));
        if (!made)
            return tl::unexpected(made.error());
        file = std::move(*made);
        descriptors.push_back(file.get());
        block.resize(1);
    }

    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * most_descriptors)> ancillary{};
    const std::size_t size = descriptors.size() * sizeof(int);
    iovec part{block.data(), block.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = ancillary.data();
    message.msg_controllen = CMSG_SPACE(size);
    cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(size);
    std::memcpy(CMSG_DATA(header), descriptors.data(), size);

    for (bool waited = false;;) {
        if (::sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
            break;
        if (errno == EINTR)
            continue;
        if (errno == EPIPE || errno == ECONNRESET)
            return host::failed("the process that starts commands is gone", errno);
        if (errno != EAGAIN || waited)
            return host::failed("cannot reach the process that starts commands", errno);
        // Rather than a queue of our own: a start takes the warden a tenth of a millisecond.
        pollfd p{socket_.get(), POLLOUT, 0};
        waited = ::poll(&p, 1, 1000) == 0;
    }
    return child(std::move(control->ours));
}

bool warden::alive() const noexcept {
    pollfd p{socket_.get(), POLLIN, 0};
    return ::poll(&p, 1, 0) == 0;
}

void warden::stop() noexcept {
    socket_.reset();
    const pid_t pid = std::exchange(pid_, 0);
    while (pid > 0 && ::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
}

warden::~warden() {
    socket_.reset();
    if (pid_ > 0)
        ::waitpid(pid_, nullptr, WNOHANG);
}

} // namespace qvmremote::dom0
