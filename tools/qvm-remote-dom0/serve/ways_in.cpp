// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/ways_in.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <optional>

#include <fcntl.h>

#include <qvmremote/host/environment.hpp>

#include "base/dom0_limits.hpp"
#include "base/log.hpp"
#include "serve/connection.hpp"

namespace qvmremote::dom0 {

namespace {

using std::chrono::milliseconds;

constexpr milliseconds accept_pause{1000}; // after a failure of the transport

} // namespace

host::outcome<void> ways_in::open() {
    for (const std::string &name : settings_.transports.all()) {
        auto loaded = host::transport::load(options_.plugin_directory, name, host::role::dom0,
                                            transport_options(name));
        if (!loaded)
            return tl::unexpected(loaded.error());
        ways_.push_back(std::make_unique<way_in>(context_.loop, std::move(*loaded)));
    }
    if (auto told = tell_peers(); !told)
        return told;
    for (const auto &way : ways_) {
        auto event_fd = way->transport.listen();
        if (!event_fd)
            return tl::unexpected(event_fd.error());
        // The transport keeps the descriptor; the loop uses a copy.
        const int copy = ::fcntl(*event_fd, F_DUPFD_CLOEXEC, 3);
        if (copy < 0)
            return host::failed("cannot watch the transport", errno);
        way->incoming.assign(copy);
        await_streams(*way);
    }
    return {};
}

// The options of a transport, with the changes by --root.
host::transport_options ways_in::transport_options(const std::string &name) const {
    host::transport_options out = host::options_of(settings_.values, name);
    const bool has_socket =
        std::any_of(out.begin(), out.end(), [](const auto &o) { return o.first == "socket"; });
    if (name == "qrexec" && !options_.where.is_real() && !has_socket)
        out.emplace_back("socket", options_.where.qrexec_socket());
    return out;
}

// The qubes that may connect: they have a key and, if there is a list, are on it. Each transport
// gets the qubes that it is configured for. A transport ends the stream of a qube that is not in
// its list any more, so a removed qube stays until the results of its commands have been sent.
host::outcome<void> ways_in::tell_peers() {
    auto qubes = keys_.list();
    if (!qubes)
        return tl::unexpected(qubes.error());
    for (const auto &way : ways_) {
        way->peers.clear();
        for (const qube_name &qube : *qubes)
            if ((!settings_.qubes || std::find(settings_.qubes->begin(), settings_.qubes->end(),
                                               qube) != settings_.qubes->end()) &&
                settings_.transports.serves(way->transport.name(), qube.text()))
                way->peers.push_back(qube.text());
        for (const auto &c : context_.connections)
            if (c->is_busy() && c->from().transport == way->transport.name() &&
                std::find(way->peers.begin(), way->peers.end(), c->from().name.text()) ==
                    way->peers.end()) {
                way->peers.push_back(c->from().name.text());
                some_leave_ = true;
            }
        if (auto told = way->transport.set_peers(way->peers); !told)
            return told;
    }
    return {};
}

host::outcome<void> ways_in::forget_leaving() {
    return std::exchange(some_leave_, false) ? tell_peers() : host::outcome<void>();
}

void ways_in::close() {
    for (const auto &way : ways_)
        way->incoming.cancel();
}

void ways_in::await_streams(way_in &way) {
    way.incoming.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                            [this, &way](boost::system::error_code ec) {
                                if (!ec)
                                    take_streams(way);
                            });
}

void ways_in::take_streams(way_in &way) {
    for (;;) {
        auto got = way.transport.accept();
        if (!got) {
            context_.log.write(log_category::error, for_log(got.error().what));
            way.pause.expires_after(accept_pause);
            way.pause.async_wait([this, &way](boost::system::error_code ec) {
                if (!ec)
                    take_streams(way);
            });
            return;
        }
        if (!*got)
            break;
        take_stream(way.transport.name(), std::move(**got));
    }
    await_streams(way);
}

void ways_in::take_stream(const std::string &transport, host::stream from) {
    auto qube = qube_name::parse(from.peer);
    if (!qube) {
        context_.log.write_for(for_log(from.peer), log_category::auth_deny,
                               "vm=" + for_log(from.peer) + " (not the name of a qube)");
        return;
    }
    if (!settings_.transports.serves(transport, qube->text())) {
        context_.log.write_for(qube->text(), log_category::auth_deny,
                               "vm=" + qube->text() + " (not served over " + transport +
                                   ": QVM_REMOTE_TRANSPORT)");
        return;
    }
    std::size_t have = 0;
    for (const auto &c : context_.connections)
        have += c->from().name == *qube;
    if (have >= limits::streams_per_qube || context_.draining)
        return; // which closes the stream
    const auto made =
        std::make_shared<connection>(context_, std::move(from), std::move(*qube), transport);
    context_.connections.insert(made);
    made->start();
    on_stream_();
}

std::string ways_in::text() const {
    std::string out;
    for (const auto &way : ways_)
        out += (out.empty() ? "" : ", ") + way->transport.name();
    return out;
}

} // namespace qvmremote::dom0
