// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Faults for tests: parses the option `fault`, and relays one stream with these faults.
///
/// Each place is the number of a byte in one direction, from 0, in the order in which the bytes are
/// written. It does not depend on the size of writes, so a run with the same options and bytes is the
/// same.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include <qvmremote/amounts.hpp>
#include <qvmremote/host/unique_fd.hpp>

namespace mock {

using qvmremote::host::unique_fd;
using milliseconds = std::chrono::milliseconds;
using clock = std::chrono::steady_clock;

enum class fault_kind {
    delay,     ///< each byte arrives N ms after it was written; the order stays
    cut,       ///< N bytes arrive, then the whole stream ends, both ways
    corrupt,   ///< one bit of byte N is inverted
    duplicate, ///< byte N arrives twice
    stall,     ///< N bytes arrive, then nothing more moves in this direction
    split,     ///< byte N and the later ones arrive a moment after the earlier ones
};

struct fault {
    fault_kind kind;
    bool inbound;                       // towards the process that loaded the plug-in
    std::optional<std::uint64_t> value; // empty: '?', a random one for each stream
};

/// SplitMix64: small, and the same on every platform, unlike std's distributions.
class prng {
  public:
    explicit prng(std::uint64_t seed) noexcept : state_(seed) {}
    [[nodiscard]] std::uint64_t next() noexcept {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
    }

  private:
    std::uint64_t state_;
};

/// One element of the list: [in:|out:]KIND:(N|?). `out`, the default, is the direction in which the
/// process that loaded the plug-in writes.
[[nodiscard]] inline std::optional<fault> parse_fault(std::string_view text) noexcept {
    static constexpr std::pair<std::string_view, fault_kind> kinds[] = {
        {"delay:", fault_kind::delay},     {"cut:", fault_kind::cut},
        {"corrupt:", fault_kind::corrupt}, {"duplicate:", fault_kind::duplicate},
        {"stall:", fault_kind::stall},     {"split:", fault_kind::split},
    };
    fault out{};
    out.inbound = text.starts_with("in:");
    if (out.inbound || text.starts_with("out:"))
        text.remove_prefix(text.find(':') + 1);
    for (const auto &[prefix, kind] : kinds) {
        if (!text.starts_with(prefix))
            continue;
        out.kind = kind;
        text.remove_prefix(prefix.size());
        if (text == "?")
            return out;
        out.value = qvmremote::parse_decimal<std::uint64_t>(text);
        if (!out.value || (kind == fault_kind::delay && *out.value > 3'600'000))
            return std::nullopt;
        return out;
    }
    return std::nullopt;
}

/// One direction of a stream with its faults: bytes go in, and come out when they are due.
class faulty_pipe {
  public:
    void add(fault_kind kind, std::uint64_t value, std::uint8_t mask) {
        switch (kind) {
        case fault_kind::delay:
            delay_ = milliseconds(value);
            break;
        case fault_kind::cut:
            cut_at_ = std::min(cut_at_, value);
            break;
        case fault_kind::stall:
            stall_at_ = std::min(stall_at_, value);
            break;
        case fault_kind::corrupt:
        case fault_kind::duplicate:
        case fault_kind::split:
            marks_.push_back({value, kind, mask});
            break;
        }
    }

    /// How many bytes may be taken from the writer now: none after a stall or a cut, and at most as
    /// many as a pipe holds, so that a slow reader slows the writer as it would without the relay.
    [[nodiscard]] std::size_t room() const noexcept {
        if (ended_ || held_ >= capacity)
            return 0;
        return static_cast<std::size_t>(
            std::min<std::uint64_t>(capacity - held_, std::min(cut_at_, stall_at_) - taken_));
    }
    /// Whether all bytes before the place of the stall were given.
    [[nodiscard]] bool is_stalled() const noexcept { return taken_ == stall_at_ && held_ == 0; }
    [[nodiscard]] bool is_cut() const noexcept { return taken_ == cut_at_; }
    [[nodiscard]] bool is_ended() const noexcept { return ended_; }
    /// Whether everything that was taken has been given, and no more will come.
    [[nodiscard]] bool is_drained() const noexcept { return held_ == 0 && (ended_ || is_cut()); }

