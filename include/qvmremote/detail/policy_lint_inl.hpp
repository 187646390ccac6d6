// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of policy.hpp: rules that are well-formed and probably a mistake.

#pragma once

#include <qvmremote/detail/policy_effects_inl.hpp>
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
// Whether one selector matches every qube that the other matches.
[[nodiscard]] inline bool covers(const qube_selector &wide, const qube_selector &narrow) {
    return wide.what == qube_selector::kind::any || wide == narrow;
}

// Finds what is doubtful about one rule, given the others.
class rule_doubts {
  public:
    // `named` holds the lines that were already found for earlier rules.
    rule_doubts(const std::vector<policy_rule> &rules, const level_rules &levels, std::size_t index,
                std::set<std::string> &named, std::vector<policy_problem> &out)
        : rules_(rules), levels_(levels), index_(index), rule_(rules[index]), named_(named),
          out_(out) {}

    void find() {
        if (find_unreached())
            return;
        find_withheld();
        find_unconfined_use();
        find_terminal();
        if (rule_.request.what != request_pattern::kind::exec)
            return;
        if (rule_.action == policy_action::allow)
            find_interpreter();
        if (rule_.action == policy_action::deny) {
            find_shell_around();
            for (std::size_t i = index_ + 1; i < rules_.size(); ++i)
                find_other_ways(i);
        }
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
            doubt("this is never reached: " + place(before) + " decides first");
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
                      " is not passed on: a program may run or read what it names; "
                      "to pass it on, write env!=" +
                      variable.name);
    }

    // Below full, a command is confined. If the same account also runs commands under full, these
    // are not confined, and a confined command can make them act for it through the files and
    // processes of the account.
    void find_unconfined_use() {
        if (!rule_.options.user || is_full(rule_.request))
            return;
        const auto open = std::find_if(rules_.begin(), rules_.end(), [&](const policy_rule &r) {
            return is_full(r.request) && r.options.user == rule_.options.user;
        });
        if (open != rules_.end())
            doubt("commands as " + *rule_.options.user + " are confined here, and not by " +
                  place(*open) +
                  ": one can act through the other; give each an account of its own");
    }

    void find_terminal() {
        if (!is_full(rule_.request) && rule_.options.tty.value_or(false) &&
            rule_.action == policy_action::allow)
            doubt(
                "many programs start a pager, an editor or a shell for whoever sits at a terminal: "
                "unless all that this lets through is known not to, it is as good as level:full");
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
            doubt(words[0].text + " can run other programs that its arguments name: this is "
                                  "the same as level:full");
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

    // Finds commands with the same effect that a later level still allows, and proposes a line to
    // deny each.
    void find_other_ways(std::size_t level) {
        const policy_rule &after = rules_[level];
        if (after.request.what != request_pattern::kind::level || is_full(after.request) ||
            after.action == policy_action::deny ||
            !(covers(after.who, rule_.who) || covers(rule_.who, after.who)))
            return;
        // Skip a rule that was already found for an earlier one. Otherwise each line that the
        // operator adds would ask for more lines.
        const std::string number = std::to_string(level) + " ";
        if (named_.contains(number + rule_.text()))
            return;
        const same_effect effect(rule_.request.words, levels_);
        for (const argv_pattern &line : levels_.lines(after.request.level))
            for (argv_pattern &way : effect.of(line)) {
                policy_rule missing = rule_;
                missing.request.words = std::move(way);
                const std::string text = missing.text();
                named_.insert(number + text);
                if (!is_denied_before(level, missing.request.words))
                    doubt(place(after) +
                          " still allows the same in another way; to deny that too, add: " + text);
            }
    }

    [[nodiscard]] bool is_denied_before(std::size_t level, const argv_pattern &way) const {
        return std::any_of(rules_.begin(), rules_.begin() + static_cast<std::ptrdiff_t>(level),
                           [&](const policy_rule &r) {
                               return r.action == policy_action::deny &&
                                      r.request.what == request_pattern::kind::exec &&
                                      covers(r.who, rule_.who) &&
                                      takes_all_of(std::span<const word_pattern>(r.request.words),
                                                   std::span<const word_pattern>(way));
                           });
    }

    const std::vector<policy_rule> &rules_;
    const level_rules &levels_;
    std::size_t index_;
    const policy_rule &rule_;
    std::set<std::string> &named_;
    std::vector<policy_problem> &out_;
};

} // namespace detail

inline std::vector<policy_problem> policy::doubts() const {
    std::vector<policy_problem> out;
    std::set<std::string> named;
    for (std::size_t i = 0; i < rules_.size(); ++i)
        detail::rule_doubts(rules_, levels_, i, named, out).find();
    return out;
}

} // namespace qvmremote
