// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of policy.hpp: the decision.

#pragma once

#include <qvmremote/detail/policy_match_inl.hpp>
#include <qvmremote/detail/policy_programs_inl.hpp>
#include <qvmremote/policy.hpp>

namespace qvmremote {

inline digest256 request_digest(const peer &who, const envelope &what, const run_terms &how,
                                std::optional<std::string_view> collected_stdin) {
    bytes data;
    byte_writer w(data);
    const auto put = [&](std::string_view text) {
        w.u32(static_cast<std::uint32_t>(text.size()));
        w.put(text);
    };
    const auto put_list = [&](const std::vector<std::string> &list) {
        w.u32(static_cast<std::uint32_t>(list.size()));
        for (const std::string &text : list)
            put(text);
    };
    const auto put_number = [&](auto number) {
        w.u8(number ? 1 : 0);
        w.u64(number.value_or(0));
    };
    put("qvm-remote approval 1");
    put(who.name.text());
    w.u8(static_cast<std::uint8_t>(what.kind));
    put_list(how.argv);
    put_list(what.arguments);
    w.put(what.body_follows && what.body.empty() ? what.body_digest : sha256(as_bytes(what.body)));
    w.u32(static_cast<std::uint32_t>(how.environment.size()));
    for (const auto &[key, value] : how.environment) {
        put(key);
        put(value);
    }
    w.u8(static_cast<std::uint8_t>((how.tty ? 1 : 0) | (what.detach ? 2 : 0) |
                                   (what.dry_run ? 4 : 0) | (how.full ? 8 : 0)));
    w.u32(how.timeout_s);
    put(how.user);
    put_number(how.memory);
    put_number(how.output);
    put_number(how.pids);
    put_number(how.cpu);
    w.u8(static_cast<std::uint8_t>(how.input));
    w.u8(collected_stdin ? 1 : 0);
    if (collected_stdin)
        w.put(sha256(as_bytes(*collected_stdin)));
    return sha256(data);
}

namespace detail {

// The parts of a request that decide() needs, computed once for all rules.
struct request_view {
    explicit request_view(const envelope &what) : request(what) {
        if (what.kind == request_kind::exec)
            argv = what.arguments;
        // A body that follows its header is either not known yet or too long for a simple command.
        // In the queue every body follows, so there it is looked at.
        else if (what.kind == request_kind::shell && (what.protocol == 1 || !what.body_follows))
            if (auto words = simple_command(what.body))
                argv = std::move(*words);
    }

    [[nodiscard]] bool is_script(const digest256 &wanted) {
        if (request.kind != request_kind::script || !request.arguments.empty())
            return false;
        if (!digest)
            digest = request.body_follows && request.body.empty() ? request.body_digest
                                                                  : sha256(as_bytes(request.body));
        return *digest == wanted;
    }

    [[nodiscard]] bool is_in(access_level level, const level_rules &levels) {
        if (level == access_level::full)
            return true;
        std::optional<bool> &known = in_level[static_cast<std::size_t>(level)];
        if (!known)
            known = levels.allow(level, argv);
        return *known;
    }

    [[nodiscard]] bool fits(const request_pattern &pattern, const level_rules &levels) {
        switch (pattern.what) {
        case request_pattern::kind::any:
            return true;
        case request_pattern::kind::level:
            return is_in(pattern.level, levels);
        case request_pattern::kind::exec:
            return matches(pattern.words, argv);
        case request_pattern::kind::script:
            return is_script(pattern.digest);
        }
        return false;
    }

