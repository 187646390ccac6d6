// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What the configuration of a qube says to the programs there.

#pragma once

#include <cerrno>
#include <string>
#include <string_view>

#include <unistd.h>

#include <qvmremote/config.hpp>
#include <qvmremote/host/environment.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/sanitize.hpp>

namespace qvmremote {

/// /etc/qvm-remote.conf, then the user's own file, then the environment; later wins. An empty value
/// is an error: whoever wrote it meant something, and a default may be the opposite.
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
        for (const auto &[key, value] : parsed->entries()) {
            if (value.empty())
                return host::failed(path + ": " + key +
                                    " has no value: remove the line, or give one");
            out.set(key, value);
        }
    }
    for (const char *const *entry = ::environ; *entry; ++entry)
        if (const std::string_view e = *entry;
            (e.starts_with("QVM_REMOTE_") || e.starts_with("QUBES_REMOTE_")) &&
            e.find('=') + 1 == e.size())
            return host::failed("the variable " + for_terminal(e.substr(0, e.size() - 1), 64) +
                                " is empty: unset it, or give it a value");
    host::overlay_environment(out, ::environ);
    return out;
}

} // namespace qvmremote
