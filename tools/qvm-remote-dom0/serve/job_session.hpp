// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A request of a qube about one of its jobs: list, logs, follow, attach, wait, cancel.

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <boost/asio/posix/stream_descriptor.hpp>

#include <qvmremote/job.hpp>
#include <qvmremote/session.hpp>

#include "decide/admission.hpp"
#include "execute/job_table.hpp"
#include "execute/session_port.hpp"
#include "serve/request_pipeline.hpp"
#include "serve/service.hpp"

namespace qvmremote::dom0 {

/// Answers such a request over its session. It takes no slot, and reads what the job's keeper has
/// written; the job does not notice whether somebody reads.
class job_session final : public job_watcher, public std::enable_shared_from_this<job_session> {
  public:
    job_session(service &context, peer from, candidate verified, job_request about,
                std::unique_ptr<request_port> port);
    ~job_session();

    void begin();

    // Input from the session.
    void stdin_data(bytes_view data);
    void stdin_eof();
    void signal(int number);
    void resize(std::uint16_t columns, std::uint16_t rows);
    void more_output();
    /// The session is over on the qube's side. The job goes on.
    void abandon();
    /// Ends the session, for a reason of dom0's.
    void cancel(errc why);

    [[nodiscard]] const digest256 &key_mark() const noexcept { return key_mark_; }

    void on_more() override { pump(); }
    void on_end() override { pump(); }
    void on_input(host::outcome<host::unique_fd> input) override;

  private:
    struct lane {
        lane(bool out, int file, std::uint64_t from) : is_stdout(out), output(file, from) {}
        bool is_stdout;
        job_output output;
        std::uint64_t until = UINT64_MAX; ///< for logs: where the output ended at first
    };

    void refuse(errc why, const std::string &text = {});
    void accept(bool stdin_live);
    void list();
    void cancel_job();
    [[nodiscard]] bool open_output();
    void pump();
    [[nodiscard]] bool send_what_is_there();
    [[nodiscard]] bool send_some(lane &of);
    void send_text();
    void write_input();
    void drop_input();
    void end(run_end how);
    void forget();

    service &context_;
    const std::weak_ptr<service> alive_; // the destructor may run after the service has gone
    const peer from_;
    verified<envelope> header_;
    digest256 key_mark_;
    const job_request about_;
    std::unique_ptr<request_port> request_;
    std::unique_ptr<session_port> port_; // from accept() to the end
    job *job_ = nullptr;
    bool counted_ = false;

    std::string text_; // of a list
    job_files files_;
    std::optional<std::array<lane, 2>> lanes_;
    bool pumping_ = false;

    boost::asio::posix::stream_descriptor input_;
    out_buffer backlog_; // at most limits::widest_window: the client has no credit for more
    bool input_ended_ = false;
    bool writing_ = false;
    bool in_line_ = false;
    bool over_ = false;
};

} // namespace qvmremote::dom0
