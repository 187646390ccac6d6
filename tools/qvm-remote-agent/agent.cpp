// SPDX-License-Identifier: GPL-2.0-or-later
#include "agent.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/host/unix_socket.hpp>
#include <qvmremote/route.hpp>

#include "carrier.hpp"

namespace qvmremote::agent {

namespace {

using host::unique_fd;

constexpr std::size_t most_clients = 512;
constexpr std::uint64_t socket_again_ms = 1'000;
// When more bytes than this wait for dom0, clients are not read. Each client may still add one
// frame.
constexpr std::size_t congested_at = 128 * 1024;
// A client is dropped when more bytes than this wait for it. dom0 never sends a client more than
// its sessions have credit for.
constexpr std::size_t most_unread = 4 * 1024 * 1024;
constexpr std::size_t chunk = 256 * 1024;
// How many bytes of one client are read at once. This is more than a frame, so that a whole frame
// always fits.
constexpr std::size_t most_read = 2 * (frame_header::size + limits::frame);
static_assert(most_read <= chunk);

// Restores the flags of a descriptor that others share.
class nonblocking {
  public:
    explicit nonblocking(int fd) : fd_(fd), flags_(::fcntl(fd, F_GETFL)) {
        ::fcntl(fd_, F_SETFL, flags_ | O_NONBLOCK);
    }
    ~nonblocking() { ::fcntl(fd_, F_SETFL, flags_); }
    nonblocking(const nonblocking &) = delete;
    nonblocking &operator=(const nonblocking &) = delete;

  private:
    int fd_, flags_;
};

struct client {
    unique_fd socket;
    std::string held; // bytes that were read and not passed on yet
    out_buffer out;
    bool preamble_seen = false;
    bool greeted = false; // HELLO is in `out`, or on its way
    bool wants_write = false;
    bool paused = false; // not read for now
};

// epoll identifies a client by its number, and any other descriptor by one of these.
enum : std::uint64_t {
    of_dom0_in = 1ull << 32,
    of_dom0_out,
    of_listener,
    of_files,
    of_base,
    of_timer,
    of_signals
};

class loop {
  public:
    loop(std::string base, int from_dom0, int to_dom0, carrying kind, const history_limits &history)
        : base_(std::move(base)), in_(from_dom0), out_(to_dom0), carrying_(kind), history_(history),
          scratch_(std::make_unique_for_overwrite<std::uint8_t[]>(chunk)) {}

    ~loop() {
        // Remove only our own socket: a newer agent may have put its socket there.
        struct stat st {};
        if (listener_ && ::lstat(socket_path().c_str(), &st) == 0 && st.st_ino == socket_inode_)
            ::unlink(socket_path().c_str());
    }
    loop(const loop &) = delete;
    loop &operator=(const loop &) = delete;

    host::outcome<ending> run() {
        const nonblocking first(in_), second(out_);
        if (auto opened = open(); !opened)
            return tl::unexpected(opened.error());
        flush();
        std::array<epoll_event, 64> events;
        while (!ended_) {
            const int n = ::epoll_wait(epoll_.get(), events.data(), events.size(), -1);
            if (n < 0 && errno != EINTR)
                return host::failed("cannot wait for events", errno);
            now_ms_ = host::boottime_ms();
            for (int i = 0; i < n && !ended_; ++i)
                handle(events[static_cast<std::size_t>(i)]);
            if (!ended_)
                flush();
        }
        return signalled_ ? ending::signal : heard_dom0_ ? ending::stream : ending::silent_stream;
    }

  private:
    [[nodiscard]] std::string socket_path() const {
        return base_ + (carrying_ == carrying::all ? "/agent.sock" : "/agent-qrexec.sock");
    }

