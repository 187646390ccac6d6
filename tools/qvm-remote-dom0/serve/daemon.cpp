// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/daemon.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include <fcntl.h>
#include <pwd.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/environment.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/host/plugin.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/sanitize.hpp>

#include "base/helper.hpp"
#include "base/log.hpp"
#include "base/notify.hpp"
#include "common/installed.hpp"
#include "decide/account.hpp"
#include "decide/admission.hpp"
#include "decide/keyring.hpp"
#include "decide/panic.hpp"
#include "execute/cgroups.hpp"
#include "execute/execution.hpp"
#include "record/admin_records.hpp"
#include "record/journal.hpp"
#include "serve/connection.hpp"
#include "serve/control.hpp"
#include "serve/notifier.hpp"
#include "serve/service.hpp"

namespace qvmremote::dom0 {

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds drain_limit{60};
constexpr seconds check_limit{15};
constexpr rlim_t descriptors = 65536;
constexpr std::uint64_t round_ms = 60'000; // between two keep-alives of idle streams
constexpr seconds watch_limit{50};
constexpr milliseconds accept_pause{1000}; // after a failure of the transport

// One of the ways in.
struct way_in {
    way_in(boost::asio::io_context &on, host::transport t)
        : transport(std::move(t)), incoming(on), pause(on) {}

    host::transport transport;
    std::vector<std::string> peers; // who may come through it
    boost::asio::posix::stream_descriptor incoming;
    boost::asio::steady_timer pause; // after a failure
};

class daemon final : public coordinator {
  public:
    daemon(const daemon_options &options, const cgroup_home &home, warden children)
        : options_(options), home_(home), children_(std::move(children)), loop_(1),
          keys_(options.where.keys()), policies_(options.where.policy()),
          signals_(loop_, SIGTERM, SIGINT, SIGHUP), warden_(loop_), keep_alive_timer_(loop_),
          rate_timer_(loop_), drain_timer_(loop_), watchdog_timer_(loop_), once_timer_(loop_),
          silence_timer_(loop_), watch_timer_(loop_), counts_timer_(loop_), expiry_timer_(loop_) {}

    host::outcome<int> run() {
        auto opened = open();
        if (!opened)
            return tl::unexpected(opened.error());
        log_->write(log_category::info, "qvm-remote-dom0 " QVMREMOTE_VERSION
                                        " started, transport " +
                                            settings_.transports.text());
        log_->write(log_category::info, options_.once ? "single run" : "listening");
        notify_supervisor("READY=1");
        loop_.run();
        log_->write_counts(true);
        log_->write(log_category::info, "shutting down");
        // In this order: what runs reports to the records.
        tags_.reset();
        parts_->execution.running.clear();
        parts_->connections.clear();
        records_.reset();
        return exit_code_;
    }

