// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The only way to a running process: verify the token, check that the ID is new, decide, record.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <qvmremote/policy.hpp>
#include <qvmremote/session.hpp>
#include <qvmremote/token.hpp>

#include "base/containment.hpp"
#include "base/log.hpp"
#include "decide/account.hpp"
#include "decide/approvals.hpp"
#include "decide/current_files.hpp"
#include "decide/keyring.hpp"
#include "decide/policy_files.hpp"
#include "decide/tags.hpp"
#include "record/journal.hpp"

namespace qvmremote::dom0 {

/// A request that may run, because its START is durable. Only admission makes one, and the executor
/// takes nothing else.
class admitted {
  public:
    [[nodiscard]] const envelope &request() const noexcept { return request_->header; }
    [[nodiscard]] const peer &from() const noexcept { return from_; }
    [[nodiscard]] std::uint64_t serial() const noexcept { return serial_; }
    /// How it runs. This replaces what the request says.
    [[nodiscard]] const run_terms &terms() const noexcept { return terms_; }
    /// The stdin that was collected, if terms() says so.
    [[nodiscard]] const std::string &collected() const noexcept { return collected_; }
    /// Its limits by policy, as the executor applies them. A command with a dedicated account is
    /// confined, unless it has full access.
    [[nodiscard]] containment bounds() const {
        return within(
            {.most = {terms_.memory.value_or(0), terms_.pids.value_or(0), terms_.cpu.value_or(0)},
             .output_bytes = terms_.output.value_or(0),
             .confined = !terms_.full && as_.has_value()},
            ceiling_);
    }
    /// The account that it runs as; absent: the daemon's own.
    [[nodiscard]] const std::optional<account> &as() const noexcept { return as_; }

  private:
    friend class admission;
    admitted(verified<qvmremote::request> request, peer from, run_terms terms,
             std::optional<account> as, std::string collected, std::uint64_t serial,
             const containment &ceiling)
        : request_(std::move(request)), from_(std::move(from)), terms_(std::move(terms)),
          as_(std::move(as)), collected_(std::move(collected)), serial_(serial), ceiling_(ceiling) {
    }

    verified<qvmremote::request> request_;
    peer from_;
    run_terms terms_;
    std::optional<account> as_;
    std::string collected_;
    std::uint64_t serial_;
    containment ceiling_; // of remote.conf at that time
};

/// A complete request that may run if an operator allows it, which has not happened yet.
struct held {
    verified<request> what;
    peer from;
    verdict said; ///< its action is `ask`
};

/// What was added to a held request before it is decided again.
struct consent {
    std::optional<approval> by;           ///< empty: nobody was asked yet
    std::optional<std::string> collected; ///< its stdin, if it was read
};

/// The question that an operator gets about a held request.
[[nodiscard]] question question_of(const held &what, const std::optional<std::string> &collected);

/// Why a request does not run.
struct refusal {
    errc reason;
    std::string text;      ///< dom0's explanation for the client; may be empty
    std::string rule = {}; ///< of policy, only for the records
    policy_action said = policy_action::deny;
};

/// A header that verified, and the mark of the key that verified it.
struct candidate {
    verified<envelope> header;
    digest256 key_mark; ///< SHA-256 of the key, to check later whether it is still registered
};

/// Whether a qube is on the list of those that are served, or there is no list.
[[nodiscard]] bool lists(const settings &by, const qube_name &qube);
inline constexpr std::string_view not_served = "dom0 does not serve this qube: see QVM_REMOTE_VMS "
                                               "and QVM_REMOTE_TRANSPORT in dom0's remote.conf";

class admission {
  public:
    admission(const paths &where, const keyring &keys, const policy_files &policies,
              tag_source &tags, approvals &words, journal &records, event_log &log,
              overrides said = {})
        : where_(where), keys_(keys), policies_(policies), tags_(tags), approvals_(words),
          records_(records), log_(log),
          on_disk_(std::make_unique<current_files>(where, policies, std::move(said))) {}

    /// Reads keys and policy: at start and after each change. Every qube with a key is served; when
    /// there is a list (QVM_REMOTE_VMS, --vm), only the qubes on it. `protocols` is
    /// QVM_REMOTE_PROTOCOL: auto, 1, 2 or both, for all and by qube. A policy that cannot be read is
    /// not a failure here: running commands go on, and trouble() says why new requests are refused.
    /// Between two calls, a change on disk that takes rights away counts at once, and one that gives
    /// rights does not count.
    [[nodiscard]] host::outcome<void> reload(const std::optional<std::vector<qube_name>> &listed,
                                             std::string protocols);

    /// Wipes the keys that check() and check_entry() keep for the events of one moment.
    void drop_keys() {
        keys_found_ = host::failed("no key was read yet");
        keys_owner_.clear();
    }

    /// First half, for a REQUEST frame: checks the token under the keys that are registered for
    /// this peer now, then the ID, and marks the ID as used. After a failure the client has been
    /// told and the log written.
    [[nodiscard]] result<candidate> check(server_stream &stream, const server_event &event,
                                          const peer &from, std::uint64_t now_ms);

