// SPDX-License-Identifier: GPL-2.0-or-later
#include "decide/admission.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <span>

#include <qvmremote/config.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/sanitize.hpp>

#include "decide/panic.hpp"

namespace qvmremote::dom0 {

namespace {
std::string subject(const peer &from, const envelope &what) {
    return "vm=" + from.name.text() + " id=" + what.id->text();
}
} // namespace

void describe(const envelope &what, journal_entry &to) {
    to.id = what.id->text();
    to.request = name(what.kind);
    to.timeout_s = what.timeout_s;
    to.tty = what.tty;
    to.protocol = what.protocol;
    to.argv = what.arguments;
    if (what.kind == request_kind::shell && what.body.size() <= limits::audit_argument)
        to.argv = {"bash", "-c", what.body};
    else if (!what.body.empty())
        to.script = audit_script{sha256(as_bytes(what.body)), what.body.size()};
}

std::string command_text(const envelope &what) {
    if (what.kind == request_kind::shell || what.kind == request_kind::script)
        return what.body;
    std::string out;
    for (const std::string &word : what.arguments)
        out += (out.empty() ? "" : " ") + word;
    return out;
}

host::outcome<void> admission::reload(const std::optional<std::vector<qube_name>> &listed,
                                      std::string protocols) {
    for (const std::string_view word : split_words(protocols)) {
        const std::string_view mode = word.substr(word.find('=') + 1); // npos + 1: all of it
        if (mode != "auto" && mode != "both" && mode != "1" && mode != "2")
            return host::failed("QVM_REMOTE_PROTOCOL: '" + for_terminal(word, 64) +
                                "' is not valid: use auto, both, 1, 2 or QUBE=one of these");
    }
    auto qubes = keys_.list();
    if (!qubes)
        return tl::unexpected(qubes.error());
    served_.clear();
    for (const qube_name &qube : *qubes)
        if (!listed || std::find(listed->begin(), listed->end(), qube) != listed->end())
            served_.insert(qube.text());
        else
            log_.write(log_category::info, "vm=" + qube.text() +
                                               " has a key and is not served: it is not listed in "
                                               "QVM_REMOTE_VMS, or --vm names another");
    protocols_ = std::move(protocols);
    pinned_.clear(); // a key may have been removed and registered again

    auto fresh = policies_.load();
    policy_trouble_.clear();
    if (fresh)
        rules_ = std::move(*fresh);
    else
        policy_trouble_ = fresh.error().what;
    on_disk_->loaded(rules_);
    without_rules_.clear();
    for (const qube_name &qube : *qubes)
        if (fresh && served_.contains(qube.text()) && !has_rules(rules_, qube))
            without_rules_.push_back(qube.text());
    if (!policy_trouble_.empty())
        log_.write(log_category::error, "the policy is broken, so new requests are refused: " +
                                            for_log(policy_trouble_));
    for (const std::string &qube : without_rules_)
        log_.write(log_category::error,
                   "vm=" + qube +
                       " has a key and no policy, so its requests are refused: call "
                       "qvm-remote-dom0 migrate once, or authorize --level");
    keep_keys(*qubes);
    keys_owner_.clear();
    return {};
}

std::string admission::level(const qube_name &qube) const { return level_word(rules_, qube); }

// IDs without a time are remembered until their key is removed; a key file that cannot be read counts
// as not removed. When a key is replaced, what operators allowed for it ends too.
void admission::keep_keys(const std::vector<qube_name> &qubes) {
    std::vector<digest256> standing;
    std::map<std::string, digest256> now;
    bool all_known = true;
    for (const qube_name &qube : qubes) {
        const auto good = keys_.usable(qube, host::local_time::now().seconds);
        if (!good) {
            all_known = all_known && (good.error().error_number == ENOENT ||
                                      good.error().error_number == EKEYEXPIRED);
            continue;
        }
        for (const secret &key : *good)
            standing.push_back(sha256(key.text()));
        now[qube.text()] = sha256(good->front().text());
    }
    for (const auto &[name, mark] : marks_)
        if (const auto at = now.find(name); at == now.end() || at->second != mark)
            if (const auto qube = qube_name::parse(name))
                approvals_.withdraw_all(&*qube, errc::key_revoked);
    marks_ = std::move(now);
    if (all_known)
        records_.keep_keys(std::move(standing));
}

const admission::found_keys &admission::keys_of(const qube_name &qube, std::uint64_t now_ms) {
    if (keys_owner_ != qube.text() || keys_read_ms_ != now_ms) {
        keys_found_ = keys_.known(qube, host::local_time::now().seconds);
        keys_owner_ = qube.text();
        keys_read_ms_ = now_ms;
    }
    return keys_found_;
}

namespace {
// Use this only for a request that verified under the expired key, so that nobody else learns that
// there is one.
refusal expired(const qube_name &qube, const known_keys &keys) {
    std::string text = "in dom0: qvm-remote-dom0 authorize " + qube.text() + " --fetch";
    if (keys.ended_at != 0) {
        host::local_time end;
        const time_t seconds = keys.ended_at;
        ::localtime_r(&seconds, &end.fields);
        text = "on " + end.timestamp() + "; " + text;
    }
    return {errc::key_expired, std::move(text)};
}
} // namespace

void admission::log_failure(const peer &from, std::string_view id, errc why,
                            const found_keys &found) {
    std::string text = "vm=" + from.name.text() + " id=" + std::string(id);
    if (why == errc::no_key) {
        text += found || found.error().error_number == ENOENT
                    ? " (no key for this VM)"
                    : " (" + for_log(found.error().what) + ")";
        log_.write_for(from.name.text(), log_category::auth_deny, text);
    } else {
        log_.write_for(from.name.text(), log_category::auth_fail,
                       text + " (" + std::string(message(why)) + ")");
    }
    record_refusal(from, nullptr, {why, {}});
}

std::optional<refusal> admission::take_id(const peer &from, const command_id &id,
                                          const digest256 &key_mark) {
    // Only IDs with a time are forgotten at some point, so only they can be too old.
    if (const auto claimed = id.claimed_time()) {
        const std::int64_t off = *claimed - host::local_time::now().seconds;
        if (off > limits::id_clock_skew_s || off < -limits::id_clock_skew_s)
            return refusal{errc::id_outdated, {}};
        if (records_.is_forgotten(id))
            return refusal{errc::id_outdated,
                           "dom0's clock was ahead, so dom0 may have forgotten "
                           "whether this ID was used: send the command again later"};
    }
    if (!records_.has_room(from.name))
        return refusal{errc::busy,
                       "this qube has used up its share of dom0's audit log for a day; it gets "
                       "a part back every minute"};
    if (!records_.reserve(from.name, id, key_mark))
        return refusal{errc::id_used, records_.is_outcome_unknown(from.name, id)
                                          ? "the daemon in dom0 ended while it ran: outcome unknown"
                                          : ""};
    return std::nullopt;
}

// Whether QVM_REMOTE_PROTOCOL allows this protocol for the key that has just verified a request. With
// `auto`, the first request of protocol 2 forbids protocol 1 for this key from then on, durably.
bool admission::accepts(const peer &from, std::uint32_t protocol, const digest256 &mark) {
    look_at_files();
    const std::string name = from.name.text();
    std::string on_disk = protocols_;
    if (const auto &now = on_disk_->values())
        on_disk = now->values.get("QVM_REMOTE_PROTOCOL").value_or("auto");
    bool is_auto = false;
    for (const std::string &spec : {protocols_, on_disk}) {
        const std::string_view mode = choose_for(spec, name).value_or("auto");
        if (mode != "auto" && mode != "both" && mode != std::to_string(protocol))
            return false;
        is_auto = is_auto || mode == "auto";
    }
    if (!is_auto)
        return true;
    const auto known = pinned_.find(from.name.text());
    bool pinned = known != pinned_.end() && known->second == mark;
    if (!pinned && (pinned = keys_.is_pinned(from.name, mark)))
        pinned_[from.name.text()] = mark;
    if (protocol == 1)
        return !pinned;
    if (!pinned) {
        if (const auto kept = keys_.pin(from.name, mark); !kept)
            log_.write(log_category::error, for_log(kept.error().what));
        pinned_[from.name.text()] = mark; // even after a failure, while this daemon runs
    }
    return true;
}

result<candidate> admission::check(server_stream &stream, const server_event &event,
                                   const peer &from, std::uint64_t now_ms) {
    const auto &found = keys_of(from.name, now_ms);
    const std::span<const secret> keys =
        found ? std::span<const secret>(found->keys) : std::span<const secret>();
    auto checked = stream.verify(event, keys, now_ms);
    if (!checked) {
        log_failure(from, "?", checked.error().code, found);
        return tl::unexpected(checked.error());
    }

    const envelope &what = *checked->header;
    const digest256 mark = sha256(keys[checked->key_index].text());
    const auto refuse = [&](const refusal &why) {
        stream.refuse(event.session, why.reason, why.text);
        record_refusal(from, &what, why);
        return fail(why.reason);
    };
    if (checked->key_index >= found->usable)
        return refuse(expired(from.name, *found));
    if (!accepts(from, what.protocol, mark))
        return refuse({errc::bad_version, {}});
    if (const auto why = take_id(from, *what.id, mark))
        return refuse(*why);
    return candidate{std::move(checked->header), mark};
}

tl::expected<candidate, std::optional<refusal>>
admission::check_entry(const peer &from, const command_id &id, std::string_view untrusted_token,
                       std::uint64_t length, std::uint64_t now_ms) {
    const auto &found = keys_of(from.name, now_ms);
    const std::span<const secret> keys =
        found ? std::span<const secret>(found->keys) : std::span<const secret>();
    auto checked = request_verifier::verify_entry(keys, id, untrusted_token);
    if (!checked) {
        log_failure(from, id.text(), keys.empty() ? errc::no_key : errc::bad_token, found);
        return tl::unexpected(std::nullopt);
    }
    const digest256 mark = sha256(keys[checked->key_index].text());
    const auto refuse = [&](refusal why) {
        record_refusal(from, &*checked->header, why);
        return tl::unexpected(std::optional(std::move(why)));
    };
    if (checked->key_index >= found->usable)
        return refuse(expired(from.name, *found));
    if (!accepts(from, 1, mark))
        return refuse({errc::protocol_retired, {}});
    if (length > limits::command)
        return refuse(
            {errc::command_too_large, "oversized (" + std::to_string(length) + " bytes)"});
    if (auto why = take_id(from, id, mark))
        return refuse(std::move(*why));
    return candidate{std::move(checked->header), mark};
}

std::string admission::trouble() const {
    look_at_files();
    return policy_trouble_.empty() ? on_disk_->trouble() : policy_trouble_;
}

void admission::look_at_files() const {
    if (!on_disk_->refresh())
        return;
    if (!on_disk_->trouble().empty())
        log_.write(log_category::error, "policy or settings on disk cannot be read, so new "
                                        "requests are refused: " +
                                            for_log(on_disk_->trouble()));
    else if (on_disk_->rules())
        log_.write(log_category::info, "the policy on disk is not the one that was loaded: until "
                                       "systemctl reload qvm-remote-dom0, a request needs both");
}

bool admission::uses_tags() const {
    return rules_.uses_tags() || (on_disk_->rules() && on_disk_->rules()->uses_tags());
}

verdict admission::judge(const peer &from, const envelope &what,
                         std::optional<std::string_view> collected) const {
    const std::uint64_t now_ms = host::boottime_ms();
    verdict decision = decide(from, what, rules_, approvals_.granted(), now_ms, collected);
    if (const auto &rules = on_disk_->rules())
        decision =
            narrower(decision, decide(from, what, *rules, approvals_.granted(), now_ms, collected));
    return decision;
}

bool lists(const settings &by, const qube_name &qube) {
    return !by.qubes || std::find(by.qubes->begin(), by.qubes->end(), qube) != by.qubes->end();
}

std::optional<refusal> admission::shut(const peer &from) const {
    const qube_name &qube = from.name;
    if (is_panic(where_))
        return refusal{errc::panicked, {}};
    if (!trouble().empty())
        return refusal{errc::denied,
                       "dom0's policy is broken, or its remote.conf: see qvm-remote-dom0 status in "
                       "dom0"};
    const auto &now = on_disk_->values();
    if (!served_.contains(qube.text()) ||
        (now && (!lists(*now, qube) || !now->transports.serves(from.transport, qube.text()))))
        return refusal{errc::denied, std::string(not_served)};
    if (std::find(without_rules_.begin(), without_rules_.end(), qube.text()) !=
        without_rules_.end())
        return refusal{errc::denied,
                       "dom0 has no policy for this qube; in dom0: qvm-remote-dom0 migrate"};
    return std::nullopt;
}

std::optional<refusal> admission::hopeless(const peer &from, const envelope &what) const {
    if (auto closed = shut(from))
        return closed;
    verdict decision;
    // Some of the text, the arguments or the tags may not be here yet.
    if (what.protocol == 1 || what.has_packed_arguments() || uses_tags()) {
        decision = could_allow(from, rules_);
        if (const auto &rules = on_disk_->rules())
            decision = narrower(decision, could_allow(from, *rules));
    } else {
        decision = judge(from, what);
    }
    if (decision.what != policy_action::deny)
        return std::nullopt;
    return refusal{decision.reason, decision.why, decision.rule};
}

void admission::admit(const peer &from, verified<request> what, consent given, answer on_decision) {
    peer known = from;
    look_at_files();
    if (!uses_tags())
        return decide_and_start(std::move(known), std::move(what), std::move(given),
                                std::move(on_decision));
    if (const known_tags *tags = tags_.fresh(from.name, host::boottime_ms())) {
        known.tags = *tags;
        return decide_and_start(std::move(known), std::move(what), std::move(given),
                                std::move(on_decision));
    }
    tags_.ask(from.name,
              [this, known = std::move(known), what = std::move(what), given = std::move(given),
               on_decision = std::move(on_decision)](known_tags tags) mutable {
                  known.tags = std::move(tags);
                  decide_and_start(std::move(known), std::move(what), std::move(given),
                                   std::move(on_decision));
              });
}

void admission::review(const peer &from, envelope what, std::function<void(bool)> on_answer) {
    look_at_files();
    // While the policy is broken, what runs goes on.
    const auto may_run = [this](const peer &known, const envelope &asked) {
        return !trouble().empty() || judge(known, asked).what != policy_action::deny;
    };
    if (!uses_tags())
        return on_answer(may_run(from, what));
    tags_.ask(from.name, [may_run, known = from, what = std::move(what),
                          on_answer = std::move(on_answer)](known_tags tags) mutable {
        if (!tags) // nobody answers now
            return on_answer(true);
        known.tags = std::move(tags);
        on_answer(may_run(known, what));
    });
}

std::vector<std::string> admission::unusable_accounts() const {
    std::vector<std::string> out;
    std::set<std::pair<std::string, bool>> seen;
    for (const policy_rule &rule : rules_.rules()) {
        const bool full = rule.request.what == request_pattern::kind::level &&
                          rule.request.level == access_level::full;
        if (!rule.options.user || !seen.emplace(*rule.options.user, full).second)
            continue;
        if (const auto found = account_of_rule(*rule.options.user, full); !found)
            out.push_back("commands as '" + *rule.options.user + "' are refused (" +
                          rule.reference() + "): " + found.error().what);
    }
    return out;
}

void admission::decide_and_start(peer from, verified<request> what, consent given,
                                 answer on_decision) {
    const envelope &header = what->header;
    const std::optional<std::string_view> collected(given.collected);
    auto why = shut(from);
    verdict decision;
    std::optional<account> as;
    if (!why) {
        decision = judge(from, header, collected);
        if (decision.what == policy_action::deny)
            why = refusal{decision.reason, decision.why, decision.rule, decision.what};
        else if (decision.what == policy_action::ask && header.dry_run)
            why = refusal{decision.reason, "an operator in dom0 would be asked", decision.rule,
                          decision.what};
        else if (decision.what == policy_action::ask && given.by &&
                 given.by->digest != request_digest(from, header, decision.how, collected))
            why = refusal{errc::denied,
                          "dom0's policy has changed since an operator was asked: send it again",
                          decision.rule, decision.what};
    }
    // Before START is recorded, and before an operator is asked for a request that cannot run.
    if (!why && !decision.how.user.empty()) {
        if (auto found = account_of_rule(decision.how.user, decision.how.full))
            as = std::move(*found);
        else
            why = refusal{errc::denied, found.error().what, decision.rule, decision.what};
    }
    if (why) {
        abandon(from, header, *why);
        return on_decision(*why);
    }
    if (decision.what == policy_action::ask && !given.by)
        return on_decision(held{std::move(what), std::move(from), std::move(decision)});
    start(std::move(from), std::move(what), std::move(decision), std::move(as), std::move(given),
          std::move(on_decision));
}

void admission::start(peer from, verified<request> what, verdict decision,
                      std::optional<account> as, consent given, answer on_decision) {
    journal_entry entry;
    entry.peer = from.name.text();
    entry.transport = from.transport;
    describe(what->header, entry);
    entry.verdict = name(decision.what);
    entry.rule = decision.rule;
    if (decision.what == policy_action::ask) {
        journal_entry word = entry;
        word.kind = audit_kind::approved;
        word.approval = given.by->serial;
        word.digest = given.by->digest;
        word.user = given.by->who;
        records_.note(std::move(word));
    }
    entry.kind = audit_kind::start;
    entry.user = decision.how.user;
    entry.timeout_s = decision.how.timeout_s;
    ++starting_;
    records_.start(
        std::move(entry),
        [this, from, what = std::move(what), how = std::move(decision.how), as = std::move(as),
         collected = std::move(given.collected).value_or(""),
         ceiling = on_disk_->values() ? on_disk_->values()->ceiling : containment{},
         on_decision = std::move(on_decision)](std::optional<std::uint64_t> serial) mutable {
            if (serial) {
                on_decision(admitted(std::move(what), from, std::move(how), std::move(as),
                                     std::move(collected), *serial, ceiling));
            } else {
                records_.release(from.name, *what->header.id);
                log_.write_for(from.name.text(), log_category::error,
                               subject(from, what->header) + " " + for_log(records_.trouble()));
                on_decision(refusal{errc::not_recorded, for_log(records_.trouble())});
            }
            if (--starting_ == 0 && none_starts_)
                none_starts_();
        });
}

question question_of(const held &what, const std::optional<std::string> &collected) {
    const envelope &header = what.what->header;
    question out{.from = what.from,
                 .id = header.id->text(),
                 .kind = std::string(name(header.kind)),
                 .terms = what.said.how,
                 .is_detached = header.detach,
                 .untrusted_script = {},
                 .untrusted_arguments = {},
                 .untrusted_stdin = collected,
                 .digest = request_digest(what.from, header, what.said.how, collected)};
    if (out.terms.argv.empty()) {
        out.untrusted_script = header.body;
        out.untrusted_arguments = header.arguments;
    }
    return out;
}

void admission::not_run(const admitted &what, errc why) {
    journal_entry entry;
    entry.kind = audit_kind::end;
    entry.peer = what.from().name.text();
    entry.id = what.request().id->text();
    entry.of = what.serial();
    entry.cause = "not-run";
    entry.reason = name(why);
    records_.note(std::move(entry));
}

void admission::abandon(const peer &from, const envelope &what, const refusal &why) {
    records_.release(from.name, *what.id);
    record_refusal(from, &what, why);
}

void admission::record_refusal(const peer &from, const envelope *what, const refusal &why) {
    journal_entry entry;
    entry.kind = audit_kind::refused;
    entry.peer = from.name.text();
    entry.transport = from.transport;
    if (what) {
        describe(*what, entry);
        entry.verdict = name(why.said);
        entry.rule = why.rule;
        log_.write_for(from.name.text(), log_category::reject,
                       subject(from, *what) + " " + std::string(name(why.reason)) +
                           (why.text.empty() ? "" : " " + for_log(why.text)) +
                           (why.rule.empty() ? "" : " (" + for_log(why.rule) + ")"));
    }
    entry.reason = name(why.reason);
    records_.note(std::move(entry));
}

std::optional<errc> admission::why_over(const qube_name &qube, const digest256 &key_mark) const {
    const auto found = keys_.known(qube, host::local_time::now().seconds);
    if (!found)
        return errc::key_revoked;
    const auto at = std::find_if(found->keys.begin(), found->keys.end(),
                                 [&](const secret &key) { return sha256(key.text()) == key_mark; });
    if (at == found->keys.end())
        return errc::key_revoked;
    if (at - found->keys.begin() >= static_cast<std::ptrdiff_t>(found->usable))
        return errc::key_expired;
    if (!served_.contains(qube.text()))
        return errc::denied;
    return std::nullopt;
}

} // namespace qvmremote::dom0
