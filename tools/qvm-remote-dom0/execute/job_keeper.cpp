// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/job_keeper.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/files.hpp>

#include "execute/cgroups.hpp"
#include "execute/command_tree.hpp"
#include "execute/job_files.hpp"
#include "execute/job_wire.hpp"
#include "execute/keeper.hpp"
#include "execute/keeper_wire.hpp"
#include "execute/terminal.hpp"

namespace qvmremote::dom0 {

namespace {

using host::unique_fd;

// How long the other processes may run after the first one has ended, as for any command.
constexpr std::uint64_t leave_ms = 2000, leave_terminal_ms = 500;
constexpr std::size_t most_links = 16;

class job_keeper {
  public:
    job_keeper(std::vector<unique_fd> received, preparation &p)
        : job_(*p.job), group_(job_.home, job_.name), tree_(group_),
          control_(std::move(received[0])),
          null_(std::move(received[1])), files_{std::move(received[2]), std::move(received[3])},
          end_file_(std::move(received[received.size() - 2])),
          listener_(std::move(received.back())),
          recorder_(files_[0].get(), files_[1].get(),
                    std::max(job_.kept_bytes, job_recorder::least_kept)) {
        if (job_.home)
            control_.reset(); // the daemon's end is not ours
    }

    // For a command that runs already.
    job_keeper(std::vector<unique_fd> received, const job_launch &job, command_tree tree)
        : job_(job), group_(job_.home, job_.name),
          tree_(std::move(tree)), files_{std::move(received[2]), std::move(received[3])},
          end_file_(std::move(received[4])), listener_(std::move(received[5])),
          recorder_(files_[0].get(), files_[1].get(),
                    std::max(job_.kept_bytes, job_recorder::least_kept)) {
        terminal_.emplace(terminal::of(std::move(received[0]), std::move(received[1])));
    }

    void run(preparation &p) {
        started_ms_ = host::boottime_ms();
        memory_bytes_ = p.most.memory_bytes;
        const int why = start(p);
        null_.reset();
        if (why == 0)
            watch();
        else
            end_ = run_end{.cause = why == ENOENT ? end_cause::not_found : end_cause::not_started,
                           .value = static_cast<std::uint32_t>(why)};
        write_end();
    }

    void go_on() {
        started_ms_ = host::boottime_ms();
        if (take_over())
            watch();
        else
            end_ = run_end{.cause = end_cause::cancelled,
                           .value = static_cast<std::uint32_t>(errc::unsupported),
                           .text = "it could not go on as a job"};
        write_end();
    }

  private:
    struct link {
        unique_fd fd;
        bool watches = false;
        bool has_input = false;
    };

    // Returns 0 or errno.
    [[nodiscard]] int start(preparation &p) {
        if (const int why = enter_group(); why != 0)
            return why;
        std::array<unique_fd, 3> theirs;
        if (p.terminal) {
            if (const int why = make_terminal(p); why != 0)
                return why;
        }
        if (const int why = p.terminal ? open_terminal() : open_pipes(theirs); why != 0)
            return why;
        for (std::size_t i = 0; i < 3; ++i)
            p.descriptors[i].first = p.terminal ? terminal_->of_command() : theirs[i].get();
        const int why = tree_.start(p, job_.home);
        if (why == 0)
            begin_time_limit();
        return why;
    }
    // Not inlined, because gcc 12 then warns that the error, which is not there, is freed.
    [[nodiscard, gnu::noinline]] int make_terminal(const preparation &p) {
        auto made = terminal::open(job_.columns, job_.rows,
                                   p.user ? std::optional(p.user->uid) : std::nullopt);
        if (!made)
            return not_missing(made.error().error_number);
        terminal_.emplace(std::move(*made));
        return 0;
    }
    // The same for a command that runs. The daemon has made its group, with its limits. If it cannot
    // become a job, it is ended.
    [[nodiscard]] bool take_over() {
        if (join_keepers(job_.home) && tree_.move_to(group_) && open_terminal() == 0) {
            begin_time_limit();
            return true;
        }
        tree_.kill();
        while (!tree_.is_over()) {
            wait_for(std::span<pollfd>(), tree_.wake_ms());
            if (child_ended)
                (void)tree_.reap_ended();
            tree_.act();
        }
        return false;
    }
    [[nodiscard]] int enter_group() {
        if (!job_.home)
            return 0;
        if (auto joined = join_keepers(job_.home); !joined)
            return not_missing(joined.error().error_number);
        if (auto made = group_.make(); !made)
            return not_missing(made.error().error_number);
        return 0;
    }
    void begin_time_limit() {
        if (job_.timeout_s != 0)
            limit_ms_ = now_ms() + std::uint64_t{job_.timeout_s} * 1000;
    }
    // ENOENT must mean that the program does not exist.
    [[nodiscard]] static int not_missing(int why) noexcept { return why == ENOENT ? EIO : why; }

