// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The settings of the programs of a qube.

#pragma once

#include <cerrno>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <unistd.h>

#include <qvmremote/config.hpp>
#include <qvmremote/host/environment.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/sanitize.hpp>

#include "common/nearest.hpp"

namespace qvmremote {

namespace detail {

inline constexpr std::string_view qube_setting_names[] = {
    "QVM_REMOTE_TRANSPORT",    "QVM_REMOTE_PROTOCOL",    "QVM_REMOTE_PLUGIN_DIR",
    "QVM_REMOTE_HISTORY_DAYS", "QVM_REMOTE_HISTORY_MIB",
};

// Options of a transport: the shipped ones, and the one that is set. Each transport checks its own.
[[nodiscard]] inline bool is_transport_option(std::string_view key, const config &all) {
    for (const std::string_view name :
         {std::string_view("mock"), std::string_view("qvm-run"), std::string_view("qrexec"),
          all.get("QVM_REMOTE_TRANSPORT").value_or("mock")})
        if (host::option_name(name, key))
            return true;
    return false;
}

} // namespace detail

/// /etc/qvm-remote.conf, then the user's own file, then the environment; later wins. An empty value
/// is an error: whoever wrote it meant something, and the default may be the opposite. A name in a
/// file that is not a setting is ignored; `warn` gets a line about it.
[[nodiscard]] inline host::outcome<config>
read_qube_settings(const std::string &own_file,
                   const std::function<void(const std::string &)> &warn = {}) {
    config out;
    std::vector<std::pair<std::string, std::string>> unknown; // file, name
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
        for (const std::string_view key : parsed->unknown_keys(detail::qube_setting_names))
            unknown.emplace_back(path, key);
    }
    for (const char *const *entry = ::environ; *entry; ++entry)
        if (const std::string_view e = *entry;
            (e.starts_with("QVM_REMOTE_") || e.starts_with("QUBES_REMOTE_")) &&
            e.find('=') + 1 == e.size())
            return host::failed("the variable " + for_terminal(e.substr(0, e.size() - 1), 64) +
                                " is empty: unset it, or give it a value");
    host::overlay_environment(out, ::environ);
    for (const auto &[path, key] : unknown) {
        if (!warn || detail::is_transport_option(key, out))
            continue;
        const std::string_view meant = nearest(key, detail::qube_setting_names);
        warn("warning: " + path + ": " + key + " is not a setting and is ignored" +
             (meant.empty() ? "" : "; did you mean " + std::string(meant) + "?"));
    }
    return out;
}

} // namespace qvmremote
