// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The client: runs commands in dom0 one after the other, over a stream that it keeps.
///
/// @code
/// auto link = transport::load(directory, "mock", role::qube, options);
/// auto stream = link->connect();
/// client dom0(std::move(*stream), std::move(key));
/// collected result = dom0.collect({.kind = request_kind::shell, .body = "qvm-ls"});
/// @endcode

#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/command_id.hpp>
#include <qvmremote/envelope.hpp>
#include <qvmremote/host/bulk_pipe.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/transport.hpp>
#include <qvmremote/secret.hpp>
#include <qvmremote/session.hpp>

namespace qvmremote::host {

/// What to run.
struct command {
    request_kind kind = request_kind::shell;
    std::string body;                   ///< a command line or a script
    std::vector<std::string> arguments; ///< an argv, or a script's arguments
    std::vector<std::pair<std::string, std::string>> environment;
    std::uint32_t timeout_s = limits::default_timeout_s; ///< 0: none
    bool dry_run = false;                                ///< only ask what dom0 would decide
    bool no_wait =
        false; ///< end with the first process, even if what it left running may still write
    std::optional<command_id> id; ///< when absent, a new one is made
    /// The command runs in a terminal in dom0: everything it writes is stdout, unchanged, and stdin
    /// is what the user types. The environment should set TERM.
    bool tty = false;
    /// The command runs as a job: the run ends when START is durable in dom0, and the job goes on.
    bool detach = false;
    /// With `detach`: input can be attached to the job later. Without it, the job reads /dev/null.
    bool job_input = false;
    /// With kind `job`: what is asked about a job. Kind, arguments and body are made from it.
    std::optional<job_request> about{};
};

/// The size of a terminal, in characters; 0: not known.
struct terminal_size {
    std::uint16_t columns = 0, rows = 0;
    friend bool operator==(const terminal_size &, const terminal_size &) = default;
};

/// Looks at stdin on its way to dom0, and may change it.
class input_filter {
  public:
    virtual ~input_filter() = default;
    enum class action : std::uint8_t { go_on, leave, detach };
    struct passed {
        std::size_t n; ///< how many bytes of `data` to send first
        action next;   ///< then: go on, give the session up, or let the command go on as a job
    };
    /// The first `n` bytes of `data` were read from stdin; `data` has room for at least one more.
    /// Changes them in place.
    [[nodiscard]] virtual passed pass(std::span<std::uint8_t> data, std::size_t n) = 0;
};

/// Takes one stream of output. An implementation never blocks for long; it takes what it can.
class output_sink {
  public:
    virtual ~output_sink() = default;
    /// Takes the first bytes of `data`, perhaps none, and returns how many it took.
    [[nodiscard]] virtual std::size_t take(bytes_view data) = 0;
    /// After take() left some bytes: the descriptor that poll should watch for writing, or -1 to be
    /// called again soon.
    [[nodiscard]] virtual int blocked_on() const { return -1; }
    /// The sink will never take more (EPIPE): the command is given up.
    [[nodiscard]] virtual bool broken() const { return false; }
    /// The command has closed this stream and still runs.
    virtual void end() {}
};

/// Keeps everything in memory.
class string_sink final : public output_sink {
  public:
    std::string text;
    [[nodiscard]] std::size_t take(bytes_view data) override {
        text.append(as_text(data));
        return data.size();
    }
};

/// Hands each piece to a function.
class callback_sink final : public output_sink {
  public:
    explicit callback_sink(std::function<void(bytes_view)> call) : call_(std::move(call)) {}
    [[nodiscard]] std::size_t take(bytes_view data) override {
        call_(data);
        return data.size();
    }