  private:
    host::outcome<void> open() {
        auto read = load_settings(options_.where, options_.vm, options_.transport);
        if (!read)
            return tl::unexpected(read.error());
        settings_ = std::move(*read);
        const std::vector<std::string> &names = settings_.transports.all();
        if (std::find(names.begin(), names.end(), "mock") != names.end() &&
            options_.where.is_real())
            return host::failed("the mock transport runs commands for whoever connects: it is for "
                                "tests, with --root DIR, and never beside /etc/qubes");
        if (options_.where.is_real() && ::geteuid() != 0)
            return host::failed("the daemon takes root: sudo systemctl start qvm-remote-dom0");
        for (const std::string &directory :
             {options_.where.run_directory(), options_.where.root() + "/var/log/qubes"})
            if (auto made = host::make_directories(directory, 0755); !made)
                return made;
        if (auto safe =
                host::open_trusted(options_.where.run_directory(), host::trusted::directory);
            !safe)
            return tl::unexpected(safe.error());
        if (auto locked = take_lock(); !locked)
            return locked;
        auto log = event_log::open(options_.where.log(), options_.verbose);
        if (!log)
            return tl::unexpected(log.error());
        log_.emplace(std::move(*log));
        log_->when_counting([this] { write_counts(); });
        auto records =
            journal::open(options_.where, settings_.audit, [this](std::function<void()> work) {
                boost::asio::post(loop_, std::move(work));
            });
        if (!records)
            return tl::unexpected(records.error());
        records_ = std::move(*records);
        tags_ = std::make_unique<tag_source>(
            tag_origin::of(settings_, options_.where),
            [this](std::function<void()> work) { boost::asio::post(loop_, std::move(work)); });
        admission_.emplace(options_.where, keys_, policies_, *tags_, approvals_, *records_, *log_,
                           overrides{options_.vm, options_.transport});
        if (auto loaded = admission_->reload(settings_.qubes, protocols()); !loaded)
            return loaded;
        if (const std::string trouble = policy_trouble(); !trouble.empty())
            std::fputs(trouble.c_str(), stderr);
        parts_ = std::make_shared<service>(*this, loop_, *log_, *records_, *admission_, approvals_,
                                           children_);
        if (auto ready = prepare_scripts(options_.where.scripts()); !ready)
            return ready;
        parts_->execution.scripts = options_.where.scripts();
        parts_->execution.dry_run = options_.dry_run;
        parts_->execution.on_end = [this] { something_ended(); };
        admission_->when_none_starts([this] { something_ended(); });
        notifier_.use(std::string(settings_.values.get("QVM_REMOTE_NOTIFY").value_or("")));
        find_account();
        report_settings();

        for (const std::string &name : names) {
            auto loaded = host::transport::load(options_.plugin_directory, name, host::role::dom0,
                                                transport_options(name));
            if (!loaded)
                return tl::unexpected(loaded.error());
            ways_.push_back(std::make_unique<way_in>(loop_, std::move(*loaded)));
        }
        if (auto told = tell_peers(); !told)
            return told;
        for (const auto &way : ways_) {
            auto event_fd = way->transport.listen();
            if (!event_fd)
                return tl::unexpected(event_fd.error());
            // The transport keeps the descriptor; the loop has a copy of its own.
            const int copy = ::fcntl(*event_fd, F_DUPFD_CLOEXEC, 3);
            if (copy < 0)
                return host::failed("cannot watch the transport", errno);
            way->incoming.assign(copy);
            await_streams(*way);
        }

        const int warden_fd = ::fcntl(children_.descriptor(), F_DUPFD_CLOEXEC, 3);
        if (warden_fd < 0)
            return host::failed("cannot watch the warden", errno);
        warden_.assign(warden_fd);
        watch_warden();

        auto control = control_server::open(
            loop_, options_.where,
            [this](std::string_view request, const requester &who, control_server::reply tell) {
                answer(request, who, std::move(tell));
            });
        if (!control)
            return tl::unexpected(control.error());
        control_ = std::move(*control);
        await_signals();
        watchdog();
        if (auto made = make_keep_alive(); !made)
            return made;
        if (auto made = make_expiry(); !made)
            return made;
        if (options_.once) {
            once_timer_.expires_after(seconds(options_.once_wait_s));
            once_timer_.async_wait([this](boost::system::error_code ec) {
                if (!ec)
                    end_single_run();
            });
            expected_ = running_peers();
            // There may be none, and so nothing to wait for.
            const bool all_call = std::all_of(ways_.begin(), ways_.end(), [](const auto &way) {
                return way->transport.takes_peers();
            });
            if (all_call && expected_.empty()) {
                served_ = true;
                boost::asio::post(loop_, [this] { something_ended(); });
            }
        }
        return {};
    }

    host::outcome<void> take_lock() {
        const std::string path = options_.where.run_directory() + "/daemon.lock";
        lock_.reset(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
        if (!lock_)
            return host::failed("cannot open " + path, errno);
        if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0)
            return host::failed(
                "another qvm-remote-dom0 serves already; see qvm-remote-dom0 status");
        return {};
    }

    // Six digits to read off and type, where the last daemon's were not.
    static std::uint64_t first_serial() {
        std::uint32_t random = 0;
        if (::getrandom(&random, sizeof random, 0) != sizeof random)
            random = static_cast<std::uint32_t>(host::boottime_ms());
        return 1000 * (1 + random % 900);
    }

