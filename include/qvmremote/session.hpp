// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Both ends of a stream and of the sessions on it, as state machines over bytes and a clock value
/// (doc/PROTOCOL.md, "Stream" and "Session"). No descriptor, thread, clock or log inside.
///
/// The caller reads into prepare()/commit(), asks next() for events until there is none, and writes
/// out what output() holds. Times are milliseconds of one clock that counts while suspended.

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include <qvmremote/bytes.hpp>
#include <qvmremote/digest.hpp>
#include <qvmremote/envelope.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/frame.hpp>
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
    cancelled = 6,   ///< dom0 ended it: value: an errc
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
    }
    return "unknown";
}

/// What END says: the cause, and how many bytes of each stream the sender sent.
struct run_end {
    end_cause cause{};
    std::uint32_t value = 0;
    std::uint64_t stdout_bytes = 0;
    std::uint64_t stderr_bytes = 0;
    std::string text{}; ///< for people, at most limits::reason_text; untrusted in the qube and
                        ///< cleaned there

    /// SPEC §1.2.
    [[nodiscard]] int exit_code() const noexcept {
        switch (cause) {
        case end_cause::exited:
            // Never cut to eight bits: 256 would become success.
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
        }
        return 255;
    }
};

/// Signals that may cross: what a terminal or a supervisor sends, nothing that cannot be caught.
/// Numbers are Linux's (the same on every architecture that Qubes runs on).
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

/// What both ends of a stream share: cutting the input into frames, and building the output.
class stream_end {
  public:
    /// Where to read to; never empty while next() has no event left to give.
    [[nodiscard]] std::span<std::uint8_t> prepare() { return reader_.prepare(); }
    void commit(std::size_t n) noexcept { reader_.commit(n); }
    /// The same for bytes that lie elsewhere already; returns how many were taken.
    [[nodiscard]] std::size_t push(bytes_view untrusted) { return reader_.push(untrusted); }

    [[nodiscard]] out_buffer &output() noexcept { return out_; }
    /// Too much is waiting to be written: read nothing more from this peer until it takes some.
    [[nodiscard]] bool congested() const noexcept { return out_.size() >= 2 * limits::frame; }

    /// Asks the other end for a sign of life.
    void ping(std::uint64_t cookie);

    /// Gives buffers back while nothing happens.
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

/// What happened on a stream, for dom0. `data` is borrowed until the next prepare() or push().
struct server_event {
    enum class kind : std::uint8_t {
        open,       ///< answer with issue_challenge or reject_open before reading on
        request,    ///< answer with server_stream::verify before reading on
        body,       ///< the body that take_body asked for is here: server_stream::complete
        stdin_data, ///< data: for the command; give credit back when it is written
        stdin_eof,  ///< nothing more will come on stdin
        signal,     ///< number: one of is_forwarded_signal
        resize,     ///< columns, rows
        credit,     ///< more output may be sent
        closed,     ///< the session is over on the qube's side: reason says why
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

/// dom0's end of a stream. Behind queue_preamble it has no frames and no sessions: all of it is the
/// queue's bytes, as events and by put_queue.
///
/// Until a token has verified on it, it holds one frame of a header's size and at most
/// limits::open_challenges challenges (I4), and reads frame headers and lengths only (I5).
class server_stream : public stream_end {
  public:
    /// `peer` is the qube's name as the transport proves it.
    server_stream(std::string_view peer, std::uint32_t features, std::uint64_t now_ms);

    /// The next event; nothing when more bytes are needed. An error is the stream's: close it, and
    /// treat all its sessions as closed. To be called at times without new bytes too, until the
    /// preamble has come: that is how its deadline passes.
    [[nodiscard]] result<std::optional<server_event>> next(std::uint64_t now_ms);

    /// Answers OPEN. Returns the session's number.
    std::uint32_t issue_challenge(const challenge &fresh, std::uint64_t now_ms);
    /// Answers OPEN with a refusal.
    void reject_open(errc reason);

    /// Verifies the REQUEST that `event` announced, under any of `keys`. The challenge is spent
    /// whatever comes of it. On failure the refusal has been sent and the session is gone; the
    /// reason is returned for the log: errc::no_key, bad_token, challenge_stale, or what was wrong
    /// with a header that did verify.
    struct header_verified {
        verified<envelope> header;
        std::size_t key_index;
    };
    [[nodiscard]] result<header_verified>
    verify(const server_event &event, std::span<const secret> keys, std::uint64_t now_ms);

    /// Asks for a body that follows: event `body` comes when it is whole. For one that came with
    /// its header there is nothing to ask: returns false, and complete() can be called at once.
    [[nodiscard]] bool take_body(std::uint32_t number);

    /// Joins header and body. On failure the refusal has been sent and the session is gone.
    [[nodiscard]] result<verified<request>> complete(std::uint32_t number,
                                                     verified<envelope> header);

    /// Tells the client that the request waits in dom0. `serial` is 0 unless it waits for an operator.
    void pend(std::uint32_t number, std::uint64_t serial, std::string_view text);

    /// Takes stdin before the command is accepted, since it is part of what an operator is asked
    /// about: so many bytes more, at most limits::window at a time. They come as stdin_data; after
    /// stdin_eof the session waits as before, and is to be accepted without stdin.
    void collect_stdin(std::uint32_t number, std::size_t more);

    /// The command runs. `stdin_live` opens the window for stdin.
    void accept(std::uint32_t number, std::uint32_t timeout_s, bool stdin_live);

    /// Ends a session that has not been accepted, with a tagged reason.
    void refuse(std::uint32_t number, errc reason, std::string_view text);