    [[nodiscard]] int open_terminal() {
        auto reading = terminal_->end();
        auto writing = terminal_->end();
        if (!reading || !writing)
            return EMFILE;
        outputs_[0] = std::move(*reading);
        input_ = std::move(*writing);
        return 0;
    }
    [[nodiscard]] int open_pipes(std::array<unique_fd, 3> &theirs) {
        for (std::size_t i = 0; i < 3; ++i) {
            int ends[2];
            if (i == 0 && !job_.takes_input) {
                theirs[0] = std::move(null_);
                continue;
            }
            if (::pipe2(ends, O_CLOEXEC) != 0)
                return errno;
            unique_fd &ours = i == 0 ? input_ : outputs_[i - 1];
            theirs[i].reset(ends[i == 0 ? 0 : 1]);
            ours.reset(ends[i == 0 ? 1 : 0]);
            ::fcntl(ours.get(), F_SETFL, O_NONBLOCK);
        }
        return 0;
    }

    void watch() {
        std::vector<pollfd> watched;
        for (;;) {
            watched.assign({{control_.get(), POLLIN, 0},
                            {listener_.get(), static_cast<short>(room_for_links() ? POLLIN : 0), 0},
                            {outputs_[0].get(), POLLIN, 0},
                            {outputs_[1].get(), POLLIN, 0}});
            for (const link &one : links_)
                watched.push_back({one.fd.get(), POLLIN, 0});
            wait_for(watched, std::min({tree_.wake_ms(), limit_ms_, leave_at_ms_}));
            // Orders come first: whoever kills the command says why before it does so.
            take_orders();
            if (child_ended)
                if (const auto end = tree_.reap_ended())
                    on_first_end(*end);
            if (watched[0].revents != 0 && control_) { // the daemon is gone, and this job with it
                control_.reset();
                end_because(end_cause::cancelled, static_cast<std::uint32_t>(errc::draining),
                            "dom0's daemon ended, and without a cgroup a job ends with it");
            }
            if (watched[1].revents != 0)
                accept_links();
            for (const std::size_t i : {0u, 1u})
                if (watched[2 + i].revents != 0)
                    read_output(i);
            act();
            if (tree_.is_over())
                break;
        }
        for (const std::size_t i : {0u, 1u}) // what is there was written before the end
            while (outputs_[i] && read_output(i)) {
            }
    }

    void act() {
        const std::uint64_t now = now_ms();
        if (now >= limit_ms_) {
            limit_ms_ = never;
            end_ = run_end{.cause = end_cause::timed_out, .value = job_.timeout_s};
            tree_.terminate();
        }
        settle(now);
        if (now >= leave_at_ms_) {
            leave_at_ms_ = never;
            tree_.terminate();
        }
        tree_.act();
    }

    // What happens after the first process has ended: as in execution.cpp, for any command.
    void settle(std::uint64_t now) {
        const bool outputs_open = outputs_[0] || outputs_[1];
        if (!exited_ || leaves_ || (outputs_open && !terminal_ && !job_.ends_with_first))
            return;
        leaves_ = true;
        leave_at_ms_ = now + (job_.ends_with_first ? 0 : terminal_ ? leave_terminal_ms : leave_ms);
    }

    void on_first_end(const command_tree::first_end &how) {
        exited_ = true;
        if (!end_) {
            end_ = WIFSIGNALED(how.wait_status)
                       ? run_end{.cause = end_cause::signalled,
                                 .value = static_cast<std::uint32_t>(WTERMSIG(how.wait_status))}
                       : run_end{.cause = end_cause::exited,
                                 .value = static_cast<std::uint32_t>(WEXITSTATUS(how.wait_status))};
            if (how.out_of_memory)
                end_->text = "it needed more than the " + std::to_string(memory_bytes_) +
                             " bytes of memory that dom0 allows";
        }
        input_.reset();
        if (terminal_)
            for (const int number : {SIGHUP, SIGCONT})
                tree_.signal(number);
    }

    void end_because(end_cause cause, std::uint32_t value, std::string text) {
        if (!end_)
            end_ = run_end{.cause = cause, .value = value, .text = std::move(text)};
        tree_.kill();
    }

    // Returns whether there may be more.
    bool read_output(std::size_t i) {
        const ssize_t n = ::read(outputs_[i].get(), buffer_.data(), buffer_.size());
        if (n < 0 && errno == EINTR)
            return true;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return false;
        if (n <= 0) {
            outputs_[i].reset();
            return false;
        }
        std::uint64_t room = static_cast<std::uint64_t>(n);
        if (job_.output_bytes != 0)
            room = std::min(room,
                            job_.output_bytes - recorder_.written(true) - recorder_.written(false));
        recorder_.append(i == 0, bytes_view(buffer_.data(), room));
        if (room < static_cast<std::uint64_t>(n)) {
            end_.reset(); // the result is not complete, even if the command has ended meanwhile
            outputs_[0].reset();
            outputs_[1].reset();
            end_because(end_cause::cancelled, static_cast<std::uint32_t>(errc::denied),
                        "it wrote more than the " + std::to_string(job_.output_bytes) +
                            " bytes that dom0 allows");
        }
        for (link &one : links_)
            if (std::exchange(one.watches, false))
                send_one(one.fd.get(), job_report{job_report::more, 0});
        return true;
    }

