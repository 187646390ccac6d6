// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Frames of protocol 2: types, the fixed header, and buffers that cut a stream into frames
/// (doc/PROTOCOL.md, "Frames").

#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include <qvmremote/bytes.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/limits.hpp>

namespace qvmremote {

inline constexpr std::uint16_t protocol_version = 2;

/// What the qube's end writes first. It begins and ends with bytes that no login profile prints, so
/// that dom0 finds it after the output of a profile.
inline constexpr std::array<std::uint8_t, 16> preamble = {
    0, 'q', 'v', 'm', '-', 'r', 'e', 'm', 'o', 't', 'e', ' ', '2', '\r', '\n', 0xff};

/// Which end may send a frame, and whether it carries a tag (the last 16 bytes of its payload).
enum class sender : std::uint8_t { qube, dom0, either };
enum class tagging : std::uint8_t { none, tagged };

/// The frame types: name, number, sender, tag. Numbers are frozen and never reused.
#define QVMREMOTE_FRAMES(X)                                                                        \
    X(hello, 1, dom0, none)                                                                        \
    X(open, 2, qube, none)                                                                         \
    X(challenge, 3, dom0, none)                                                                    \
    X(request, 4, qube, none) /* carries its token in front */                                     \
    X(body, 5, qube, tagged)                                                                       \
    X(pending, 6, dom0, tagged)                                                                    \
    X(accepted, 7, dom0, tagged)                                                                   \
    X(refused, 8, dom0, tagged)                                                                    \
    X(rejected, 9, dom0, none) /* a refusal before the token verified: not authentic */            \
    X(stdin_data, 10, qube, tagged)                                                                \
    X(stdin_eof, 11, qube, tagged)                                                                 \
    X(stdout_data, 12, dom0, tagged)                                                               \
    X(stderr_data, 13, dom0, tagged)                                                               \
    X(stdout_eof, 14, dom0, tagged)                                                                \
    X(stderr_eof, 15, dom0, tagged)                                                                \
    X(signal, 16, qube, tagged)                                                                    \
    X(resize, 17, qube, tagged)                                                                    \
    X(credit, 18, either, tagged)                                                                  \
    X(end, 19, dom0, tagged)                                                                       \
    X(close, 20, either, none)                                                                     \
    X(ping, 21, either, none)                                                                      \
    X(pong, 22, either, none)                                                                      \
    X(queue, 23, either, none)                                                                     \
    X(detach, 32, qube, tagged)                                                                    \
    X(position, 33, dom0, tagged)
// 34 to 39 are reserved for jobs, 40 to 43 for terminals beyond RESIZE.

enum class frame_type : std::uint8_t {
#define QVMREMOTE_X(name, value, from, tag) name = value,
    QVMREMOTE_FRAMES(QVMREMOTE_X)
#undef QVMREMOTE_X
};

struct frame_rule {
    frame_type type;
    sender from;
    tagging tag;
    std::string_view name;
};
inline constexpr frame_rule frame_rules[] = {
#define QVMREMOTE_X(name, value, from, tag) {frame_type::name, sender::from, tagging::tag, #name},
    QVMREMOTE_FRAMES(QVMREMOTE_X)
#undef QVMREMOTE_X
};

namespace detail {
// By number: the place in frame_rules plus one; 0 for a number that is not in the table.
inline constexpr auto frame_rule_places = [] {
    std::array<std::uint8_t, 256> out{};
    for (std::size_t i = 0; i < std::size(frame_rules); ++i)
        out[static_cast<std::size_t>(frame_rules[i].type)] = static_cast<std::uint8_t>(i + 1);
    return out;
}();
} // namespace detail

/// The rule of a type; nullptr for a number that is not in the table.
[[nodiscard]] constexpr const frame_rule *rule_of(frame_type type) noexcept {
    const std::size_t place = detail::frame_rule_places[static_cast<std::size_t>(type)];
    return place > 0 ? &frame_rules[place - 1] : nullptr;
}

/// The fixed header: payload length, session, type, three zero bytes; big-endian.
struct frame_header {
    std::uint32_t length = 0;
    std::uint32_t session = 0; ///< 0: the stream itself
    frame_type type{};

    static constexpr std::size_t size = 12;

    /// Decodes a header. Fails with errc::frame_too_large if the length exceeds the limit, before
    /// memory is taken for it, with errc::unknown_frame for an unknown type, and with
    /// errc::bad_frame if a reserved byte is not zero.
    [[nodiscard]] static result<frame_header> decode(std::span<const std::uint8_t, size> untrusted,
                                                     std::size_t payload_limit) {
        frame_header out{load_u32(untrusted.data()), load_u32(untrusted.data() + 4),
                         static_cast<frame_type>(untrusted[8])};
        if (out.length > payload_limit)
            return fail(errc::frame_too_large);
        if (!rule_of(out.type))
            return fail(errc::unknown_frame, 8);
        for (std::size_t i = 9; i < size; ++i)
            if (untrusted[i] != 0)
                return fail(errc::bad_frame, i);
        return out;
    }

    /// Writes the header, `size` bytes, to `out`.
    void encode(std::uint8_t *out) const noexcept {
        store_u32(out, length);
        store_u32(out + 4, session);
        out[8] = static_cast<std::uint8_t>(type);
        out[9] = out[10] = out[11] = 0;
    }
};

/// One frame in a reader's buffer. The payload is borrowed from it.
struct frame_view {
    frame_header header;
    bytes_view untrusted_payload;
};

namespace detail {

// Memory that is not set to zero. Most of a buffer of a frame's size stays unused, and zeroes would
// touch each of its pages for a stream that carries a hundred bytes.
class raw_buffer {
  public:
    [[nodiscard]] std::uint8_t *data() const noexcept { return data_.get(); }
    [[nodiscard]] std::size_t size() const noexcept { return size_; }

