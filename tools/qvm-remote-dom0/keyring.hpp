// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The keys that qubes are registered with: /etc/qubes/remote.d/VM.key, 0600 in a 0700 directory.

#pragma once

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

    /// The key of a qube. error_number is ENOENT when none is registered; any other failure means
    /// that the file is not to be trusted or holds no key, and says what to do.
    [[nodiscard]] host::outcome<secret> load(const qube_name &qube) const;

    /// Registers a key, replacing an older one, durably.
    [[nodiscard]] host::outcome<void> store(const qube_name &qube, const secret &key) const;

    /// Removes a key, durably. ENOENT when there is none.
    [[nodiscard]] host::outcome<void> remove(const qube_name &qube) const;

    /// Whether this key, by its mark, has proven protocol 2: kept beside it, so that nobody between
    /// can push its owner back (COMPAT-V1.md). One that cannot be read counts as proven.
    [[nodiscard]] bool is_pinned(const qube_name &qube, const digest256 &mark) const;
    [[nodiscard]] host::outcome<void> pin(const qube_name &qube, const digest256 &mark) const;

    /// The qubes that have a key file, by name. Files with other names are passed over.
    [[nodiscard]] host::outcome<std::vector<qube_name>> list() const;

private:
    [[nodiscard]] std::string path(const qube_name &qube) const {
        return directory_ + "/" + qube.text() + ".key";
    }
    [[nodiscard]] std::string pin_path(const qube_name &qube) const {
        return directory_ + "/" + qube.text() + ".protocol2";
    }

    std::string directory_;
};

} // namespace qvmremote::dom0