    void find_account() {
        parts_->execution.self = own_account();
        const char *const language = std::getenv("LANG");
        parts_->execution.language = language && *language ? language : "C.UTF-8";
        parts_->execution.ceiling = settings_.ceiling;
    }

    void report_settings() {
        for (const std::string &name : settings_.ignored)
            log_->write(log_category::error,
                        "'" + for_log(name) + "' in the list of qubes is no qube name; ignored");
        for (const std::string &text : settings_.warnings)
            log_->write(log_category::info, for_log(text));
    }

    // Its options, with what --root changes.
    host::transport_options transport_options(const std::string &name) const {
        host::transport_options out = host::options_of(settings_.values, name);
        const bool has_socket =
            std::any_of(out.begin(), out.end(), [](const auto &o) { return o.first == "socket"; });
        if (name == "qrexec" && !options_.where.is_real() && !has_socket)
            out.emplace_back("socket", options_.where.qrexec_socket());
        return out;
    }

    // The qubes that may come in: they have a key and, if there is a list, are on it. Each transport
    // is told of those that it is configured for. Another one stays until what ran for it has had its
    // last word, since a transport ends the stream of a qube that is not named any more.
    host::outcome<void> tell_peers() {
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
            for (const auto &c : parts_->connections)
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

    // Those of them that run: a single run ends when it has served each. A transport that only
    // listens cannot know; then it ends when whoever came is served.
    std::set<std::string> running_peers() {
        std::set<std::string> out;
        for (const auto &way : ways_) {
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
                    out.insert(name); // one that cannot be asked about is not passed over
            }
        }
        return out;
    }

    void end_single_run() {
        if (expected_.empty() && served_) {
            // Who came is served; a call that a qube keeps open holds nobody up.
            drain();
            return;
        }
        std::string missing;
        for (const std::string &name : expected_)
            missing += (missing.empty() ? ": " : ", ") + name;
        log_->write(log_category::error,
                    (missing.empty() ? "nobody came within " : "not served within ") +
                        std::to_string(options_.once_wait_s) + " s" + missing);
        std::fprintf(stderr, "qvm-remote-dom0: %s within %u s%s\n",
                     missing.empty() ? "nobody came" : "not served", options_.once_wait_s,
                     missing.c_str());
        exit_code_ = 1;
        drain();
    }

    void await_streams(way_in &way) {
        way.incoming.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                                [this, &way](boost::system::error_code ec) {
                                    if (!ec)
                                        take_streams(way);
                                });
    }

