// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Requests that wait for an operator's word (DESIGN.md §6), and what operators have granted.

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

/// What an operator is asked: the request as it will run, each part of it in a field of its own. The
/// texts are the qube's and go to a screen through the sanitizer of that screen alone.
struct question {
    peer from;
    std::string id;
    std::string kind;             ///< "shell", "exec" or "script"
    run_terms terms;              ///< with the argv, where no shell runs
    bool is_detached = false;     ///< goes on when the session that asked for it has ended
    std::string untrusted_script; ///< what bash or the script's interpreter runs
    std::vector<std::string> untrusted_arguments;    ///< of the script
    std::optional<std::string> untrusted_stdin = {}; ///< that was collected
    digest256 digest{};                              ///< request_digest: names all of it
};

/// One that waits.
struct open_question : question {
    std::uint64_t serial = 0;
    std::uint64_t deadline_ms = 0; ///< silence until then is a no
};

/// An operator's yes.
struct approval {
    std::uint64_t serial = 0;
    digest256 digest{}; ///< of what was shown; what runs must have the same
    std::string who;    ///< the operator: account and number
};

/// Named by a serial of dom0's. Serials begin anywhere, so that one that was read off before the
/// daemon was restarted names nothing. Times are CLOCK_BOOTTIME in milliseconds: neither a suspend
/// nor a change of the clock lengthens anything.
class approvals {
  public:
    static constexpr std::uint64_t patience_ms = 60'000;
    static constexpr std::size_t most_of_a_qube = 8; ///< more would be a way to tire an operator
    static constexpr std::size_t most_in_all = 64;
    static constexpr std::uint32_t longest_grant_s = 24 * 3600; ///< where the rule has no `ttl`

    explicit approvals(std::uint64_t first_serial) : last_serial_(first_serial) {}

    /// Told once: the approval, or why not (approval_denied, approval_timeout, or the reason given
    /// to withdraw_all). Not told after withdraw().
    using answer = std::function<void(tl::expected<approval, errc>)>;

    /// Puts a question; nothing when there are too many already.
    [[nodiscard]] std::optional<std::uint64_t> ask(question what, std::uint64_t now_ms,
                                                   answer tell);

    /// The session is gone: nobody asks any more.
    void withdraw(std::uint64_t serial);
    /// Answers all questions of a qube, or all there are, with `why`; and takes its grants away.
    void withdraw_all(const qube_name *of, errc why);

    /// An operator's yes to the question of that serial, if `digest` is that of what the operator read,
    /// as to_json() writes it. `for_s`: also to the same request again, for so many seconds. On a
    /// failure, whose text is for the operator, nothing changes.
    [[nodiscard]] tl::expected<void, std::string> allow(std::uint64_t serial,
                                                        std::string_view digest,
                                                        std::optional<std::uint32_t> for_s,
                                                        std::string who, std::uint64_t now_ms);
    [[nodiscard]] tl::expected<void, std::string> deny(std::uint64_t serial);

    /// Says no to those whose time is up.
    void expire(std::uint64_t now_ms);
    /// When expire() has something to do; UINT64_MAX when nothing waits.
    [[nodiscard]] std::uint64_t due_ms() const;

    /// Oldest first.
    [[nodiscard]] std::vector<const open_question *> open() const;
    [[nodiscard]] const open_question *find(std::uint64_t serial) const;
    /// Changes whenever open() does.
    [[nodiscard]] std::uint64_t version() const noexcept { return version_; }

    [[nodiscard]] const qvmremote::grants &granted() const noexcept { return grants_; }

  private:
    struct waiting {
        open_question what;
        answer tell;
    };
    using table = std::map<std::uint64_t, waiting>;

    void settle(table::iterator at, tl::expected<approval, errc> with);

    table waiting_;
    qvmremote::grants grants_;
    std::uint64_t last_serial_;
    std::uint64_t version_ = 0;
};

/// How much of a question's texts to_json() gives.
enum class extent {
    beginning, ///< some of it, for lists: "complete" is false where something was left out
    whole,
};

/// A question as a line of JSON, for front-ends; `now_ms` for what is left of its time. Every text of
/// the qube's stands there as for_terminal() shows it, which from_terminal() turns back: printable
/// ASCII, and no two requests alike.
[[nodiscard]] std::string to_json(const open_question &shown, std::uint64_t now_ms, extent much);

} // namespace qvmremote::dom0
