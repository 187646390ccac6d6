// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// SHA-256 (FIPS 180-4), HMAC-SHA256 (RFC 2104) and AES-256-GMAC (NIST SP 800-38D) over libcrypto.

#pragma once

#include <algorithm>
#include <array>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <string_view>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#ifdef QVMREMOTE_DIRECT_SHA256
#include <openssl/aes.h>
#include <openssl/modes.h>
#include <openssl/sha.h>
#endif

#include <qvmremote/bytes.hpp>

namespace qvmremote {

using digest256 = std::array<std::uint8_t, 32>;

namespace detail {

// Ends the program if `ok` is false, also in a release build. libcrypto fails only if it is out of
// memory or lacks the algorithm, and then nothing can be authenticated.
inline void require(bool ok) noexcept {
    if (!ok)
        std::abort();
}

struct evp_md_free {
    void operator()(EVP_MD_CTX *p) const noexcept { EVP_MD_CTX_free(p); }
};
struct evp_cipher_free {
    void operator()(EVP_CIPHER_CTX *p) const noexcept { EVP_CIPHER_CTX_free(p); }
};

// Fetched once and kept: the search through the providers takes most of the time of a short hash.
inline const EVP_MD *sha256_algorithm() noexcept {
    static EVP_MD *const md = EVP_MD_fetch(nullptr, "SHA256", nullptr);
    require(md != nullptr);
    return md;
}
inline const EVP_CIPHER *gcm_algorithm() noexcept {
    static EVP_CIPHER *const cipher = EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr);
    require(cipher != nullptr);
    return cipher;
}

} // namespace detail

#ifdef QVMREMOTE_DIRECT_SHA256

// Not OPENSSL_SUPPRESS_DEPRECATED: that has no effect once a unit has included any other header of
// OpenSSL's.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

/// A SHA-256 in progress. Copying copies the state, so that a common beginning is hashed once.
///
/// This form calls libcrypto's SHA256_* directly. They are deprecated, but they suit a program that
/// lives for a few milliseconds: EVP first searches through the providers, which took 0.7 ms, a
/// fifth of a whole `qvm-remote true`. Define the macro in all units of a program or in none.
class sha256_hash {
  public:
    sha256_hash() { detail::require(SHA256_Init(&context_) == 1); }
    sha256_hash(const sha256_hash &) = default;
    sha256_hash &operator=(const sha256_hash &) = default;
    ~sha256_hash() { OPENSSL_cleanse(&context_, sizeof context_); }

    sha256_hash &update(bytes_view data) {
        detail::require(SHA256_Update(&context_, data.data(), data.size()) == 1);
        return *this;
    }
    sha256_hash &update(std::string_view text) { return update(as_bytes(text)); }

    /// The digest of all bytes given so far. Do not use the object afterwards.
    [[nodiscard]] digest256 finish() {
        digest256 out;
        detail::require(SHA256_Final(out.data(), &context_) == 1);
        return out;
    }

  private:
    SHA256_CTX context_;
};

#pragma GCC diagnostic pop

#else

/// A SHA-256 in progress. Copying copies the state, so that a common beginning is hashed once.
class sha256_hash {
  public:
    sha256_hash() : context_(EVP_MD_CTX_new()) {
        detail::require(context_ && EVP_DigestInit_ex2(context_.get(), detail::sha256_algorithm(),
                                                       nullptr) == 1);
    }
    sha256_hash(const sha256_hash &other) : context_(EVP_MD_CTX_new()) { *this = other; }
    sha256_hash &operator=(const sha256_hash &other) {
        if (this != &other)
            detail::require(context_ &&
                            EVP_MD_CTX_copy_ex(context_.get(), other.context_.get()) == 1);
        return *this;
    }
    sha256_hash(sha256_hash &&) noexcept = default;
    sha256_hash &operator=(sha256_hash &&) noexcept = default;
    ~sha256_hash() = default;

    sha256_hash &update(bytes_view data) {
        detail::require(EVP_DigestUpdate(context_.get(), data.data(), data.size()) == 1);
        return *this;
    }
    sha256_hash &update(std::string_view text) { return update(as_bytes(text)); }

    /// The digest of all bytes given so far. Do not use the object afterwards.
    [[nodiscard]] digest256 finish() {
        digest256 out;
        detail::require(EVP_DigestFinal_ex(context_.get(), out.data(), nullptr) == 1);
        return out;
    }

  private:
    // EVP wipes the state when it frees it.
    std::unique_ptr<EVP_MD_CTX, detail::evp_md_free> context_;
};

#endif

[[nodiscard]] inline digest256 sha256(bytes_view data) {
    return sha256_hash().update(data).finish();
}