    void take_streams(way_in &way) {
        for (;;) {
            auto got = way.transport.accept();
            if (!got) {
                log_->write(log_category::error, for_log(got.error().what));
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

    void take_stream(const std::string &transport, host::stream from) {
        auto qube = qube_name::parse(from.peer);
        if (!qube) {
            log_->write_for(for_log(from.peer), log_category::auth_deny,
                            "vm=" + for_log(from.peer) + " (no name of a qube)");
            return;
        }
        if (!settings_.transports.serves(transport, qube->text())) {
            log_->write_for(qube->text(), log_category::auth_deny,
                            "vm=" + qube->text() + " (not served over " + transport +
                                ": QVM_REMOTE_TRANSPORT)");
            return;
        }
        std::size_t have = 0;
        for (const auto &c : parts_->connections)
            have += c->from().name == *qube;
        if (have >= limits::streams_per_qube || parts_->draining)
            return; // closing it says so
        served_ = true;
        const auto made =
            std::make_shared<connection>(*parts_, std::move(from), std::move(*qube), transport);
        parts_->connections.insert(made);
        made->start();
        arm_keep_alive();
    }

    void reschedule() override {
        if (rescheduling_)
            return; // a start may end at once and call again
        rescheduling_ = true;
        const auto again = parts_->scheduler.run(host::boottime_ms());
        rescheduling_ = false;
        if (!again)
            return;
        rate_timer_.expires_after(milliseconds(*again));
        rate_timer_.async_wait([this](boost::system::error_code ec) {
            if (!ec)
                reschedule();
        });
    }

    [[nodiscard]] bool is_idle() const {
        return parts_->execution.running.empty() && admission_->starting() == 0;
    }

    // Lines that were left out of the log are counted there.
    void write_counts() {
        const auto due = log_->write_counts();
        if (!due)
            return;
        const std::uint64_t now = host::boottime_ms();
        counts_timer_.expires_after(milliseconds(*due > now ? *due - now : 0));
        counts_timer_.async_wait([this](boost::system::error_code ec) {
            if (!ec)
                write_counts();
        });
    }

    void something_ended() override {
        if (std::exchange(some_leave_, false))
            if (auto told = tell_peers(); !told)
                log_->write(log_category::error, for_log(told.error().what));
        const bool idle = is_idle();
        if (parts_->draining && idle)
            loop_.stop();
        if (!options_.once)
            return;
        bool done = idle && served_;
        for (const auto &c : parts_->connections)
            if (c->is_done())
                expected_.erase(c->from().name.text());
            else
                done = done && c->is_closed();
        if (done && expected_.empty())
            loop_.stop();
    }

    void watch_warden() {
        warden_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                           [this](boost::system::error_code ec) {
                               if (ec)
                                   return;
                               log_->write(log_category::error,
                                           "the process that starts commands is gone; ending");
                               exit_code_ = 1;
                               loop_.stop();
                           });
    }

    void await_signals() {
        signals_.async_wait([this](boost::system::error_code ec, int number) {
            if (ec)
                return;
            if (number == SIGHUP)
                reload();
            else
                drain();
            await_signals();
        });
    }

    std::string reload() {
        std::string problem;
        auto read = load_settings(options_.where, options_.vm, options_.transport);
        if (!read) {
            problem = read.error().what;
        } else {
            // Which of those that are there serves whom can change now.
            for (const std::string &name : read->transports.all())
                if (std::none_of(ways_.begin(), ways_.end(),
                                 [&](const auto &way) { return way->transport.name() == name; }))
                    problem = "another transport is configured: restart the daemon for it";
            settings_ = std::move(*read);
            parts_->execution.ceiling = settings_.ceiling;
            notifier_.use(std::string(settings_.values.get("QVM_REMOTE_NOTIFY").value_or("")));
            report_settings();
            tags_->forget(tag_origin::of(settings_, options_.where));
        }
        const auto loaded = admission_->reload(settings_.qubes, protocols());
        if (!loaded)
            problem = loaded.error().what;
        // Whatever else went wrong, a key that is gone ends its sessions, and so does a list without the qube.
        const auto all = parts_->connections;
        for (const auto &c : all)
            if (settings_.transports.serves(c->from().transport, c->from().name.text()))
                c->recheck_keys();
            else
                c->close();
        if (loaded)
            if (auto told = tell_peers(); !told)
                problem = told.error().what;
        if (auto opened = log_->reopen(); !opened && problem.empty())
            problem = opened.error().what;
        if (problem.empty())
            problem = admission_->trouble();
        arm_expiry();
        questions_changed();
        log_->write(problem.empty() ? log_category::info : log_category::error,
                    problem.empty() ? "configuration, keys and policy read again"
                                    : for_log(problem));
        return problem;
    }

    // The first time no more is taken on and what runs may end; the second time it is ended.
    void drain() {
        notify_supervisor("STOPPING=1");
        const bool again = std::exchange(parts_->draining, true);
        const auto executions = parts_->execution.running;
        if (again) {
            for (const auto &e : executions)
                e->cancel(errc::draining);
            return;
        }
        for (const auto &way : ways_)
            way->incoming.cancel();
        const auto all = parts_->connections;
        for (const auto &c : all)
            c->refuse_waiting(errc::draining);
        if (is_idle()) {
            loop_.stop();
            return;
        }
        drain_timer_.expires_after(drain_limit);
        drain_timer_.async_wait([this](boost::system::error_code ec) {
            if (!ec)
                drain();
        });
    }

    void watchdog() {
        const auto interval = watchdog_interval_us();
        if (!interval)
            return;
        notify_supervisor("WATCHDOG=1");
        watchdog_timer_.expires_after(std::chrono::microseconds(*interval));
        watchdog_timer_.async_wait([this](boost::system::error_code ec) {
            if (!ec)
                watchdog();
        });
    }

    // One timer for all streams: idle ones are asked together, once a minute, so that 64 quiet qubes
    // wake this process as often as one does. A timerfd of our own, since it can be put off: Asio's
    // would fire when its first date comes, and on a clock that stands still during a suspend.
    host::outcome<void> make_keep_alive() {
        const int timer = ::timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
        if (timer < 0)
            return host::failed("cannot make a timer", errno);
        keep_alive_timer_.assign(timer);
        next_round_ms_ = host::boottime_ms() + round_ms;
        arm_keep_alive();
        await_keep_alive();
        return {};
    }

    void await_keep_alive() {
        keep_alive_timer_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                                     [this](boost::system::error_code ec) {
                                         if (!ec)
                                             keep_alive();
                                     });
    }

    void keep_alive() {
        std::uint64_t expirations = 0;
        [[maybe_unused]] const ssize_t n =
            ::read(keep_alive_timer_.native_handle(), &expirations, sizeof expirations);
        const std::uint64_t now = host::boottime_ms();
        const bool all = now >= next_round_ms_;
        if (all)
            next_round_ms_ = now - now % round_ms + round_ms;
        const auto connections = parts_->connections;
        for (const auto &c : connections)
            c->keep_alive(now, all);
        armed_ms_ = 0;
        arm_keep_alive();
        await_keep_alive();
    }

    void keep_alive_changed() override { arm_keep_alive(); }
    void arm_keep_alive() {
        std::uint64_t due = parts_->connections.empty() ? UINT64_MAX : next_round_ms_;
        for (const auto &c : parts_->connections)
            due = std::min(due, c->keep_alive_due());
        if (due == armed_ms_)
            return;
        armed_ms_ = due;
        itimerspec when{};
        if (due != UINT64_MAX) {
            when.it_value.tv_sec = static_cast<time_t>(due / 1000);
            when.it_value.tv_nsec = static_cast<long>(due % 1000) * 1'000'000;
        }
        ::timerfd_settime(keep_alive_timer_.native_handle(), TFD_TIMER_ABSTIME, &when, nullptr);
    }

    // Keys run out at a time of day (`authorize --until`, rotate): on that clock, and also when
    // somebody sets it.
    host::outcome<void> make_expiry() {
        const int timer = ::timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK);
        if (timer < 0)
            return host::failed("cannot make a timer", errno);
        expiry_timer_.assign(timer);
        arm_expiry();
        await_expiry();
        return {};
    }
    void await_expiry() {
        expiry_timer_.async_wait(
            boost::asio::posix::stream_descriptor::wait_read, [this](boost::system::error_code ec) {
                if (ec)
                    return;
                std::uint64_t times = 0;
                [[maybe_unused]] const ssize_t n =
                    ::read(expiry_timer_.native_handle(), &times, sizeof times);
                reload();
                await_expiry();
            });
    }
    void arm_expiry() {
        const std::int64_t now = host::local_time::now().seconds;
        std::int64_t due = 0;
        const auto qubes = keys_.list();
        for (const qube_name &qube : qubes.value_or(std::vector<qube_name>()))
            for (const auto &ends : {keys_.until(qube), keys_.previous_until(qube)})
                if (ends && *ends > now)
                    due = due == 0 ? *ends : std::min(due, *ends);
        itimerspec when{};
        when.it_value.tv_sec = static_cast<time_t>(due);
        ::timerfd_settime(expiry_timer_.native_handle(),
                          TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &when, nullptr);
    }