    void push(std::string_view data, clock::time_point now) {
        chunk made{now + delay_, {}};
        made.data.reserve(data.size() + marks_.size());
        for (const char c : data) {
            char byte = c;
            int copies = 1;
            for (const mark &m : marks_) {
                if (m.at != taken_)
                    continue;
                if (m.kind == fault_kind::corrupt)
                    byte = static_cast<char>(static_cast<std::uint8_t>(byte) ^ m.mask);
                else if (m.kind == fault_kind::duplicate)
                    ++copies;
                else
                    keep(std::exchange(made, {made.due + moment, {}}));
            }
            made.data.append(static_cast<std::size_t>(copies), byte);
            ++taken_;
        }
        keep(std::move(made));
    }
    void end() noexcept { ended_ = true; }

    /// When the next bytes are due; nullopt when no bytes are held.
    [[nodiscard]] std::optional<clock::time_point> due() const noexcept {
        return chunks_.empty() ? std::nullopt : std::optional(chunks_.front().due);
    }
    [[nodiscard]] std::string_view front() const noexcept {
        return std::string_view(chunks_.front().data).substr(given_);
    }
    void pop(std::size_t n) {
        held_ -= n;
        given_ += n;
        if (given_ == chunks_.front().data.size()) {
            chunks_.pop_front();
            given_ = 0;
        }
    }

  private:
    static constexpr std::size_t capacity = 64 * 1024;
    static constexpr milliseconds moment{5}; // enough for the reader to read the earlier bytes
    static constexpr std::uint64_t never = UINT64_MAX;
    struct mark {
        std::uint64_t at;
        fault_kind kind;
        std::uint8_t mask;
    };
    struct chunk {
        clock::time_point due;
        std::string data;
    };
    void keep(chunk made) {
        if (made.data.empty())
            return;
        held_ += made.data.size();
        chunks_.push_back(std::move(made));
    }

    milliseconds delay_{0};
    std::uint64_t cut_at_ = never;
    std::uint64_t stall_at_ = never;
    std::vector<mark> marks_;
    std::deque<chunk> chunks_;
    std::size_t given_ = 0; // of the first chunk
    std::size_t held_ = 0;
    std::uint64_t taken_ = 0;
    bool ended_ = false;
};

/// The two directions of one stream, with random values for each '?'.
struct faulty_stream {
    faulty_pipe out;
    faulty_pipe in;

    faulty_stream(const std::vector<fault> &faults, prng &random, std::uint64_t range) {
        for (const fault &f : faults) {
            const std::uint64_t value = f.value ? *f.value : random.next() % range;
            const auto mask = static_cast<std::uint8_t>(1u << (random.next() & 7));
            (f.inbound ? in : out).add(f.kind, value, mask);
        }
    }
};

/// A thread between the real socket and one end of a socket pair; the host has the other end.
class relay {
  public:
    /// `stop` becomes readable when the relay must end; it lives longer than the relay.
    relay(unique_fd host_side, unique_fd wire_side, faulty_stream faults, int stop)
        : host_side_(std::move(host_side)), wire_side_(std::move(wire_side)),
          faults_(std::move(faults)), stop_(stop) {
        // A thread inherits the signal mask of its creator. With all signals blocked in this one, the
        // host's handlers and signalfd work as before.
        sigset_t all;
        sigset_t before;
        ::sigfillset(&all);
        ::pthread_sigmask(SIG_SETMASK, &all, &before);
        try {
            thread_ = std::thread([this] { run(); });
        } catch (...) {
            ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
            throw;
        }
        ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }
    relay(const relay &) = delete;
    relay &operator=(const relay &) = delete;
    ~relay() { thread_.join(); }

    [[nodiscard]] bool is_over() const noexcept { return over_; }

  private:
    struct direction {
        faulty_pipe &pipe;
        int from;
        int to;
        bool over = false; // its end was passed on, or nobody reads it
    };

