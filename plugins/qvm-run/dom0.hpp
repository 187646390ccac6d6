// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// dom0's end of qvm-run: keeps one call to each authorised qube that runs, and gives its stream to
/// the host.
///
/// It uses one thread and never blocks: everything that it waits for is a descriptor in one epoll
/// set. While every call is open, no timer is armed and no process is started.

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

/// The longest name of a user that useradd(8) makes.
inline constexpr std::size_t longest_user = 32;

/// Paths are absolute. An empty path is not used.
struct settings {
    std::string qubesd = "/var/run/qubesd.sock";
    std::string qrexec_client;
    std::string qvm_run = "/usr/bin/qvm-run";
    std::string qvm_check = "/usr/bin/qvm-check";
    std::string user; ///< the user in a qube whose home has the queue; empty: the default user
};

/// The command for the qube's shell. It starts our agent, or the shell program when no agent is
/// installed.
[[nodiscard]] std::string command_for_qube();

/// The program that calls `qube`, and its arguments.
[[nodiscard]] std::vector<std::string> call_of(const settings &options, const std::string &qube);

struct taken_stream {
    std::string qube;
    unique_fd socket;
};

class caller {
  public:
    /// `now` does not change during a call of a function here.
    explicit caller(settings options, ms (*now)() = qvmremote::host::boottime_ms);
    caller(const caller &) = delete;
    caller &operator=(const caller &) = delete;
    /// Ends all calls: SIGTERM, a second, SIGKILL.
    ~caller();

    /// Returns a descriptor that becomes readable when accept has something to do. From now on,
    /// qubes are called.
    [[nodiscard]] int listen();
    /// The next stream; nothing when there is none now. Throws a problem that people should see.
    [[nodiscard]] std::optional<taken_stream> accept();
    /// Sets the qubes to call from now on, in place of those named before.
    void set_peers(const std::vector<std::string> &names);

    /// When there is something to do without an event; `never` when there is not.
    [[nodiscard]] ms next_due() const;

  private:
    enum class state : std::uint8_t { unknown, stands, runs };
    using id = std::uint64_t; // never used again, so a late event finds nothing

    struct qube {
        state now = state::unknown;
        bool is_news = false;   // an event named it after the listing was requested
        bool is_queued = false; // in to_check_
        id job = 0;             // its call or its check, 0 for neither
        ms due = 0;             // it is not called or checked again before this time
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
        bool is_dropped = false; // we ended it, so its end is not a failure
        bool is_revoked = false; // set_peers removed its qube, perhaps to name it again
        ending end;
        unique_fd near; // the host's end, until the host has it
        unique_fd far;  // the child's end, to learn that the host has closed its own
        unique_fd err;
        last_line words;
    };
    using jobs = std::map<id, job>;

    enum class source : std::uint8_t { process, near, far, err, timer, wake, events, listing };

    void watch(int fd, std::uint32_t events, id of, source kind);
    void unwatch(int fd) noexcept;
    void work();
    void happened(std::uint32_t events, id of, source kind);
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
    void forget_ended(ms patience);
    void drop(job &which);
    void read_err(job &which);
    void process_ended(jobs::iterator which);
    void call_ended(job &which, const child_end &end);
    void check_ended(const job &which, const child_end &end);

    void connect_to_qubesd();
    [[nodiscard]] unique_fd ask_qubesd(std::string_view request, int &error) const;
    void lose_qubesd(int failure, const std::string &why);
    void ask_for_listing();
    void read_events();
    void read_listing();
    void heard(const event &e);
    void queue_checks(bool all);

    settings settings_;
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
    std::deque<id> ready_;             // calls whose stream is ready for the host
    std::deque<std::string> problems_; // to be reported

    unique_fd events_;
    event_reader reader_;
    unique_fd listing_;
    std::string untrusted_listing_;
    ms qubesd_since_ = 0;
    ms qubesd_due_ = 0; // when to try again; with events_, when an answer is overdue
    back_off qubesd_pause_;
    telling qubesd_told_;
    bool checks_ = false; // there is no qubesd, so qvm-check is used

    std::deque<std::string> to_check_;
    std::size_t checking_ = 0;
    ms round_due_ = never;
};

} // namespace qvm_run
