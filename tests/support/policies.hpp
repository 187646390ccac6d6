// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Short ways to write policies, peers and requests, for tests of the decision.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <qvmremote/policy.hpp>

#include "shipped_rules.hpp"

namespace qvmremote::test {

inline const level_rules &levels() {
    static const level_rules out = level_rules::parse(monitor_rules, manage_rules).value();
    return out;
}

inline policy parsed(std::string text) {
    return policy::parse({{"50.policy", std::move(text)}}, levels()).value();
}

// Not inlined: gcc 12 would then warn of tags that it takes for uninitialized.
[[gnu::noinline]] inline peer from(const char *qube,
                                   std::optional<std::vector<std::string>> tags = std::nullopt,
                                   std::string argument = {}) {
    return {qube_name::parse(qube).value(), "mock", std::move(argument), std::move(tags)};
}

inline envelope shell(std::string text) {
    envelope out;
    out.kind = request_kind::shell;
    out.set_body(std::move(text));
    return out;
}
inline envelope exec(std::vector<std::string> argv) {
    envelope out;
    out.kind = request_kind::exec;
    out.arguments = std::move(argv);
    return out;
}
inline envelope script(std::string text, std::vector<std::string> arguments = {}) {
    envelope out = shell(std::move(text));
    out.kind = request_kind::script;
    out.arguments = std::move(arguments);
    return out;
}

inline verdict ask(const policy &rules, const envelope &what, const peer &who = from("work"),
                   const grants &given = {}, std::uint64_t now_ms = 0,
                   std::optional<std::string_view> input = {}) {
    return decide(who, what, rules, given, now_ms, input);
}
inline policy_action said(const std::string &text, const envelope &what,
                          const peer &who = from("work")) {
    return ask(parsed(text), what, who).what;
}

using action = policy_action;

} // namespace qvmremote::test
