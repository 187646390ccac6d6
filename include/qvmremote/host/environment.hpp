// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Settings from environment variables, and the settings that are options of a plug-in.

#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <qvmremote/config.hpp>
#include <qvmremote/host/transport.hpp>

namespace qvmremote::host {

/// Overrides a file's settings with QVM_REMOTE_* and QUBES_REMOTE_* of an environment. An empty
/// variable counts as unset (COMPAT-V1.md).
inline void overlay_environment(config &settings, const char *const *environment) {
    for (; environment && *environment; ++environment) {
        const std::string_view entry = *environment;
        const std::size_t equals = entry.find('=');
        if (equals == entry.npos || equals + 1 == entry.size())
            continue;
        const std::string_view key = entry.substr(0, equals);
        if (key.starts_with("QVM_REMOTE_") || key.starts_with("QUBES_REMOTE_"))
            settings.set(key, entry.substr(equals + 1));
    }
}

/// The options of one plug-in, taken from all settings.
[[nodiscard]] inline transport_options options_of(const config &settings,
                                                  std::string_view transport_name) {
    transport_options out;
    for (const auto &[key, value] : settings.entries())
        if (auto option = option_name(transport_name, key); option && !value.empty())
            out.emplace_back(std::move(*option), value);
    return out;
}

} // namespace qvmremote::host