  private:
    std::function<void(bytes_view)> call_;
};

/// Writes to a descriptor that other processes share, such as a standard stream, and does not
/// change its flags. It opens a pipe or a terminal a second time, non-blocking, and sends to a
/// socket with MSG_DONTWAIT. If it cannot open the pipe or terminal, it writes small pieces when
/// poll says that it may.
class descriptor_sink final : public output_sink {
  public:
    /// Borrows the descriptor.
    explicit descriptor_sink(int fd) noexcept : fd_(fd) {}

    [[nodiscard]] std::size_t take(bytes_view data) override {
        if (way_ == way::unknown)
            find_way();
        ssize_t n = -1;
        switch (way_) {
        case way::socket:
            n = ::send(fd_, data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
            break;
        case way::own:
            pipe_.saw(own_.get(), data.size());
            n = ::write(own_.get(), data.data(), data.size());
            break;
        case way::careful: {
            pollfd ready{fd_, POLLOUT, 0};
            if (::poll(&ready, 1, 0) != 1)
                return 0;
            n = ::write(fd_, data.data(), std::min<std::size_t>(data.size(), PIPE_BUF));
            break;
        }
        default:
            n = ::write(fd_, data.data(), data.size());
        }
        if (n >= 0)
            return static_cast<std::size_t>(n);
        if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
            broken_ = true;
            error_ = errno;
        }
        return 0;
    }
    [[nodiscard]] int blocked_on() const override { return own_ ? own_.get() : fd_; }
    [[nodiscard]] bool broken() const override { return broken_; }
    /// Closes the second descriptor. The caller closes its own.
    void end() override { own_.reset(); }
    /// The errno that broke the sink, such as EPIPE when the reader is gone, or ENOSPC.
    [[nodiscard]] int error() const noexcept { return error_; }

  private:
    enum class way { unknown, plain, own, socket, careful };

