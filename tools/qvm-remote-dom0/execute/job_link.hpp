// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A connection to the keeper of a job, for the daemon that started it, the next daemon, and root.

#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include <sys/socket.h>
#include <sys/types.h>

#include <qvmremote/error.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "execute/cgroups.hpp"
#include "execute/job_files.hpp"
#include "execute/job_wire.hpp"

namespace qvmremote::dom0 {

/// The socket of a job's keeper, in a directory that only root enters.
[[nodiscard]] std::string job_socket(const std::string &sockets, const std::string &name);

/// Makes that socket, for the keeper to listen at.
[[nodiscard]] host::outcome<host::unique_fd> listen_for_job(const std::string &sockets,
                                                            const std::string &name);

/// Ends every job whose keeper has a socket there, for a reason of dom0's, when no daemon does it.
void kill_jobs(const std::string &sockets, errc why);

class job_link {
  public:
    /// Connects to the socket of this job. Fails when nobody listens there.
    [[nodiscard]] static host::outcome<job_link> connect(const std::string &sockets,
                                                         const job_record &of);

    /// Makes sure that the other end is the job's keeper: waits for its first message, 2 s at most,
    /// which must come from root (or our user) and hold the secret, and looks for its process among
    /// the keepers of `jobs`. Fails with the reason.
    [[nodiscard]] host::outcome<void> check(const cgroup_home &jobs);

    /// Borrowed; readable when next() has something.
    [[nodiscard]] int descriptor() const noexcept { return socket_.get(); }
    /// The process ID of the keeper; 0 before its first message has come.
    [[nodiscard]] pid_t keeper() const noexcept { return keeper_; }

    struct event {
        enum event_kind { more, ended, input, gone } kind;
        int error_number = 0;        ///< of input: 0, EBUSY, EPIPE
        host::unique_fd input_end{}; ///< of input
    };
    /// The next event, or nothing. Never blocks. After `gone` there is no other.
    [[nodiscard]] std::optional<event> next();

    void order(job_order::order_kind kind, int number = 0) const noexcept;

    /// Waits for the keeper to end.
    void await_end(int patience_ms) const noexcept;

  private:
    job_link(host::unique_fd socket, const job_record &of) noexcept
        : socket_(std::move(socket)), secret_(of.secret) {}
    [[nodiscard]] bool is_hello(bytes_view message, const ucred &sender) noexcept;

    host::unique_fd socket_;
    std::array<std::uint8_t, 32> secret_;
    pid_t keeper_ = 0;
};

} // namespace qvmremote::dom0
