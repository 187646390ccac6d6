// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// dom0's end of qvm-run: one call to each authorised qube that runs, and its stream for the host.
///
/// One thread, nothing blocks: all that can happen is a descriptor in one epoll set. While every
/// call stands, no timer is armed and no process started.

#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <qvmremote/host/child.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "../common/border.hpp"
#include "qubesd.hpp"
#include "schedule.hpp"

namespace qvm_run {

using plugins::problem;
using qvmremote::host::child;
using qvmremote::host::child_end;
using qvmremote::host::unique_fd;

/// Absolute paths; empty where there is none.
/// The longest name of a user, as useradd(8) has it.
inline constexpr std::size_t longest_user = 32;

struct settings {
    std::string qubesd = "/var/run/qubesd.sock";
    std::string qrexec_client;
    std::string qvm_run = "/usr/bin/qvm-run";
    std::string qvm_check = "/usr/bin/qvm-check";
    std::string user; ///< whose home in a qube the queue is in; empty: the qube's default user
};

/// What the qube's shell is given: our agent, or the shell program where there is none.
[[nodiscard]] std::string command_for_qube();

/// The program and its arguments that call `qube`.
[[nodiscard]] std::vector<std::string> call_of(const settings &how, const std::string &qube);

struct taken_stream {
    std::string qube;
    unique_fd socket;
};

class caller {
  public:
    /// `now` stands still within a call of any function here.
    explicit caller(settings how, ms (*now)() = qvmremote::host::boottime_ms);
    caller(const caller &) = delete;
    caller &operator=(const caller &) = delete;
    /// Ends all calls: SIGTERM, a second, SIGKILL.
    ~caller();

    /// The descriptor that is readable when accept has something to do. From here on qubes are
    /// called.
    [[nodiscard]] int listen();
    /// The next stream, none when there is none now. Throws a problem that people should see.
    [[nodiscard]] std::optional<taken_stream> accept();
    /// The qubes to be called from now on, in place of those named before.
    void set_peers(const std::vector<std::string> &names);

    /// When there is something to do though nothing happens; `never` when all is quiet.
    [[nodiscard]] ms next_due() const;

  private:
    enum class state : std::uint8_t { unknown, stands, runs };
    using id = std::uint64_t; // never used again, so a late event finds nothing

    struct qube {
        state now = state::unknown;
        bool is_news = false;   // events spoke of it since the listing was asked for
        bool is_queued = false; // in to_check_
        id job = 0;             // its call or its check, 0 for neither
        ms due = 0;             // not called, and not checked anew, before
        back_off pause;
        telling told;
    };

    // A child: a call, or a check whether a qube runs.
    struct job {
        std::string qube;
        bool is_check;
        child process;
        ms started;
        ms answer_due; // a call: its first byte; a check: its end
        ms stderr_due = never;
        bool is_dropped = false; // by us: its end is no failure
        bool is_revoked = false; // by set_peers, whatever it named later
        ending end;
        unique_fd near; // the host's end, until the host has it
        unique_fd far;  // the child's end, to learn that the host has closed its own
        unique_fd err;
        last_line words;
    };
    using jobs = std::map<id, job>;

    enum class source : std::uint8_t { process, near, far, err, timer, wake, events, listing };

    void watch(int fd, std::uint32_t events, id of, source what);
    void unwatch(int fd) noexcept;
    void work();
    void happened(std::uint32_t events, id of, source what);
    void do_what_is_due();
    void settle();
    void say(telling &whose, int failure, std::string text);

    [[nodiscard]] qube *find(const std::string &name);
    [[nodiscard]] bool is_in_want() const; // some qube has no call
    [[nodiscard]] ms pause(back_off &of) const;

    void dial(const std::string &name, qube &to);
    void check(const std::string &name, qube &of);
    void start(const std::string &name, qube &of, bool is_check);
    void cut(job &which);
    void drop(job &which);
    void read_err(job &which);
    void process_ended(jobs::iterator which);
    void call_ended(job &which, const child_end &how);
    void check_ended(const job &which, const child_end &how);

    void connect_to_qubesd();
    [[nodiscard]] unique_fd ask_qubesd(std::string_view what, int &error) const;
    void lose_qubesd(int failure, const std::string &why);
    void ask_for_listing();
    void read_events();
    void read_listing();
    void heard(const event &what);
    void queue_checks(bool all);

    settings how_;
    ms (*clock_)();
    ms now_ = 0;
    unique_fd epoll_;
    unique_fd timer_;
    unique_fd wake_;
    ms armed_ = never;
    bool is_woken_ = false;
    bool is_listening_ = false;

    std::map<std::string, qube> qubes_;
    jobs jobs_;
    id last_id_ = 0;
    std::deque<id> ready_;             // calls whose stream the host may have
    std::deque<std::string> problems_; // to be said

    unique_fd events_;
    event_reader reader_;
    unique_fd listing_;
    std::string untrusted_listing_;
    ms qubesd_since_ = 0;
    ms qubesd_due_ = 0; // the next attempt, or with events_ the answer that is waited for
    back_off qubesd_pause_;
    telling qubesd_told_;
    bool checks_ = false; // there is no qubesd: qvm-check is asked

    std::deque<std::string> to_check_;
    std::size_t checking_ = 0;
    ms round_due_ = never;
};

} // namespace qvm_run