    /// The same for an entry of the queue, whose token covers only its ID. A failure without a refusal
    /// means that the token did not verify: the sender is told nothing, and the entry is dropped.
    [[nodiscard]] tl::expected<candidate, std::optional<refusal>>
    check_entry(const peer &from, const command_id &id, std::string_view untrusted_token,
                std::uint64_t length, std::uint64_t now_ms);

    /// Why the policy is not in force, as lines for people; empty when all is well. trouble() blocks
    /// every request; without_rules() blocks only the qubes that it lists.
    [[nodiscard]] std::string trouble() const;
    [[nodiscard]] const std::vector<std::string> &without_rules() const { return without_rules_; }
    /// The accounts in rules that no command can run as here, and why, one sentence each.
    [[nodiscard]] std::vector<std::string> unusable_accounts() const;
    /// The level of a qube, in one word.
    [[nodiscard]] std::string level(const qube_name &qube) const;

    /// Why no request of this peer is let in now, whatever it asks; nothing when requests are let in.
    [[nodiscard]] std::optional<refusal> shut(const peer &from) const;

    /// Why a request cannot run, if that is certain before all of it is here. admit() decides again.
    [[nodiscard]] std::optional<refusal> hopeless(const peer &from, const envelope &what) const;

    /// Second half: decides, writes START and, when that is durable, returns the admitted request.
    /// Calls `on_decision` on the loop, at once or later. A held request may come back with an
    /// operator's approval and is decided again: it runs if it is still what the operator was
    /// shown.
    using outcome = std::variant<admitted, held, refusal>;
    using answer = std::function<void(outcome)>;
    void admit(const peer &from, verified<request> what, consent given, answer on_decision);

    /// How many requests wait for their START to be written. If the loop ends before that, a START
    /// has no END.
    [[nodiscard]] std::size_t starting() const noexcept { return starting_; }
    /// Sets the function that is called, after `on_decision`, when none of them is left.
    void when_none_starts(std::function<void()> call) { none_starts_ = std::move(call); }

    /// Gives up a request that passed check() and did not reach admit(): its ID is free again.
    void abandon(const peer &from, const envelope &what, const refusal &why);

    /// Records that an admitted request does not run, and why: its sender has gone, its key was
    /// revoked, or everything was stopped.
    void not_run(const admitted &what, errc why);

    /// Why requests of that qube, verified by the key with this mark, must end; nothing while they may
    /// go on.
    [[nodiscard]] std::optional<errc> why_over(const qube_name &qube,
                                               const digest256 &key_mark) const;

    /// Whether policy, as it is now, still lets a job run that it has let in. Calls `on_answer` at once
    /// or later.
    void review(const peer &from, envelope what, std::function<void(bool)> on_answer);

  private:
    [[nodiscard]] verdict judge(const peer &from, const envelope &what,
                                std::optional<std::string_view> collected = {}) const;
    [[nodiscard]] bool uses_tags() const;
    void look_at_files() const;
    void decide_and_start(peer from, verified<request> what, consent given, answer on_decision);
    void start(peer from, verified<request> what, verdict decision, std::optional<account> as,
               consent given, answer on_decision);
    void record_refusal(const peer &from, const envelope *what, const refusal &why);
    using found_keys = host::outcome<known_keys>;
    [[nodiscard]] const found_keys &keys_of(const qube_name &qube, std::uint64_t now_ms);
    void log_failure(const peer &from, std::string_view id, errc why, const found_keys &found);
    [[nodiscard]] std::optional<refusal> take_id(const peer &from, const command_id &id,
                                                 const digest256 &key_mark);
    void keep_keys(const std::vector<qube_name> &qubes);
    [[nodiscard]] bool accepts(const peer &from, std::uint32_t protocol, const digest256 &mark);

    const paths &where_;
    const keyring &keys_;
    const policy_files &policies_;
    tag_source &tags_;
    approvals &approvals_;
    journal &records_;
    event_log &log_;
    std::size_t starting_ = 0;
    std::function<void()> none_starts_;
    policy rules_; // the last one that could be read
    std::unique_ptr<current_files> on_disk_;
    std::string policy_trouble_;
    std::set<std::string, std::less<>> served_;
    std::vector<std::string> without_rules_; // served qubes that no rule matches
    std::string protocols_ = "auto";
    std::map<std::string, digest256> pinned_; // marks that are known to be on disk
    std::map<std::string, digest256> marks_;  // of the keys at the last reload

    // The keys of the last qube that asked, for the events of one moment: if it sends a thousand bad
    // tokens at once, its files are read once.
    found_keys keys_found_ = host::failed("no key was read yet");
    std::string keys_owner_;
    std::uint64_t keys_read_ms_ = 0;
};

/// Fills in the request as the records show it: an argv, or a digest in place of a long body.
void describe(const envelope &what, journal_entry &to);
/// The text that stands for a request in a log line, before escaping.
[[nodiscard]] std::string command_text(const envelope &what);

} // namespace qvmremote::dom0
