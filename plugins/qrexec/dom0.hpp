// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// dom0's end of qrexec: the socket of the service, and who has come to it from where.
///
/// One thread, nothing blocks: the listener, a timer and every connection that has not said all of
/// its descriptor are in one epoll set. Nothing is started for a call.

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

/// qrexec writes the descriptor at once; who has not said it within this time is turned away.
inline constexpr ms descriptor_limit = 5'000;
/// So many may be half-way through at a time; others wait in the kernel's queue.
inline constexpr std::size_t most_half_way = 64;

struct settings {
    std::string socket = "/run/qubes-rpc/qvmremote.Exec";
    std::string user; ///< whom qrexec runs as; empty: the first member of group qubes
};

struct taken_stream {
    descriptor from;
    unique_fd socket;
};

class server {
  public:
    /// `now` stands still within a call of any function here. Throws a problem when nobody can be
    /// the user.
    explicit server(settings how, ms (*now)() = qvmremote::host::boottime_ms);
    server(const server &) = delete;
    server &operator=(const server &) = delete;
    /// The socket goes: without it qrexec says that there is no such service.
    ~server();

    /// The descriptor that is readable when accept has something to do.
    [[nodiscard]] int listen();
    /// The next stream, read up to the NUL of its descriptor and not further; none when there is
    /// none now. Throws a problem that people should see.
    [[nodiscard]] std::optional<taken_stream> accept();

    /// When there is something to do though nothing happens; `never` when all is quiet.
    [[nodiscard]] ms next_due() const {
        return half_way_.empty() ? plugins::never : half_way_.front().due;
    }
    [[nodiscard]] std::size_t half_way() const noexcept { return half_way_.size(); }

  private:
    struct connection {
        unique_fd socket;
        ms due;
        std::string untrusted_text; // of the descriptor, so far
    };
    enum class progress : std::uint8_t { more, whole, bad };

    void open_socket();
    void watch(int fd) const;
    void take_new();
    [[nodiscard]] progress read(connection &from) const;
    void settle();
    void complain(int failure, std::string text);

    settings how_;
    ms (*clock_)();
    ms now_ = 0;
    uid_t user_ = 0;
    unique_fd epoll_, timer_, listener_;
    ino_t inode_ = 0;
    bool is_full_ = false;
    ms armed_ = plugins::never;
    std::deque<connection> half_way_; // the oldest, which is due first, in front
    plugins::telling told_;
    std::optional<std::string> problem_; // to be said
};

} // namespace qrexec