    std::optional<std::uint64_t> ask_operator(question what, approvals::answer tell) override {
        const auto serial = approvals_.ask(std::move(what), host::boottime_ms(), std::move(tell));
        if (!serial)
            return serial;
        const open_question &shown = *approvals_.find(*serial);
        log_->write_for(shown.from.name.text(), log_category::info,
                        "vm=" + shown.from.name.text() + " id=" + shown.id +
                            " waits for an operator, serial " + std::to_string(*serial));
        notifier_.show(shown);
        questions_changed();
        return serial;
    }

    // Tells those who watch, and sees to it that silence ends.
    void questions_changed() override {
        if (told_version_ != approvals_.version()) {
            told_version_ = approvals_.version();
            for (const auto &tell : std::exchange(watchers_, {}))
                tell(questions());
        }
        const std::uint64_t due = approvals_.due_ms();
        if (due == UINT64_MAX)
            return void(silence_timer_.cancel());
        const std::uint64_t now = host::boottime_ms();
        silence_timer_.expires_after(milliseconds(due > now ? due - now : 0));
        silence_timer_.async_wait([this](boost::system::error_code ec) {
            if (ec)
                return;
            approvals_.expire(host::boottime_ms());
            questions_changed();
        });
    }
    std::string questions() const {
        std::string out = std::to_string(approvals_.version()) + "\n";
        for (const open_question *const q : approvals_.open())
            out += to_json(*q, host::boottime_ms(), extent::beginning) + "\n";
        return out;
    }