    /// Words for people on a command that was accepted; nothing for a client that knows no notices.
    void notify(std::uint32_t number, std::string_view text);

    /// How many bytes of output the client will take now, both streams together.
    [[nodiscard]] std::size_t output_credit(std::uint32_t number);

    /// Room to read output into, at most `most` bytes and never more than a frame or the credit
    /// allows; commit_output sends what was put there.
    [[nodiscard]] std::span<std::uint8_t> prepare_output(std::uint32_t number, std::size_t most);
    void commit_output(std::uint32_t number, frame_type stream, std::size_t n);
    /// The command closed one of its streams and goes on.
    void output_eof(std::uint32_t number, frame_type stream_eof);

    /// Stdin that was written to the command (or thrown away, when it no longer reads): the client
    /// may send as much again. Small amounts are saved up.
    void grant_stdin(std::uint32_t number, std::size_t n);

    /// Sends bytes of the queue.
    void put_queue(bytes_view data);

    /// The last word on a session that was accepted; byte counts are filled in here.
    run_end end(std::uint32_t number, run_end how);

    [[nodiscard]] bool has(std::uint32_t number) const { return sessions_.contains(number); }
    [[nodiscard]] std::size_t session_count() const noexcept { return sessions_.size(); }
    [[nodiscard]] bool announced() const noexcept { return announced_; }
    /// Announced by queue_preamble: ping() is not understood there.
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
        std::size_t stdin_credit = 0;
        std::size_t stdin_owed = 0;
        std::size_t output_credit = limits::window;
        std::uint64_t stdout_bytes = 0, stderr_bytes = 0;
        bool stdin_open = false;
        bool takes_notices = false;
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

/// What happened on a stream, for the qube. Texts and names are untrusted: clean them for their
/// sink. `data` is borrowed until the next prepare() or push().
struct client_event {
    enum class kind : std::uint8_t {
        hello,      ///< text: the name that dom0 knows this qube by
        challenged, ///< answers the oldest open(): call client_stream::send_request
        rejected, ///< refused, and nobody vouches for it: reason, text; session 0 answers an open()
        refused,  ///< refused by dom0: reason, text
        pending,  ///< serial, text: waits in dom0
        notice,   ///< text: words for people on a command that runs
        accepted, ///< number: the time-out in seconds, 0 for none
        stdin_ready, ///< more stdin may be sent
        stdout_data,
        stderr_data,
        stdout_eof,
        stderr_eof,
        ended,  ///< end: authentic, and the byte counts are those that arrived
        closed, ///< over without END: reason says why; what arrived is incomplete
        pong,
    };
    kind what;
    std::uint32_t session = 0;
    bytes_view data{};
    std::string text{};
    std::uint64_t number = 0;
    errc reason = errc::session_over;
    run_end end{};
};

/// A qube's end of a stream, for any number of sessions one beside the other.
class client_stream : public stream_end {
  public:
    client_stream() : stream_end(limits::frame) { out_.put(preamble); }

    /// Asks for a session: a challenge or a rejection comes, in the order of the calls.
    void open();

    /// What dom0 announced; nothing before HELLO.
    [[nodiscard]] std::optional<std::uint32_t> features() const noexcept { return features_; }

    [[nodiscard]] result<std::optional<client_event>> next();

    /// Sends the request of a session whose challenge has come. Features that dom0 does not have
    /// are taken out. Fails as envelope::encode does, or with errc::unsupported when dom0 does not take
    /// arguments in the body, and then nothing was sent.
    [[nodiscard]] result<std::monostate> send_request(std::uint32_t number, envelope what,
                                                      const secret &key);

    /// How much stdin dom0 will take now; 0 before it accepts, unless it asks for it earlier, to show
    /// it to an operator.
    [[nodiscard]] std::size_t stdin_credit(std::uint32_t number) { return at(number).stdin_credit; }

    // What follows is for sessions that dom0 has accepted, and stdin for those that asked for it
    // live and have credit: dom0 ends a session that sends it any of this otherwise.

    /// Room to read stdin into, never more than a frame or the credit allows.
    [[nodiscard]] std::span<std::uint8_t> prepare_stdin(std::uint32_t number);
    void commit_stdin(std::uint32_t number, std::size_t n);
    void stdin_eof(std::uint32_t number);
    /// `signal` is one of is_forwarded_signal.
    void send_signal(std::uint32_t number, std::uint8_t signal);
    /// The terminal's size; for a session with a terminal.
    void send_resize(std::uint32_t number, std::uint16_t columns, std::uint16_t rows);

    /// Output that was passed on: dom0 may send as much again. Small amounts are saved up.
    void grant_output(std::uint32_t number, std::size_t n);

    /// Gives a session up; dom0 ends the command.
    void close(std::uint32_t number);

    [[nodiscard]] bool has(std::uint32_t number) const { return sessions_.contains(number); }
    /// Whether dom0 has accepted the session: from then on it may have run.
    [[nodiscard]] bool accepted(std::uint32_t number) const;

  private:
    enum class phase : std::uint8_t { challenged, requested, running };
    struct session {
        challenge fresh{};
        phase stage = phase::challenged;
        std::optional<frame_authenticator> to_dom0{}, to_qube{};
        std::string body{};
        bool stdin_live = false, pending = false, takes_notices = false;
        std::size_t stdin_credit = 0;
        std::size_t output_window = limits::window;
        std::size_t output_owed = 0;
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
    std::map<std::uint32_t, session> sessions_;
};

} // namespace qvmremote

#include <qvmremote/detail/session_client_inl.hpp>
#include <qvmremote/detail/session_server_inl.hpp>
#include <qvmremote/detail/session_stream_inl.hpp>
