// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The account that a command runs as, from the system's user database.

#pragma once

#include <string>
#include <vector>

#include <sys/types.h>

#include <qvmremote/host/failure.hpp>

namespace qvmremote::dom0 {

/// The user and groups of a command.
struct identity {
    uid_t uid;
    gid_t gid;
    std::vector<gid_t> groups; ///< supplementary
};

struct account {
    std::string name, home, shell; ///< never empty
    identity who{};
    /// May administer dom0, or become root: root itself, and members of group qubes and of a few others
    /// (account.cpp). Running as such an account limits nothing.
    bool may_administer = false;
};

/// The account of a user by name, or of this process.
[[nodiscard]] host::outcome<account> find_account(const std::string &name);
[[nodiscard]] account own_account();

/// The account that a rule names with `user=`. Below full access, the account must limit the
/// command. So this fails, with a sentence that says why, if the account may administer dom0 or if
/// this machine cannot confine a command. It forks to find that out, since a test in the daemon
/// itself would confine the daemon.
[[nodiscard]] host::outcome<account> account_of_rule(const std::string &name, bool full);

/// What every command finds in its environment, "NAME=value", in this order.
[[nodiscard]] std::vector<std::string> environment_for(const account &of,
                                                       const std::string &language,
                                                       const std::string &peer,
                                                       const std::string &id);

} // namespace qvmremote::dom0