    /// Makes the buffer larger and keeps its first `keep` bytes.
    void grow(std::size_t size, std::size_t keep) {
        assert(size > size_ && keep <= size_);
        auto larger = std::make_unique_for_overwrite<std::uint8_t[]>(size);
        std::copy_n(data_.get(), keep, larger.get());
        data_ = std::move(larger);
        size_ = size;
    }
    void release() noexcept {
        data_.reset();
        size_ = 0;
    }

  private:
    std::unique_ptr<std::uint8_t[]> data_;
    std::size_t size_ = 0;
};

} // namespace detail

/// Cuts a stream into frames. It holds at most one frame of the largest permitted size, so a peer
/// cannot make this end keep more than the limit given here (I4).
class frame_reader {
  public:
    explicit frame_reader(std::size_t payload_limit) : limit_(payload_limit) {}

    /// Raises (never lowers) the largest payload, after a peer has proven who it is.
    void raise_limit(std::size_t payload_limit) noexcept {
        limit_ = std::max(limit_, payload_limit);
    }

    /// Where the next bytes go; never empty after next() has said that it needs more. Frames that
    /// next() returned are invalid after this.
    [[nodiscard]] std::span<std::uint8_t> prepare() {
        const std::size_t capacity = limit_ + frame_header::size;
        if (begin_ > 0) {
            std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
            end_ -= begin_;
            begin_ = 0;
        }
        if (buffer_.size() < capacity)
            buffer_.grow(capacity, end_);
        return std::span(buffer_.data(), buffer_.size()).subspan(end_);
    }
    /// Takes the first `n` bytes that the caller has written to prepare().
    void commit(std::size_t n) noexcept {
        assert(n <= buffer_.size() - end_);
        end_ += n;
    }

    /// Copies bytes that the caller already has; returns how many were taken.
    std::size_t push(bytes_view untrusted) {
        const auto room = prepare();
        const std::size_t n = std::min(room.size(), untrusted.size());
        std::copy_n(untrusted.begin(), n, room.begin());
        commit(n);
        return n;
    }

    /// The next whole frame, borrowed from the buffer until prepare() or push(); nothing when more
    /// bytes are needed. An error is final for the stream, because the next frame cannot be found.
    [[nodiscard]] result<std::optional<frame_view>> next() {
        const bytes_view held = unread();
        if (held.size() < frame_header::size)
            return std::nullopt;
        auto header = frame_header::decode(held.first<frame_header::size>(), limit_);
        if (!header)
            return tl::unexpected(header.error());
        if (held.size() - frame_header::size < header->length)
            return std::nullopt;
        begin_ += frame_header::size + header->length;
        return frame_view{*header, held.subspan(frame_header::size, header->length)};
    }

    /// Bytes not yet returned as frames.
    [[nodiscard]] bytes_view unread() const noexcept {
        return bytes_view(buffer_.data(), end_).subspan(begin_);
    }
    /// Drops the first `n` unread bytes.
    void skip(std::size_t n) noexcept {
        assert(n <= end_ - begin_);
        begin_ += n;
    }

    /// Gives the buffer's memory back while the stream is idle between frames.
    void release_if_empty() {
        if (begin_ == end_) {
            buffer_.release();
            begin_ = end_ = 0;
        }
    }

  private:
    detail::raw_buffer buffer_;
    std::size_t begin_ = 0;
    std::size_t end_ = 0;
    std::size_t limit_;
};

/// Bytes to be sent. Frames are built in place, so that data read from a pipe is not copied again
/// before it is written to the stream.
class out_buffer {
  public:
    /// Room for n bytes after what is pending; invalidates earlier spans.
    [[nodiscard]] std::span<std::uint8_t> prepare(std::size_t n) {
        if (begin_ == end_)
            begin_ = end_ = 0;
        // Move the bytes only if that frees at least as much as it moves. Otherwise a peer that
        // takes one byte at a time could make us move all pending bytes for each one.
        if (buffer_.size() - end_ < n && begin_ > 0 && begin_ >= end_ - begin_) {
            std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
            end_ -= begin_;
            begin_ = 0;
        }
        if (buffer_.size() - end_ < n)
            buffer_.grow(std::max(end_ + n, 2 * buffer_.size()), end_);
        return std::span(buffer_.data() + end_, n);
    }
    /// Adds the first `n` bytes that the caller has written to prepare().
    void commit(std::size_t n) noexcept {
        assert(end_ + n <= buffer_.size());
        end_ += n;
    }
    void put(bytes_view data) {
        const auto room = prepare(data.size());
        std::copy(data.begin(), data.end(), room.begin());
        commit(data.size());
    }

    /// The bytes that are still to be sent, borrowed until the next call.
    [[nodiscard]] bytes_view pending() const noexcept {
        return bytes_view(buffer_.data(), end_).subspan(begin_);
    }
    [[nodiscard]] std::size_t size() const noexcept { return end_ - begin_; }
    /// Removes the first `n` pending bytes, after they were sent.
    void consume(std::size_t n) noexcept {
        assert(n <= size());
        begin_ += n;
    }

    /// Gives the memory back when nothing is pending.
    void release_if_empty() {
        if (begin_ == end_) {
            buffer_.release();
            begin_ = end_ = 0;
        }
    }

  private:
    detail::raw_buffer buffer_;
    std::size_t begin_ = 0;
    std::size_t end_ = 0;
};

} // namespace qvmremote
