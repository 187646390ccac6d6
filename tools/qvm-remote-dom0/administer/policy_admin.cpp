// SPDX-License-Identifier: GPL-2.0-or-later
// policy check and lint, and the migration from versions without policy.
#include <cerrno>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/policy.hpp>
#include <qvmremote/request.hpp>
#include <qvmremote/sanitize.hpp>

#include "administer/admin.hpp"
#include "administer/report.hpp"
#include "decide/account.hpp"
#include "decide/admission.hpp"
#include "decide/keyring.hpp"
#include "decide/panic.hpp"
#include "decide/policy_files.hpp"
#include "decide/tags.hpp"

namespace qvmremote::dom0 {

namespace {

using nlohmann::ordered_json;

// Exit codes of `policy check`. Others are 0 for allow and 1 for a wrong call.
constexpr int exit_ask = 3;
constexpr int exit_deny = 126;

// One row of the answer; with --json a member of the object, with a value of its own.
void tell(const char *key, std::string_view text, const ordered_json &value) {
    if (report::instance().is_json())
        report::instance().result()[key] = value;
    else
        std::printf("%s: %s\n", key, for_terminal(text).c_str());
}
void tell(const char *key, const std::string &text) { tell(key, text, text); }
void tell(const char *key, std::uint64_t number, const char *unit = "") {
    tell(key, std::to_string(number) + unit, number);
}

void tell_terms(const run_terms &terms, const envelope &request) {
    tell("runs", terms.argv.empty() ? "in bash" : "without a shell");
    if (terms.timeout_s != 0)
        tell("timeout", terms.timeout_s, " s");
    else if (!report::instance().is_json())
        tell("timeout", "none");
    tell("stdin", !request.stdin_live                    ? "closed"
                  : terms.input == stdin_mode::live      ? "live"
                  : terms.input == stdin_mode::collected ? "collected first"
                                                         : "closed");
    if (!terms.user.empty())
        tell("user", terms.user);
    if (terms.memory)
        tell("memory", *terms.memory);
    if (terms.pids)
        tell("pids", *terms.pids);
    if (terms.cpu)
        tell("cpu", *terms.cpu, "%");
    if (terms.output)
        tell("output", *terms.output);
}

// The request that qvm-remote makes from the same words. The command's standard input is not known
// here.
host::outcome<envelope> request_of_words(const std::vector<const char *> &words, bool exec,
                                         const std::string &script, const std::string &usage) {
    typed_command typed;
    typed.words.assign(words.begin(), words.end());
    typed.has_input = true;
    if (!script.empty()) {
        auto text = host::read_text(script, limits::command);
        if (!text)
            return tl::unexpected(text.error());
        typed.form = command_form::script;
        typed.text = std::move(*text);
    } else if (words.empty()) {
        return host::failed(usage);
    } else if (exec) {
        typed.form = command_form::argv;
    }
    auto asked = request_of(std::move(typed));
    if (!asked)
        return host::failed(std::string(message(asked.error().code)));
    envelope out;
    out.kind = asked->kind;
    out.arguments = std::move(asked->arguments);
    out.set_body(std::move(asked->body));
    out.stdin_live = asked->stdin_live;
    return out;
}

int check(const invocation &in) {
    bool exec = false, tty = false, is_command = false;
    std::string script, argument;
    std::vector<const char *> plain, words;
    for (std::size_t i = 1; i < in.arguments.size(); ++i) {
        const std::string_view word = in.arguments[i];
        const bool has_value = i + 1 < in.arguments.size();
        if (is_command)
            words.push_back(in.arguments[i]);
        else if (word == "--")
            is_command = true;
        else if (word == "--exec")
            exec = true;
        else if (word == "--tty")
            tty = true;
        else if ((word == "--script" || word == "--argument") && has_value) {
            const std::string_view value = in.arguments[++i];
            if (value.empty())
                return fail_with("option '" + std::string(word) +
                                 "' has an empty value: leave it out, or give a " +
                                 (word == "--script" ? "FILE" : "LEVEL"));
            (word == "--script" ? script : argument) = value;
        } else if (word.starts_with('-') || !plain.empty())
            return fail_with(in.usage);
        else
            plain.push_back(in.arguments[i]);
    }
    if (plain.size() != 1 || (exec && !script.empty()))
        return fail_with(in.usage);
    auto qube = named_qube(plain[0]);
    if (!qube)
        return fail_with(qube.error());
    auto request = request_of_words(words, exec, script, in.usage);
    if (!request)
        return fail_with(request.error());
    request->tty = tty;
    const auto rules = policy_files(in.where.policy()).load();
    if (!rules)
        return fail_with(rules.error());
    const auto values = load_settings(in.where, in.how.vm, in.how.transport);
    if (!values)
        return fail_with(fault::bad_settings, values.error().what);
    peer who{*qube, {}, argument, std::nullopt};
    if (rules->uses_tags())
        who.tags = ask_tags(*qube, tag_origin::of(*values, in.where));
    verdict decided = decide(who, *request, *rules, grants{}, host::boottime_ms());
    // The daemon looks at these first (admission::shut).
    if (is_panic(in.where) || !lists(*values, *qube)) {
        decided = verdict{};
        decided.why = is_panic(in.where) ? message(errc::panicked) : not_served;
    }
    if (decided.what != policy_action::deny && !decided.how.user.empty())
        if (const auto as = account_of_rule(decided.how.user, decided.how.full); !as) {
            decided.what = policy_action::deny;
            decided.why = as.error().what;
        }
    tell("verdict", std::string(name(decided.what)));
    tell("rule", decided.rule);
    if (!decided.why.empty())
        tell("why", decided.why);
    if (decided.what == policy_action::deny)
        return exit_deny;
    tell_terms(decided.how, *request);
    return decided.allowed() ? 0 : exit_ask;
}

// Prints errors and warnings. Only errors make it fail.
int lint(const invocation &in) {
    const policy_files policies(in.where.policy());
    auto files = policies.read();
    if (!files)
        return fail_with(files.error());
    const std::size_t count = files->size();
    const auto rules = policy::parse(std::move(*files), shipped_levels());
    const bool json = report::instance().is_json();
    const auto list = [&](const char *kind, const std::vector<policy_problem> &problems) {
        auto &all = report::instance().result()[kind + std::string("s")];
        all = ordered_json::array();
        for (const policy_problem &p : problems)
            if (json)
                all.push_back({{"file", p.file},
                               {"line", p.line},
                               {"column", p.column},
                               {"message", p.what}});
            else
                std::printf("%s/%s: %s\n", policies.directory().c_str(),
                            for_terminal(p.text(), 1024).c_str(), kind);
    };
    if (!rules) {
        list("error", rules.error());
        return 1;
    }
    list("warning", rules->doubts());
    if (json) {
        report::instance().result()["files"] = count;
        report::instance().result()["rules"] = rules->rules().size();
    } else {
        std::printf("%zu files, %zu rules\n", count, rules->rules().size());
    }
    return 0;
}

} // namespace

int policy_command(const invocation &in) {
    const std::string_view verb = in.arguments.empty() ? std::string_view() : in.arguments[0];
    if (verb == "check")
        return check(in);
    if (verb == "lint" && in.arguments.size() == 1)
        return lint(in);
    return fail_with(in.usage);
}

int migrate(const invocation &in) {
    if (!in.arguments.empty())
        return fail_with(in.usage);
    const bool json = report::instance().is_json();
    struct stat st {};
    if (::lstat(in.where.migrated().c_str(), &st) == 0) {
        // A second migration would give full access again to a qube whose policy was removed.
        if (json)
            report::instance().result() = {{"already_done", true},
                                           {"qubes", ordered_json::array()}};
        else
            std::printf("already done: the migration runs only once; qvm-remote-dom0 authorize VM "
                        "--level LEVEL gives a qube access\n");
        return 0;
    }
    const policy_files policies(in.where.policy());
    const auto rules = policies.load();
    if (!rules)
        return fail_with(rules.error());
    const auto qubes = keyring(in.where.keys()).list();
    if (!qubes)
        return fail_with(qubes.error());
    if (json)
        report::instance().result() = {{"already_done", false}, {"qubes", ordered_json::array()}};
    for (const qube_name &qube : *qubes) {
        if (has_rules(*rules, qube))
            continue;
        if (auto written = policies.write_level(qube, access_level::full); !written)
            return fail_with(written.error());
        if (json)
            report::instance().result()["qubes"].push_back(qube.text());
        else
            std::printf("%s: level full, as before: it IS dom0\n", qube.text().c_str());
    }
    if (auto made = host::make_directories(in.where.state_directory(), 0700); !made)
        return fail_with(made.error());
    if (auto marked =
            host::write_atomically(in.where.migrated(), "1\n", 0600, host::durability::synced);
        !marked)
        return fail_with(marked.error());
    tell_daemon(in.where);
    return 0;
}

} // namespace qvmremote::dom0
