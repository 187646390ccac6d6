// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of policy.hpp: what is well-formed and probably not meant.

#pragma once

#include <qvmremote/detail/policy_parse_inl.hpp>
#include <qvmremote/policy.hpp>

namespace qvmremote {

namespace detail {

[[nodiscard]] inline bool is_full(const request_pattern &request) {
    return request.what == request_pattern::kind::level && request.level == access_level::full;
}
[[nodiscard]] inline bool takes_all(const policy_rule &rule) {
    return rule.request.what == request_pattern::kind::any || is_full(rule.request);
}
// Whether one selector is about every qube that the other is about.
[[nodiscard]] inline bool covers(const qube_selector &wide, const qube_selector &narrow) {
    return wide.what == qube_selector::kind::any || wide == narrow;
}

// Looks at one rule among the others.
class rule_doubts {
  public:
    rule_doubts(const std::vector<policy_rule> &rules, std::size_t index,
                std::vector<policy_problem> &out)
        : rules_(rules), index_(index), rule_(rules[index]), out_(out) {}

    void find() {
        if (find_unreached())
            return;
        find_withheld();
        if (rule_.request.what != request_pattern::kind::exec)
            return;
        if (rule_.action == policy_action::allow)
            find_interpreter();
        if (rule_.action == policy_action::deny)
            find_shell_around();
    }

  private:
    void doubt(std::string what) { out_.push_back({rule_.file, rule_.line, 1, std::move(what)}); }
    [[nodiscard]] static std::string place(const policy_rule &rule) {
        return rule.file + ":" + std::to_string(rule.line);
    }

    [[nodiscard]] bool find_unreached() {
        for (std::size_t i = 0; i < index_; ++i) {
            const policy_rule &before = rules_[i];
            if (!covers(before.who, rule_.who) ||
                !(takes_all(before) || before.request == rule_.request))
                continue;
            doubt("this is never reached: " + place(before) + " decides before");
            return true;
        }
        return false;
    }

    void find_withheld() {
        if (is_full(rule_.request))
            return;
        for (const passed_variable &variable : rule_.options.environment)
            if (!variable.whatever_it_is && !is_plain_variable(variable.name))
                doubt(variable.name +
                      " is withheld: a program may run or read what it says; if "
                      "you mean it, say env!=" +
                      variable.name);
    }

    void find_interpreter() {
        const auto &words = rule_.request.words;
        const bool is_free = std::any_of(words.begin(), words.end(), [](const word_pattern &w) {
            return w.what == word_pattern::kind::word || w.what == word_pattern::kind::rest;
        });
        std::vector<std::string> argv;
        for (const word_pattern &word : words)
            argv.push_back(word.what == word_pattern::kind::literal ? word.text : "-exec");
        if (is_free && interprets(argv))
            doubt(words[0].text + " runs what its arguments say, as far as is known here: this is "
                                  "as good as level:full");
    }

    void find_shell_around() {
        const auto wide = std::find_if(rules_.begin() + static_cast<std::ptrdiff_t>(index_),
                                       rules_.end(), [&](const policy_rule &r) {
                                           return covers(r.who, rule_.who) && takes_all(r) &&
                                                  r.action != policy_action::deny;
                                       });
        if (wide != rules_.end())
            doubt("a shell command gets around this: " + place(*wide) + " lets it through");
    }

    const std::vector<policy_rule> &rules_;
    std::size_t index_;
    const policy_rule &rule_;
    std::vector<policy_problem> &out_;
};

} // namespace detail

inline std::vector<policy_problem> policy::doubts() const {
    std::vector<policy_problem> out;
    for (std::size_t i = 0; i < rules_.size(); ++i)
        detail::rule_doubts(rules_, i, out).find();
    return out;
}

} // namespace qvmremote
