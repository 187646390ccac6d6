// SPDX-License-Identifier: GPL-2.0-or-later
// `jobs`: the jobs of all qubes, for operators and root. The daemon lists and cancels them. Root reads
// what a job's keeper has written, and connects to the keeper, as the daemon does.
#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include <qvmremote/display.hpp>
#include <qvmremote/escapes.hpp>
#include <qvmremote/history.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/sanitize.hpp>

#include "administer/admin.hpp"
#include "administer/report.hpp"
#include "execute/job_files.hpp"
#include "execute/job_link.hpp"
#include "execute/terminal.hpp"
#include "serve/control.hpp"

namespace qvmremote::dom0 {

namespace {

using host::unique_fd;
using nlohmann::ordered_json;

constexpr int jobs_answer_seconds = 10;
constexpr std::size_t longest_list = 64 * 1024 * 1024;
constexpr int lost_keeper_ms = 100, lost_keeper_tries = 100;

// A job as qvm-remote in its qube writes it, and the qube.
ordered_json members_of(const std::string &qube, const job_row &of) {
    ordered_json out = {{"qube", qube},
                        {"id", for_terminal(of.id)},
                        {"state", for_terminal(of.state)},
                        {"started", for_terminal(of.started)},
                        {"seconds", of.seconds},
                        {"tty", of.tty},
                        {"command", for_terminal(of.shown)}};
    if (of.exit >= 0)
        out["exit_code"] = of.exit;
    for (const auto &[name, bytes, gone] : {std::tuple{"stdout", of.written.out, of.gone.out},
                                            {"stderr", of.written.err, of.gone.err}}) {
        out[name] = {{"bytes", bytes}};
        if (gone > 0)
            out[name]["skipped"] = gone;
    }
    return out;
}

int list_jobs(const invocation &in) {
    const auto answer = ask_daemon(in.where, "jobs", jobs_answer_seconds, longest_list);
    if (!answer)
        return no_answer(answer.error());
    struct row {
        std::string qube;
        job_row of;
    };
    std::vector<row> rows;
    std::array<std::size_t, 2> widest = {4, 2};
    for (const std::string_view line : tail_lines(*answer, SIZE_MAX)) {
        const std::size_t tab = std::min(line.find('\t'), line.size() - 1);
        auto parsed = job_row::parse(line.substr(tab + 1));
        if (!parsed)
            continue;
        rows.push_back({for_terminal(line.substr(0, tab), 31), std::move(*parsed)});
        widest[0] = std::max(widest[0], rows.back().qube.size());
        widest[1] = std::max(widest[1], rows.back().of.id.size());
    }
    if (report::instance().is_json()) {
        auto &all = report::instance().result()["jobs"] = ordered_json::array();
        for (const auto &[qube, one] : rows)
            all.push_back(members_of(qube, one));
        return 0;
    }
    const auto print = [&](const std::string &qube, const std::string &id, const std::string &state,
                           const std::string &exit, const std::string &started,
                           const std::string &seconds, const std::string &output,
                           const std::string &command) {
        std::printf("%-*s  %-*s  %-11s %4s  %-19s %8s %12s  %s\n", static_cast<int>(widest[0]),
                    qube.c_str(), static_cast<int>(widest[1]), id.c_str(), state.c_str(),
                    exit.c_str(), started.c_str(), seconds.c_str(), output.c_str(),
                    command.c_str());
    };
    if (!rows.empty())
        print("QUBE", "ID", "STATE", "EXIT", "STARTED", "SECONDS", "OUTPUT", "COMMAND");
    for (const auto &[qube, one] : rows)
        print(qube, one.id, for_terminal(one.state, 11),
              one.exit < 0 ? "-" : std::to_string(one.exit), for_terminal(one.started, 19),
              std::to_string(one.seconds), std::to_string(one.written.out + one.written.err),
              for_terminal(one.shown, 200));
    return 0;
}

// Our terminal while a job's terminal is shown in it. The destructor restores it, so what would end us
// does not do so at once, but is read from a descriptor. So are the signals after which the terminal
// may be another: its size has changed, or we go on after a stop.
class raw_terminal {
  public:
    raw_terminal() {
        sigset_t wanted;
        ::sigemptyset(&wanted);
        for (const int number : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH, SIGCONT})
            ::sigaddset(&wanted, number);
        ::sigprocmask(SIG_BLOCK, &wanted, nullptr);
        signals_.reset(::signalfd(-1, &wanted, SFD_CLOEXEC));
        if (::tcgetattr(STDIN_FILENO, &before_) != 0)
            return;
        raw_ = before_;
        ::cfmakeraw(&raw_);
        is_raw_ = make_raw();
    }
    raw_terminal(const raw_terminal &) = delete;
    raw_terminal &operator=(const raw_terminal &) = delete;
    ~raw_terminal() {
        if (is_raw_)
            ::tcsetattr(STDIN_FILENO, TCSANOW, &before_);
    }