/// HMAC-SHA256 under one key, for any number of messages. The two padded blocks are hashed once,
/// and each message starts from copies of these states.
class hmac_sha256 {
  public:
    explicit hmac_sha256(bytes_view key) {
        std::array<std::uint8_t, 64> block{};
        if (key.size() > block.size()) {
            digest256 hashed = sha256(key);
            std::copy(hashed.begin(), hashed.end(), block.begin());
            OPENSSL_cleanse(hashed.data(), hashed.size());
        } else {
            std::copy(key.begin(), key.end(), block.begin());
        }
        for (std::uint8_t &b : block)
            b ^= 0x36;
        inner_.update(block);
        for (std::uint8_t &b : block)
            b ^= 0x36 ^ 0x5c;
        outer_.update(block);
        OPENSSL_cleanse(block.data(), block.size());
    }

    /// The authentication code of the parts, joined in this order.
    [[nodiscard]] digest256 of(std::initializer_list<bytes_view> parts) {
        work_ = inner_;
        for (const bytes_view part : parts)
            work_.update(part);
        const digest256 inside = work_.finish();
        work_ = outer_;
        return work_.update(inside).finish();
    }

  private:
    sha256_hash inner_, outer_, work_;
};

#ifdef QVMREMOTE_DIRECT_SHA256

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

/// AES-256-GMAC: a 16-byte tag over data that is not encrypted. A nonce must never repeat under one
/// key; callers pass the frame's sequence number, which does not (doc/PROTOCOL.md, "Tags").
///
/// This form calls libcrypto directly too, for the same reason. The program then uses nothing of
/// EVP, and takes only these few functions from libcrypto's archive.
class gmac {
  public:
    explicit gmac(const digest256 &key) : schedule_(new AES_KEY) {
        detail::require(AES_set_encrypt_key(key.data(), 8 * static_cast<int>(key.size()),
                                            schedule_.get()) == 0);
        context_.reset(CRYPTO_gcm128_new(schedule_.get(), encrypt_block));
        detail::require(context_ != nullptr);
    }

    [[nodiscard]] std::array<std::uint8_t, 16> of(std::uint64_t nonce,
                                                  std::initializer_list<bytes_view> parts) {
        std::array<std::uint8_t, 12> iv{};
        store_u64(iv.data() + 4, nonce);
        CRYPTO_gcm128_setiv(context_.get(), iv.data(), iv.size());
        for (const bytes_view part : parts)
            detail::require(CRYPTO_gcm128_aad(context_.get(), part.data(), part.size()) == 0);
        std::array<std::uint8_t, 16> tag;
        CRYPTO_gcm128_tag(context_.get(), tag.data(), tag.size());
        return tag;
    }

  private:
    struct wipe {
        void operator()(AES_KEY *p) const noexcept {
            OPENSSL_cleanse(p, sizeof *p);
            delete p;
        }
    };
    struct release {
        void operator()(GCM128_CONTEXT *p) const noexcept { CRYPTO_gcm128_release(p); }
    };

    static void encrypt_block(const unsigned char *in, unsigned char *out, const void *schedule) {
        AES_encrypt(in, out, static_cast<const AES_KEY *>(schedule));
    }

    std::unique_ptr<AES_KEY, wipe> schedule_; // the context points to it
    std::unique_ptr<GCM128_CONTEXT, release> context_;
};

#pragma GCC diagnostic pop

#else

/// AES-256-GMAC: a 16-byte tag over data that is not encrypted. A nonce must never repeat under one
/// key; callers pass the frame's sequence number, which does not (doc/PROTOCOL.md, "Tags").
class gmac {
  public:
    explicit gmac(const digest256 &key) : context_(EVP_CIPHER_CTX_new()) {
        detail::require(context_ && EVP_EncryptInit_ex2(context_.get(), detail::gcm_algorithm(),
                                                        key.data(), nullptr, nullptr) == 1);
    }

    [[nodiscard]] std::array<std::uint8_t, 16> of(std::uint64_t nonce,
                                                  std::initializer_list<bytes_view> parts) {
        std::array<std::uint8_t, 12> iv{};
        store_u64(iv.data() + 4, nonce);
        detail::require(EVP_EncryptInit_ex2(context_.get(), nullptr, nullptr, iv.data(), nullptr) ==
                        1);
        int n = 0;
        for (const bytes_view part : parts)
            detail::require(part.size() <= INT_MAX &&
                            EVP_EncryptUpdate(context_.get(), nullptr, &n, part.data(),
                                              static_cast<int>(part.size())) == 1);
        std::array<std::uint8_t, 16> tag;
        detail::require(EVP_EncryptFinal_ex(context_.get(), tag.data(), &n) == 1 &&
                        EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_AEAD_GET_TAG,
                                            static_cast<int>(tag.size()), tag.data()) == 1);
        return tag;
    }

  private:
    std::unique_ptr<EVP_CIPHER_CTX, detail::evp_cipher_free> context_;
};

#endif

/// Compares in constant time: how long it takes does not show where the difference is. Lengths are
/// public.
[[nodiscard]] inline bool equal_constant_time(bytes_view a, bytes_view b) noexcept {
    return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

} // namespace qvmremote
