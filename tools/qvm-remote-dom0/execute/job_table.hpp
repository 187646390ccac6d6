// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The jobs that dom0 knows: those that run, and those that have ended and are remembered.
///
/// The keeper of a job runs it, records its output and writes its end (job_keeper.hpp). The daemon only
/// starts it, connects to the keeper, and writes END to the audit log. So the next daemon can go on:
/// it connects again, or finds the end that the keeper has written.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <boost/asio/posix/stream_descriptor.hpp>

#include <qvmremote/command_id.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/job.hpp>

#include "base/settings.hpp"
#include "decide/admission.hpp"
#include "execute/cgroups.hpp"
#include "execute/execution_context.hpp"
#include "execute/job_files.hpp"
#include "execute/job_link.hpp"
#include "execute/terminal.hpp"
#include "record/id_index.hpp"

namespace qvmremote::dom0 {

/// Reads a job, or waits for it. The table calls it on the loop.
class job_watcher {
  public:
    virtual void on_more() = 0; ///< there may be more output
    virtual void on_end() = 0;  ///< job::end is set, and no more output comes
    /// The answer to job_table::borrow_input: a descriptor, or EBUSY or EPIPE.
    virtual void on_input(host::outcome<host::unique_fd> input) = 0;

  protected:
    ~job_watcher() = default;
};

struct job {
    job(qube_name q, command_id i) : qube(std::move(q)), id(std::move(i)) {}

    const qube_name qube;
    const command_id id;
    std::string name; ///< job_record::name
    digest256 key_mark{};
    std::int64_t started_s = 0;
    std::string started; ///< as the audit log has it
    std::string shown;
    bool tty = false;

    std::optional<std::uint64_t> serial; ///< of its START, until its END is on its way to the log
    std::optional<job_end> end;          ///< absent: it runs, or is about to
    std::uint64_t kept_bytes = 0;        ///< on the disk; while it runs, what it may keep
    job_offsets gone;                    ///< not kept any more; known when it has ended

    // While it runs.
    std::optional<job_link> link;
    std::optional<child> held; ///< without a cgroup: the job ends with this, and with the daemon
    std::optional<boost::asio::posix::stream_descriptor> events;
    std::set<job_watcher *> watchers;
    job_watcher *asks_for_input = nullptr, *has_input = nullptr;
};

class job_table {
  public:
    job_table(const paths &where, cgroup_home groups) : where_(where), groups_(std::move(groups)) {}
    ~job_table();

    // At start, in this order.

    /// Reads the jobs of earlier daemons from the disk, and connects to the keepers that live.
    [[nodiscard]] host::outcome<void> take_over();
    /// Whether this START, which has no END, is of a job that runs or whose end is known. Notes it.
    [[nodiscard]] bool recognizes(const id_index::open_start &start);
    /// Writes the ENDs of jobs that have ended meanwhile, and watches those that run. Everything that
    /// remains in the group of jobs and is not a known job is ended.
    void serve(execution_context &context, const job_limits &most);

    void use(const job_limits &most) { most_ = most; }

    /// Whether jobs outlive the daemon; if not, why.
    [[nodiscard]] const cgroup_home &groups() const noexcept { return groups_; }
    /// Finds out again whether the next job outlives it; prepare() does so too.
    void look_for_group() { claim_jobs_cgroup_again(groups_); }

    /// Before START: makes the job's files and its secret. Fails when the qube has too many jobs.
    [[nodiscard]] host::outcome<job *> prepare(const peer &from, const envelope &what,
                                               const digest256 &key_mark);
    /// START was not written, so there is no job.
    void forget(job &what);
    /// After START. A job that cannot be started ends at once.
    void start(job &what, const admitted &request);

    /// Instead of start(): a command that runs in a terminal goes on as a job.
    struct running_command {
        const admitted &request;
        child &process;
        const terminal &in;
        std::uint64_t output_bytes; ///< how much it may still write; 0: no limit
        std::uint32_t timeout_s;    ///< how long it may still run; 0: no limit
        const std::string &script;  ///< the file that it runs from; empty: none
    };
    [[nodiscard]] host::outcome<void> go_on(job &what, const running_command &command);

    [[nodiscard]] job *find(const qube_name &qube, const command_id &id);
    /// The jobs of one qube, or of all; those that began first come first.
    [[nodiscard]] std::vector<job *> list(const qube_name *qube);
    [[nodiscard]] job_row row_of(const job &what) const;
    [[nodiscard]] host::outcome<job_files> files_of(const job &what) const;
    [[nodiscard]] std::size_t running() const noexcept { return running_; }

    /// Asks for a word when there is more output than now. Call it before reading the last of it.
    void watch(job &what, job_watcher &by);
    /// Ends that, and gives the input back.
    void leave(job &what, job_watcher &by);
    /// Asks for the end of the job's input to write to; on_input answers, at once or later.
    void borrow_input(job &what, job_watcher &by);
    /// The input ends; only for the watcher that has it.
    void end_input(job &what, job_watcher &by);
    /// INT or QUIT, as a key of the job's terminal sends it.
    void interrupt(job &what, int number);

    /// TERM, and KILL two seconds later.
    void cancel(job &what);
    /// Ends it at once, for a reason of dom0's.
    void kill(job &what, errc why);
    void kill_all(errc why);
    /// Ends those for which `why_over` has a reason.
    void kill_if(const std::function<std::optional<errc>(const job &)> &why_over);

    /// Whether a file among the scripts belongs to a job that runs.
    [[nodiscard]] bool uses_script(const std::string &name) const;
    /// Who asked for a job, and for what, from its record.
    [[nodiscard]] host::outcome<std::pair<peer, envelope>> request_of(const job &what) const;

    /// The processes that jobs run below.
    [[nodiscard]] std::vector<pid_t> keepers() const;

  private:
    using key = std::pair<std::string, std::string>; // qube, ID

    [[nodiscard]] host::outcome<host::unique_fd> directory_of(const qube_name &qube,
                                                              bool make) const;
    void read_qube(const qube_name &qube);
    void read_job(const qube_name &qube, int directory, const command_id &id);
    [[nodiscard]] host::outcome<void> make_room(const qube_name &qube);
    [[nodiscard]] host::outcome<void> launch_job(job &what, const admitted &request);
    struct opened {
        job_files files;
        host::unique_fd out, err, listener;
        job_record record;
        job_launch launch;
    };
    [[nodiscard]] host::outcome<opened> open_for_keeper(const job &what) const;
    [[nodiscard]] host::outcome<void> connect(job &what, const job_record &record);
    void remove(job &what);
    void await_events(job &what);
    void on_events(job &what);
    void finish(job &what);
    void write_unknown_end(job &what);
    void record_end(job &what);
    void tidy(job &what);

    const paths &where_;
    cgroup_home groups_;
    job_limits most_;
    execution_context *context_ = nullptr;
    host::unique_fd root_;
    std::map<key, std::unique_ptr<job>> jobs_;
    std::size_t running_ = 0;
};

} // namespace qvmremote::dom0
