// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Both ends of a stream and of the sessions on it, as state machines over bytes and a clock value
/// (doc/PROTOCOL.md, "Stream" and "Session"). They use no descriptor, thread, clock or log.
///
/// The caller reads into prepare() and calls commit(), calls next() until it returns no event, and
/// writes out what output() holds. Times are milliseconds of one clock that also counts in suspend.

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include <qvmremote/bytes.hpp>
#include <qvmremote/digest.hpp>
#include <qvmremote/envelope.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/frame.hpp>
#include <qvmremote/job.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/queue.hpp>
#include <qvmremote/secret.hpp>
#include <qvmremote/token.hpp>

namespace qvmremote {

/// How a session ended. Numbers are frozen.
enum class end_cause : std::uint8_t {
    exited = 1,      ///< value: exit code
    signalled = 2,   ///< value: signal
    timed_out = 3,   ///< value: the limit in seconds
    not_found = 4,   ///< the program does not exist
    not_started = 5, ///< value: errno
    cancelled = 6,   ///< dom0 ended it; value: an errc
    detached = 7,    ///< it goes on as a job; value: 1 if it outlives a restart of dom0's daemon
};

[[nodiscard]] constexpr std::string_view name(end_cause cause) noexcept {
    switch (cause) {
    case end_cause::exited:
        return "exited";
    case end_cause::signalled:
        return "signalled";
    case end_cause::timed_out:
        return "timed_out";
    case end_cause::not_found:
        return "not_found";
    case end_cause::not_started:
        return "not_started";
    case end_cause::cancelled:
        return "cancelled";
    case end_cause::detached:
        return "detached";
    }
    return "unknown";
}

/// What an END frame says: the cause, and how many bytes of each output stream dom0 sent.
struct run_end {
    end_cause cause{};
    std::uint32_t value = 0;
    std::uint64_t stdout_bytes = 0;
    std::uint64_t stderr_bytes = 0;
    std::string text{}; ///< for people, at most limits::reason_text; untrusted in the qube

    /// The exit code of the client: doc/PROTOCOL.md, "How a session ended, and exit codes".
    [[nodiscard]] int exit_code() const noexcept {
        switch (cause) {
        case end_cause::exited:
            // Do not cut the value to eight bits: 256 would become success.
            return value <= 255 ? static_cast<int>(value) : 255;
        case end_cause::signalled:
            return value <= 127 ? static_cast<int>(128 + value) : 255;
        case end_cause::timed_out:
            return 124;
        case end_cause::not_found:
            return 127;
        case end_cause::not_started:
            return 125;
        case end_cause::cancelled:
            return 126;
        case end_cause::detached:
            return 0;
        }
        return 255;
    }
};

/// Whether a signal may be forwarded to dom0: those that a terminal or a supervisor sends, and none
/// that a process cannot catch. Numbers are those of Linux, which are the same on every
/// architecture that Qubes runs on.
[[nodiscard]] constexpr bool is_forwarded_signal(std::uint8_t number) noexcept {
    switch (number) {
    case 1:  // HUP
    case 2:  // INT
    case 3:  // QUIT
    case 10: // USR1
    case 12: // USR2
    case 15: // TERM
    case 18: // CONT
    case 20: // TSTP
        return true;
    default:
        return false;
    }
}

/// How many bytes the windows of several sessions may have beyond limits::window each, all together.
/// It bounds what this end holds for readers that have stopped (I4).
class window_pool {
  public:
    /// What is taken here is also taken from `whole`, which may be null.
    explicit window_pool(std::size_t n, std::shared_ptr<window_pool> whole = {}) noexcept
        : left_(n), whole_(std::move(whole)) {}
    window_pool(const window_pool &) = delete;
    window_pool &operator=(const window_pool &) = delete;

    /// Takes at most `most` bytes; returns how many.
    [[nodiscard]] std::size_t take(std::size_t most) noexcept;
    void give_back(std::size_t n) noexcept;

