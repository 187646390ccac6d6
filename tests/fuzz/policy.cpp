// SPDX-License-Identifier: GPL-2.0-or-later
// The input is a policy, a NUL, and a request: a letter (s: a line, e: an argv of lines, x: a
// script) with its text. Checks that the places of problems are in the text, and that printed rules
// parse to the same rules. decide() gives the same answer twice, and below full it allows nothing
// that the rule does not name. A line with a byte that a shell interprets is never run as an argv.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include <qvmremote/policy.hpp>

#include "shipped_rules.hpp"
#include "target.hpp"

using namespace qvmremote;

namespace {

const level_rules &levels() {
    static const level_rules out = level_rules::parse(monitor_rules, manage_rules).value();
    return out;
}

void check_problems(std::string_view text, const std::vector<policy_problem> &problems) {
    require(!problems.empty());
    const auto lines = 1 + std::count(text.begin(), text.end(), '\n');
    for (const policy_problem &p : problems) {
        require(p.line <= lines && p.column >= 1 && p.column <= text.size() + 1);
        require(std::all_of(p.what.begin(), p.what.end(), [](char c) {
            return static_cast<unsigned char>(c) >= 0x20 && c != 0x7f;
        }));
    }
}

void check_print(const policy &rules) {
    std::string printed;
    for (const policy_rule &rule : rules.rules())
        printed += rule.text() + "\n";
    if (printed.size() > limits::policy_file)
        return;
    const auto again = policy::parse({{"f", printed}}, levels());
    require(again.has_value() && again->rules().size() == rules.rules().size());
    for (std::size_t i = 0; i < rules.rules().size(); ++i)
        require(again->rules()[i].says_as(rules.rules()[i]) &&
                again->rules()[i].text() == rules.rules()[i].text());
    // A missing line that lint prints is a line of policy.
    constexpr std::string_view mark = "add: ";
    for (const policy_problem &p : rules.doubts())
        if (const auto at = p.what.find(mark); at != std::string::npos)
            require(policy::parse({{"f", p.what.substr(at + mark.size())}}, levels()).has_value());
}

envelope request_of(std::string_view text) {
    envelope out;
    out.kind = text.starts_with('e')   ? request_kind::exec
               : text.starts_with('x') ? request_kind::script
                                       : request_kind::shell;
    text.remove_prefix(std::min<std::size_t>(1, text.size()));
    if (out.kind != request_kind::exec) {
        out.set_body(std::string(text.substr(0, limits::command)));
    } else {
        for (std::size_t at = 0; at <= text.size() && out.arguments.size() < limits::arguments;) {
            const std::size_t end = std::min(text.find('\n', at), text.size());
            out.arguments.emplace_back(text.substr(at, end - at));
            at = end + 1;
        }
    }
    out.stdin_live = true;
    out.environment = {{"A", "1"}, {"LANG", "C"}, {"LANGUAGE", "../x"}, {"LD_PRELOAD", "x"}};
    return out;
}

void check_simple(std::string_view text) {
    const auto words = simple_command(text);
    if (!words)
        return;
    require(text.find_first_of("\"'`$\\;&|<>(){}[]*?~!#^\r\v\f") == std::string_view::npos);
    require(text.find('\0') == std::string_view::npos && text.find('\n') >= text.size() - 1);
    require(!words->empty() && words->front().find_first_of("=/") == std::string::npos);
    // Joined again they are the same words, so no byte was lost or added.
    std::string joined;
    for (const std::string &word : *words) {
        require(!word.empty());
        joined += (joined.empty() ? "" : " ") + word;
    }
    require(simple_command(joined) == words);
}

void check_verdict(const envelope &what, const policy &rules, const peer &who,
                   const grants &given) {
    const verdict said = decide(who, what, rules, given, 1);
    const verdict again = decide(who, what, rules, given, 1);
    require(said.what == again.what && said.rule == again.rule && said.how.argv == again.how.argv);
    if (said.what == policy_action::deny)
        return;
    // could_allow() runs before the text of the request has come. It does not deny a request that
    // decide() does not deny.
    require(could_allow(who, rules).what != policy_action::deny);
    if (what.kind == request_kind::shell && !said.how.argv.empty())
        require(simple_command(what.body) == said.how.argv);
    if (what.kind == request_kind::exec)
        require(said.how.argv == what.arguments);
    const auto rule =
        std::find_if(rules.rules().begin(), rules.rules().end(),
                     [&](const policy_rule &r) { return r.reference() == said.rule; });
    require(rule != rules.rules().end() && rule->action != policy_action::deny);
    if (said.how.full)
        return;
    for (const auto &variable : said.how.environment)
        require(variable.first == "LANG" ||
                std::any_of(rule->options.environment.begin(), rule->options.environment.end(),
                            [&](const passed_variable &v) {
                                return v.name == variable.first && v.whatever_it_is;
                            }));
    if (said.what == policy_action::allow && said.how.argv.empty())
        require(rule->request.what == request_pattern::kind::script &&
                what.kind == request_kind::script && what.arguments.empty());
    // A service argument must not allow more.
    if (who.service_argument.empty()) {
        peer capped = who;
        capped.service_argument = "monitor";
        const verdict less = decide(capped, what, rules, given, 1);
        require(less.what == policy_action::deny ||
                levels().allow(access_level::monitor, less.how.argv));
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    const std::string_view input(reinterpret_cast<const char *>(data), size);
    const std::size_t nul = std::min(input.find('\0'), size);
    const std::string_view text = input.substr(0, nul);
    const std::string_view request = input.substr(std::min(nul + 1, size));
    check_simple(text);
    check_simple(request);

    const auto parsed = policy::parse({{"f", std::string(text)}}, levels());
    if (!parsed)
        check_problems(text, parsed.error());
    else
        check_print(*parsed);
    const envelope what = request_of(request);
    const policy rules =
        parsed ? *parsed : policy::parse({{"f", "work level:manage allow"}}, levels()).value();
    peer who{qube_name::parse("work").value(), "mock", {}, std::nullopt};
    grants given;
    check_verdict(what, rules, who, given);
    who.tags = {"a", "agent"};
    check_verdict(what, rules, who, given);
    const verdict said = decide(who, what, rules, given, 1);
    // A policy on disk only takes rights away, and narrower() does not depend on the order of the
    // two.
    static const policy narrow = policy::parse({{"g", "work level:monitor allow timeout=7\n"
                                                      "work exec:echo ** ask env=LANG\n"
                                                      "work exec:id allow user=bot pids=4\n"}},
                                               levels())
                                     .value();
    const verdict other = decide(who, what, narrow, given, 1);
    const verdict both = narrower(said, other), same = narrower(other, said);
    require(both.what == same.what && both.what <= said.what && both.what <= other.what);
    require(narrower(said, said).what == said.what && narrower(said, said).how == said.how);
    if (both.what != policy_action::deny) {
        require(!both.how.full || (said.how.full && other.how.full));
        require(both.how.input <= said.how.input && both.how.input <= other.how.input);
        require(both.how.environment.size() <=
                std::min(said.how.environment.size(), other.how.environment.size()));
        require(both.how.timeout_s == 0
                    ? said.how.timeout_s == 0 && other.how.timeout_s == 0
                    : said.how.timeout_s == 0 || both.how.timeout_s <= said.how.timeout_s);
    }
    if (said.what == policy_action::ask) {
        given.add(who.name, request_digest(who, what, said.how, {}), 2);
        const verdict granted = decide(who, what, rules, given, 1);
        require(!granted.allowed() || said.how.may_last);
        require(!decide(who, what, rules, given, 2).allowed());
        check_verdict(what, rules, who, given);
    }
    return 0;
}
