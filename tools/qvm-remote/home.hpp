// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// ~/.qvm-remote: the key, the history and the audit log of one user in a qube (COMPAT-V1.md).

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <qvmremote/command_id.hpp>
#include <qvmremote/fault.hpp>
#include <qvmremote/host/client.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/secret.hpp>

namespace qvmremote::qube {

/// The directory and its files.
class home {
  public:
    /// Finds it: $HOME, or what the password database says. Renames an old ~/.qubes-remote when the
    /// new one does not exist.
    [[nodiscard]] static host::outcome<home> find();

    [[nodiscard]] const std::string &directory() const noexcept { return directory_; }
    [[nodiscard]] std::string key_file() const { return directory_ + "/auth.key"; }
    [[nodiscard]] std::string audit_log() const { return directory_ + "/audit.log"; }
    [[nodiscard]] std::string history() const { return directory_ + "/history"; }
    [[nodiscard]] std::string queue() const { return directory_ + "/queue"; }
    [[nodiscard]] std::string agent_socket() const { return directory_ + "/agent.sock"; }
    [[nodiscard]] std::string config_file() const { return directory_ + "/config"; }

    /// This file exists after the first verified answer of protocol 2.
    [[nodiscard]] std::string pin_file() const { return directory_ + "/protocol2"; }
    /// Whether this key has had a verified answer of protocol 2. Then protocol 1 is not used any more.
    [[nodiscard]] bool is_pinned() const;
    /// Records that this key has had a verified answer of protocol 2. A second call is cheap.
    [[nodiscard]] host::outcome<void> pin() const;

    /// The key; the failure names the user, the path and what to do.
    [[nodiscard]] host::outcome<secret> load_key() const;
    /// The name of a failure of load_key().
    [[nodiscard]] static fault fault_of_key(const host::failure &why) noexcept;
    /// Writes a new key, 0600 from its first byte, and removes the record of protocol 2.
    [[nodiscard]] host::outcome<void> store_key(const secret &key) const;

  private:
    std::string directory_;
};

} // namespace qvmremote::qube
