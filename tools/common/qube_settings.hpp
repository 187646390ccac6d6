// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What the configuration of a qube says to the programs there.

#pragma once

#include <cerrno>
#include <string>

#include <unistd.h>

#include <qvmremote/config.hpp>
#include <qvmremote/host/environment.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/limits.hpp>

namespace qvmremote {

/// /etc/qvm-remote.conf, then the user's own file, then the environment; later wins.
[[nodiscard]] inline host::outcome<config> read_qube_settings(const std::string &own_file) {
    config out;
    for (const std::string &path : {std::string("/etc/qvm-remote.conf"), own_file}) {
        auto text = host::read_text(path, limits::config_file);
        if (!text) {
            if (text.error().error_number == ENOENT)
                continue;
            return tl::unexpected(text.error());
        }
        auto parsed = config::parse(*text);
        if (!parsed)
            return host::failed(path + ":" +
                                std::to_string(config::line_of(*text, parsed.error().offset)) +
                                ": " + std::string(message(parsed.error().code)));
        for (const auto &[key, value] : parsed->entries())
            out.set(key, value);
    }
    host::overlay_environment(out, ::environ);
    return out;
}

} // namespace qvmremote
