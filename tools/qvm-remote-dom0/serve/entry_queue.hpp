// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Protocol 1 of one qube: handles the entries that its carrier announces, and sends their results.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include <qvmremote/queue.hpp>

#include "decide/admission.hpp"
#include "serve/request_pipeline.hpp"
#include "serve/service.hpp"

namespace qvmremote::dom0 {

class connection;

/// Handles the carrier's messages, on the stream of the connection that owns this.
class entry_queue {
  public:
    entry_queue(service &context, connection &owner) : context_(context), owner_(owner) {}

    /// Takes a piece of the queue's bytes. False when they are not valid: then close the stream.
    [[nodiscard]] bool take(bytes_view untrusted, std::uint64_t now_ms);

    /// Sends a ping; `answers` tells how many answers came.
    void ping();
    [[nodiscard]] std::uint64_t answers() const noexcept { return answers_; }

    /// How many entries wait or run.
    [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }
    /// Whether the carrier has said that nothing waits there.
    [[nodiscard]] bool said_idle() const noexcept { return said_idle_; }

    /// Ends what runs, since the stream has ended.
    void close();
    /// As in connection.
    void recheck_keys();
    void check_body_times(std::uint64_t awake_ms);
    void refuse_waiting(errc why);
    /// Called when the stream has room again.
    void more_output();

  private:
    friend class entry_port;
    friend class entry_request_port;

    void handle(queue_event event, std::uint64_t now_ms);
    void on_entry(const queue_event &event, std::uint64_t now_ms);
    void on_body(queue_event event);
    void on_gone(const std::string &id);
    template <class Call>
    void for_each_request(Call call);
    void on_failed(const command_id &id);
    void on_stale(const command_id &id);
    void refuse_entry(const command_id &id, const refusal &why);
    void send_refusal(const command_id &id, const refusal &why);
    void send_failure(const command_id &id, int exit_code, std::string_view text);
    void confirm_later(const command_id &id);
    void send();

    service &context_;
    connection &owner_;
    queue_server machine_;
    std::map<std::string, std::shared_ptr<request_pipeline>> entries_;
    std::set<std::string> unconfirmed_; // results that the carrier has not confirmed yet
    std::uint64_t pings_ = 0, answers_ = 0;
    bool said_idle_ = false;
};

} // namespace qvmremote::dom0
