// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/single_run.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include <boost/asio/post.hpp>

#include <qvmremote/host/environment.hpp>

#include "common/helper.hpp"
#include "serve/connection.hpp"

namespace qvmremote::dom0 {

namespace {

using std::chrono::seconds;

constexpr seconds check_limit{15};

} // namespace

void single_run::start() {
    timer_.expires_after(seconds(wait_s_));
    timer_.async_wait([this](boost::system::error_code ec) {
        if (!ec)
            time_is_up();
    });
    expected_ = running_qubes();
    // There may be no qube to wait for.
    const bool all_call = std::all_of(ways_.all().begin(), ways_.all().end(),
                                      [](const auto &way) { return way->transport.takes_peers(); });
    if (all_call && expected_.empty()) {
        any_stream_came_ = true;
        boost::asio::post(context_.loop, [this] { context_.daemon.something_ended(); });
    }
}

bool single_run::is_over(bool idle) {
    bool done = idle && any_stream_came_;
    for (const auto &c : context_.connections)
        if (c->is_done())
            expected_.erase(c->from().name.text());
        else
            done = done && c->is_closed();
    return done && expected_.empty();
}

// The qubes that run: a single run ends when it has served each of them. A transport that only listens
// cannot know them; then it ends when the qubes that came are served.
std::set<std::string> single_run::running_qubes() const {
    std::set<std::string> out;
    for (const auto &way : ways_.all()) {
        if (!way->transport.takes_peers())
            continue;
        const auto options = host::options_of(settings_.values, way->transport.name());
        const auto set = std::find_if(options.begin(), options.end(),
                                      [](const auto &o) { return o.first == "qvm-check"; });
        const std::string program = set == options.end() ? "qvm-check" : set->second;
        for (const std::string &name : way->peers) {
            const auto checked =
                run_helper({program, "--quiet", "--running", name}, 4096, check_limit);
            if (!checked || checked->exit_code == 0)
                out.insert(name); // a qube whose state is unknown counts as running
        }
    }
    return out;
}

void single_run::time_is_up() {
    if (expected_.empty() && any_stream_came_) {
        // The qubes that came are served. A call that a qube keeps open does not delay the end.
        on_timeout_(0);
        return;
    }
    std::string missing;
    for (const std::string &name : expected_)
        missing += (missing.empty() ? ": " : ", ") + name;
    context_.log.write(log_category::error,
                       (missing.empty() ? "nobody came within " : "not served within ") +
                           std::to_string(wait_s_) + " s" + missing);
    std::fprintf(stderr, "qvm-remote-dom0: %s within %u s%s\n",
                 missing.empty() ? "nobody came" : "not served", wait_s_, missing.c_str());
    on_timeout_(1);
}

} // namespace qvmremote::dom0
