// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/daemon.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/files.hpp>

#include "base/log.hpp"
#include "base/notify.hpp"
#include "common/installed.hpp"
#include "decide/account.hpp"
#include "decide/admission.hpp"
#include "decide/keyring.hpp"
#include "decide/panic.hpp"
#include "execute/cgroups.hpp"
#include "execute/execution.hpp"
#include "execute/job_table.hpp"
#include "record/journal.hpp"
#include "serve/connection.hpp"
#include "serve/notifier.hpp"
#include "serve/operators_desk.hpp"
#include "serve/reload.hpp"
#include "serve/service.hpp"
#include "serve/single_run.hpp"
#include "serve/timers.hpp"
#include "serve/ways_in.hpp"

namespace qvmremote::dom0 {

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds drain_limit{60};
constexpr rlim_t descriptors = 65536;

class daemon final : public coordinator {
  public:
    daemon(const daemon_options &options, const cgroup_home &home, cgroup_home jobs,
           warden children)
        : options_(options), home_(home), children_(std::move(children)), loop_(1),
          keys_(options.where.keys()), policies_(options.where.policy()),
          signals_(loop_, SIGTERM, SIGINT, SIGHUP), warden_(loop_), rate_timer_(loop_),
          drain_timer_(loop_), watchdog_(loop_), expiry_(loop_, keys_, [this] { reload(); }),
          jobs_(options.where, std::move(jobs)) {}

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
        // In this order, since running commands still use the records when they end.
        tags_.reset();
        service_->execution.running.clear();
        for (const auto &c : std::set(service_->connections))
            c->close(); // or it and its readers of jobs keep each other
        records_.reset();
        return exit_code_;
    }

  private:
    host::outcome<void> open() {
        auto read = load_settings(options_.where, options_.vm, options_.transport);
        if (!read)
            return tl::unexpected(read.error());
        settings_ = std::move(*read);
        if (auto allowed = check_place(); !allowed)
            return allowed;
        if (auto opened = open_files(); !opened)
            return opened;
        if (auto made = make_service(); !made)
            return made;
        return serve();
    }

    host::outcome<void> check_place() const {
        const std::vector<std::string> &names = settings_.transports.all();
        if (std::find(names.begin(), names.end(), "mock") != names.end() &&
            options_.where.is_real())
            return host::failed("the mock transport runs commands for whoever connects: it is for "
                                "tests, with --root DIR, and never beside /etc/qubes");
        if (options_.where.is_real() && ::geteuid() != 0)
            return host::failed("the daemon needs root: sudo systemctl start qvm-remote-dom0");
        return {};
    }

    host::outcome<void> open_files() {
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
        counts_.emplace(loop_, *log_);
        log_->when_counting([this] { counts_->write(); });
        if (auto taken = jobs_.take_over(); !taken)
            return taken;
        auto records = journal::open(
            options_.where, settings_.audit,
            [this](std::function<void()> work) { boost::asio::post(loop_, std::move(work)); },
            [this](const id_index::open_start &start) { return jobs_.recognizes(start); });
        if (!records)
            return tl::unexpected(records.error());
        records_ = std::move(*records);
        return {};
    }

    host::outcome<void> make_service() {
        tags_ = std::make_unique<tag_source>(
            tag_origin::of(settings_, options_.where),
            [this](std::function<void()> work) { boost::asio::post(loop_, std::move(work)); });
        admission_.emplace(options_.where, keys_, policies_, *tags_, approvals_, *records_, *log_,
                           overrides{options_.vm, options_.transport});
        if (auto loaded = admission_->reload(settings_.qubes, protocols(settings_)); !loaded)
            return loaded;
        for (const std::string &sentence : policy_trouble(*admission_))
            std::fprintf(stderr, "policy: %s\n", sentence.c_str());
        service_ = std::make_shared<service>(*this, loop_, *log_, *records_, *admission_,
                                             approvals_, children_);
        if (auto ready = prepare_scripts(
                options_.where.scripts(),
                [this](const std::string &name) { return jobs_.uses_script(name); });
            !ready)
            return ready;
        service_->execution.scripts = options_.where.scripts();
        service_->execution.dry_run = options_.dry_run;
        service_->execution.on_end = [this] { something_ended(); };
        admission_->when_none_starts([this] { something_ended(); });
        notifier_.use(notify_program(settings_));
        find_account();
        report_settings(settings_, keys_, *log_);
        jobs_.serve(service_->execution, settings_.jobs);
        service_->jobs = &jobs_;
        end_jobs_without_right();
        return {};
    }

