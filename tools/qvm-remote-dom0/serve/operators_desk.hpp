// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The requests of operators and root to the running daemon, over its control socket.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <boost/asio/steady_timer.hpp>
#include <nlohmann/json_fwd.hpp>

#include <qvmremote/host/failure.hpp>

#include "decide/approvals.hpp"
#include "execute/cgroups.hpp"
#include "execute/job_table.hpp"
#include "execute/warden.hpp"
#include "serve/control.hpp"
#include "serve/daemon_options.hpp"
#include "serve/notifier.hpp"
#include "serve/service.hpp"
#include "serve/ways_in.hpp"

namespace qvmremote::dom0 {

/// Shows operators the questions that wait, takes their answers, and reports the daemon's status.
class operators_desk {
  public:
    /// `reload` returns what is wrong, or nothing; `unserved` says which listed qubes cannot be
    /// served.
    operators_desk(service &context, const daemon_options &options, const cgroup_home &home,
                   const warden &children, job_table &jobs, notifier &desktop, const ways_in &ways,
                   std::function<std::string()> reload,
                   std::function<std::vector<std::string>()> unserved)
        : context_(context), options_(options), home_(home), children_(children), jobs_(jobs),
          notifier_(desktop), ways_(ways), reload_(std::move(reload)),
          unserved_(std::move(unserved)), silence_timer_(context.loop), watch_timer_(context.loop) {
    }

    /// Opens the control socket.
    [[nodiscard]] host::outcome<void> open();

    /// Puts a question to the operators. Returns its serial, or nothing when too many wait.
    [[nodiscard]] std::optional<std::uint64_t> ask(question what, approvals::answer on_decision);

    /// Tells watching clients, and sets the timer for questions that nobody answers.
    void questions_changed();

  private:
    using reply = control_server::reply;

    void answer(std::string_view request, const requester &who, reply respond);
    void on_status(std::string_view request, const requester &who, reply respond);
    void on_reload(std::string_view request, const requester &who, reply respond);
    void on_panic(std::string_view request, const requester &who, reply respond);
    void on_audit(std::string_view request, const requester &who, reply respond);
    void on_approvals(std::string_view request, const requester &who, reply respond);
    void on_wait(std::string_view request, const requester &who, reply respond);
    void on_question(std::string_view request, const requester &who, reply respond);
    void on_allow(std::string_view request, const requester &who, reply respond);
    void on_deny(std::string_view request, const requester &who, reply respond);
    void on_jobs(std::string_view request, const requester &who, reply respond);
    void on_job_cancel(std::string_view request, const requester &who, reply respond);

    [[nodiscard]] std::string questions() const;
    [[nodiscard]] nlohmann::ordered_json status() const;
    [[nodiscard]] const char *why_no_operator(const requester &who) const;

    service &context_;
    const daemon_options &options_;
    const cgroup_home &home_;
    const warden &children_;
    job_table &jobs_;
    notifier &notifier_;
    const ways_in &ways_;
    std::function<std::string()> reload_;
    std::function<std::vector<std::string>()> unserved_;
    std::vector<reply> watchers_;
    std::uint64_t told_version_ = 0;
    std::unique_ptr<control_server> control_;
    boost::asio::steady_timer silence_timer_, watch_timer_;
};

} // namespace qvmremote::dom0