  private:
    std::size_t left_;
    std::shared_ptr<window_pool> whole_;
};

/// The receiving end of one direction of a session: how much the other end may send, and how much of
/// it was passed on and is not given back as credit yet (doc/PROTOCOL.md, "Credit").
class receive_window {
  public:
    /// The window stays as wide as it is opened if `wider` is null. It keeps the pool, since a stream
    /// may outlive the part of a program that made the pool.
    explicit receive_window(std::shared_ptr<window_pool> wider = {}) noexcept
        : wider_(std::move(wider)) {}
    receive_window(receive_window &&other) noexcept { *this = std::move(other); }
    receive_window &operator=(receive_window &&other) noexcept;
    ~receive_window();

    /// Lets the other end send `n` bytes more than now.
    void open(std::size_t n) noexcept {
        credit_ += n;
        size_ += n;
    }
    [[nodiscard]] std::size_t credit() const noexcept { return credit_; }
    /// Counts bytes that came. False if they are more than the credit.
    [[nodiscard]] bool take(std::size_t n) noexcept;
    /// Counts bytes that were passed on. Returns the credit to send now, or 0: small amounts are
    /// collected. A window whose data is passed on again and again grows to limits::widest_window.
    [[nodiscard]] std::size_t pass_on(std::size_t n) noexcept;

  private:
    std::shared_ptr<window_pool> wider_;
    std::size_t size_ = 0, credit_ = 0, owed_ = 0;
    std::size_t passed_ = 0; // since the window last grew
    std::size_t taken_ = 0;  // from the pool
};

/// What both ends of a stream share: cutting the input into frames, and building the output.
class stream_end {
  public:
    /// The place for the next bytes; never empty after next() has returned no event.
    [[nodiscard]] std::span<std::uint8_t> prepare() { return reader_.prepare(); }
    void commit(std::size_t n) noexcept { reader_.commit(n); }
    /// Copies bytes that the caller already has; returns how many it took.
    [[nodiscard]] std::size_t push(bytes_view untrusted) { return reader_.push(untrusted); }

    [[nodiscard]] out_buffer &output() noexcept { return out_; }
    /// Whether so much waits to be written that the caller should read nothing more from this peer.
    [[nodiscard]] bool congested() const noexcept { return out_.size() >= 2 * limits::frame; }

    /// Sends a PING; the other end answers with a PONG, which next() returns as the event `pong`.
    void ping(std::uint64_t cookie);

    /// Frees empty buffers. Call it while the stream is idle.
    void release_idle_memory();

  protected:
    explicit stream_end(std::size_t payload_limit) : reader_(payload_limit) {}

    void put_plain(std::uint32_t session, frame_type type, bytes_view payload);

    void put_tagged(frame_authenticator &keys, std::uint32_t session, frame_type type,
                    bytes_view payload);

    [[nodiscard]] std::span<std::uint8_t> prepare_tagged(std::size_t payload);
    void commit_tagged(frame_authenticator &keys, std::uint32_t session, frame_type type,
                       std::size_t payload);

    [[nodiscard]] static bytes reason_payload(errc reason, std::string_view text);

    [[nodiscard]] result<bool> take_stream_frame(const frame_view &frame);

    frame_reader reader_;
    out_buffer out_;

  private:
    const std::uint8_t *prepared_ = nullptr;
};

/// An event on a stream, for dom0. `data` is borrowed until the next prepare() or push().
struct server_event {
    enum class kind : std::uint8_t {
        open,       ///< call issue_challenge or reject_open before next()
        request,    ///< call server_stream::verify before next()
        body,       ///< the body that take_body asked for has come: call server_stream::complete
        stdin_data, ///< data: for the command; call grant_stdin after writing it
        stdin_eof,  ///< stdin has ended
        signal,     ///< number: one of is_forwarded_signal
        resize,     ///< columns, rows
        detach,     ///< the command in the terminal shall go on as a job
        credit,     ///< more output may be sent
        closed,     ///< the session is over and already removed: reason says why
        pong,       ///< a sign of life
        queue,      ///< data: a piece of the queue's bytes, for a queue_server
    };
    kind what;
    std::uint32_t session = 0;
    bytes_view data{};
    std::uint8_t number = 0;
    std::uint16_t columns = 0, rows = 0;
    errc reason = errc::session_over;
};

/// dom0's end of a stream. After queue_preamble the stream has no frames and no sessions: all bytes
/// belong to the queue. They arrive as events, and put_queue sends them.
///
/// Until a token has verified on the stream, it holds one frame of the size of a request header and
/// at most limits::open_challenges challenges (I4), and it parses only frame headers and lengths
/// (I5).
class server_stream : public stream_end {
  public:
    /// `peer` is the qube's name as the transport proves it, at most 255 bytes. `features` are the
    /// abilities that HELLO announces. `wider` bounds how wide the windows for stdin may become.
    server_stream(std::string_view peer, std::uint32_t features, std::uint64_t now_ms,
                  std::shared_ptr<window_pool> wider = {});

