// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Tokens of both protocols, the keys of a session, and the type that proves a verification
/// (doc/PROTOCOL.md, "Keys" and "Tags"; COMPAT-V1.md for protocol 1).

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <qvmremote/bytes.hpp>
#include <qvmremote/command_id.hpp>
#include <qvmremote/digest.hpp>
#include <qvmremote/envelope.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/frame.hpp>
#include <qvmremote/secret.hpp>

namespace qvmremote {

/// Proof that a T was authenticated. Only request_verifier makes one, and the code that starts
/// processes accepts only this type.
template <class T>
class verified {
  public:
    [[nodiscard]] const T &operator*() const noexcept { return value_; }
    [[nodiscard]] const T *operator->() const noexcept { return &value_; }

  private:
    friend class request_verifier;
    explicit verified(T value) : value_(std::move(value)) {}

    T value_;
};

/// Protocol 1: the token of an ID, 64 lower-case digits. The key's text is the HMAC key.
[[nodiscard]] inline std::string token_v1(const secret &key, const command_id &id) {
    return to_hex(hmac_sha256(key.text()).of({as_bytes(id.text())}));
}

inline constexpr std::size_t tag_size = 16;
inline constexpr std::size_t token_size = 32;
/// The largest payload that still leaves room for its tag.
inline constexpr std::size_t max_tagged_payload = limits::frame - tag_size;
/// With feature::gmac, data frames with at least this much data carry GMAC tags. Below it HMAC is
/// as fast, and a short command need not set AES up.
inline constexpr std::size_t gmac_threshold = 4096;

/// Seals or opens the frames of one session in one direction. It keeps the sequence number, which
/// both ends count and never send.
class frame_authenticator {
  public:
    explicit frame_authenticator(const secret_bytes<32> &key) : mac_(key.view()) {}

    /// Uses GMAC for large data frames from now on. Call it if the signed header has feature::gmac.
    void use_gmac() noexcept { use_gmac_ = true; }

    /// Returns the tag of the next frame and counts the frame.
    [[nodiscard]] std::array<std::uint8_t, tag_size> next_tag(std::uint32_t session,
                                                              frame_type type, bytes_view payload) {
        std::array<std::uint8_t, 13> prefix;
        store_u32(prefix.data(), session);
        store_u64(prefix.data() + 4, sequence_);
        prefix[12] = static_cast<std::uint8_t>(type);
        std::array<std::uint8_t, tag_size> out;
        if (use_gmac_ && is_data(type) && payload.size() >= gmac_threshold) {
            // This label is shorter than any tagged input, so no tag can be the beginning of this
            // key.
            if (!gmac_)
                gmac_.emplace(secret_bytes<32>(mac_.of({as_bytes({"gmac\0", 5})})).value());
            out = gmac_->of(sequence_, {prefix, payload});
        } else {
            const digest256 full = mac_.of({prefix, payload});
            std::copy_n(full.begin(), out.size(), out.begin());
        }
        ++sequence_;
        return out;
    }

    /// Checks a tagged payload and returns it without its tag. Fails with errc::bad_tag; the caller
    /// then ends the session.
    [[nodiscard]] result<bytes_view> open(const frame_view &frame) {
        const bytes_view whole = frame.untrusted_payload;
        if (whole.size() < tag_size)
            return fail(errc::bad_tag);
        const bytes_view payload = whole.first(whole.size() - tag_size);
        const auto want = next_tag(frame.header.session, frame.header.type, payload);
        if (!equal_constant_time(want, whole.last(tag_size)))
            return fail(errc::bad_tag);
        return payload;
    }

    /// Finishes a frame in place: room for a header, then `length` bytes of payload, then room for a
    /// tag. Returns the size of the whole.
    std::size_t seal(std::uint8_t *frame, std::uint32_t session, frame_type type,
                     std::size_t length) {
        std::uint8_t *const payload = frame + frame_header::size;
        const auto tag = next_tag(session, type, bytes_view(payload, length));
        std::copy(tag.begin(), tag.end(), payload + length);
        const frame_header header{static_cast<std::uint32_t>(length + tag_size), session, type};
        header.encode(frame);
        return frame_header::size + length + tag_size;
    }

  private:
    [[nodiscard]] static constexpr bool is_data(frame_type type) noexcept {
        return type == frame_type::stdin_data || type == frame_type::stdout_data ||
               type == frame_type::stderr_data;
    }

    hmac_sha256 mac_;
    std::optional<gmac> gmac_;
    bool use_gmac_ = false;
    std::uint64_t sequence_ = 0;
};

/// Both directions of one session.
struct session_keys {
    frame_authenticator to_dom0;
    frame_authenticator to_qube;

    void use_gmac() noexcept {
        to_dom0.use_gmac();
        to_qube.use_gmac();
    }
};

/// A fresh random value from dom0, valid for one request.
using challenge = std::array<std::uint8_t, 32>;

/// Derives tokens and session keys from a registered key, so it is as secret as that key.
class request_signer {
  public:
    explicit request_signer(const secret &key) : mac_(root(key).view()) {}