    host::outcome<void> open() {
        now_ms_ = host::boottime_ms();
        epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
        sigset_t set = signals_of_ours();
        ::sigaddset(&set, SIGCHLD);
        ::sigprocmask(SIG_BLOCK, &set, nullptr);
        signals_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
        timer_.reset(::timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK));
        if (!epoll_ || !signals_ || !timer_)
            return host::failed("cannot set up the event loop", errno);
        if (!watch(in_, of_dom0_in, EPOLLIN) || !watch(out_, of_dom0_out, 0))
            return host::failed("standard input and output must be pipes or sockets", errno);
        if (carrying_ == carrying::all) {
            auto files = carrier::open(base_, now_ms_);
            if (!files)
                return tl::unexpected(files.error());
            carrier_.emplace(std::move(*files));
        }
        if (auto listening = listen(); !listening)
            return listening;
        base_watch_.reset(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
        watch(base_watch_.get(), of_base, EPOLLIN);
        guard_socket();
        watch(timer_.get(), of_timer, EPOLLIN);
        watch(signals_.get(), of_signals, EPOLLIN);
        prune_due_ms_ = prune_history(base_, now_ms_, history_);
        return {};
    }

    // The socket has another name until it listens, so that a client never finds a socket that
    // refuses.
    host::outcome<void> listen() {
        const std::string name = socket_path().substr(base_.size() + 1);
        const std::string temporary = base_ + "/." + name;
        const auto address = host::unix_address::of_path(temporary);
        if (!address)
            return host::failed("the path " + temporary + " is too long for a socket");
        ::unlink(temporary.c_str());
        auto made = host::listen_unix(*address, 0700, SOMAXCONN);
        struct stat st {};
        if (!made)
            return host::failed("cannot listen at " + socket_path(), made.error().error_number);
        if (::lstat(temporary.c_str(), &st) != 0 ||
            ::rename(temporary.c_str(), socket_path().c_str()) != 0)
            return host::failed("cannot listen at " + socket_path(), errno);
        socket_inode_ = st.st_ino;
        listener_ = std::move(*made);
        watch(listener_.get(), of_listener, EPOLLIN);
        return {};
    }

    // Clients find us by a file. Any process of this user can remove it or its directory, so both
    // are made again. If they cannot be made or watched now, the timer tries again.
    void guard_socket() {
        const bool is_there = static_cast<bool>(open_directory(AT_FDCWD, base_.c_str()));
        const bool is_watched =
            ::inotify_add_watch(base_watch_.get(), base_.c_str(),
                                IN_DELETE | IN_MOVED_FROM | IN_DELETE_SELF | IN_MOVE_SELF) >= 0;
        struct stat st {};
        const bool listens = ::lstat(socket_path().c_str(), &st) == 0 || listen();
        socket_due_ms_ = is_there && is_watched && listens ? UINT64_MAX : now_ms_ + socket_again_ms;
    }

    void on_base() {
        std::array<char, 4096> events; // not needed: guard_socket() looks at the files
        while (::read(base_watch_.get(), events.data(), events.size()) > 0) {
        }
        guard_socket();
    }

    bool watch(int fd, std::uint64_t id, std::uint32_t events) {
        epoll_event event{};
        event.events = events;
        event.data.u64 = id;
        return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
    }
    void change(int fd, std::uint64_t id, std::uint32_t events) {
        epoll_event event{};
        event.events = events;
        event.data.u64 = id;
        ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);
    }

    void handle(const epoll_event &event) {
        switch (event.data.u64) {
        case of_dom0_in:
            return read_dom0();
        case of_dom0_out:
            // flush() writes after every round, so only a broken stream is handled here.
            if (event.events & (EPOLLERR | EPOLLHUP))
                ended_ = true;
            return;
        case of_listener:
            return take_clients();
        case of_files:
            return carrier_->look(now_ms_);
        case of_base:
            return on_base();
        case of_timer:
            return on_time();
        case of_signals:
            return on_signal();
        default:
            break;
        }
        const auto number = static_cast<std::uint32_t>(event.data.u64);
        const auto at = clients_.find(number);
        if (at == clients_.end())
            return; // it was dropped in this round
        if (event.events & EPOLLOUT)
            write_client(number, at->second);
        const auto still = clients_.find(number);
        if (still == clients_.end())
            return;
        if (still->second.paused && (event.events & (EPOLLHUP | EPOLLERR)))
            drop(number); // its unread bytes do not matter, since its sessions end
        else if (event.events & ~std::uint32_t{EPOLLOUT})
            read_client(number);
    }

