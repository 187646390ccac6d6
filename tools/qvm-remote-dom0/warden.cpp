// SPDX-License-Identifier: GPL-2.0-or-later
#include "warden.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string_view>

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <qvmremote/bytes.hpp>

namespace qvmremote::dom0 {

namespace {

using host::unique_fd;

constexpr std::size_t inline_block = 64 * 1024; // a larger launch block goes as a memory file
constexpr std::size_t most_extra = 16;
constexpr std::size_t fixed_fds = 4; // control, in, out, err
constexpr std::size_t most_fds = fixed_fds + most_extra + 1;
constexpr std::size_t largest_block = 8 * 1024 * 1024;
constexpr int high_fd = 64; // where descriptors wait out of the way of the numbers they shall get
constexpr timeval launch_patience{1, 0};
constexpr std::uint64_t term_grace_ms = 2000;
constexpr int kill_pace_ms = 10;
constexpr std::string_view search_path[] = {"/usr/local/sbin/", "/usr/local/bin/", "/usr/sbin/",
                                            "/usr/bin/"};

std::uint64_t now_ms() {
    timespec t{};
    ::clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<std::uint64_t>(t.tv_sec) * 1000 +
           static_cast<std::uint64_t>(t.tv_nsec) / 1'000'000;
}

// What goes between daemon and keeper: one packet, both ends are the same program.
enum class order : std::uint8_t { signal = 1, terminate, kill };
struct order_packet {
    order what;
    std::int32_t number;
};
struct event_packet {
    child_event::event_kind kind;
    std::int32_t value; // pid, errno or wait status
    bool flag;          // directory_missing or tree_empty
};

// --- the launch block -------------------------------------------------------------------------

void put_strings(byte_writer &w, const std::vector<std::string> &texts) {
    w.u32(static_cast<std::uint32_t>(texts.size()));
    for (const std::string &text : texts) {
        w.u32(static_cast<std::uint32_t>(text.size()));
        w.put(text);
    }
}
std::string take_string(byte_reader &r) {
    const auto size = r.u32();
    const auto text = r.take(size.value_or(0));
    return text ? std::string(as_text(*text)) : std::string();
}
std::vector<std::string> take_strings(byte_reader &r) {
    std::vector<std::string> out(r.u32().value_or(0));
    for (std::string &text : out)
        text = take_string(r);
    return out;
}

bytes encode(const launch &what) {
    bytes out;
    byte_writer w(out);
    put_strings(w, {what.program, what.directory});
    put_strings(w, what.argv);
    put_strings(w, what.environment);
    w.u32(what.umask);
    w.u8(what.no_new_privs ? 1 : 0);
    w.u8(what.oom_score_adj ? 1 : 0);
    w.u32(static_cast<std::uint32_t>(what.oom_score_adj.value_or(0)));
    w.u8(what.user ? 1 : 0);
    if (what.user) {
        w.u32(what.user->uid);
        w.u32(what.user->gid);
        w.u32(static_cast<std::uint32_t>(what.user->groups.size()));
        for (const gid_t group : what.user->groups)
            w.u32(group);
    }
    w.u32(static_cast<std::uint32_t>(what.extra.size()));
    for (const auto &[from, number] : what.extra)
        w.u32(static_cast<std::uint32_t>(number));
    return out;
}

// The daemon wrote it, with encode() above: there is nothing to distrust.
launch decode(bytes_view block) {
    byte_reader r(block);
    launch out;
    auto names = take_strings(r);
    out.program = std::move(names.at(0));
    out.directory = std::move(names.at(1));
    out.argv = take_strings(r);
    out.environment = take_strings(r);
    out.umask = r.u32().value_or(022);
    out.no_new_privs = r.u8().value_or(0) != 0;
    const bool has_oom = r.u8().value_or(0) != 0;
    const auto oom = static_cast<int>(r.u32().value_or(0));
    if (has_oom)
        out.oom_score_adj = oom;
    if (r.u8().value_or(0) != 0) {
        out.user = identity{r.u32().value_or(0), r.u32().value_or(0), {}};
        out.user->groups.resize(r.u32().value_or(0));
        for (gid_t &group : out.user->groups)
            group = r.u32().value_or(0);
    }
    out.extra.resize(r.u32().value_or(0));
    for (auto &[from, number] : out.extra)
        number = static_cast<int>(r.u32().value_or(0));
    return out;
}

// --- a command's processes --------------------------------------------------------------------

void read_children(pid_t of, std::vector<pid_t> &out) {
    const std::string tasks = "/proc/" + std::to_string(of) + "/task";
    DIR *const threads = ::opendir(tasks.c_str());
    if (!threads)
        return;
    while (const dirent *entry = ::readdir(threads)) {
        if (entry->d_name[0] == '.')
            continue;
        const unique_fd fd(
            ::open((tasks + "/" + entry->d_name + "/children").c_str(), O_RDONLY | O_CLOEXEC));
        std::string text;
        std::array<char, 4096> block;
        for (ssize_t n; fd && (n = ::read(fd.get(), block.data(), block.size())) > 0;)
            text.append(block.data(), static_cast<std::size_t>(n));
        for (const char *at = text.c_str(); *at != '\0';) {
            char *end = nullptr;
            const long pid = std::strtol(at, &end, 10);
            if (end == at)
                break;
            out.push_back(static_cast<pid_t>(pid));
            at = end + std::strspn(end, " ");
        }
    }
    ::closedir(threads);
}

// All below us: a subreaper's descendants cannot leave its tree.
std::vector<pid_t> descendants() {
    std::vector<pid_t> out;
    read_children(::getpid(), out);
    for (std::size_t i = 0; i < out.size(); ++i)
        read_children(out[i], out);
    return out;
}

void signal_tree(int number) {
    for (const pid_t pid : descendants())
        ::kill(pid, number);
}

// First stops what can be seen, until nothing new turns up: what is stopped cannot fork, so a tree
// that multiplies is not chased but frozen.
void kill_tree() {
    std::set<pid_t> stopped;
    for (int pass = 0; pass < 16; ++pass) {
        bool fresh = false;
        for (const pid_t pid : descendants())
            if (stopped.insert(pid).second) {
                fresh = true;
                ::kill(pid, SIGSTOP);
            }
        if (!fresh)
            break;
    }
    for (const pid_t pid : stopped)
        ::kill(pid, SIGKILL);
}

// --- the keeper ---------------------------------------------------------------------------------

// What the child needs between vfork and exec, laid out before: it shares our memory, and may call
// nothing there that is not async-signal-safe.
struct exec_plan {
    std::vector<std::string> programs;
    std::vector<char *> argv, environment;
    std::vector<std::pair<int, int>> descriptors; // from high_fd up -> number, ascending
    volatile int error = 0;
    volatile bool directory_missing = false;
};

[[noreturn]] void become(const launch &what, exec_plan &plan) {
    const auto give_up = [&](int error) {
        plan.error = error;
        ::_exit(127);
    };
    ::setsid();
    if (what.oom_score_adj) {
        char text[16];
        const int size = std::snprintf(text, sizeof text, "%d", *what.oom_score_adj);
        const int fd = ::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
        if (fd < 0 || ::write(fd, text, static_cast<std::size_t>(size)) != size)
            give_up(errno);
    }
    if (what.user && (::setgroups(what.user->groups.size(), what.user->groups.data()) != 0 ||
                      ::setresgid(what.user->gid, what.user->gid, what.user->gid) != 0 ||
                      ::setresuid(what.user->uid, what.user->uid, what.user->uid) != 0))
        give_up(errno);
    if (what.no_new_privs && ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        give_up(errno);
    // As the user that it runs as: a directory that only root can enter is not entered for it.
    if (what.directory.empty() || ::chdir(what.directory.c_str()) != 0) {
        plan.directory_missing = true;
        if (::chdir("/") != 0)
            give_up(errno);
    }
    ::umask(what.umask);
    unsigned next = 0;
    for (const auto &[from, number] : plan.descriptors) {
        if (static_cast<unsigned>(number) > next)
            ::syscall(SYS_close_range, next, static_cast<unsigned>(number) - 1, 0);
        if (::dup2(from, number) < 0)
            give_up(errno);
        next = static_cast<unsigned>(number) + 1;
    }
    ::syscall(SYS_close_range, next, ~0u, 0);
    sigset_t none;
    sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    int error = ENOENT;
    for (const std::string &program : plan.programs) {
        ::execve(program.c_str(), plan.argv.data(), plan.environment.data());
        if (errno != ENOENT && errno != ENOTDIR)
            error = errno;
    }
    give_up(error);
    ::_exit(127);
}

class keeper {
public:
    keeper(int control, int children) : control_(control), children_(children) {}

    // Starts the command; false when that failed and was reported.
    bool start(const launch &what, const std::vector<int> &received) {
        exec_plan plan;
        if (what.program.find('/') != what.program.npos)
            plan.programs.push_back(what.program);
        else
            for (const std::string_view directory : search_path)
                plan.programs.push_back(std::string(directory) + what.program);
        for (const std::string &word : what.argv)
            plan.argv.push_back(const_cast<char *>(word.c_str()));
        for (const std::string &entry : what.environment)
            plan.environment.push_back(const_cast<char *>(entry.c_str()));
        plan.argv.push_back(nullptr);
        plan.environment.push_back(nullptr);
        for (std::size_t i = 1; i < fixed_fds; ++i)
            plan.descriptors.emplace_back(received[i], static_cast<int>(i) - 1);
        for (std::size_t i = 0; i < what.extra.size(); ++i)
            plan.descriptors.emplace_back(received[fixed_fds + i], what.extra[i].second);
        for (auto &[from, number] : plan.descriptors)
            from = ::fcntl(from, F_DUPFD_CLOEXEC, high_fd);
        std::sort(plan.descriptors.begin(), plan.descriptors.end(),
                  [](const auto &a, const auto &b) { return a.second < b.second; });

        first_ = ::vfork();
        if (first_ == 0)
            become(what, plan);
        if (first_ < 0)
            plan.error = errno;
        if (plan.error != 0) {
            report({child_event::failed, plan.error, false});
            return false;
        }
        report({child_event::started, first_, plan.directory_missing});
        return true;
    }

    [[noreturn]] void watch() {
        for (;;) {
            reap();
            int timeout = -1;
            if (killing_) {
                kill_tree();
                timeout = kill_pace_ms;
            } else if (kill_at_ms_ != 0) {
                const std::uint64_t now = now_ms();
                if (now >= kill_at_ms_) {
                    killing_ = true;
                    continue;
                }
                timeout = static_cast<int>(kill_at_ms_ - now);
            }
            // A socket at its end stays readable: once that is known it is watched no more.
            std::array<pollfd, 2> fds{{{children_, POLLIN, 0}, {alone_ ? -1 : control_, POLLIN, 0}}};
            ::poll(fds.data(), fds.size(), timeout);
            if (fds[0].revents & POLLIN) {
                signalfd_siginfo information;
                [[maybe_unused]] const ssize_t n =
                    ::read(children_, &information, sizeof information);
            }
            if (fds[1].revents)
                obey();
        }
    }

private:
    void report(const event_packet &what) {
        ::send(control_, &what, sizeof what, MSG_NOSIGNAL);
    }

    void reap() {
        int status = 0;
        pid_t pid;
        bool first_ended = false;
        int first_status = 0;
        while ((pid = ::waitpid(-1, &status, WNOHANG)) > 0)
            if (pid == first_) {
                first_ended = true;
                first_status = status;
            }
        const bool none_left = pid < 0 && errno == ECHILD;
        if (first_ended) {
            first_ = 0;
            report({child_event::exited, first_status, none_left});
        }
        if (none_left) {
            report({child_event::empty, 0, true});
            ::_exit(0);
        }
    }

    void obey() {
        order_packet what{};
        const ssize_t n = ::recv(control_, &what, sizeof what, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n != static_cast<ssize_t>(sizeof what)) {
            alone_ = killing_ = true; // nobody holds the command any more
            return;
        }
        switch (what.what) {
        case order::signal:
            if (first_ != 0)
                ::kill(-first_, what.number);
            else
                signal_tree(what.number);
            break;
        case order::terminate:
            signal_tree(SIGTERM);
            signal_tree(SIGCONT); // what is stopped would not hear it
            if (kill_at_ms_ == 0)
                kill_at_ms_ = now_ms() + term_grace_ms;
            break;
        case order::kill:
            killing_ = true;
            break;
        }
    }

    int control_, children_;
    pid_t first_ = 0;
    bool killing_ = false;
    bool alone_ = false;
    std::uint64_t kill_at_ms_ = 0;
};

// --- the warden ---------------------------------------------------------------------------------

int watch_children() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    ::sigprocmask(SIG_BLOCK, &set, nullptr);
    return ::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

class warden_process {
public:
    explicit warden_process(int socket) : socket_(socket) {}

    [[noreturn]] void run() {
        ::prctl(PR_SET_NAME, "qvm-remote-ward");
        ::prctl(PR_SET_CHILD_SUBREAPER, 1);
        ::setsid(); // a terminal's Ctrl-C is the daemon's business
        for (int number = 1; number < NSIG; ++number)
            ::signal(number, SIG_DFL);
        ::signal(SIGPIPE, SIG_IGN);
        const int null = ::open("/dev/null", O_RDWR);
        ::dup2(null, 0);
        ::dup2(null, 1);
        ::dup2(socket_, 3);
        socket_ = 3;
        ::fcntl(socket_, F_SETFD, FD_CLOEXEC);
        ::syscall(SYS_close_range, 4u, ~0u, 0);
        children_ = watch_children();
        bool serving = true;
        for (;;) {
            const bool strays = reap();
            if (!serving && keepers_.empty() && !strays)
                ::_exit(0);
            std::array<pollfd, 2> fds{
                {{children_, POLLIN, 0}, {serving ? socket_ : -1, POLLIN, 0}}};
            ::poll(fds.data(), fds.size(), strays ? kill_pace_ms : -1);
            if (fds[0].revents & POLLIN) {
                signalfd_siginfo information;
                [[maybe_unused]] const ssize_t n =
                    ::read(children_, &information, sizeof information);
            }
            if (fds[1].revents)
                serving = take_launch();
        }
    }

private:
    // Buries the dead. What falls to us and is no keeper had a keeper that was killed: it dies too.
    // True while there is some of that left.
    bool reap() {
        int status = 0;
        for (pid_t pid; (pid = ::waitpid(-1, &status, WNOHANG)) > 0;) {
            if (keepers_.erase(pid) == 0)
                continue;
            if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
                look_for_strays_ = true;
        }
        if (!look_for_strays_)
            return false;
        std::vector<pid_t> all;
        read_children(::getpid(), all);
        std::erase_if(all, [this](pid_t pid) { return keepers_.contains(pid); });
        for (const pid_t pid : all)
            ::kill(pid, SIGKILL);
        look_for_strays_ = !all.empty();
        return look_for_strays_;
    }

    // False when the daemon is gone.
    bool take_launch() {
        std::vector<std::uint8_t> block(inline_block);
        iovec part{block.data(), block.size()};
        alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * most_fds)> control{};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        const ssize_t n = ::recvmsg(socket_, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return true;
        if (n <= 0)
            return false;
        std::vector<int> received;
        for (cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
            if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
                const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                received.resize(count);
                std::memcpy(received.data(), CMSG_DATA(c), count * sizeof(int));
            }
        block.resize(static_cast<std::size_t>(n));
        if (received.size() >= fixed_fds) {
            const pid_t pid = ::fork();
            if (pid == 0)
                keep(block, received);
            if (pid > 0)
                keepers_.insert(pid);
            else {
                const event_packet failed{child_event::failed, errno, false};
                ::send(received[0], &failed, sizeof failed, MSG_NOSIGNAL);
            }
        }
        for (const int fd : received)
            ::close(fd);
        return true;
    }

    [[noreturn]] void keep(bytes &block, const std::vector<int> &received) {
        ::prctl(PR_SET_NAME, "qvm-remote-keep");
        ::prctl(PR_SET_CHILD_SUBREAPER, 1);
        ::close(socket_);
        ::dup2(0, STDERR_FILENO);
        launch what = block.size() == 1 ? decode(mapped(received.back())) : decode(block);
        // The mask is inherited; the descriptor would tell of the warden's children.
        ::close(children_);
        keeper self(received[0], watch_children());
        if (!self.start(what, received))
            ::_exit(0);
        // Nothing of the command's may stay open here, or its end would never be seen.
        for (std::size_t i = 1; i < received.size(); ++i)
            ::close(received[i]);
        ::syscall(SYS_close_range, static_cast<unsigned>(high_fd), ~0u, 0);
        self.watch();
    }

    static bytes_view mapped(int fd) {
        struct stat st {};
        ::fstat(fd, &st);
        const auto size = static_cast<std::size_t>(st.st_size);
        void *const at = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (at == MAP_FAILED)
            ::_exit(1);
        return {static_cast<const std::uint8_t *>(at), size};
    }

    int socket_;
    int children_ = -1;
    std::set<pid_t> keepers_;
    bool look_for_strays_ = false;
};

host::outcome<unique_fd> memory_file(bytes_view data) {
    unique_fd fd(::memfd_create("qvm-remote-launch", MFD_CLOEXEC));
    if (!fd)
        return host::failed("cannot make a memory file", errno);
    while (!data.empty()) {
        const ssize_t n = ::write(fd.get(), data.data(), data.size());
        if (n <= 0)
            return host::failed("cannot fill a memory file", errno);
        data = data.subspan(static_cast<std::size_t>(n));
    }
    return fd;
}

bool is_sound(const launch &what) {
    const auto has_nul = [](const std::string &text) { return text.find('\0') != text.npos; };
    if (what.argv.empty() || what.program.empty() || has_nul(what.program) ||
        has_nul(what.directory) || what.extra.size() > most_extra)
        return false;
    std::set<int> numbers;
    for (const auto &[from, number] : what.extra)
        if (from < 0 || number < 3 || number >= high_fd || !numbers.insert(number).second)
            return false;
    return std::none_of(what.argv.begin(), what.argv.end(), has_nul) &&
           std::none_of(what.environment.begin(), what.environment.end(), has_nul);
}

void give_order(int control, order what, int number) noexcept {
    const order_packet packet{what, number};
    ::send(control, &packet, sizeof packet, MSG_NOSIGNAL | MSG_DONTWAIT);
}

} // namespace

std::optional<child_event> child::next() {
    if (over_)
        return std::nullopt;
    event_packet packet{};
    const ssize_t n = ::recv(control_.get(), &packet, sizeof packet, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return std::nullopt;
    child_event out{};
    if (n != static_cast<ssize_t>(sizeof packet)) {
        over_ = true;
        out.kind = child_event::lost;
        return out;
    }
    out.kind = packet.kind;
    switch (packet.kind) {
    case child_event::started:
        out.pid = packet.value;
        out.directory_missing = packet.flag;
        break;
    case child_event::failed:
        out.error_number = packet.value;
        over_ = true;
        break;
    case child_event::exited:
        out.wait_status = packet.value;
        out.tree_empty = packet.flag;
        break;
    default:
        over_ = true;
    }
    return out;
}

void child::signal(int number) noexcept { give_order(control_.get(), order::signal, number); }
void child::terminate() noexcept { give_order(control_.get(), order::terminate, 0); }
void child::kill() noexcept { give_order(control_.get(), order::kill, 0); }

host::outcome<warden> warden::start() {
    int fds[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0)
        return host::failed("cannot make a socket pair", errno);
    unique_fd ours(fds[0]), theirs(fds[1]);
    ::setsockopt(ours.get(), SOL_SOCKET, SO_SNDTIMEO, &launch_patience, sizeof launch_patience);
    const pid_t pid = ::fork();
    if (pid < 0)
        return host::failed("cannot fork", errno);
    if (pid == 0)
        warden_process(theirs.get()).run();
    return warden(std::move(ours), pid);
}

host::outcome<child> warden::launch(const dom0::launch &what) {
    if (!is_sound(what))
        return host::failed("this cannot be started", EINVAL);
    int control_pair[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control_pair) != 0)
        return host::failed("cannot make a socket pair", errno);
    unique_fd ours(control_pair[0]);
    const unique_fd theirs(control_pair[1]);

    bytes block = encode(what);
    std::vector<int> fds = {theirs.get(), what.in, what.out, what.err};
    for (const auto &[from, number] : what.extra)
        fds.push_back(from);
    unique_fd large;
    if (block.size() > inline_block) {
        if (block.size() > largest_block)
            return host::failed("argv and environment are too large", E2BIG);
        auto file = memory_file(block);
        if (!file)
            return tl::unexpected(file.error());
        large = std::move(*file);
        fds.push_back(large.get());
        block.resize(1); // says that the block is in the last descriptor
    }
    iovec part{block.data(), block.size()};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * most_fds)> control{};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr *const c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(c), fds.data(), sizeof(int) * fds.size());
    while (::sendmsg(socket_.get(), &message, MSG_NOSIGNAL) < 0)
        if (errno != EINTR)
            return host::failed("the process that starts commands does not take this one", errno);
    return child(std::move(ours));
}

bool warden::alive() const noexcept {
    char byte;
    return ::recv(socket_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 &&
           (errno == EAGAIN || errno == EINTR);
}

void warden::stop() noexcept {
    socket_.reset();
    if (const pid_t pid = std::exchange(pid_, 0); pid > 0)
        while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
        }
}

warden::~warden() = default;

} // namespace qvmremote::dom0