    std::string protocols() const {
        return std::string(settings_.values.get("QVM_REMOTE_PROTOCOL").value_or("auto"));
    }

    // All that the control socket takes: what is not here is refused.
    void answer(std::string_view request, const requester &who, control_server::reply tell) {
        struct verb {
            std::string_view name;
            bool is_for_operators; // not for root alone
            void (daemon::*run)(std::string_view request, const requester &, control_server::reply);
        };
        static constexpr verb verbs[] = {
            {"status", true, &daemon::on_status}, {"reload", false, &daemon::on_reload},
            {"panic", true, &daemon::on_panic},   {"audit", false, &daemon::on_audit},
            {"admin", false, &daemon::on_audit},  {"approvals", true, &daemon::on_approvals},
            {"wait", true, &daemon::on_wait},     {"question", true, &daemon::on_question},
            {"allow", true, &daemon::on_allow},   {"deny", true, &daemon::on_deny},
        };
        const std::string_view name = request.substr(0, request.find_first_of(" \t"));
        const auto at = std::find_if(std::begin(verbs), std::end(verbs),
                                     [&](const verb &v) { return v.name == name; });
        if (at == std::end(verbs))
            return tell("unknown request\n");
        if (!who.is_root() && !at->is_for_operators)
            return tell("only root may " + std::string(name) + "\n");
        (this->*at->run)(request, who, std::move(tell));
    }

