// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What the daemon reads again while it runs: configuration, keys and policy.

#pragma once

#include <string>

#include "base/log.hpp"
#include "base/settings.hpp"
#include "decide/admission.hpp"
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
    class notifier &notifier;
};

/// Reads all of it again. Returns what is wrong, or nothing; as much as possible is taken up even
/// then.
[[nodiscard]] std::string reload(const reloaded &all);

/// Logs what of the settings was ignored, and their warnings.
void report_settings(const settings &config, event_log &log);

/// What is wrong with the policy, one line each, for status and stderr.
[[nodiscard]] std::string policy_trouble(const admission &by);

/// QVM_REMOTE_PROTOCOL and QVM_REMOTE_NOTIFY.
[[nodiscard]] std::string protocols(const settings &config);
[[nodiscard]] std::string notify_program(const settings &config);

} // namespace qvmremote::dom0
