// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/reload.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <string_view>
#include <utility>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/sanitize.hpp>

#include "serve/connection.hpp"

namespace qvmremote::dom0 {

std::string reload(const reloaded &all) {
    std::string problem;
    auto read = load_settings(all.options.where, all.options.vm, all.options.transport);
    if (!read) {
        problem = read.error().what;
    } else {
        // Which transport serves which qube can change now, among the loaded transports.
        for (const std::string &name : read->transports.all())
            if (std::none_of(all.ways.all().begin(), all.ways.all().end(),
                             [&](const auto &way) { return way->transport.name() == name; }))
                problem = "another transport is configured: restart the daemon for it";
        all.config = std::move(*read);
        all.parts.execution.ceiling = all.config.ceiling;
        all.notifier.use(notify_program(all.config));
        report_settings(all.config, all.keys, all.parts.log);
        all.tags.forget(tag_origin::of(all.config, all.options.where));
    }
    const auto loaded = all.parts.admission.reload(all.config.qubes, protocols(all.config));
    if (!loaded)
        problem = loaded.error().what;
    // Do this even after a failure: it ends the sessions of a qube whose key was removed, or that
    // is not on the list any more.
    const auto connections = all.parts.connections;
    for (const auto &c : connections)
        if (all.config.transports.serves(c->from().transport, c->from().name.text()))
            c->recheck_keys();
        else
            c->close();
    if (loaded)
        if (auto told = all.ways.tell_peers(); !told)
            problem = told.error().what;
    if (auto opened = all.parts.log.reopen(); !opened && problem.empty())
        problem = opened.error().what;
    if (problem.empty())
        problem = all.parts.admission.trouble();
    return problem;
}

std::vector<std::string> unserved(const settings &config, const keyring &keys) {
    constexpr std::string_view nobody = "-"; // `disconnect` writes this instead of an empty list
    std::vector<std::string> out;
    for (const std::string &name : config.ignored)
        if (name != nobody)
            out.push_back("'" + for_terminal(name, 64) +
                          "' in the list of qubes (QVM_REMOTE_VMS) is not the name of a qube");
    if (!config.qubes)
        return out;
    const std::int64_t now = host::local_time::now().seconds;
    for (const qube_name &qube : *config.qubes) {
        const auto key = keys.usable(qube, now);
        if (key)
            continue;
        const std::string begin = "qube " + qube.text() + ": listed, but ";
        out.push_back(key.error().error_number == ENOENT
                          ? begin + "has no key: qvm-remote-dom0 authorize " + qube.text()
                          : begin + "its key is not used: " + for_terminal(key.error().what));
    }
    return out;
}

void report_settings(const settings &config, const keyring &keys, event_log &log) {
    for (const std::string &sentence : unserved(config, keys))
        log.write(log_category::error, for_log(sentence));
    for (const std::string &text : config.warnings)
        log.write(log_category::info, for_log(text));
}

std::vector<std::string> policy_trouble(const admission &by) {
    std::vector<std::string> out;
    if (const std::string broken = by.trouble(); !broken.empty())
        out.push_back("broken, nothing new is let in: " + for_terminal(broken));
    for (const std::string &qube : by.without_rules())
        out.push_back(
            qube + " has a key and no policy: qvm-remote-dom0 migrate, once, or authorize --level");
    for (const std::string &sentence : by.unusable_accounts())
        out.push_back(for_terminal(sentence));
    return out;
}

std::string protocols(const settings &config) {
    return std::string(config.values.get("QVM_REMOTE_PROTOCOL").value_or("auto"));
}

std::string notify_program(const settings &config) {
    return std::string(config.values.get("QVM_REMOTE_NOTIFY").value_or(""));
}

} // namespace qvmremote::dom0