    /// The next event; nothing when more bytes are needed. An error ends the stream: close it, and
    /// treat all its sessions as closed. Until the preamble has come, call next() without new bytes
    /// too: it fails with errc::bad_preamble after limits::preamble_ms.
    [[nodiscard]] result<std::optional<server_event>> next(std::uint64_t now_ms);

    /// Answers OPEN with a challenge. Returns the session's number.
    std::uint32_t issue_challenge(const challenge &fresh, std::uint64_t now_ms);
    /// Answers OPEN with a refusal.
    void reject_open(errc reason);

    struct header_verified {
        verified<envelope> header;
        std::size_t key_index; ///< which of the `keys` given to verify()
    };
    /// Verifies the REQUEST of `event` under any of `keys`. The challenge cannot be used again,
    /// whatever the result. On failure the refusal is already in output() and the session is gone.
    /// The error is for the log: errc::no_key, bad_token, challenge_stale, or the fault in a header
    /// that verified.
    [[nodiscard]] result<header_verified>
    verify(const server_event &event, std::span<const secret> keys, std::uint64_t now_ms);

    /// Asks for the body that follows the header; the event `body` comes when it is complete.
    /// Returns false if the body came in the header: then call complete() at once.
    [[nodiscard]] bool take_body(std::uint32_t number);

    /// Joins header and body. Fails as request_verifier::complete does; then the refusal is already
    /// in output() and the session is gone.
    [[nodiscard]] result<verified<request>> complete(std::uint32_t number,
                                                     verified<envelope> header);

    /// Tells the client that the request waits in dom0. `serial` is 0 unless it waits for an operator.
    void pend(std::uint32_t number, std::uint64_t serial, std::string_view text);

    /// Asks for `more` bytes of stdin before the command is accepted, because an operator decides
    /// about the input too. At most limits::window bytes may be outstanding. They come as
    /// stdin_data. After stdin_eof the session waits as before; then call accept() with stdin_live
    /// false.
    void collect_stdin(std::uint32_t number, std::size_t more);

    /// Tells the client that the command runs. `timeout_s` is its time-out in seconds, 0 for none.
    /// With `stdin_live` the client may send stdin, limits::window bytes at first.
    void accept(std::uint32_t number, std::uint32_t timeout_s, bool stdin_live);

    /// Ends a session that has not been accepted. The reason is authentic (tagged).
    void refuse(std::uint32_t number, errc reason, std::string_view text);

    /// Sends a text for people about a command that was accepted. Does nothing if the client did
    /// not ask for feature::notices.
    void notify(std::uint32_t number, std::string_view text);

    /// How many bytes of output the client accepts now, for both streams together.
    [[nodiscard]] std::size_t output_credit(std::uint32_t number);

    /// Room to read output into: at most `most` bytes, and never more than a frame or the credit
    /// allows. commit_output sends the first `n` bytes of it, 1 or more; `stream` is stdout_data or
    /// stderr_data.
    [[nodiscard]] std::span<std::uint8_t> prepare_output(std::uint32_t number, std::size_t most);
    void commit_output(std::uint32_t number, frame_type stream, std::size_t n);
    /// Tells the client that the command has closed one of its streams and still runs. `stream_eof` is
    /// stdout_eof or stderr_eof.
    void output_eof(std::uint32_t number, frame_type stream_eof);

    /// Call this after `n` bytes of stdin were written to the command, or dropped because it does
    /// not read any more: the client may then send as many again. Small amounts are added up before
    /// the credit is sent.
    void grant_stdin(std::uint32_t number, std::size_t n);

    /// Tells the client where in the output of a job the next bytes of each stream stand.
    void position(std::uint32_t number, const job_offsets &at);

    /// Sends bytes of the queue.
    void put_queue(bytes_view data);

