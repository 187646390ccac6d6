// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Requests that wait for an operator (DESIGN.md §6), and what operators have granted.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <qvmremote/error.hpp>
#include <qvmremote/policy.hpp>

namespace qvmremote::dom0 {

/// The request that an operator is asked about, exactly as it will run. The texts come from the qube:
/// each goes through the function of sanitize.hpp for the screen that shows it.
struct question {
    peer from;
    std::string id;
    std::string kind;                                ///< "shell", "exec" or "script"
    run_terms terms;                                 ///< with the argv, if no shell runs
    bool is_detached = false;                        ///< runs on after its session has ended
    std::string untrusted_script;                    ///< what bash or the script's interpreter runs
    std::vector<std::string> untrusted_arguments;    ///< of the script
    std::optional<std::string> untrusted_stdin = {}; ///< if it was collected
    digest256 digest{};                              ///< the request_digest() of all fields above
};

/// A question that waits.
struct open_question : question {
    std::uint64_t serial = 0;
    std::uint64_t deadline_ms = 0; ///< without an answer until then, the request is refused
};

/// An operator's yes.
struct approval {
    std::uint64_t serial = 0;
    digest256 digest{}; ///< of what the operator saw; only a request with it may run
    std::string who;    ///< the operator: name and number of the account
};

/// The questions that wait, and the grants. Each question has a serial. Serials begin at a random
/// number, so that one from before a restart of the daemon hardly ever names a question. Times are
/// CLOCK_BOOTTIME in milliseconds, so a suspend or a change of the clock does not make an approval
/// last longer.
class approvals {
  public:
    static constexpr std::uint64_t patience_ms = 60'000;
    static constexpr std::size_t most_of_a_qube = 8; ///< more would be answered unread
    static constexpr std::size_t most_in_all = 64;
    static constexpr std::uint32_t longest_grant_s = 24 * 3600; ///< if the rule has no `ttl`

    explicit approvals(std::uint64_t first_serial) : last_serial_(first_serial) {}

    /// Called exactly once for a question: with the approval, or with the reason why there is none
    /// (approval_denied, approval_timeout, or the reason given to withdraw_all). Not called after
    /// withdraw().
    using answer = std::function<void(tl::expected<approval, errc>)>;

    /// Adds a question and returns its serial; nothing when too many wait already.
    [[nodiscard]] std::optional<std::uint64_t> ask(question what, std::uint64_t now_ms,
                                                   answer on_decision);

    /// Removes a question whose session has ended.
    void withdraw(std::uint64_t serial);
    /// Answers all questions of a qube with `why` and removes its grants; of every qube if `of` is null.
    void withdraw_all(const qube_name *of, errc why);

    /// Takes an operator's yes to a question. `digest` must be the digest of what the operator
    /// read, as to_json() writes it. With `for_s` the same request is also allowed again for that many
    /// seconds, at most what its rule says. On a failure nothing changes; the error is a text for
    /// the operator.
    [[nodiscard]] tl::expected<void, std::string> allow(std::uint64_t serial,
                                                        std::string_view digest,
                                                        std::optional<std::uint32_t> for_s,
                                                        std::string who, std::uint64_t now_ms);
    [[nodiscard]] tl::expected<void, std::string> deny(std::uint64_t serial);

    /// Answers questions whose time is over with approval_timeout.
    void expire(std::uint64_t now_ms);
    /// When expire() must be called next; UINT64_MAX when nothing waits.
    [[nodiscard]] std::uint64_t due_ms() const;

    /// Oldest first. What this and find() return is valid until a question is added or removed.
    [[nodiscard]] std::vector<const open_question *> open() const;
    [[nodiscard]] const open_question *find(std::uint64_t serial) const;
    /// Changes whenever open() does.
    [[nodiscard]] std::uint64_t version() const noexcept { return version_; }

    [[nodiscard]] const qvmremote::grants &granted() const noexcept { return grants_; }

  private:
    struct waiting {
        open_question what;
        answer on_decision;
    };
    using table = std::map<std::uint64_t, waiting>;

    // Removes a question and calls its function.
    void settle(table::iterator at, tl::expected<approval, errc> with);

    table waiting_;
    qvmremote::grants grants_;
    std::uint64_t last_serial_;
    std::uint64_t version_ = 0;
};

/// How much of a question's texts to_json() writes.
enum class extent {
    beginning, ///< of each text, for lists: "complete" is false where something was left out
    whole,
};

/// A question as a line of JSON, for front-ends, with the time that is left at `now_ms`. Each text of
/// the qube is escaped by for_terminal(), so it is printable ASCII. If it is whole, from_terminal()
/// gives the bytes back, so no two requests look alike.
[[nodiscard]] std::string to_json(const open_question &shown, std::uint64_t now_ms, extent much);

} // namespace qvmremote::dom0
