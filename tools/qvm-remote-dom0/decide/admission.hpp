// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The one way to a running process: verify, unseen, decide, record.

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
    /// How it runs: never otherwise than this, whatever the request says.
    [[nodiscard]] const run_terms &terms() const noexcept { return terms_; }
    /// The stdin that was collected, where terms() says so.
    [[nodiscard]] const std::string &collected() const noexcept { return collected_; }
    /// Within which it runs, by policy: the same in the executor's words. A dedicated account is
    /// a boundary only when it is confined; under full access none is meant to be.
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
    containment ceiling_; // of remote.conf as it was then
};

/// A request that is whole, may run if an operator says so, and has no such word yet.
struct held {
    verified<request> what;
    peer from;
    verdict said; ///< ask
};

/// What a held request is given on its way, when it comes back.
struct consent {
    std::optional<approval> by;           ///< nobody was asked yet without it
    std::optional<std::string> collected; ///< its stdin, once that was read
};

/// What an operator is shown of a held request.
[[nodiscard]] question question_of(const held &what, const std::optional<std::string> &collected);

/// Why a request does not run.
struct refusal {
    errc reason;
    std::string text;      ///< words of dom0's for the client; may be empty
    std::string rule = {}; ///< of policy, for the records alone
    policy_action said = policy_action::deny;
};

/// A header that verified, and the mark of the key that did it.
struct candidate {
    verified<envelope> header;
    digest256 key_mark; ///< SHA-256 of the key: tells whether it still stands, and is no key
};

class admission {
  public:
    admission(const paths &where, const keyring &keys, const policy_files &policies,
              tag_source &tags, approvals &words, journal &records, event_log &log,
              overrides said = {})
        : where_(where), keys_(keys), policies_(policies), tags_(tags), approvals_(words),
          records_(records), log_(log),
          on_disk_(std::make_unique<current_files>(where, policies, std::move(said))) {}

    /// Learns anew who may do what: at start and whenever keys or policy were changed. Who has a key
    /// is served; when there is a list (QVM_REMOTE_VMS, --vm), only those on it are. `protocols` is
    /// QVM_REMOTE_PROTOCOL: auto, 1, 2 or both, in all and per qube. A policy that cannot be read is
    /// no failure here: what runs goes on, and trouble() says why nothing new is let in. Between two
    /// calls, what policy and settings on disk take away counts already, and what they add does not.
    [[nodiscard]] host::outcome<void> reload(const std::optional<std::vector<qube_name>> &listed,
                                             std::string protocols);

    /// First half, on a REQUEST frame: the token under the key that is registered for this peer now,
    /// then the ID, which from here on is taken. On failure the client has been told and the log
    /// written.
    [[nodiscard]] result<candidate> check(server_stream &stream, const server_event &event,
                                          const peer &from, std::uint64_t now_ms);

    /// The same for an entry of the queue, whose token covers its ID alone. Without a refusal the
    /// sender did not authenticate: it learns nothing, and the entry is dropped.
    [[nodiscard]] tl::expected<candidate, std::optional<refusal>>
    check_entry(const peer &from, const command_id &id, std::string_view untrusted_token,
                std::uint64_t length, std::uint64_t now_ms);

    /// Why the policy is not in force, as lines for people; empty when all is well. Behind the first
    /// kind nothing is let in, behind the second nothing of the qubes named.
    [[nodiscard]] std::string trouble() const;
    [[nodiscard]] const std::vector<std::string> &without_rules() const { return without_rules_; }
    /// Which accounts of rules no command can run as here, and why, one sentence each.
    [[nodiscard]] std::vector<std::string> unusable_accounts() const;
    /// The level of a qube, in a word.
    [[nodiscard]] std::string level(const qube_name &qube) const;

    /// Why a request will not run, where that is sure before it is whole; admit asks again.
    [[nodiscard]] std::optional<refusal> hopeless(const peer &from, const envelope &what) const;

    /// Second half: decides, writes START and, when that is durable, hands over what may run. Calls
    /// `tell` on the loop, at once or later. What is held may come back with an operator's word, and
    /// is decided again then: it runs if it is still what was shown.
    using outcome = std::variant<admitted, held, refusal>;
    using answer = std::function<void(outcome)>;
    void admit(const peer &from, verified<request> what, consent given, answer tell);

    /// How many wait for their START to be written: each is told, and whoever ends the loop before
    /// leaves one that has no END.
    [[nodiscard]] std::size_t starting() const noexcept { return starting_; }
    /// Called behind `tell` when there is none of them left.
    void when_none_starts(std::function<void()> call) { none_starts_ = std::move(call); }

    /// Gives up on a request that check() let through and admit() did not get: its ID is free again.
    void abandon(const peer &from, const envelope &what, const refusal &why);

    /// Records that an admitted request does not run after all, and why: its sender went meanwhile,
    /// its key was revoked, all was stopped.
    void not_run(const admitted &what, errc why);

    /// Why what runs for that qube, by the key with this mark, is to end; none while it may go on.
    [[nodiscard]] std::optional<errc> why_over(const qube_name &qube,
                                               const digest256 &key_mark) const;

  private:
    [[nodiscard]] std::optional<refusal> shut(const peer &from) const;
    [[nodiscard]] verdict judge(const peer &from, const envelope &what,
                                std::optional<std::string_view> collected = {}) const;
    [[nodiscard]] bool uses_tags() const;
    void look_at_files() const;
    void decide_and_start(peer from, verified<request> what, consent given, answer tell);
    void start(peer from, verified<request> what, verdict said, std::optional<account> as,
               consent given, answer tell);
    void record_refusal(const peer &from, const envelope *what, const refusal &why);
    using good_keys = host::outcome<std::vector<secret>>;
    [[nodiscard]] const good_keys &keys_of(const qube_name &qube, std::uint64_t now_ms);
    void log_failure(const peer &from, std::string_view id, errc why, const good_keys &found);
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
    policy rules_; // the last good one
    std::unique_ptr<current_files> on_disk_;
    std::string policy_trouble_;
    std::set<std::string, std::less<>> served_;
    std::vector<std::string> without_rules_; // those of the served that no rule is about
    std::string protocols_ = "auto";
    std::map<std::string, digest256> pinned_; // what is known to be on disk
    std::map<std::string, digest256> marks_;  // of the keys at the last reload

    // The key of the last qube that asked, good for the events of one moment: one that sends a
    // thousand bad tokens at once has its file read once.
    good_keys key_ = host::failed("no key was read yet");
    std::string key_owner_;
    std::uint64_t key_read_ms_ = 0;
};

/// The words of a request as the records show them: an argv, or a digest in place of a long body.
void describe(const envelope &what, journal_entry &to);
/// The text that stands for a request in a log line, before escaping.
[[nodiscard]] std::string command_text(const envelope &what);

} // namespace qvmremote::dom0
