// SPDX-License-Identifier: GPL-2.0-or-later
#include "decide/policy_files.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/host/files.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/sanitize.hpp>

#include "shipped_rules.hpp"

#include "base/dom0_limits.hpp"

namespace qvmremote::dom0 {

namespace {
constexpr std::string_view suffix = ".policy";
}

const level_rules &shipped_levels() {
    static const level_rules levels = [] {
        auto parsed = level_rules::parse(monitor_rules, manage_rules);
        if (!parsed) // a unit test parses them, so this program is damaged
            std::abort();
        return std::move(*parsed);
    }();
    return levels;
}

namespace {
bool is_policy(std::string_view name) { return name.ends_with(suffix) && !name.starts_with('.'); }
} // namespace

std::vector<std::string> policy_files::names() const {
    auto out = host::names_in(directory_).value_or(std::vector<std::string>{});
    std::erase_if(out, [](const std::string &name) { return !is_policy(name); });
    return out;
}

host::outcome<std::vector<policy_file>> policy_files::read() const {
    auto directory = host::open_trusted(directory_, host::trusted::directory);
    if (!directory) {
        if (directory.error().error_number == ENOENT)
            return std::vector<policy_file>{};
        return tl::unexpected(directory.error());
    }
    auto names = host::names_in(directory->get());
    if (!names)
        return host::failed("cannot read " + directory_, names.error().error_number);
    std::erase_if(*names, [](const std::string &name) { return !is_policy(name); });
    if (names->size() > limits::policy_files)
        return host::failed(directory_ + " holds more than " +
                            std::to_string(limits::policy_files) +
                            " policy files: join some of them");
    std::vector<policy_file> out;
    for (std::string &name : *names) {
        auto text =
            host::read_trusted(directory_ + "/" + name, host::trusted::file, limits::policy_file);
        if (!text)
            return tl::unexpected(text.error());
        out.push_back({std::move(name), std::move(*text)});
    }
    return out;
}

host::outcome<policy> policy_files::load() const {
    auto files = read();
    if (!files)
        return tl::unexpected(files.error());
    auto rules = policy::parse(std::move(*files), shipped_levels());
    if (rules)
        return std::move(*rules);
    const auto &problems = rules.error();
    return host::failed(
        directory_ + "/" + for_terminal(problems.front().text(), 512) +
        (problems.size() > 1 ? " (and more: qvm-remote-dom0 policy lint lists them)" : ""));
}

host::outcome<void> policy_files::write_level(const qube_name &qube, access_level level) const {
    if (auto made = host::make_directories(directory_, 0755); !made)
        return made;
    if (auto safe = host::open_trusted(directory_, host::trusted::directory); !safe)
        return tl::unexpected(safe.error());
    const std::string rule =
        level == access_level::deny ? "* deny" : "level:" + std::string(name(level)) + " allow";
    const std::string text =
        "# qvm-remote-dom0 authorize wrote this file, and replaces it; revoke removes it. Files "
        "are "
        "read\n"
        "# in the order of their names, and the first rule that matches decides. Write rules that "
        "come\n"
        "# before this one into a file like 30-local.policy, and rules that come after it into one "
        "like\n"
        "# 70-local.policy. Then: qvm-remote-dom0 policy lint\n" +
        qube.text() + " " + rule + "\n";
    return host::write_atomically(directory_ + "/" + level_file(qube), text, 0644,
                                  host::durability::synced);
}

host::outcome<void> policy_files::remove_level(const qube_name &qube) const {
    auto directory = host::open_trusted(directory_, host::trusted::directory);
    if (!directory)
        return directory.error().error_number == ENOENT ? host::outcome<void>()
                                                        : tl::unexpected(directory.error());
    if (::unlinkat(directory->get(), level_file(qube).c_str(), 0) != 0)
        return errno == ENOENT
                   ? host::outcome<void>()
                   : host::failed("cannot remove " + directory_ + "/" + level_file(qube), errno);
    if (::fsync(directory->get()) != 0)
        return host::failed(
            level_file(qube) + " is removed, but a crash now may bring it back: try again", errno);
    return {};
}

bool policy_files::has_level(const qube_name &qube) const {
    struct stat st {};
    return ::lstat((directory_ + "/" + level_file(qube)).c_str(), &st) == 0;
}

bool has_rules(const policy &rules, const qube_name &qube) {
    return std::any_of(rules.rules().begin(), rules.rules().end(), [&](const policy_rule &rule) {
        return rule.who.what != qube_selector::kind::name || rule.who.text == qube.text();
    });
}

std::string level_word(const policy &rules, const qube_name &qube) {
    using kind = request_pattern::kind;
    const policy_rule *only = nullptr;
    for (const policy_rule &rule : rules.rules()) {
        if (rule.who.what == qube_selector::kind::name && rule.who.text != qube.text())
            continue;
        const bool takes_all =
            rule.request.what == kind::any ||
            (rule.request.what == kind::level && rule.request.level == access_level::full);
        if (rule.action == policy_action::deny && takes_all &&
            rule.who.what != qube_selector::kind::tag)
            return only ? std::string(name(only->request.level)) : "deny";
        const bool is_level = rule.action == policy_action::allow &&
                              rule.request.what == kind::level &&
                              rule.who.what != qube_selector::kind::tag;
        if (only || !is_level)
            return "rules";
        only = &rule;
        if (takes_all)
            break;
    }
    return only ? std::string(name(only->request.level)) : "none";
}

} // namespace qvmremote::dom0
