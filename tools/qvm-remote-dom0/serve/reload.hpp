// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What the daemon reads again while it runs: configuration, keys and policy.

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

/// What takes up a change.
struct reloaded {
    const daemon_options &options;
    settings &config;
    service &parts;
    ways_in &ways;
    tag_source &tags;
    const keyring &keys;
    class notifier &notifier;
};

/// Reads all of it again. Returns what is wrong, or nothing; as much as possible is taken up even
/// then.
[[nodiscard]] std::string reload(const reloaded &all);

/// What the list of qubes (QVM_REMOTE_VMS, --vm) names and nobody can come from, with what to do, one
/// sentence each: a name that no qube can have, and a qube without a key or with one that is not used
/// (expired, unreadable, open to others).
[[nodiscard]] std::vector<std::string> unserved(const settings &config, const keyring &keys);

/// Logs whom the settings list in vain, and their warnings.
void report_settings(const settings &config, const keyring &keys, event_log &log);

/// What is wrong with the policy, one line each, for status and stderr.
[[nodiscard]] std::string policy_trouble(const admission &by);

/// QVM_REMOTE_PROTOCOL and QVM_REMOTE_NOTIFY.
[[nodiscard]] std::string protocols(const settings &config);
[[nodiscard]] std::string notify_program(const settings &config);

} // namespace qvmremote::dom0