    void on_status(std::string_view, const requester &, control_server::reply tell) {
        tell(status());
    }
    void on_reload(std::string_view, const requester &, control_server::reply tell) {
        const std::string problem = reload();
        tell(problem.empty() ? "ok\n" : for_terminal(problem) + "\n");
    }
    void on_audit(std::string_view request, const requester &, control_server::reply tell) {
        tell(answer_audit(request, *records_).value_or("unknown request\n"));
    }
    void on_approvals(std::string_view, const requester &, control_server::reply tell) {
        const std::string all = questions();
        tell(all.substr(all.find('\n') + 1));
    }
    // Answered when the questions are others than those of the version that is known there, or after
    // a while.
    void on_wait(std::string_view request, const requester &, control_server::reply tell) {
        if (request != "wait " + std::to_string(approvals_.version()))
            return tell(questions());
        watchers_.push_back(std::move(tell));
        if (watchers_.size() > 1)
            return;
        watch_timer_.expires_after(watch_limit);
        watch_timer_.async_wait([this](boost::system::error_code ec) {
            if (ec)
                return;
            for (const auto &waiting : std::exchange(watchers_, {}))
                waiting(questions());
        });
    }
    // All of one question, so that who decides can read all of it.
    void on_question(std::string_view request, const requester &, control_server::reply tell) {
        const auto words = split_words(request);
        const auto serial = words.size() == 2
                                ? qvmremote::detail::parse_decimal<std::uint64_t>(words[1])
                                : std::nullopt;
        const open_question *const asked = serial ? approvals_.find(*serial) : nullptr;
        tell(asked ? to_json(*asked, host::boottime_ms(), extent::whole) + "\n"
                   : "nothing waits under that serial; see qvm-remote-dom0 approvals list\n");
    }
    // allow SERIAL SECONDS|- DIGEST
    void on_allow(std::string_view request, const requester &who, control_server::reply tell) {
        const auto words = split_words(request);
        const auto serial = words.size() == 4
                                ? qvmremote::detail::parse_decimal<std::uint64_t>(words[1])
                                : std::nullopt;
        if (!serial)
            return tell("unknown request\n");
        std::optional<std::uint32_t> lasts_s;
        if (const auto number = parse_positive(words[2]))
            lasts_s = *number;
        else if (words[2] != "-")
            return tell("unknown request\n");
        if (const char *const why = why_no_operator(who))
            return tell(std::string(why) + "\n");
        const passwd *const account = ::getpwuid(who.uid);
        const std::string name =
            (account ? std::string(account->pw_name) + " " : "") + "uid " + std::to_string(who.uid);
        const auto done = approvals_.allow(*serial, words[3], lasts_s, name, host::boottime_ms());
        log_->write(log_category::info, "serial " + std::to_string(*serial) +
                                            (done ? " allowed by " : " not allowed to ") + name);
        questions_changed();
        tell(done ? "ok\n" : done.error() + "\n");
    }
    void on_deny(std::string_view request, const requester &who, control_server::reply tell) {
        const auto words = split_words(request);
        const auto serial = words.size() == 2
                                ? qvmremote::detail::parse_decimal<std::uint64_t>(words[1])
                                : std::nullopt;
        if (!serial)
            return tell("unknown request\n");
        if (const char *const why = why_no_operator(who))
            return tell(std::string(why) + "\n");
        const auto done = approvals_.deny(*serial);
        questions_changed();
        tell(done ? "ok\n" : done.error() + "\n");
    }
    // What a qube had started here does not decide what a qube may (DESIGN.md §6).
    const char *why_no_operator(const requester &who) const {
        if (is_inside_our_command(who.pid, home_, children_.pid()))
            return "a command of a qube's does not decide about one";
        if (!home_ && !has_terminal_of_its_own(who.pid, children_.pid()))
            return "commands have no cgroups of their own here, so who decides needs a terminal";
        if (!who.lives())
            return "who asked has ended, so it cannot be told whether a command of a qube's did";
        return nullptr;
    }

    // The mark first. Then nothing that runs is given time to end.
    void on_panic(std::string_view, const requester &who, control_server::reply tell) {
        const auto marked = set_panic(options_.where, host::local_time::now().timestamp() +
                                                          " by uid " + std::to_string(who.uid));
        log_->write(log_category::error, "panic, by uid " + std::to_string(who.uid) +
                                             ": everything ends, nothing new is let in");
        approvals_.withdraw_all(nullptr, errc::panicked);
        questions_changed();
        const auto executions = parts_->execution.running;
        for (const auto &e : executions)
            e->cancel(errc::panicked);
        const auto connections = parts_->connections;
        for (const auto &c : connections)
            c->refuse_waiting(errc::panicked);
        tell(marked ? "ok\n" : for_terminal(marked.error().what) + "\n");
    }

    // One line each, for status and stderr.
    std::string policy_trouble() const {
        std::string out;
        if (const std::string broken = admission_->trouble(); !broken.empty())
            out += "policy: broken, nothing new is let in: " + for_terminal(broken) + "\n";
        for (const std::string &qube : admission_->without_rules())
            out +=
                "policy: " + qube +
                " has a key and no policy: qvm-remote-dom0 migrate, once, or authorize --level\n";
        return out;
    }