    /// Ends a session that was accepted. Fills in the byte counts and returns the complete result.
    run_end end(std::uint32_t number, run_end how);

    [[nodiscard]] bool has(std::uint32_t number) const { return sessions_.contains(number); }
    [[nodiscard]] std::size_t session_count() const noexcept { return sessions_.size(); }
    [[nodiscard]] bool announced() const noexcept { return announced_; }
    /// Whether the stream began with queue_preamble. Do not call ping() then.
    [[nodiscard]] bool queue_only() const noexcept { return queue_only_; }

  private:
    enum class phase : std::uint8_t { challenged, requested, waiting, body, collecting, running };
    struct session {
        challenge fresh{};
        std::uint64_t issued_ms = 0;
        phase stage = phase::challenged;
        std::optional<frame_authenticator> to_dom0{}, to_qube{};
        std::string body{};
        std::uint32_t body_left = 0;
        receive_window stdin_window{};
        std::size_t output_credit = limits::window;
        std::uint64_t stdout_bytes = 0, stderr_bytes = 0;
        bool stdin_open = false;
        bool takes_notices = false;
        bool may_detach = false;
    };

    [[nodiscard]] session &at(std::uint32_t number);
    [[nodiscard]] frame_authenticator &authentic(std::uint32_t number);

    void put_u32(session &s, std::uint32_t number, frame_type type, std::uint32_t value);

    void reject(std::uint32_t number, errc reason, std::string_view text);

    [[nodiscard]] result<bool> find_preamble(std::uint64_t now_ms);

    [[nodiscard]] std::optional<server_event> drop(std::uint32_t number, errc reason);

    [[nodiscard]] result<std::optional<server_event>> take(const frame_view &frame,
                                                           std::uint64_t now_ms);

    [[nodiscard]] result<std::optional<server_event>>
    take_authentic(std::uint32_t number, session &s, frame_type type, bytes_view payload);

    [[nodiscard]] static bool is_stale(const session &s, std::uint64_t now_ms) noexcept;
    [[nodiscard]] std::size_t open_challenges(std::uint64_t now_ms);

    std::uint64_t preamble_deadline_;
    std::shared_ptr<window_pool> wider_;
    std::size_t skipped_ = 0;
    bool announced_ = false;
    bool queue_only_ = false;
    std::uint32_t features_;
    bytes hello_;
    digest256 t_;
    std::uint32_t last_session_ = 0;
    bool open_unanswered_ = false;
    std::map<std::uint32_t, session> sessions_;
};

/// An event on a stream, for the qube. Texts and names are untrusted: pass them through the function of
/// sanitize.hpp for the place where they go. `data` is borrowed until the next prepare() or push().
struct client_event {
    enum class kind : std::uint8_t {
        hello,       ///< text: the name that dom0 knows this qube by
        challenged,  ///< answers the oldest open(): call client_stream::send_request
        rejected,    ///< refused, not authentic: reason, text; session 0 answers an open()
        refused,     ///< refused, authentic: reason, text
        pending,     ///< the request waits in dom0: number (the serial, or 0), text
        notice,      ///< text: for people, about a command that runs
        accepted,    ///< number: the time-out in seconds, 0 for none
        stdin_ready, ///< more stdin may be sent
        position,    ///< at: where in a job's output the next bytes of each stream stand
        stdout_data,
        stderr_data,
        stdout_eof,
        stderr_eof,
        ended,  ///< end: authentic, and the byte counts are those that arrived
        closed, ///< the session ended without END: reason says why; the output is incomplete
        pong,
    };
    kind what;
    std::uint32_t session = 0;
    bytes_view data{};
    std::string text{};
    std::uint64_t number = 0;
    errc reason = errc::session_over;
    run_end end{};
    job_offsets at{};
};

/// A qube's end of a stream, for any number of sessions at the same time.
class client_stream : public stream_end {
  public:
    client_stream() : stream_end(limits::frame) { out_.put(preamble); }

    /// Asks for a session. The answer is the event `challenged`, or `rejected` with session 0;
    /// answers come in the order of the calls.
    void open();

    /// The abilities that dom0 announced (namespace feature); nothing before HELLO.
    [[nodiscard]] std::optional<std::uint32_t> features() const noexcept { return features_; }