    /// The token of a request. `t` is SHA-256 of HELLO's payload as it was sent; `c` is the
    /// challenge; `header` is the encoded envelope.
    [[nodiscard]] digest256 token(const digest256 &t, const challenge &c, bytes_view header) {
        return mac_.of({label("req"), t, c, header});
    }

    [[nodiscard]] session_keys keys(const digest256 &token) {
        return {frame_authenticator(secret_bytes<32>(mac_.of({label("c2d"), token}))),
                frame_authenticator(secret_bytes<32>(mac_.of({label("d2c"), token})))};
    }

  private:
    // The labels include their final NUL, so that no label is the beginning of another.
    template <std::size_t N>
    [[nodiscard]] static bytes_view label(const char (&text)[N]) noexcept {
        return as_bytes({text, N});
    }
    [[nodiscard]] static secret_bytes<32> root(const secret &key) {
        return secret_bytes<32>(hmac_sha256(key.text()).of({label("qvm-remote/2 root")}));
    }

    hmac_sha256 mac_;
};

/// A header whose token verified, not yet parsed.
struct signed_header {
    bytes_view header;     ///< borrowed from the REQUEST frame
    std::size_t key_index; ///< the index of the key that verified
    digest256 token;
};

/// A whole request: its header, and the body that the header promised.
struct request {
    envelope header; ///< with `body` filled in, wherever it travelled
};

/// The only way from bytes to a request that may run: first the token, then the header, then the
/// body.
class request_verifier {
  public:
    /// Verifies `untrusted_payload`, a token and a header, and does not parse the header. Fails
    /// with errc::bad_token. Tries all keys, so that the time does not show which key matches.
    [[nodiscard]] static result<verified<signed_header>> verify(std::span<const secret> keys,
                                                                const digest256 &t,
                                                                const challenge &c,
                                                                bytes_view untrusted_payload) {
        if (untrusted_payload.size() < token_size)
            return fail(errc::bad_token);
        signed_header out{untrusted_payload.subspan(token_size), keys.size(), {}};
        for (std::size_t i = 0; i < keys.size(); ++i) {
            const digest256 token = request_signer(keys[i]).token(t, c, out.header);
            if (equal_constant_time(token, untrusted_payload.first(token_size))) {
                out.key_index = i;
                out.token = token;
            }
        }
        if (out.key_index == keys.size())
            return fail(errc::bad_token);
        return verified<signed_header>(out);
    }

    /// Decodes a signed header; fails as envelope::decode does.
    [[nodiscard]] static result<verified<envelope>> decode(const verified<signed_header> &from) {
        return envelope::decode(from->header).map([](envelope &&header) {
            return verified<envelope>(std::move(header));
        });
    }

    /// Protocol 1: verifies the token of an entry of the queue under any of `keys`. Fails with
    /// errc::bad_token. The token proves that a holder of the key chose the ID. The body, which
    /// dom0 fetches later, is not authentic.
    struct entry_verified {
        verified<envelope> header; ///< kind shell, protocol 1, body to follow
        std::size_t key_index;
    };
    [[nodiscard]] static result<entry_verified> verify_entry(std::span<const secret> keys,
                                                             const command_id &id,
                                                             std::string_view untrusted_token) {
        std::size_t fits = keys.size();
        for (std::size_t i = 0; i < keys.size(); ++i)
            if (const std::string token = token_v1(keys[i], id);
                untrusted_token.size() == token.size() &&
                equal_constant_time(as_bytes(token), as_bytes(untrusted_token)))
                fits = i;
        if (fits == keys.size())
            return fail(errc::bad_token);
        envelope header;
        header.kind = request_kind::shell;
        header.id = id;
        header.protocol = 1;
        header.body_follows = true;
        return entry_verified{verified<envelope>(std::move(header)), fits};
    }

    /// Joins the header and the body that followed it, and takes arguments out of the body, so that
    /// later code need not know how they travelled. `untrusted_body` is empty if the body came in
    /// the header. Fails as envelope::unpack_arguments does, with errc::bad_digest, or with
    /// errc::binary_content for a command line with a NUL. For an entry of the queue it fails as
    /// envelope::check_entry does.
    [[nodiscard]] static result<verified<request>> complete(verified<envelope> header,
                                                            std::string untrusted_body) {
        envelope out = std::move(header.value_);
        if (out.protocol == 1) {
            if (auto content = envelope::check_entry(untrusted_body); !content)
                return tl::unexpected(content.error());
            out.body_length = static_cast<std::uint32_t>(untrusted_body.size());
            out.body = std::move(untrusted_body);
        } else if (out.body_follows) {
            if (untrusted_body.size() != out.body_length ||
                !equal_constant_time(sha256(as_bytes(untrusted_body)), out.body_digest))
                return fail(errc::bad_digest);
            if (auto content = envelope::check_content(out.kind, untrusted_body); !content)
                return tl::unexpected(content.error());
            out.body = std::move(untrusted_body);
            if (auto unpacked = out.unpack_arguments(); !unpacked)
                return tl::unexpected(unpacked.error());
        } else if (!untrusted_body.empty()) {
            return fail(errc::bad_digest);
        }
        return verified<request>(request{std::move(out)});
    }
};

} // namespace qvmremote
