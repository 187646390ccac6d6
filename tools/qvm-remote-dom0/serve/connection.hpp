// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// One stream from a qube: its bytes, its keep-alive, and the requests of the sessions on it.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>

#include <qvmremote/host/transport.hpp>
#include <qvmremote/session.hpp>

#include "decide/admission.hpp"
#include "serve/entry_queue.hpp"
#include "serve/job_session.hpp"
#include "serve/request_pipeline.hpp"
#include "serve/service.hpp"

namespace qvmremote::dom0 {

/// Moves bytes between the transport's descriptors and a server_stream, and handles its events.
class connection : public std::enable_shared_from_this<connection> {
  public:
    connection(service &context, host::stream from, qube_name qube, std::string transport);

    void start();

    [[nodiscard]] const peer &from() const noexcept { return from_; }
    [[nodiscard]] server_stream &stream() noexcept { return stream_; }
    /// The request of a session whose body is complete. Fails as server_stream::complete does.
    [[nodiscard]] result<verified<request>> take_body(std::uint32_t number);
    [[nodiscard]] std::size_t session_count() const noexcept { return stream_.session_count(); }

    /// Sends what the stream machine has queued. Call it after every use of stream().
    void flush();

    /// Ends the stream, and the commands that run for it.
    void close();

    /// The keep-alive (DESIGN.md §5): sends a ping when nothing has come for some time, or in any
    /// case with `all`. Logs once that a stream does not answer.
    void keep_alive(std::uint64_t now_ms, bool all);
    /// When keep_alive has something to do; UINT64_MAX while the stream is idle or silent.
    [[nodiscard]] std::uint64_t keep_alive_due() const;

    /// Whether nothing runs here and nothing waits in the qube: its carrier says that the queue is
    /// empty, or there is no carrier and the client has gone.
    [[nodiscard]] bool is_done() const {
        if (queue_)
            return session_count() == 0 && queue_->size() == 0 && queue_->said_idle();
        return closed_ && was_asked_;
    }
    [[nodiscard]] bool is_closed() const noexcept { return closed_; }
    /// Whether something runs or waits here.
    [[nodiscard]] bool is_busy() const {
        return !requests_.empty() || !readers_.empty() || (queue_ && queue_->size() > 0);
    }

    /// Counts a token that did not verify. A stream with very many of them is read slowly, since each
    /// one costs us more than its sender.
    void count_failure(std::uint64_t now_ms);

    /// Ends sessions whose key was revoked or replaced, or whose qube is not served any more.
    void recheck_keys();
    /// Refuses requests that wait, since the daemon is about to end.
    void refuse_waiting(errc why);

    /// Called when the request of this session is over.
    void forget(std::uint32_t number) {
        requests_.erase(number);
        readers_.erase(number);
    }

  private:
    void read_more();
    void on_readable();
    void handle(const server_event &event, std::uint64_t now_ms);
    void on_request(const server_event &event, std::uint64_t now_ms);
    void answer_directly(std::uint32_t number, const candidate &asked);
    [[nodiscard]] std::string status() const;
    void answer_about_job(std::uint32_t number, candidate asked);
    void pass_to_reader(job_session &reader, const server_event &event);
    template <class Call>
    void for_each_reader(Call call);
    template <class Call>
    void for_each_request(Call call);
    void check_body_times(std::uint64_t awake_ms);
    void wait_for_preamble();

    service &context_;
    peer from_;
    boost::asio::posix::stream_descriptor in_, out_;
    boost::asio::steady_timer preamble_timer_, pause_timer_;
    server_stream stream_;
    std::map<std::uint32_t, std::shared_ptr<request_pipeline>> requests_;
    std::map<std::uint32_t, std::shared_ptr<job_session>> readers_; // requests about jobs
    std::unique_ptr<entry_queue> queue_;     // null until the other end uses it
    std::uint64_t heard_ms_, pinged_ms_ = 0; // 0: no ping waits for an answer
    std::size_t failures_ = 0;               // in this period
    std::uint64_t failures_since_ms_ = 0;
    bool silent_ = false; // the ping was not answered in time
    bool reading_ = false;
    bool writing_ = false;
    bool closed_ = false;
    bool was_asked_ = false; // a request has verified
};

} // namespace qvmremote::dom0