    /// The next event; nothing when more bytes are needed. An error ends the stream and all its
    /// sessions.
    [[nodiscard]] result<std::optional<client_event>> next();

    /// Sends the request of a session whose challenge has come. Removes features that dom0 does not
    /// have. Fails as envelope::encode does, or with errc::unsupported when the request has
    /// arguments in the body and dom0 does not take them. On failure nothing is sent.
    [[nodiscard]] result<std::monostate> send_request(std::uint32_t number, envelope what,
                                                      const secret &key);

    /// How many bytes of stdin dom0 accepts now. It is 0 before dom0 accepts the request, unless
    /// dom0 collects the input for an operator.
    [[nodiscard]] std::size_t stdin_credit(std::uint32_t number) { return at(number).stdin_credit; }

    // Use the functions below only for a session that dom0 has accepted. Those for stdin may also be
    // used while dom0 collects it; they need stdin_live in the request, and commit_stdin needs credit.
    // Otherwise dom0 ends the session.

    /// Room to read stdin into, never more than a frame or the credit allows. commit_stdin sends
    /// the first `n` bytes of it.
    [[nodiscard]] std::span<std::uint8_t> prepare_stdin(std::uint32_t number);
    void commit_stdin(std::uint32_t number, std::size_t n);
    void stdin_eof(std::uint32_t number);
    /// `signal` is one of is_forwarded_signal.
    void send_signal(std::uint32_t number, std::uint8_t signal);
    /// Sends the terminal's size, in characters, for a session with a terminal.
    void send_resize(std::uint32_t number, std::uint16_t columns, std::uint16_t rows);
    /// Asks dom0 to let the command in the terminal go on as a job; END follows. Only for a request
    /// with a terminal and feature::jobs.
    void send_detach(std::uint32_t number);

    /// Call this after `n` bytes of output were passed on: dom0 may then send as many again. Small
    /// amounts are added up before the credit is sent.
    void grant_output(std::uint32_t number, std::size_t n);

    /// Gives a session up. dom0 then ends the command.
    void close(std::uint32_t number);

    [[nodiscard]] bool has(std::uint32_t number) const { return sessions_.contains(number); }
    /// Whether dom0 has accepted the session, so that the command may have started.
    [[nodiscard]] bool accepted(std::uint32_t number) const;

  private:
    enum class phase : std::uint8_t { challenged, requested, running };
    struct session {
        challenge fresh{};
        phase stage = phase::challenged;
        std::optional<frame_authenticator> to_dom0{}, to_qube{};
        std::string body{};
        bool stdin_live = false, pending = false, takes_notices = false, asked_to_detach = false;
        std::size_t stdin_credit = 0;
        receive_window output_window{};
        std::uint64_t stdout_bytes = 0, stderr_bytes = 0;
    };

    [[nodiscard]] session &at(std::uint32_t number);
    [[nodiscard]] frame_authenticator &authentic(std::uint32_t number);

    [[nodiscard]] result<std::optional<client_event>> take(const frame_view &frame);

    [[nodiscard]] result<std::optional<client_event>> take_hello(std::uint32_t number,
                                                                 bytes_view untrusted);

    [[nodiscard]] result<std::optional<client_event>>
    take_reason(client_event::kind what, std::uint32_t number, bytes_view payload);

    [[nodiscard]] client_event broken(std::uint32_t number, errc reason);

    [[nodiscard]] result<std::optional<client_event>>
    take_authentic(std::uint32_t number, session &s, frame_type type, bytes_view payload);

    [[nodiscard]] result<std::optional<client_event>> send_body(std::uint32_t number, session &s,
                                                                std::uint32_t credit);

    std::optional<std::uint32_t> features_;
    digest256 t_{};
    std::size_t opens_ = 0;
    // Enough for one session of the stream to reach limits::widest_window.
    std::shared_ptr<window_pool> wider_ =
        std::make_shared<window_pool>(limits::widest_window - limits::window);
    std::map<std::uint32_t, session> sessions_;
};

} // namespace qvmremote

#include <qvmremote/detail/session_client_inl.hpp>
#include <qvmremote/detail/session_server_inl.hpp>
#include <qvmremote/detail/session_stream_inl.hpp>