    const envelope &request;
    std::vector<std::string> argv; // empty: a shell runs it
    std::optional<digest256> digest;
    std::array<std::optional<bool>, 4> in_level;
};

// Whether a rule is about the qube. unknown: that depends on tags, and dom0 does not know them.
enum class concerns : std::uint8_t { no, unknown, yes };
[[nodiscard]] inline concerns concerns_peer(const qube_selector &selector, const peer &who) {
    switch (selector.what) {
    case qube_selector::kind::any:
        return concerns::yes;
    case qube_selector::kind::name:
        return selector.text == who.name.text() ? concerns::yes : concerns::no;
    case qube_selector::kind::tag:
        if (!who.tags)
            return concerns::unknown;
        return std::find(who.tags->begin(), who.tags->end(), selector.text) != who.tags->end()
                   ? concerns::yes
                   : concerns::no;
    }
    return concerns::no;
}

[[nodiscard]] inline verdict denied(std::string rule, std::string why, errc reason = errc::denied) {
    verdict out;
    out.rule = std::move(rule);
    out.reason = reason;
    out.why = std::move(why);
    return out;
}

// Whether a variable of the client is passed to the command.
[[nodiscard]] inline bool passes(std::string_view variable, std::string_view value,
                                 const std::vector<passed_variable> &named, bool full) {
    if (full && named.empty())
        return true;
    const auto at = std::find_if(named.begin(), named.end(),
                                 [&](const passed_variable &v) { return v.name == variable; });
    if (at == named.end())
        return false;
    return full || at->whatever_it_is ||
           (is_plain_variable(variable) && is_plain_value(variable, value));
}

[[nodiscard]] inline run_terms terms_under(const policy_rule &rule, request_view &request,
                                           access_level cap) {
    const envelope &what = request.request;
    const rule_options &options = rule.options;
    using kind = request_pattern::kind;
    run_terms out;
    out.full = rule.request.what == kind::level && rule.request.level == access_level::full &&
               cap == access_level::full;
    const bool is_text =
        out.full || (rule.request.what == kind::script && cap == access_level::full);
    if (what.kind == request_kind::exec || !is_text)
        out.argv = request.argv;
    out.timeout_s = what.timeout_s;
    if (options.timeout_s && (out.timeout_s == 0 || out.timeout_s > *options.timeout_s))
        out.timeout_s = *options.timeout_s;
    if (what.stdin_live)
        out.input = options.input                       ? *options.input
                    : rule.action == policy_action::ask ? stdin_mode::collected
                    : out.full                          ? stdin_mode::live
                                                        : stdin_mode::closed;
    if (what.tty) {
        // An operator cannot see what will be typed. So an `ask`, and any rule below full access,
        // allows a terminal only if it says tty=yes.
        const bool by_default = out.full && rule.action != policy_action::ask;
        out.tty = options.tty.value_or(by_default) &&
                  options.input.value_or(stdin_mode::live) == stdin_mode::live;
        out.input = what.stdin_live ? stdin_mode::live : stdin_mode::closed;
    }
    for (const auto &variable : what.environment)
        if (passes(variable.first, variable.second, options.environment, out.full) ||
            (out.tty && describes_terminal(variable.first, variable.second)))
            out.environment.push_back(variable);
    out.user = options.user.value_or(std::string());
    out.memory = options.memory;
    out.output = options.output;
    out.pids = options.pids;
    out.cpu = options.cpu;
    out.ttl_s = options.ttl_s;
    out.may_last =
        rule.action == policy_action::ask && !out.argv.empty() && !interprets(out.argv) && !out.tty;
    return out;
}

[[nodiscard]] inline verdict decided_by(const policy_rule &rule, request_view &request,
                                        const peer &who, access_level cap, const policy &rules,
                                        const grants &given, std::uint64_t now_ms,
                                        std::optional<std::string_view> collected_stdin) {
    const envelope &what = request.request;
    if (rule.action == policy_action::deny)
        return denied(rule.reference(), "denied by dom0's policy");
    if (!request.is_in(cap, rules.levels()))
        return denied(rule.reference(), "the call was made with +" + std::string(name(cap)) +
                                            ", which does not allow this");
    verdict out;
    out.what = rule.action;
    out.rule = rule.reference();
    out.how = terms_under(rule, request, cap);
    if (what.tty && !out.how.tty)
        return denied(rule.reference(), "dom0's policy allows no terminal for this");
    if (what.detach && out.how.input == stdin_mode::collected)
        return denied(rule.reference(), "a job can get input later, which an operator cannot see; "
                                        "to allow that, write stdin=live in the rule");
    if (out.what != policy_action::ask)
        return out;
    out.why = "needs approval";
    const bool is_whole = out.how.input != stdin_mode::collected || collected_stdin;
    if (!out.how.may_last || !is_whole || given.empty())
        return out;
    if (given.hold(who.name, request_digest(who, what, out.how, collected_stdin), now_ms)) {
        out.what = policy_action::allow;
        out.granted = true;
    }
    return out;
}

} // namespace detail

inline verdict decide(const peer &who, const envelope &what, const policy &rules,
                      const grants &given, std::uint64_t now_ms,
                      std::optional<std::string_view> collected_stdin) {
    auto cap = std::optional(access_level::full);
    if (!who.service_argument.empty())
        cap = parse_level(who.service_argument);
    if (!cap || *cap == access_level::deny)
        return detail::denied("the argument of the call",
                              "the argument of the qrexec call is not a level");
    detail::request_view request(what);
    for (const policy_rule &rule : rules.rules()) {
        const auto concerned = detail::concerns_peer(rule.who, who);
        if (concerned == detail::concerns::no || !request.fits(rule.request, rules.levels()))
            continue;
        if (concerned == detail::concerns::unknown)
            return detail::denied(rule.reference(), "the tags of this qube are not known in dom0");
        return detail::decided_by(rule, request, who, *cap, rules, given, now_ms, collected_stdin);
    }
    return detail::denied("no rule matches", "no rule of dom0's policy allows this");
}

namespace detail {

// The terms that satisfy both rules; nothing when their accounts differ.
[[nodiscard]] inline std::optional<run_terms> narrower_terms(const run_terms &one,
                                                             const run_terms &other) {
    const auto least = [](const auto &a, const auto &b) {
        return a && b ? std::min(a, b) : a ? a : b;
    };
    if (!one.user.empty() && !other.user.empty() && one.user != other.user)
        return std::nullopt;
    run_terms out = one;
    if (out.argv.empty())
        out.argv = other.argv; // without a shell, if one of the two runs it without
    out.timeout_s = one.timeout_s == 0 || other.timeout_s == 0
                        ? std::max(one.timeout_s, other.timeout_s)
                        : std::min(one.timeout_s, other.timeout_s);
    out.input = std::min(one.input, other.input);
    out.tty = one.tty && other.tty;
    std::erase_if(out.environment, [&](const auto &variable) {
        return std::find(other.environment.begin(), other.environment.end(), variable) ==
               other.environment.end();
    });
    if (out.user.empty())
        out.user = other.user;
    out.memory = least(one.memory, other.memory);
    out.output = least(one.output, other.output);
    out.pids = least(one.pids, other.pids);
    out.cpu = least(one.cpu, other.cpu);
    out.ttl_s = least(one.ttl_s, other.ttl_s);
    out.full = one.full && other.full;
    out.may_last = one.may_last && other.may_last;
    return out;
}

} // namespace detail

inline verdict narrower(const verdict &one, const verdict &other) {
    if (one.what == policy_action::deny)
        return one;
    if (other.what == policy_action::deny)
        return other;
    verdict out = one.what <= other.what ? one : other;
    if (one.rule != other.rule)
        out.rule = one.rule + "; on disk: " + other.rule;
    if (one.how == other.how) {
        out.granted = one.granted || other.granted;
        return out;
    }
    auto terms = detail::narrower_terms(one.how, other.how);
    if (!terms)
        return detail::denied(
            out.rule, "dom0's policy has changed; in dom0: systemctl reload qvm-remote-dom0");
    out.how = std::move(*terms);
    // A grant is valid only for the terms that the operator saw.
    if (one.granted || other.granted)
        out.what = policy_action::ask;
    // Input is only collected for an operator, and no operator is asked here.
    if (out.what == policy_action::allow && out.how.input == stdin_mode::collected)
        out.how.input = stdin_mode::closed;
    out.granted = false;
    if (out.what == policy_action::ask)
        out.why = "needs approval";
    return out;
}

inline verdict could_allow(const peer &who, const policy &rules) {
    if (!who.service_argument.empty()) {
        const auto cap = parse_level(who.service_argument);
        if (!cap || *cap == access_level::deny)
            return detail::denied("the argument of the call",
                                  "the argument of the qrexec call is not a level");
    }
    for (const policy_rule &rule : rules.rules()) {
        const auto concerned = detail::concerns_peer(rule.who, who);
        if (concerned == detail::concerns::no)
            continue;
        if (rule.action != policy_action::deny) {
            verdict out;
            out.what = rule.action;
            out.rule = rule.reference();
            return out;
        }
        if (rule.request.what == request_pattern::kind::any && concerned == detail::concerns::yes)
            return detail::denied(rule.reference(), "denied by dom0's policy");
    }
    return detail::denied("no rule matches", "no rule of dom0's policy allows this");
}

} // namespace qvmremote
