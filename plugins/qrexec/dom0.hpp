// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// dom0's end of qrexec: listens at the socket of the service, and finds out which qube calls.
///
/// It uses one thread and never blocks: the listener, a timer and every connection without a complete
/// descriptor are in one epoll set. It starts no process for a call.

#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>

#include <sys/types.h>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "../common/border.hpp"
#include "../common/words.hpp"
#include "descriptor.hpp"

namespace qrexec {

using plugins::ms;
using plugins::problem;
using qvmremote::host::unique_fd;

/// qrexec writes the descriptor at once; a connection without it after this time is closed.
inline constexpr ms descriptor_limit = 5'000;
/// How many connections may be without a complete descriptor; others wait in the kernel's queue.
inline constexpr std::size_t most_half_way = 64;

struct settings {
    std::string socket = "/run/qubes-rpc/qvmremote.Exec";
    std::string user; ///< the user of qrexec; empty: the first member of group qubes
};

struct taken_stream {
    descriptor from;
    unique_fd socket;
};

class server {
  public:
    /// `now` does not change during a call of a function here. Throws a problem when qrexec's user
    /// does not exist.
    explicit server(settings chosen, ms (*now)() = qvmremote::host::boottime_ms);
    server(const server &) = delete;
    server &operator=(const server &) = delete;
    /// Removes the socket. Without it qrexec reports that there is no such service.
    ~server();

    /// Returns a descriptor that becomes readable when accept has something to do.
    [[nodiscard]] int listen();
    /// The next stream, read exactly up to the NUL of its descriptor; nothing when there is none now.
    /// Throws a problem that people should see.
    [[nodiscard]] std::optional<taken_stream> accept();

    /// When there is something to do without an event; `never` when there is not.
    [[nodiscard]] ms next_due() const {
        return half_way_.empty() ? plugins::never : half_way_.front().due;
    }
    [[nodiscard]] std::size_t half_way() const noexcept { return half_way_.size(); }

  private:
    struct connection {
        unique_fd socket;
        ms due;
        std::string untrusted_text; // the part of the descriptor that has come
    };
    enum class progress : std::uint8_t { more, whole, bad };

    void open_socket();
    void watch(int fd) const;
    void take_new();
    [[nodiscard]] progress read(connection &from) const;
    void settle();
    void complain(int failure, std::string text);

    settings settings_;
    ms (*clock_)();
    ms now_ = 0;
    uid_t user_ = 0;
    unique_fd epoll_, timer_, listener_;
    ino_t inode_ = 0;
    bool is_full_ = false;
    ms armed_ = plugins::never;
    std::deque<connection> half_way_; // the oldest first, which is due first
    plugins::telling told_;
    std::optional<std::string> problem_; // to be reported
};

} // namespace qrexec