    void on_time() {
        std::uint64_t expirations = 0;
        [[maybe_unused]] const ssize_t n = ::read(timer_.get(), &expirations, sizeof expirations);
        armed_ms_ = UINT64_MAX;
        if (carrier_)
            carrier_->tick(now_ms_);
        if (now_ms_ >= socket_due_ms_)
            guard_socket();
        if (now_ms_ >= prune_due_ms_)
            prune_due_ms_ = prune_history(base_, now_ms_, history_);
    }

    void arm() {
        // When the carrier has opened its directories again, it has another descriptor.
        if (const int files = carrier_ ? carrier_->descriptor() : -1; files != watched_files_) {
            watched_files_ = files;
            watch(files, of_files, EPOLLIN);
        }
        const std::uint64_t due =
            std::min({carrier_ ? carrier_->due_ms() : UINT64_MAX, prune_due_ms_, socket_due_ms_});
        if (due == armed_ms_)
            return;
        armed_ms_ = due;
        itimerspec when{};
        if (due != UINT64_MAX) { // else nothing is due, and the timer is off
            when.it_value.tv_sec = static_cast<time_t>(due / 1000);
            when.it_value.tv_nsec = static_cast<long>(due % 1000) * 1'000'000;
        }
        ::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &when, nullptr);
    }

    void on_signal() {
        signalfd_siginfo info{};
        while (::read(signals_.get(), &info, sizeof info) == sizeof info)
            if (info.ssi_signo == SIGCHLD)
                // Only children in our process group: a call to dom0 has a group of its own, and
                // its owner waits for it.
                while (::waitpid(0, nullptr, WNOHANG) > 0) {
                }
            else
                ended_ = signalled_ = true;
    }

    // dom0 to clients.

