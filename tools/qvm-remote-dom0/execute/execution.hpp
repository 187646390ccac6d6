// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// One running command: its pipes, its time limit, its end.

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>

#include <qvmremote/host/bulk_pipe.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/session.hpp>

#include "decide/admission.hpp"
#include "execute/execution_context.hpp"
#include "execute/script_file.hpp"
#include "execute/session_port.hpp"
#include "execute/terminal.hpp"

namespace qvmremote::dom0 {

class job_table;

/// Runs an admitted request and reports on its session. The whole process tree ends (I9) when the
/// command has ended, when its time is up, or when the session is gone.
class execution : public std::enable_shared_from_this<execution> {
  public:
    /// `slot` is released when the last process has ended: until then the command counts as running.
    execution(execution_context &context, std::unique_ptr<session_port> port, admitted what,
              std::shared_ptr<void> slot);

    /// Starts the command and sends ACCEPTED. Any failure after that is reported by an END.
    void start();

    // Calls from the session.
    void stdin_data(bytes_view data);
    void stdin_eof();
    void signal(int number);
    void resize(std::uint16_t columns, std::uint16_t rows);
    void more_output(); ///< credit came, or the stream drained
    /// Lets a command in a terminal go on as a job, and ends the session. `jobs` is null where there are
    /// none. When that is not possible, the client is told why.
    void go_on_as_job(job_table *jobs, const digest256 &key_mark);

    /// The session is over on the qube's side, so nothing is reported any more.
    void abandon();
    /// Ends the command at once and tells the client why. Output that the client has not read is
    /// dropped.
    void cancel(errc why);

  private:
    struct output {
        output(boost::asio::io_context &loop, bool out) : pipe(loop), is_stdout(out) {}
        void close();

        boost::asio::posix::stream_descriptor pipe;
        bool is_stdout;
        bool open = false;
        bool waiting = false; // for the pipe to become readable
        host::bulk_pipe size;
        bool eof_told = false;
        std::uint64_t bytes = 0;
        output_lines shown;
    };

    [[nodiscard]] host::outcome<void> launch_command();
    [[nodiscard]] host::outcome<void> launch_in_terminal(launch &command);
    [[nodiscard]] host::outcome<void> launch_with_pipes(launch &command);
    [[nodiscard]] host::outcome<void> take_child(host::outcome<child> started);
    void watch_child();
    void on_child();
    void watch_output(output &from);
    void read_output(output &from);
    void close_outputs();
    void close_terminal();
    void on_output_end(output &from);
    void tell_early_eof();
    void write_stdin();
    void drop_stdin();
    [[nodiscard]] std::string why_not_started(int error_number) const;
    void on_exit(const child_event &event);
    void settle();
    void tell_of_held_output();
    [[nodiscard]] bool takes_what_is_there() const;
    void take_what_is_there();
    void terminate();
    [[nodiscard]] host::outcome<void> hand_over(job_table *jobs, const digest256 &key_mark);
    void record_end(const run_end &ended, std::uint64_t duration_ms);
    void on_time_limit();
    void terminate_because(end_cause cause, std::uint32_t value, std::string text);
    void finish();
    [[nodiscard]] bool outputs_open() const { return outputs_[0].open || outputs_[1].open; }
    [[nodiscard]] bool stalled() const;
    void on_too_much_output();

    execution_context &context_;
    std::unique_ptr<session_port> port_; // null once the session is gone
    admitted what_;
    containment bounds_;
    std::shared_ptr<void> slot_; // until the last process has ended
    host::local_time started_at_;
    std::uint64_t started_ms_ = 0;

    std::optional<terminal> terminal_;
    script_file script_; // the file that the command runs from, if there is one
    std::optional<child> child_;
    boost::asio::posix::stream_descriptor control_;
    boost::asio::posix::stream_descriptor stdin_;
    bool stdin_live_ = false;
    bool stdin_ended_ = false;
    bool stdin_waiting_ = false;
    host::bulk_pipe stdin_size_;
    out_buffer stdin_backlog_; // at most limits::widest_window: the client has no credit for more
    std::uint64_t stdin_bytes_ = 0;
    bool in_line_ = false; // something came on stdin since the last newline
    std::array<output, 2> outputs_;
    std::uint64_t output_left_ = UINT64_MAX;

    boost::asio::steady_timer limit_timer_, patience_timer_, leave_timer_, eof_timer_;
    std::optional<run_end> end_; // how it ended; empty until that is known
    bool exited_ = false;        // the first process
    bool tree_empty_ = false;
    bool terminating_ = false;
    bool held_output_told_ = false;
    bool leaving_ = false;    // output has ended, and other processes may end by themselves
    bool time_is_up_ = false; // the time-out has passed
    bool finished_ = false;
    bool told_to_end_ = false; // by a signal
    bool goes_on_ = false;     // as a job
};

} // namespace qvmremote::dom0