    std::string status() const {
        std::string out = "version: " QVMREMOTE_VERSION "\npid: " + std::to_string(::getpid()) +
                          "\ntransport: " + ways_text() +
                          "\nstreams: " + std::to_string(parts_->connections.size()) +
                          "\nrunning: " + std::to_string(parts_->execution.running.size()) +
                          "\ncontainment: " + for_terminal(home_.describe()) + "\n";
        if (options_.dry_run)
            out += "dry-run: nothing is run\n";
        if (parts_->draining)
            out += "draining: ends when what runs has ended\n";
        if (is_panic(options_.where))
            out += "panic: nothing runs before qvm-remote-dom0 resume\n";
        if (const std::string trouble = records_->trouble(); !trouble.empty())
            out += "trouble: " + for_terminal(trouble) + "\n";
        out += policy_trouble();
        std::set<std::string> qubes;
        for (const auto &c : parts_->connections)
            qubes.insert(c->from().name.text());
        for (const std::string &qube : qubes)
            out += "qube " + qube + ": running=" + std::to_string(parts_->scheduler.running(qube)) +
                   " waiting=" + std::to_string(parts_->scheduler.waiting(qube)) + "\n";
        std::set<std::string> missing;
        for (const auto &way : ways_)
            if (way->transport.takes_peers())
                for (const std::string &qube : way->peers)
                    if (!qubes.contains(qube))
                        missing.insert(qube);
        for (const std::string &qube : missing)
            out += "qube " + qube + ": not connected\n";
        return out;
    }

    std::string ways_text() const {
        std::string out;
        for (const auto &way : ways_)
            out += (out.empty() ? "" : ", ") + way->transport.name();
        return out;
    }

    daemon_options options_;
    const cgroup_home &home_;
    warden children_;
    boost::asio::io_context loop_;
    host::unique_fd lock_;
    settings settings_;
    keyring keys_;
    policy_files policies_;
    std::optional<event_log> log_;
    std::unique_ptr<journal> records_;
    std::unique_ptr<tag_source> tags_;
    approvals approvals_{first_serial()};
    notifier notifier_{options_.where, children_};
    std::vector<control_server::reply> watchers_;
    std::uint64_t told_version_ = 0;
    std::optional<admission> admission_;
    std::shared_ptr<service> parts_;
    std::vector<std::unique_ptr<way_in>> ways_;
    std::set<std::string> expected_; // of a single run: who is not served yet
    std::unique_ptr<control_server> control_;

    boost::asio::signal_set signals_;
    boost::asio::posix::stream_descriptor warden_, keep_alive_timer_;
    std::uint64_t next_round_ms_ = 0, armed_ms_ = 0;
    boost::asio::steady_timer rate_timer_, drain_timer_, watchdog_timer_, once_timer_,
        silence_timer_, watch_timer_, counts_timer_;
    boost::asio::posix::stream_descriptor expiry_timer_;
    bool rescheduling_ = false;
    bool served_ = false;
    bool some_leave_ = false; // qubes are named to a transport for their last words alone
    int exit_code_ = 0;
};

// The usual 1024 is there for programs that call select(2), and is used up by the streams of eight
// qubes that each open all they may. Commands keep it: their warden runs already.
void take_more_descriptors() {
    rlimit most{};
    if (::getrlimit(RLIMIT_NOFILE, &most) == 0 && most.rlim_cur < descriptors) {
        most.rlim_cur = std::min<rlim_t>(most.rlim_max, descriptors);
        [[maybe_unused]] const int as_it_was = ::setrlimit(RLIMIT_NOFILE, &most);
    }
}

} // namespace

int run_daemon(const daemon_options &options, const cgroup_home &home, warden children) {
    take_more_descriptors();
    ::signal(SIGPIPE, SIG_IGN);
    ::signal(SIGXFSZ, SIG_IGN); // a limit on files is a full disk: refused, and no end
    auto code = daemon(options, home, std::move(children)).run();
    if (!code) {
        std::fprintf(stderr, "qvm-remote-dom0: %s\n", code.error().what.c_str());
        return 1;
    }
    return *code;
}

} // namespace qvmremote::dom0