    /// Borrowed; readable when a signal has come.
    [[nodiscard]] int signals() const noexcept { return signals_.get(); }
    /// The number of that signal.
    [[nodiscard]] int take_signal() const noexcept {
        signalfd_siginfo came{};
        const bool is_whole = ::read(signals_.get(), &came, sizeof came) == sizeof came;
        return is_whole ? static_cast<int>(came.ssi_signo) : SIGTERM;
    }
    /// Also after a stop: a shell has set other modes meanwhile.
    [[nodiscard]] bool make_raw() const noexcept {
        return ::tcsetattr(STDIN_FILENO, TCSANOW, &raw_) == 0;
    }
    /// Zeros when it does not say.
    [[nodiscard]] winsize size() const noexcept {
        winsize out{};
        return ::ioctl(STDIN_FILENO, TIOCGWINSZ, &out) == 0 ? out : winsize{};
    }

  private:
    termios before_{}, raw_{};
    unique_fd signals_;
    bool is_raw_ = false;
};

enum class how_long { now, to_the_end, attached };

// Shows one job.
class job_viewer {
  public:
    job_viewer(const paths &where, how_long until, bool shows_output)
        : where_(where), until_(until), shows_output_(shows_output) {}

    [[nodiscard]] host::outcome<void> open(const qube_name &qube, const command_id &id) {
        const std::string directory = where_.jobs() + "/" + qube.text();
        const unique_fd of_qube(
            ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
        if (!of_qube)
            return host::failed("qube " + qube.text() + " has no jobs that you may read", errno);
        auto files = job_files::open(of_qube.get(), id);
        if (!files)
            return host::failed("qube " + qube.text() + " has no job " + id.text() +
                                ": see qvm-remote-dom0 jobs");
        auto record = files->record();
        if (!record)
            return tl::unexpected(record.error());
        files_ = std::move(*files);
        record_ = std::move(*record);
        if (const auto request = record_.request())
            tty_ = request->tty;
        return {};
    }

    // Returns the exit code.
    int run() {
        if (!files_.ended())
            connect();
        if (until_ == how_long::attached && link_) {
            link_->order(job_order::borrow);
            if (tty_ && ::isatty(STDIN_FILENO))
                raw_.emplace();
        }
        for (int tries = 0;;) {
            if (link_)
                link_->order(job_order::watch); // first, so that nothing that comes now is missed
            const bool has_ended = files_.ended().has_value();
            if (!drain()) {
                (void)fail_with("cannot write the output");
                return 255;
            }
            if (until_ == how_long::now)
                return 0;
            if (has_ended)
                break;
            if (!link_ && ++tries > lost_keeper_tries)
                return fail_with("its keeper has ended, and no daemon has found that out yet: "
                                 "systemctl start qvm-remote-dom0");
            if (!wait())
                return left_by_ == 0 ? 0 : 128 + left_by_;
        }
        const auto end = files_.ended();
        if (end->how.cause == end_cause::cancelled)
            (void)fail_with(for_terminal(end->how.text));
        return end->how.exit_code();
    }

  private:
    void connect() {
        if (auto made = job_link::connect(where_.job_sockets(), record_))
            link_.emplace(std::move(*made));
    }

    [[nodiscard]] bool drain() {
        if (!shows_output_)
            return true;
        std::array<std::uint8_t, 64 * 1024> data;
        for (auto &[output, fd, name] : lanes_)
            for (;;) {
                if (!output)
                    output.emplace(fd == STDOUT_FILENO ? files_.out.get() : files_.err.get());
                const auto piece = output->read(data);
                if (piece.skipped > 0)
                    std::fprintf(stderr,
                                 "qvm-remote-dom0: [%llu bytes of its %s are gone, since it wrote "
                                 "more than dom0 keeps]\n",
                                 static_cast<unsigned long long>(piece.skipped), name);
                if (piece.size == 0)
                    break;
                if (!host::write_all(fd, as_text(bytes_view(data.data(), piece.size))))
                    return false;
            }
        return true;
    }

    // Waits for something to do. Returns false when the user leaves.
    [[nodiscard]] bool wait() {
        std::array<pollfd, 3> watched{{{link_ ? link_->descriptor() : -1, POLLIN, 0},
                                       {input_ ? STDIN_FILENO : -1, POLLIN, 0},
                                       {raw_ ? raw_->signals() : -1, POLLIN, 0}}};
        ::poll(watched.data(), watched.size(), link_ ? -1 : lost_keeper_ms);
        if (watched[2].revents != 0 && !take_signal())
            return false;
        while (link_) {
            auto event = link_->next();
            if (!event)
                break;
            if (event->kind == job_link::event::input && event->error_number == 0) {
                input_ = std::move(event->input_end);
                pass_size();
            } else if (event->kind == job_link::event::input)
                std::fprintf(stderr, "qvm-remote-dom0: your input does not reach the job\n");
            else if (event->kind != job_link::event::more)
                link_.reset();
        }
        return watched[1].revents == 0 || pass_input();
    }

    // Returns false if the signal ends this program.
    [[nodiscard]] bool take_signal() {
        const int number = raw_->take_signal();
        if (number != SIGWINCH && number != SIGCONT) {
            left_by_ = number;
            return false;
        }
        (void)raw_->make_raw();
        pass_size();
        return true;
    }

    // Whoever types decides how large the job's terminal is.
    void pass_size() const {
        if (!raw_ || !input_)
            return;
        const winsize now = raw_->size();
        if (now.ws_col != 0 && now.ws_row != 0)
            resize_terminal(input_.get(), now.ws_col, now.ws_row);
    }

    [[nodiscard]] bool pass_input() {
        std::array<std::uint8_t, 4096> typed;
        std::array<std::uint8_t, typed.size() + 1> passed;
        const ssize_t n = ::read(STDIN_FILENO, typed.data(), typed.size());
        if (n <= 0) {
            if (tty_)
                (void)send(as_bytes(end_of_input(input_.get(), false)));
            else
                link_->order(job_order::end_input);
            input_.reset();
            return true;
        }
        bytes_view left(typed.data(), static_cast<std::size_t>(n));
        if (!tty_ || !::isatty(STDIN_FILENO))
            return send(left);
        while (!left.empty()) {
            const auto step = scanner_.push(left, passed);
            left = left.subspan(step.used);
            if (!send(bytes_view(passed.data(), step.written)) ||
                step.what == escape_scanner::action::leave ||
                step.what == escape_scanner::action::detach)
                return false;
        }
        return true;
    }
    // Returns false if a signal ends this program.
    [[nodiscard]] bool send(bytes_view data) {
        // Its flags stay as they are: they are the keeper's too, which reads from the same terminal and
        // must not block.
        while (input_ && !data.empty()) {
            const ssize_t n = ::write(input_.get(), data.data(), data.size());
            if (n >= 0) {
                data = data.subspan(static_cast<std::size_t>(n));
            } else if (errno == EAGAIN) {
                pollfd room[] = {{input_.get(), POLLOUT, 0},
                                 {raw_ ? raw_->signals() : -1, POLLIN, 0}};
                ::poll(room, 2, -1);
                if (room[1].revents != 0 && !take_signal())
                    return false;
            } else if (errno != EINTR) {
                input_.reset(); // the job does not read any more
            }
        }
        return true;
    }

    struct lane {
        std::optional<job_output> output;
        int fd;
        const char *name;
    };

    const paths &where_;
    const how_long until_;
    const bool shows_output_;
    job_files files_;
    job_record record_;
    bool tty_ = false;
    std::optional<job_link> link_;
    std::optional<raw_terminal> raw_;
    int left_by_ = 0; // the signal that ends us
    unique_fd input_;
    escape_scanner scanner_;
    std::array<lane, 2> lanes_{{{{}, STDOUT_FILENO, "stdout"}, {{}, STDERR_FILENO, "stderr"}}};
};

} // namespace

int jobs_command(const invocation &in) {
    const auto &words = in.arguments;
    const std::string_view verb = words.empty() ? std::string_view("list") : words[0];
    if (verb == "list")
        return words.size() <= 1 ? list_jobs(in) : fail_with(in.usage);
    const bool follows = verb == "logs" && words.size() == 4 && words[1] == std::string_view("-f");
    const bool is_known = verb == "attach" || verb == "logs" || verb == "wait" || verb == "cancel";
    if (!is_known || words.size() != (follows ? 4u : 3u))
        return fail_with(in.usage);
    const auto qube = qube_name::parse(words[words.size() - 2]);
    const auto id = command_id::parse(words.back());
    if (!qube || !id)
        return fail_with(in.usage);
    if (verb == "cancel") {
        const auto answer = ask_daemon(in.where, "job-cancel " + qube->text() + " " + id->text(),
                                       jobs_answer_seconds);
        if (!answer)
            return no_answer(answer.error());
        return done_by_daemon(*answer);
    }
    if (report::instance().is_json())
        return fail_with("usage: --json belongs to jobs list and jobs cancel: the others pass on "
                         "what a job writes");
    job_viewer viewer(in.where,
                      verb == "attach"             ? how_long::attached
                      : verb == "logs" && !follows ? how_long::now
                                                   : how_long::to_the_end,
                      verb != "wait");
    if (auto opened = viewer.open(*qube, *id); !opened)
        return fail_with(opened.error().what);
    return viewer.run();
}

} // namespace qvmremote::dom0