    void run() noexcept {
        try {
            relay_both();
        } catch (...) {
            // Without memory, the stream can only be ended; both sides see that.
        }
        host_side_.reset();
        wire_side_.reset();
        over_ = true;
    }

    void relay_both() {
        direction out{faults_.out, host_side_.get(), wire_side_.get()};
        direction in{faults_.in, wire_side_.get(), host_side_.get()};
        for (;;) {
            for (direction *d : {&out, &in})
                give(*d, clock::now());
            const auto cut = [](const direction &d) {
                return d.pipe.is_cut() && d.pipe.is_drained();
            };
            if (cut(out) || cut(in) || (out.over && in.over))
                return;

            const auto now = clock::now();
            int timeout = -1;
            pollfd watched[] = {
                {stop_, POLLIN, 0}, watch(out, in, now, timeout), watch(in, out, now, timeout)};
            if (::poll(watched, 3, timeout) < 0 && errno != EINTR)
                return;
            if (watched[0].revents != 0)
                return;
            take(out, watched[1].revents, in);
            take(in, watched[2].revents, out);
        }
    }

    // The events to wait for on the descriptor that `reads` reads from and `writes` writes to.
    static pollfd watch(const direction &reads, const direction &writes, clock::time_point now,
                        int &timeout) {
        short events = 0;
        if (!reads.over && reads.pipe.room() != 0)
            events |= POLLIN;
        if (const auto due = writes.pipe.due(); due && !writes.over) {
            if (*due <= now) {
                events |= POLLOUT;
            } else {
                const auto wait = std::chrono::ceil<milliseconds>(*due - now).count();
                timeout = static_cast<int>(timeout < 0 ? wait : std::min<long>(timeout, wait));
            }
        }
        // poll() always reports a hang-up, which would make this loop spin while a full pipe waits for
        // its reader. When there is nothing more to read here, take() handles it once.
        const bool wants_hang_up =
            reads.pipe.is_stalled() || (reads.pipe.is_ended() && !writes.over);
        return {events != 0 || wants_hang_up ? reads.from : -1, events, 0};
    }

    void take(direction &d, short events, direction &back) {
        const std::size_t room = d.pipe.room();
        if ((events & (POLLIN | POLLHUP | POLLERR)) != 0 && !d.over && room != 0) {
            std::array<char, 16 * 1024> buffer;
            const ssize_t n =
                ::recv(d.from, buffer.data(), std::min(room, buffer.size()), MSG_DONTWAIT);
            if (n > 0)
                d.pipe.push({buffer.data(), static_cast<std::size_t>(n)}, clock::now());
            else if (n == 0 || (errno != EAGAIN && errno != EINTR))
                d.pipe.end();
        } else if ((events & (POLLHUP | POLLERR)) != 0) {
            // The peer has closed, after a stall or after the end of its own bytes. Nobody reads the
            // other direction, and a stalled stream without a writer is over.
            back.over = true;
            if (d.pipe.is_stalled())
                d.over = true;
        }
    }

    static void give(direction &d, clock::time_point now) {
        while (!d.over && d.pipe.due() && *d.pipe.due() <= now) {
            const std::string_view data = d.pipe.front();
            const ssize_t n = ::send(d.to, data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
            if (n >= 0) {
                d.pipe.pop(static_cast<std::size_t>(n));
            } else if (errno == EAGAIN || errno == EINTR) {
                return;
            } else {
                // Nobody reads these bytes any more; the writer must see that as it would without us.
                ::shutdown(d.from, SHUT_RD);
                d.over = true;
            }
        }
        if (!d.over && d.pipe.is_drained() && d.pipe.is_ended()) {
            ::shutdown(d.to, SHUT_WR);
            d.over = true;
        }
    }

    unique_fd host_side_;
    unique_fd wire_side_;
    faulty_stream faults_;
    int stop_;
    std::atomic<bool> over_{false};
    std::thread thread_; // last, since it uses the other members
};

} // namespace mock
