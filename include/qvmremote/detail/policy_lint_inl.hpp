// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of policy.hpp: what is well-formed and probably not meant.

#pragma once

#include <qvmremote/detail/policy_parse_inl.hpp>
#include <qvmremote/policy.hpp>

namespace qvmremote {

inline std::vector<policy_problem> policy::doubts() const {
    using kind = request_pattern::kind;
    std::vector<policy_problem> out;
    const auto takes_all = [](const policy_rule &rule) {
        return rule.request.what == kind::any ||
               (rule.request.what == kind::level && rule.request.level == access_level::full);
    };
    const auto covers = [](const qube_selector &wide, const qube_selector &narrow) {
        return wide.what == qube_selector::kind::any || wide == narrow;
    };
    for (std::size_t i = 0; i < rules_.size(); ++i) {
        const policy_rule &rule = rules_[i];
        const auto doubt = [&](std::string what) {
            out.push_back({rule.file, rule.line, 1, std::move(what)});
        };
        const auto before = std::find_if(
            rules_.begin(), rules_.begin() + static_cast<std::ptrdiff_t>(i),
            [&](const policy_rule &r) {
                return covers(r.who, rule.who) && (takes_all(r) || r.request == rule.request);
            });
        if (before != rules_.begin() + static_cast<std::ptrdiff_t>(i)) {
            doubt("this is never reached: " + before->file + ":" + std::to_string(before->line) +
                  " decides before");
            continue;
        }
        if (rule.request.what != kind::exec)
            continue;
        const auto &words = rule.request.words;
        const bool is_free = std::any_of(words.begin(), words.end(), [](const word_pattern &w) {
            return w.what == word_pattern::kind::word || w.what == word_pattern::kind::rest;
        });
        std::vector<std::string> argv;
        for (const word_pattern &word : words)
            argv.push_back(word.what == word_pattern::kind::literal ? word.text : "-exec");
        if (rule.action == policy_action::allow && is_free && interprets(argv))
            doubt(words[0].text + " runs what its arguments say: this is as good as level:full");
        if (rule.action == policy_action::deny) {
            const auto wide = std::find_if(rules_.begin() + static_cast<std::ptrdiff_t>(i),
                                           rules_.end(), [&](const policy_rule &r) {
                                               return covers(r.who, rule.who) && takes_all(r) &&
                                                      r.action != policy_action::deny;
                                           });
            if (wide != rules_.end())
                doubt("a shell command gets around this: " + wide->file + ":" +
                      std::to_string(wide->line) + " lets it through");
        }
    }
    return out;
}

} // namespace qvmremote