    void read_dom0() {
        const ssize_t n = ::read(in_, scratch_.get(), chunk);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            ended_ = true;
            return;
        }
        heard_dom0_ = true;
        router_.feed({scratch_.get(), static_cast<std::size_t>(n)});
        // Adjacent pieces for one client are sent in one call.
        std::uint32_t to = 0;
        bytes_view run;
        const auto deliver = [&] {
            if (!run.empty())
                send(to, run);
            run = {};
        };
        for (;;) {
            const auto event = router_.next(now_ms_);
            if (!event) {
                ended_ = true; // nothing that dom0 sends after this can be parsed
                return;
            }
            if (!*event)
                break;
            const route_event &e = **event;
            switch (e.what) {
            case route_event::kind::deliver:
                if (e.client == to && run.data() + run.size() == e.data.data()) {
                    run = {run.data(), run.size() + e.data.size()};
                    break;
                }
                deliver();
                to = e.client;
                run = e.data;
                if (run.data() < scratch_.get() || run.data() >= scratch_.get() + chunk)
                    deliver(); // it is in the router's memory, valid until the next event
                break;
            case route_event::kind::queue:
                deliver();
                if (!carrier_ || !carrier_->take(e.data, now_ms_)) {
                    ended_ = true;
                    return;
                }
                break;
            case route_event::kind::hello:
                deliver();
                greet_all();
                break;
            }
        }
        deliver();
        resume(); // an answer may let a waiting client go on
    }

    void greet_all() {
        std::vector<std::uint32_t> waiting;
        for (auto &[number, c] : clients_)
            if (c.preamble_seen && !std::exchange(c.greeted, true))
                waiting.push_back(number);
        for (const std::uint32_t number : waiting)
            send(number, router_.hello());
    }

    void send(std::uint32_t number, bytes_view data) {
        const auto at = clients_.find(number);
        if (at == clients_.end())
            return;
        client &c = at->second;
        if (c.out.size() == 0 && !c.wants_write) {
            const ssize_t n = ::send(c.socket.get(), data.data(), data.size(), MSG_NOSIGNAL);
            if (n > 0)
                data = data.subspan(static_cast<std::size_t>(n));
            else if (n < 0 && errno != EAGAIN && errno != EINTR)
                return drop(number);
            if (data.empty())
                return;
        }
        c.out.put(data);
        if (c.out.size() > most_unread)
            return drop(number);
        if (!c.wants_write)
            write_client(number, c);
    }

    void write_client(std::uint32_t number, client &c) {
        while (c.out.size() > 0) {
            const bytes_view pending = c.out.pending();
            const ssize_t n = ::send(c.socket.get(), pending.data(), pending.size(), MSG_NOSIGNAL);
            if (n >= 0) {
                c.out.consume(static_cast<std::size_t>(n));
            } else if (errno == EAGAIN) {
                break;
            } else if (errno != EINTR) {
                return drop(number);
            }
        }
        c.out.release_if_empty();
        set_events(number, c, c.paused, c.out.size() > 0);
    }

    void set_events(std::uint32_t number, client &c, bool paused, bool wants_write) {
        if (paused == c.paused && wants_write == c.wants_write)
            return;
        c.paused = paused;
        c.wants_write = wants_write;
        change(c.socket.get(), number,
               (paused ? 0u : std::uint32_t{EPOLLIN}) |
                   (wants_write ? std::uint32_t{EPOLLOUT} : 0u));
    }

    void drop(std::uint32_t number) {
        if (clients_.erase(number) == 0)
            return;
        std::erase(waiting_, number);
        router_.remove(number);
        if (std::exchange(full_, false))
            change(listener_.get(), of_listener, EPOLLIN);
    }

    // Clients to dom0.

    void take_clients() {
        for (;;) {
            if (clients_.size() >= most_clients) {
                full_ = true;
                return change(listener_.get(), of_listener, 0);
            }
            unique_fd made(
                ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
            if (!made)
                return;
            ucred who{};
            socklen_t size = sizeof who;
            if (::getsockopt(made.get(), SOL_SOCKET, SO_PEERCRED, &who, &size) != 0 ||
                (who.uid != ::geteuid() && who.uid != 0))
                continue;
            const std::uint32_t number = ++last_client_;
            if (!watch(made.get(), number, EPOLLIN))
                continue;
            clients_[number].socket = std::move(made);
            read_client(number); // most clients have sent something by now
        }
    }

    [[nodiscard]] bool congested() const { return to_dom0_.size() > congested_at; }

    void pause(std::uint32_t number, client &c) {
        if (std::find(waiting_.begin(), waiting_.end(), number) == waiting_.end())
            waiting_.push_back(number);
        set_events(number, c, true, c.wants_write);
    }

    // Goes on with the clients that had to wait, the longest first.
    void resume() {
        for (std::size_t n = waiting_.size(); n > 0 && !congested() && !waiting_.empty(); --n) {
            const std::uint32_t number = waiting_.front();
            waiting_.erase(waiting_.begin());
            client &c = clients_.at(number);
            set_events(number, c, false, c.wants_write);
            pass_on(number, c, {});
        }
    }

    void read_client(std::uint32_t number) {
        client &c = clients_.at(number);
        if (congested())
            return pause(number, c);
        // The bytes that were kept go in front, since a frame is passed on from one piece of
        // memory.
        const std::size_t held = c.held.size();
        if (held >= most_read)
            return pause(number, c);
        std::memcpy(scratch_.get(), c.held.data(), held);
        const ssize_t n = ::recv(c.socket.get(), scratch_.get() + held, most_read - held, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0)
            return drop(number);
        c.held.clear();
        pass_on(number, c, {scratch_.get(), held + static_cast<std::size_t>(n)});
    }

    // Sends the part of `data` that may be sent now, and keeps the rest. If `data` is empty, uses
    // the bytes that were kept before.
    void pass_on(std::uint32_t number, client &c, bytes_view data) {
        std::string before;
        if (data.empty()) {
            before = std::exchange(c.held, {});
            data = as_bytes(before);
        }
        if (!c.preamble_seen) {
            const std::size_t n = std::min(data.size(), preamble.size());
            if (!std::equal(data.begin(), data.begin() + static_cast<std::ptrdiff_t>(n),
                            preamble.begin()))
                return drop(number);
            if (n < preamble.size()) {
                c.held.assign(as_text(data));
                return;
            }
            c.preamble_seen = true;
            data = data.subspan(n);
        }
        // This is empty until dom0's HELLO has come.
        const bytes_view hello = router_.hello();
        auto passes = router_.accept(number, data, now_ms_);
        const bool none = passes && *passes == 0;
        while (passes && *passes > 0) {
            write_dom0(data.first(*passes));
            data = data.subspan(*passes);
            passes = router_.accept(number, data, now_ms_);
        }
        if (!passes)
            return drop(number);
        if (!hello.empty() && !c.greeted) {
            c.greeted = true;
            c.out.put(hello);
        }
        c.held.assign(as_text(data));
        if (router_.held())
            pause(number, c);
        // If bytes were passed on, dom0 answers in a moment, and HELLO is sent with that answer.
        if (none && c.out.size() > 0)
            write_client(number, c);
    }

    // The router's own frames go first: a CLOSE among them makes room for an OPEN in `data`.
    void write_dom0(bytes_view data) {
        take_own_frames();
        if (to_dom0_.size() == 0) {
            const ssize_t n = data.empty() ? 0 : ::write(out_, data.data(), data.size());
            if (n > 0)
                data = data.subspan(static_cast<std::size_t>(n));
        }
        to_dom0_.put(data);
    }

    void take_own_frames() {
        out_buffer &own = router_.to_dom0();
        to_dom0_.put(own.pending());
        own.consume(own.size());
    }

    // The output of the router and the carrier goes after whole frames of clients.
    void flush() {
        take_own_frames(); // first: the preamble is in them
        while (carrier_ && carrier_->output().size() > 0) {
            out_buffer &files = carrier_->output();
            const bytes_view piece =
                files.pending().first(std::min(files.size(), limits::queue_piece));
            const auto room = to_dom0_.prepare(frame_header::size + piece.size());
            frame_header{static_cast<std::uint32_t>(piece.size()), 0, frame_type::queue}.encode(
                room.data());
            std::copy(piece.begin(), piece.end(), room.begin() + frame_header::size);
            to_dom0_.commit(room.size());
            files.consume(piece.size());
        }
        while (to_dom0_.size() > 0) {
            const bytes_view pending = to_dom0_.pending();
            const ssize_t n = ::write(out_, pending.data(), pending.size());
            if (n >= 0) {
                to_dom0_.consume(static_cast<std::size_t>(n));
            } else if (errno == EAGAIN) {
                break;
            } else if (errno != EINTR) {
                ended_ = true;
                return;
            }
        }
        if (const bool waits = to_dom0_.size() > 0; waits != dom0_waits_) {
            dom0_waits_ = waits;
            change(out_, of_dom0_out, waits ? std::uint32_t{EPOLLOUT} : 0u);
        }
        resume();
        to_dom0_.release_if_empty();
        arm();
    }

    std::string base_;
    int in_, out_;
    carrying carrying_;
    history_limits history_;
    std::unique_ptr<std::uint8_t[]> scratch_;
    unique_fd epoll_, signals_, timer_, listener_, base_watch_;
    ino_t socket_inode_ = 0;
    std::uint64_t socket_due_ms_ = UINT64_MAX;
    int watched_files_ = -1;
    agent_router router_;
    std::optional<carrier> carrier_; // of protocol 1's files
    std::unordered_map<std::uint32_t, client> clients_;
    std::vector<std::uint32_t> waiting_; // paused, in the order in which they came
    std::uint32_t last_client_ = 0;
    bool full_ = false;
    out_buffer to_dom0_; // whole frames; a part of the first may be written already
    bool dom0_waits_ = false;
    std::uint64_t now_ms_ = 0, prune_due_ms_ = UINT64_MAX, armed_ms_ = 0;
    bool ended_ = false, signalled_ = false, heard_dom0_ = false;
};

} // namespace

host::outcome<ending> serve(const std::string &base, int from_dom0, int to_dom0, carrying kind,
                            const history_limits &history) {
    return loop(base, from_dom0, to_dom0, kind, history).run();
}

sigset_t signals_of_ours() {
    sigset_t out;
    ::sigemptyset(&out);
    for (const int number : {SIGTERM, SIGINT, SIGHUP})
        ::sigaddset(&out, number);
    return out;
}

} // namespace qvmremote::agent