    [[nodiscard]] bool room_for_links() const noexcept { return links_.size() < most_links; }

    void accept_links() {
        unique_fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        ucred who{};
        socklen_t length = sizeof who;
        if (!fd || ::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &who, &length) != 0 ||
            (who.uid != 0 && who.uid != ::geteuid()))
            return;
        // Whoever has closed it already may have left an order.
        send_one(fd.get(), job_hello{.secret = job_.secret});
        links_.push_back({std::move(fd)});
    }

    void take_orders() {
        for (link &one : links_)
            for (;;) {
                job_order order{};
                const ssize_t n = receive(one.fd.get(), &order, sizeof order);
                if (n < 0 && errno == EAGAIN)
                    break;
                if (n != sizeof order) {
                    one.fd.reset(); // its process is gone, and the job goes on
                    break;
                }
                obey(order, one);
            }
        std::erase_if(links_, [](const link &one) { return !one.fd; });
    }

    void obey(const job_order &order, link &from) {
        switch (order.kind) {
        case job_order::signal:
            if (order.number > 0)
                tree_.signal(order.number);
            break;
        case job_order::interrupt:
            if (!terminal_ || !terminal_->interrupt(order.number))
                tree_.signal(order.number);
            break;
        case job_order::terminate:
            tree_.terminate();
            break;
        case job_order::kill:
            if (order.number != 0)
                end_.reset();
            end_because(end_cause::cancelled, static_cast<std::uint32_t>(order.number),
                        std::string(message(static_cast<errc>(order.number))));
            break;
        case job_order::watch:
            from.watches = true;
            break;
        case job_order::borrow:
            lend_input(from);
            break;
        case job_order::end_input:
            if (from.has_input)
                input_.reset();
            break;
        case job_order::give_back:
            from.has_input = false;
            break;
        default:
            break;
        }
    }

    void lend_input(link &to) {
        job_report answer{job_report::input, 0};
        if (!input_)
            answer.number = EPIPE;
        else if (std::any_of(links_.begin(), links_.end(),
                             [](const link &one) { return one.fd && one.has_input; }))
            answer.number = EBUSY;
        if (answer.number != 0) {
            send_one(to.fd.get(), answer);
            return;
        }
        to.has_input = send_with_descriptor(to.fd.get(), &answer, sizeof answer, input_.get());
    }

    void write_end() {
        job_end out{.how = end_.value_or(run_end{.cause = end_cause::cancelled})};
        out.how.stdout_bytes = recorder_.written(true);
        out.how.stderr_bytes = recorder_.written(false);
        out.duration_ms = host::boottime_ms() - started_ms_;
        // If the disk is full, nobody knows how it ended.
        (void)host::write_all(end_file_.get(), as_text(out.encode()));
        ::shutdown(listener_.get(), SHUT_RDWR);
        for (const link &one : links_)
            send_one(one.fd.get(), job_report{job_report::ended, 0});
    }

    const job_launch job_;
    const command_cgroup group_;
    command_tree tree_;
    unique_fd control_; // only without a cgroup: closed when the daemon has ended
    unique_fd null_;
    std::array<unique_fd, 2> files_;
    unique_fd end_file_, listener_;
    job_recorder recorder_;
    std::optional<terminal> terminal_;
    std::array<unique_fd, 2> outputs_; // our ends of the command's pipes, or of its terminal
    unique_fd input_;
    std::vector<link> links_;
    std::optional<run_end> end_;
    std::uint64_t started_ms_ = 0;
    std::uint64_t memory_bytes_ = 0; // its limit
    std::uint64_t limit_ms_ = never, leave_at_ms_ = never;
    bool exited_ = false; // the first process
    bool leaves_ = false;
    std::array<std::uint8_t, 64 * 1024> buffer_;
};

} // namespace

void keep_job(std::vector<unique_fd> received, preparation &p) noexcept {
    // It is large, and there is only one in a process.
    auto self = std::make_unique<job_keeper>(std::move(received), p);
    self->run(p);
}

void go_on_as_job(std::vector<unique_fd> received, const job_launch &job,
                  command_tree tree) noexcept {
    auto self = std::make_unique<job_keeper>(std::move(received), job, std::move(tree));
    self->go_on();
}

} // namespace qvmremote::dom0