    void find_way() {
        struct stat st {};
        way_ = way::plain;
        if (::fstat(fd_, &st) != 0)
            return;
        if (S_ISSOCK(st.st_mode)) {
            way_ = way::socket;
        } else if (S_ISFIFO(st.st_mode) || ::isatty(fd_)) {
            own_.reset(::open(("/proc/self/fd/" + std::to_string(fd_)).c_str(),
                              O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
            way_ = own_ ? way::own : way::careful;
        }
    }

    int fd_;
    unique_fd own_;
    way way_ = way::unknown;
    bulk_pipe pipe_;
    bool broken_ = false;
    int error_ = 0;
};

/// The state of a run, to be shown to a person.
enum class run_state : std::uint8_t {
    sent,    ///< dom0 has not answered yet
    waiting, ///< dom0 waits for a slot or for the end of standard input; the text says which
    pending, ///< dom0 waits for its operator; the text says for what
    running,
    noticed, ///< still running; the text is a notice from dom0
    silent,  ///< nothing has come for a while; when something comes, the last state is reported
};

/// What a run is connected to. The call borrows all of it and does not change the flags of the
/// descriptors.
struct run_streams {
    output_sink *out = nullptr; ///< required
    output_sink *err = nullptr; ///< required
    int stdin_fd = -1;          ///< read after dom0 has accepted; -1: the command gets /dev/null
    int signal_fd = -1;         ///< each byte read from it is a signal to forward; see size
    /// Called when the state changes. `untrusted_text` may be empty.
    std::function<void(run_state, std::string_view untrusted_text)> changed{};
    /// Called every `tick_ms` while waiting, when set.
    std::function<void()> tick{};
    int tick_ms = 1000;
    /// With command::tty: returns the size that the terminal in dom0 should have. Called at the
    /// beginning, after dom0 has accepted, and for each SIGWINCH from signal_fd.
    std::function<terminal_size()> size{};
    input_filter *filter = nullptr;
    /// Called when a part of a job's output is not there: how many bytes of each stream are gone.
    std::function<void(const job_offsets &gone)> skipped{};
};

/// How a run ended.
struct run_result {
    enum class kind : std::uint8_t {
        ended,       ///< end: an authentic result, and every byte arrived
        refused,     ///< dom0 refuses: reason, text
        rejected,    ///< a refusal that is not authentic: reason, text
        lost,        ///< the stream broke, or what came was not authentic; text says which
        not_sent,    ///< the request cannot be sent: reason
        interrupted, ///< given up after a second signal, or before dom0 had accepted, or in a
                     ///< terminal after SIGHUP or SIGTERM, or by the filter (signal is 0 then)
        sink_broken, ///< a sink takes no more output; the command was given up
    };
    kind how = kind::lost;
    std::string id;
    run_end end;
    errc reason = errc::session_over;
    std::string untrusted_text;
    int signal = 0;            ///< the first one that was forwarded
    bool may_have_run = false; ///< the request was sent, and dom0 did not refuse it
    job_offsets reached{};     ///< of a job's output: what has come so far, to go on from there

    /// The exit code of a program that ran this: doc/PROTOCOL.md, "How a session ended, and exit codes".
    [[nodiscard]] int exit_code() const noexcept {
        if (signal != 0 && how != kind::sink_broken)
            return 128 + signal;
        switch (how) {
        case kind::ended:
            return end.exit_code();
        case kind::refused:
            return reason == errc::slot_timeout ? 124 : 126;
        case kind::rejected:
            return 126;
        case kind::not_sent:
            return 1;
        case kind::sink_broken:
            return 141;
        default:
            return 255;
        }
    }
};

/// A result with its output.
struct collected {
    run_result result;
    std::string out, err;
};

/// One stream to dom0, and the key that it uses. Use it from one thread. Ignore SIGPIPE in the
/// process; then a broken stream is a result like any other.
class client {
  public:
    client(stream to_dom0, secret key) : link_(std::move(to_dom0)), key_(std::move(key)) {
        for (const int fd : {link_.in.get(), link_.out.get()})
            ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
    }

    /// Sets how long dom0 may take to send its first byte; 30 s by default. Set more if the
    /// platform may ask a person before the call reaches dom0.
    void wait_for_first_answer(std::uint64_t ms) noexcept { first_answer_ms_ = ms; }

    /// Runs one command to its end. Every failure of dom0 or of the machine is a run_result; it
    /// does not throw.
    [[nodiscard]] run_result run(command what, const run_streams &io);

    /// Runs one command without stdin and keeps its output.
    [[nodiscard]] collected collect(command what) {
        string_sink out, err;
        collected done;
        done.result = run(std::move(what), {.out = &out, .err = &err});
        done.out = std::move(out.text);
        done.err = std::move(err.text);
        return done;
    }

    /// The name of this qube in dom0; empty before the first answer. Untrusted.
    [[nodiscard]] const std::string &untrusted_peer() const noexcept { return untrusted_peer_; }

    /// Whether another command can be run on this stream.
    [[nodiscard]] bool usable() const noexcept { return usable_; }

    /// An ID as every version of qvm-remote writes it: YYYYmmdd-HHMMSS-PID-xxxxxxxx.
    [[nodiscard]] static command_id make_id() {
        std::array<std::uint8_t, 4> random{};
        fill_random(random);
        return command_id::parse(local_time::now().compact() + "-" + std::to_string(::getpid()) +
                                 "-" + to_hex(random))
            .value();
    }

  private:
    class running;

    static void fill_random(std::span<std::uint8_t> out) {
        // 256 bytes or less come in one piece after the kernel's generator is seeded.
        qvmremote::detail::require(::getrandom(out.data(), out.size(), 0) ==
                                   static_cast<ssize_t>(out.size()));
    }

    stream link_;
    secret key_;
    client_stream machine_;
    std::string untrusted_peer_;
    bool usable_ = true;
    bool answered_ = false; // HELLO has come from dom0
    std::uint64_t first_answer_ms_ = 30'000;
};

} // namespace qvmremote::host

#include <qvmremote/host/detail/client_inl.hpp>
