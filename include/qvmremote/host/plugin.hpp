// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The loader of plug-ins: transport::load, and the check of a plug-in's file. It is not in
/// transport.hpp, since only it needs Boost.DLL.

#pragma once

// The first include of Boost.DLL in a unit chooses between Boost.Filesystem and std::filesystem. With
// std::filesystem, Boost.DLL needs no library of Boost.
#if defined(BOOST_DLL_DETAIL_CONFIG_HPP) && !defined(BOOST_DLL_USE_STD_FS)
#error "include <qvmremote/host/plugin.hpp> before Boost.DLL, or define BOOST_DLL_USE_STD_FS"
#endif
#ifndef BOOST_DLL_USE_STD_FS
#define BOOST_DLL_USE_STD_FS
#endif

#include <algorithm>
#include <cerrno>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <boost/dll/import.hpp>
#include <boost/dll/library_info.hpp>

#include <qvmremote/host/files.hpp>
#include <qvmremote/host/transport.hpp>
#include <qvmremote/sanitize.hpp>

namespace qvmremote::host {

/// The path of a plug-in that transport::load would load: its directory and file are trusted
/// (open_trusted), and it has our symbol. Nothing of it is loaded. Fails as transport::load does.
[[nodiscard]] inline outcome<std::string> trusted_plugin(const std::string &directory,
                                                         const std::string &name);

namespace detail {

// The names of the plug-ins in the directory ("mock, qrexec"), for the message. A name that cannot
// be configured is not listed.
[[nodiscard]] inline std::string installed_transports(const std::string &directory) {
    std::string out;
    for (std::string &name : names_in(directory).value_or(std::vector<std::string>{})) {
        if (!name.ends_with(".so"))
            continue;
        name.resize(name.size() - 3);
        if (is_transport_name(name))
            out += (out.empty() ? "" : ", ") + name;
    }
    return out.empty() ? "none" : out;
}

// The failing branch of everything that is wrong with the file of a transport.
[[nodiscard]] inline tl::unexpected<failure>
transport_refused(const std::string &name, const std::string &why, const failure &cause = {}) {
    return tl::unexpected(
        failure{"transport '" + name + "' " + why + cause.what, cause.error_number});
}

} // namespace detail

inline outcome<std::string> trusted_plugin(const std::string &directory, const std::string &name) {
    if (!detail::is_transport_name(name))
        return tl::unexpected(
            failure{"'" + for_terminal(name, 64) +
                        "' is not the name of a transport; "
                        "a name begins with a-z, goes on with a-z, 0-9 or '-', and has at most 32 "
                        "characters; leave out path and '.so'",
                    EINVAL});
    std::string path = directory + "/" + name + ".so";
    if (auto trusted_directory = open_trusted(directory, trusted::directory); !trusted_directory)
        return detail::transport_refused(name, "cannot be loaded: ", trusted_directory.error());
    if (auto file = open_trusted(path, trusted::file); !file) {
        if (file.error().error_number == ENOENT)
            return detail::transport_refused(
                name, "is not installed: ",
                {"no " + name + ".so in " + detail::shell_word(directory) +
                     " (installed: " + detail::installed_transports(directory) + ")",
                 ENOENT});
        return detail::transport_refused(name, "cannot be loaded: ", file.error());
    }
    // This reads the file and does not load it: dlopen would run the constructors of any file that
    // happens to be here. Boost throws when the file is not ELF of this machine, or is cut.
    const auto symbols = [&]() -> std::vector<std::string> {
        try {
            return boost::dll::library_info(path).symbols();
        } catch (const std::exception &) {
            return {};
        }
    }();
    if (std::find(symbols.begin(), symbols.end(), QVMREMOTE_TRANSPORT_SYMBOL) == symbols.end())
        return detail::transport_refused(
            name, "cannot be loaded: ",
            {detail::shell_word(path) +
             " is not a shared object with the symbol " QVMREMOTE_TRANSPORT_SYMBOL
             "; install a transport that was built for this version"});
    return path;
}

inline outcome<transport> transport::load(const std::string &directory, const std::string &name,
                                          role as, const transport_options &options) {
    // library_info and dlopen open the file again, by name. Only root and our own user
    // can replace the file in between, and they gain nothing by it. Loading /proc/self/fd/N instead
    // would bring another fault: the dynamic linker compares names, so for a later plug-in with the
    // same descriptor number it would return the earlier library.
    const auto path = trusted_plugin(directory, name);
    if (!path)
        return tl::unexpected(path.error());

    // Boost throws different types in different releases; this catches all of them.
    try {
        // RTLD_NOW: a symbol that is missing shows here and not in the middle of a session.
        // RTLD_LOCAL (Boost's default): two plug-ins see nothing of each other.
        const auto table = boost::dll::import_symbol<const qvmremote_transport_ops>(
            *path, QVMREMOTE_TRANSPORT_SYMBOL, boost::dll::load_mode::rtld_now);
        // Boost's pointer keeps the library loaded, and ours keeps Boost's (whose type depends on
        // the release).
        std::shared_ptr<const void> library(table.get(), [table](const void *) {});
        return from_table(table.get(), std::move(library), name, as, options);
    } catch (const std::exception &why) {
        return detail::transport_refused(
            name, "cannot be loaded: ", {for_terminal(why.what()) + "; reinstall it"});
    }
}

} // namespace qvmremote::host
