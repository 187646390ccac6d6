// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Reads configuration, keys and policy again while the daemon runs.

#pragma once

#include <string>
#include <vector>

#include "base/log.hpp"
#include "base/settings.hpp"
#include "decide/admission.hpp"
#include "decide/keyring.hpp"
#include "decide/tags.hpp"
#include "serve/daemon_options.hpp"
#include "serve/notifier.hpp"
#include "serve/service.hpp"
#include "serve/ways_in.hpp"

namespace qvmremote::dom0 {

/// The parts of the daemon that use them.
struct reloaded {
    const daemon_options &options;
    settings &config;
    service &parts;
    ways_in &ways;
    tag_source &tags;
    const keyring &keys;
    class notifier &notifier;
};

/// Reads all of them again. Returns what is wrong, or nothing. After a failure of one, the others
/// are used.
[[nodiscard]] std::string reload(const reloaded &all);

/// The entries of the list of qubes (QVM_REMOTE_VMS, --vm) that cannot be served, with what to do,
/// one sentence each: a name that no qube can have, a qube without a key, and a qube whose key is
/// not used (expired, unreadable, open to others).
[[nodiscard]] std::vector<std::string> unserved(const settings &config, const keyring &keys);

/// Logs what unserved() returns, and the warnings of the settings.
void report_settings(const settings &config, const keyring &keys, event_log &log);

/// What is wrong with the policy, one sentence for each mistake, for status and stderr.
[[nodiscard]] std::vector<std::string> policy_trouble(const admission &by);

/// QVM_REMOTE_PROTOCOL and QVM_REMOTE_NOTIFY.
[[nodiscard]] std::string protocols(const settings &config);
[[nodiscard]] std::string notify_program(const settings &config);

} // namespace qvmremote::dom0
