// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The keys that qubes are registered with: /etc/qubes/remote.d/VM.key, 0600 in a 0700 directory.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <qvmremote/command_id.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/secret.hpp>

namespace qvmremote::dom0 {

/// The keys that a qube is registered with, at one moment.
struct known_keys {
    std::vector<secret> keys;  ///< the usable ones, then those that have expired
    std::size_t usable = 0;    ///< how many of them are usable
    std::int64_t ended_at = 0; ///< when the newest of the others expired; 0: unknown, or none has
};

/// Reads keys from disk each time they are needed. So a key that was removed, or whose file others
/// can read, is not used for one more request, and no key stays in memory between requests.
class keyring {
  public:
    explicit keyring(std::string directory) : directory_(std::move(directory)) {}

    /// How long the previous key stays usable after a rotation.
    static constexpr std::int64_t overlap_s = 24 * 3600;

    /// The key of a qube, expired or not. error_number is ENOENT when none is registered. Any other
    /// failure means that the file is not safe or does not hold a key, and says what to do.
    [[nodiscard]] host::outcome<secret> load(const qube_name &qube) const;

    /// The keys at `now`, in seconds since 1970: the present one and the one before it. Each is usable
    /// until its time is over; when the present one has expired, the other one has too. Fails as load
    /// does. A previous key that is not safe or does not parse is left out.
    [[nodiscard]] host::outcome<known_keys> known(const qube_name &qube, std::int64_t now) const;

    /// The usable keys, the present one first. Fails as load does, and with EKEYEXPIRED when the time
    /// that `authorize --until` gave is over.
    [[nodiscard]] host::outcome<std::vector<secret>> usable(const qube_name &qube,
                                                            std::int64_t now) const;

    /// When the present key expires; nothing when it does not. A time that cannot be read is 0.
    [[nodiscard]] std::optional<std::int64_t> until(const qube_name &qube) const;
    /// When the previous key expires; nothing when there is none.
    [[nodiscard]] std::optional<std::int64_t> previous_until(const qube_name &qube) const;

    /// Registers a key, durably, in place of the present one, the previous one and `until`.
    [[nodiscard]] host::outcome<void> store(const qube_name &qube, const secret &key,
                                            std::optional<std::int64_t> until = {}) const;

    /// Registers a key in place of the present one, which stays usable for overlap_s. ENOENT when
    /// there is none; EEXIST when it is the same.
    [[nodiscard]] host::outcome<void> rotate(const qube_name &qube, const secret &key,
                                             std::int64_t now) const;

    /// Removes a qube's keys, durably. ENOENT when there is none.
    [[nodiscard]] host::outcome<void> remove(const qube_name &qube) const;

    /// Whether a request under this key has verified by protocol 2. `mark` is the SHA-256 of the key's
    /// text. This is kept beside the key, so that nobody between qube and dom0 can force protocol 1
    /// later. If the file cannot be read, the answer is yes.
    [[nodiscard]] bool is_pinned(const qube_name &qube, const digest256 &mark) const;
    /// Records that, durably.
    [[nodiscard]] host::outcome<void> pin(const qube_name &qube, const digest256 &mark) const;

    /// The qubes that have a key file, by name. Files with other names are ignored.
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