    host::outcome<void> serve() {
        ways_.emplace(*service_, options_, settings_, keys_, [this] {
            if (single_)
                single_->stream_came();
            keep_alive_->arm();
        });
        if (auto listening = ways_->open(); !listening)
            return listening;
        const int warden_fd = ::fcntl(children_.descriptor(), F_DUPFD_CLOEXEC, 3);
        if (warden_fd < 0)
            return host::failed("cannot watch the warden", errno);
        warden_.assign(warden_fd);
        watch_warden();

        desk_.emplace(
            *service_, options_, home_, children_, jobs_, notifier_, *ways_,
            [this] { return reload(); }, [this] { return unserved(settings_, keys_); });
        if (auto control = desk_->open(); !control)
            return control;
        await_signals();
        watchdog_.start();
        keep_alive_.emplace(*service_);
        if (auto made = keep_alive_->start(); !made)
            return made;
        if (auto made = expiry_.start(); !made)
            return made;
        if (options_.once) {
            for (const std::string &sentence : unserved(settings_, keys_)) {
                std::fprintf(stderr, "qvm-remote-dom0: %s\n", sentence.c_str());
                exit_code_ = 1;
            }
            single_.emplace(*service_, *ways_, settings_, options_.once_wait_s, [this](int code) {
                if (code != 0)
                    exit_code_ = code;
                drain();
            });
            single_->start();
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

    // Serials are short, since people type them. They begin at random, so that a serial of an
    // earlier daemon rarely names a question of this one.
    static std::uint64_t first_serial() {
        std::uint32_t random = 0;
        if (::getrandom(&random, sizeof random, 0) != sizeof random)
            random = static_cast<std::uint32_t>(host::boottime_ms());
        return 1000 * (1 + random % 900);
    }

    void find_account() {
        service_->execution.self = own_account();
        const char *const language = std::getenv("LANG");
        service_->execution.language = language && *language ? language : "C.UTF-8";
        service_->execution.ceiling = settings_.ceiling;
    }

    void reschedule() override {
        if (rescheduling_)
            return; // a start may end at once and call again
        rescheduling_ = true;
        const auto again = service_->scheduler.run(host::boottime_ms());
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
        return service_->execution.running.empty() && admission_->starting() == 0;
    }

    void something_ended() override {
        if (auto told = ways_->forget_leaving(); !told)
            log_->write(log_category::error, for_log(told.error().what));
        const bool idle = is_idle();
        if (service_->draining && idle)
            loop_.stop();
        if (single_ && single_->is_over(idle))
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

    // Returns what is wrong, or nothing.
    std::string reload() {
        const std::string problem =
            dom0::reload({options_, settings_, *service_, *ways_, *tags_, keys_, notifier_});
        jobs_.use(settings_.jobs);
        end_jobs_without_right();
        expiry_.arm();
        desk_->questions_changed();
        log_->write(problem.empty() ? log_category::info : log_category::error,
                    problem.empty() ? "configuration, keys and policy read again"
                                    : for_log(problem));
        return problem;
    }

    // A job ends when its key is revoked, its qube is not served any more, or policy now denies it. A
    // key that has only expired, as after `rotate`, ends none.
    void end_jobs_without_right() {
        if (is_panic(options_.where))
            jobs_.kill_all(errc::panicked);
        for (job *one : jobs_.list(nullptr)) {
            if (one->end || !one->link)
                continue;
            const auto why = admission_->why_over(one->qube, one->key_mark);
            if (why && *why != errc::key_expired) {
                jobs_.kill(*one, *why);
                continue;
            }
            const auto asked = jobs_.request_of(*one);
            if (!asked)
                continue;
            admission_->review(asked->first, asked->second,
                               [this, qube = one->qube, id = one->id](bool may) {
                                   job *const still = may ? nullptr : jobs_.find(qube, id);
                                   if (still)
                                       jobs_.kill(*still, errc::denied);
                               });
        }
    }

    // The first call stops new requests and lets running commands end. The second call ends them.
    void drain() {
        notify_supervisor("STOPPING=1");
        const bool again = std::exchange(service_->draining, true);
        const auto executions = service_->execution.running;
        if (again) {
            for (const auto &e : executions)
                e->cancel(errc::draining);
            return;
        }
        ways_->close();
        const auto all = service_->connections;
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

    std::optional<std::uint64_t> ask_operator(question what,
                                              approvals::answer on_decision) override {
        return desk_->ask(std::move(what), std::move(on_decision));
    }
    void questions_changed() override { desk_->questions_changed(); }
    void keep_alive_changed() override { keep_alive_->arm(); }

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
    std::optional<admission> admission_;
    std::shared_ptr<service> service_;
    std::optional<ways_in> ways_;
    std::optional<operators_desk> desk_;
    std::optional<single_run> single_; // with --once

    boost::asio::signal_set signals_;
    boost::asio::posix::stream_descriptor warden_;
    boost::asio::steady_timer rate_timer_, drain_timer_;
    std::optional<keep_alive_timer> keep_alive_;
    std::optional<counts_timer> counts_;
    watchdog watchdog_;
    expiry_timer expiry_;
    job_table jobs_;
    bool rescheduling_ = false;
    int exit_code_ = 0;
};

// The usual limit of 1024 exists for programs that call select(2). The streams of eight qubes reach
// it, if each qube opens all that it may. Commands keep that limit, since their warden runs
// already.
void take_more_descriptors() {
    rlimit most{};
    if (::getrlimit(RLIMIT_NOFILE, &most) == 0 && most.rlim_cur < descriptors) {
        most.rlim_cur = std::min<rlim_t>(most.rlim_max, descriptors);
        [[maybe_unused]] const int as_it_was = ::setrlimit(RLIMIT_NOFILE, &most);
    }
}

} // namespace

int run_daemon(const daemon_options &options, const cgroup_home &home, cgroup_home jobs,
               warden children) {
    take_more_descriptors();
    ::signal(SIGPIPE, SIG_IGN);
    auto code = daemon(options, home, std::move(jobs), std::move(children)).run();
    if (!code) {
        std::fprintf(stderr, "qvm-remote-dom0: %s\n", code.error().what.c_str());
        return 1;
    }
    return *code;
}

} // namespace qvmremote::dom0
