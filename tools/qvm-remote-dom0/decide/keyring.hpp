// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The keys that qubes are registered with: /etc/qubes/remote.d/VM.key, 0600 in a 0700 directory.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <qvmremote/command_id.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/secret.hpp>

namespace qvmremote::dom0 {

/// Reads keys from disk each time they are needed: a key that was removed, or whose file somebody
/// loosened, is not used for one request more, and none lies in memory between requests.
class keyring {
  public:
    explicit keyring(std::string directory) : directory_(std::move(directory)) {}

    /// How long the key before the present one is good after a rotation.
    static constexpr std::int64_t overlap_s = 24 * 3600;

    /// The key of a qube, expired or not. error_number is ENOENT when none is registered; any other
    /// failure means that the file is not to be trusted or holds no key, and says what to do.
    [[nodiscard]] host::outcome<secret> load(const qube_name &qube) const;

    /// The keys that are good at `now`, in seconds since 1970: the present one first, then one that
    /// was rotated out and has not run out. Fails as load does, and with EKEYEXPIRED when the time
    /// that `authorize --until` gave is over.
    [[nodiscard]] host::outcome<std::vector<secret>> usable(const qube_name &qube,
                                                            std::int64_t now) const;

    /// When the present key runs out; nothing when it does not. A time that cannot be read is 0.
    [[nodiscard]] std::optional<std::int64_t> until(const qube_name &qube) const;
    /// When the key before the present one runs out; nothing when there is none.
    [[nodiscard]] std::optional<std::int64_t> previous_until(const qube_name &qube) const;

    /// Registers a key, durably, in place of an older one and its `until`.
    [[nodiscard]] host::outcome<void> store(const qube_name &qube, const secret &key,
                                            std::optional<std::int64_t> until = {}) const;

    /// Registers a key in place of the present one, which stays good for overlap_s. ENOENT when
    /// there is none; EEXIST when it is the same.
    [[nodiscard]] host::outcome<void> rotate(const qube_name &qube, const secret &key,
                                             std::int64_t now) const;

    /// Removes a qube's keys, durably. ENOENT when there is none.
    [[nodiscard]] host::outcome<void> remove(const qube_name &qube) const;

    /// Whether this key, by its mark, has proven protocol 2: kept beside it, so that nobody between
    /// can push its owner back (COMPAT-V1.md). One that cannot be read counts as proven.
    [[nodiscard]] bool is_pinned(const qube_name &qube, const digest256 &mark) const;
    [[nodiscard]] host::outcome<void> pin(const qube_name &qube, const digest256 &mark) const;

    /// The qubes that have a key file, by name. Files with other names are passed over.
    [[nodiscard]] host::outcome<std::vector<qube_name>> list() const;

  private:
    [[nodiscard]] std::string path(const qube_name &qube, const char *suffix) const {
        return directory_ + "/" + qube.text() + suffix;
    }
    [[nodiscard]] host::outcome<void> write(const qube_name &qube, const char *suffix,
                                            std::string text) const;

    std::string directory_;
};

} // namespace qvmremote::dom0
