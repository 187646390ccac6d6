// SPDX-License-Identifier: GPL-2.0-or-later
// Tools of a hostile peer: a client that can send bytes that no real client sends, and frames made
// with the keys of a session.
#pragma once

#include "harness.hpp"

#include <functional>

#include <qvmremote/session.hpp>

#include "support/ends.hpp"

namespace e2e {

// A qube's end that is an honest client, except that the test changes its bytes.
class attacker {
  public:
    attacker(const daemon_under_test &d, const std::string &qube) : fd_(d.connect(qube)) {}

    client_stream machine;

    /// Takes the bytes that the machine wants to send, instead of sending them.
    bytes take_output() {
        const bytes_view pending = machine.output().pending();
        bytes out(pending.begin(), pending.end());
        machine.output().consume(pending.size());
        return out;
    }
    void send(bytes_view data) {
        while (!data.empty()) {
            const ssize_t n = ::send(fd_.get(), data.data(), data.size(), MSG_NOSIGNAL);
            if (n <= 0) {
                open_ = false;
                return;
            }
            data = data.subspan(static_cast<std::size_t>(n));
        }
    }
    void flush() { send(take_output()); }

    /// Changes what dom0 sends before the machine reads it.
    std::function<void(std::span<std::uint8_t>)> on_input;
    /// Returns the frames that the machine gets instead of a frame of dom0.
    std::function<std::vector<bytes>(bytes)> on_frame;

    /// The next event; nothing at the end of the stream.
    std::optional<client_event> next() {
        for (;;) {
            auto event = machine.next();
            if (!event) {
                open_ = false;
                return std::nullopt;
            }
            if (*event)
                return std::move(**event);
            pollfd wait{fd_.get(), POLLIN, 0};
            require(::poll(&wait, 1, hang_guard_ms) == 1, "the daemon does not answer");
            if (on_frame ? !read_frames() : !read_bytes()) {
                open_ = false;
                return std::nullopt;
            }
        }
    }
    /// Waits until dom0 has asked for the body of the request, so that the machine wants to send
    /// it.
    void await_call_for_body() {
        while (machine.output().size() == 0) {
            pollfd wait{fd_.get(), POLLIN, 0};
            require(::poll(&wait, 1, hang_guard_ms) == 1, "dom0 gives no credit for the body");
            require(read_bytes(), "the stream ended");
            require(machine.next().has_value(), "the stream broke");
        }
    }
    /// The next event whose kind is not in `skipped`.
    std::optional<client_event> answer() {
        for (;;) {
            auto event = next();
            if (!event || event->what != client_event::kind::hello)
                return event;
        }
    }

    /// Opens a session and returns its number.
    std::uint32_t open_session() {
        machine.open();
        flush();
        auto event = answer();
        require(event.has_value(), "no challenge came: the stream ended");
        require(event->what == client_event::kind::challenged,
                "no challenge came, but " + std::to_string(static_cast<int>(event->what)) + ": " +
                    std::string(message(event->reason)));
        return event->session;
    }

    [[nodiscard]] bool is_open() const { return open_; }
    [[nodiscard]] int fd() const { return fd_.get(); }

  private:
    bool read_bytes() {
        const auto room = machine.prepare();
        const ssize_t n = ::read(fd_.get(), room.data(), room.size());
        if (n <= 0)
            return false;
        if (on_input)
            on_input(room.first(static_cast<std::size_t>(n)));
        machine.commit(static_cast<std::size_t>(n));
        return true;
    }
    bool read_frames() {
        std::array<std::uint8_t, 4096> buffer;
        const ssize_t n = ::read(fd_.get(), buffer.data(), buffer.size());
        if (n <= 0)
            return false;
        held_.insert(held_.end(), buffer.begin(), buffer.begin() + n);
        while (held_.size() >= frame_header::size) {
            const std::size_t size = frame_header::size + load_u32(held_.data());
            if (held_.size() < size)
                break;
            const auto end = held_.begin() + static_cast<long>(size);
            for (const bytes &frame : on_frame(bytes(held_.begin(), end)))
                require(machine.push(frame) == frame.size(), "more than a frame's room");
            held_.erase(held_.begin(), end);
        }
        return true;
    }

    unique_fd fd_;
    bool open_ = true;
    bytes held_;
};

// Makes frames of a session with its keys, in any order and with any payload.
class forger {
  public:
    forger(const bytes &request, std::uint32_t session, char key = 'a')
        : session_(session), keys_(keys_of(request, key)) {}
    bytes frame(frame_type type, bytes_view payload) {
        return test::sealed_frame(keys_.to_dom0, type, session_, payload);
    }
    bytes frame(frame_type type, std::size_t zeros) { return frame(type, bytes(zeros)); }
    bytes number(frame_type type, std::uint32_t value) {
        bytes payload(4);
        store_u32(payload.data(), value);
        return frame(type, payload);
    }

  private:
    static session_keys keys_of(const bytes &request, char key) {
        digest256 token;
        std::copy_n(request.begin() + frame_header::size, token.size(), token.begin());
        return request_signer(key_of(key)).keys(token);
    }

    std::uint32_t session_;
    session_keys keys_;
};

inline frame_type type_of(const bytes &frame) { return static_cast<frame_type>(frame[8]); }
inline bytes &operator+=(bytes &to, const bytes &more) {
    to.insert(to.end(), more.begin(), more.end());
    return to;
}

} // namespace e2e
