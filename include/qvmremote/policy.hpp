// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The one decision point (I12, doc/SECURITY.md): the policy as text, and decide(), which says whether
/// a request of a peer runs, and how. decide() is a pure function with an answer for every input.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <qvmremote/bytes.hpp>
#include <qvmremote/command_id.hpp>
#include <qvmremote/config.hpp>
#include <qvmremote/digest.hpp>
#include <qvmremote/envelope.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/limits.hpp>

namespace qvmremote {

/// The qube that asks, as the transport proves it and dom0 knows it.
struct peer {
    qube_name name;
    std::string transport;        ///< the name of the transport that carried the request
    std::string service_argument; ///< of a qrexec call; empty, or else it must be a level
    std::optional<std::vector<std::string>> tags; ///< absent if they are unknown
};

/// How much of dom0 a rule gives. Each level includes those before it. A rule or term is "below full"
/// unless it comes from `level:full`. `read-only` is another name for monitor.
enum class access_level : std::uint8_t { deny, monitor, manage, full };

[[nodiscard]] constexpr std::string_view name(access_level level) noexcept {
    switch (level) {
    case access_level::deny:
        return "deny";
    case access_level::monitor:
        return "monitor";
    case access_level::manage:
        return "manage";
    case access_level::full:
        return "full";
    }
    return "deny";
}
[[nodiscard]] constexpr std::optional<access_level> parse_level(std::string_view text) noexcept {
    if (text == "read-only")
        return access_level::monitor;
    for (const auto level :
         {access_level::deny, access_level::monitor, access_level::manage, access_level::full})
        if (text == name(level))
            return level;
    return std::nullopt;
}

/// What a command gets as standard input.
enum class stdin_mode : std::uint8_t {
    closed,    ///< /dev/null
    collected, ///< all of it, at most limits::collected_stdin, read before an operator is asked
    live,      ///< streamed
};

/// A mistake in a policy file, or something doubtful, and where it is. Lines and columns count from
/// 1, columns in bytes.
struct policy_problem {
    std::string file;
    std::uint32_t line = 0, column = 0;
    std::string what; ///< printable

    /// FILE:LINE:COLUMN: WHAT
    [[nodiscard]] std::string text() const {
        return file + ":" + std::to_string(line) + ":" + std::to_string(column) + ": " + what;
    }
    friend bool operator==(const policy_problem &, const policy_problem &) = default;
};

/// The first column of a rule: the qubes that it is about.
struct qube_selector {
    enum class kind : std::uint8_t { name, tag, any };
    kind what = kind::any;
    std::string text; ///< the name or the tag; empty for any

    friend bool operator==(const qube_selector &, const qube_selector &) = default;
};

/// One word of an `exec:` pattern.
struct word_pattern {
    enum class kind : std::uint8_t {
        literal, ///< exactly this
        word,    ///< `*`: one word, not empty, not beginning with `-`, without control characters
        qube,    ///< `{qube:GLOB}`: the name of a qube (never dom0); `*` in GLOB is any text
        number,  ///< `{number}`: 1 to 18 digits
        name,    ///< `{name}`: a letter or digit, then any of [A-Za-z0-9_.@:+,-]; no option, no '/'
        rest,    ///< `**`: all words that follow, or none
    };
    kind what = kind::literal;
    std::string text; ///< of a literal, or the glob

    friend bool operator==(const word_pattern &, const word_pattern &) = default;
};
using argv_pattern = std::vector<word_pattern>;

/// Whether a pattern matches a whole argv.
[[nodiscard]] inline bool matches(std::span<const word_pattern> pattern,
                                  std::span<const std::string> argv);

/// The second column of a rule: the requests that it is about.
struct request_pattern {
    enum class kind : std::uint8_t { level, exec, script, any };
    kind what = kind::any;
    access_level level = access_level::deny;
    argv_pattern words; ///< the first word is the name of the program, without a directory
    digest256 digest{}; ///< of a script (request_kind::script), which must have no arguments

    friend bool operator==(const request_pattern &, const request_pattern &) = default;
};

/// A variable that a rule passes on.
struct passed_variable {
    std::string name;
    /// True for `env!=NAME`: the variable also passes below full. With `env=NAME`, it passes below
    /// full only if it is known to be harmless (locale, terminal, time zone, colours) and its value
    /// is not a path.
    bool whatever_it_is = false;

    friend bool operator==(const passed_variable &, const passed_variable &) = default;
};

/// The options that follow the action. See decide() for what holds if an option is absent.
struct rule_options {
    std::optional<std::uint32_t> ttl_s; ///< `ttl=10m`: the longest that an approval may last
    std::optional<std::uint32_t>
        timeout_s;                   ///< `timeout=60`: the most seconds that the command may run
    std::optional<std::string> user; ///< `user=NAME`
    std::optional<stdin_mode> input; ///< `stdin=closed|collected|live`
    std::optional<bool> tty;         ///< `tty=yes|no`
    std::vector<passed_variable> environment; ///< `env=NAME`, `env!=NAME`, one each
    std::optional<std::uint64_t> memory;      ///< `memory=512M`, in bytes
    std::optional<std::uint32_t> pids;        ///< `pids=64`: processes and threads at once
    std::optional<std::uint32_t> cpu;         ///< `cpu=150%`: percent of one processor
    std::optional<std::uint64_t>
        output; ///< `output=10M`: the most bytes of stdout and stderr together

    friend bool operator==(const rule_options &, const rule_options &) = default;
};

enum class policy_action : std::uint8_t { deny, ask, allow };

[[nodiscard]] constexpr std::string_view name(policy_action action) noexcept {
    switch (action) {
    case policy_action::deny:
        return "deny";
    case policy_action::ask:
        return "ask";
    case policy_action::allow:
        return "allow";
    }
    return "deny";
}

/// One line of policy.
struct policy_rule {
    std::string file;
    std::uint32_t line = 0;
    qube_selector who;
    request_pattern request;
    policy_action action = policy_action::deny;
    rule_options options;

    /// The rule in its standard spelling, which parses to the same rule.
    [[nodiscard]] std::string text() const;
    /// FILE:LINE and the text, as records show it.
    [[nodiscard]] std::string reference() const {
        return file + ":" + std::to_string(line) + " " + text();
    }

    /// Equal, ignoring file and line.
    [[nodiscard]] bool says_as(const policy_rule &other) const {
        return who == other.who && request == other.request && action == other.action &&
               options == other.options;
    }
};

/// What the levels between deny and full allow: two lists of argv patterns, compiled into the
/// program. A default-constructed object allows nothing.
class level_rules {
  public:
    level_rules() = default;

    /// Each line of a text is an `exec:` pattern, a `#` comment or empty. `manage` is only what that
    /// level has in addition to `monitor`.
    [[nodiscard]] static tl::expected<level_rules, std::vector<policy_problem>>
    parse(std::string_view monitor, std::string_view manage);

    /// Whether the level, which is below full, allows this argv.
    [[nodiscard]] bool allow(access_level level, std::span<const std::string> argv) const;

    /// All patterns that a level below full allows: for manage, also those of monitor.
    [[nodiscard]] std::vector<argv_pattern> lines(access_level level) const;

  private:
    using patterns = std::map<std::string, std::vector<argv_pattern>, std::less<>>; // by program
    patterns monitor_, manage_;
};

struct policy_file {
    std::string name; ///< without its directory
    std::string text;
};

/// The rules that the operator has written. A default-constructed policy denies everything.
///
/// A file is lines of QUBE REQUEST ACTION [OPTION=VALUE…], split by blanks; `#` begins a comment at
/// the beginning of a line and after a blank:
///
/// - QUBE: a name, `@tag:TAG` or `@anyvm`.
/// - REQUEST: `level:monitor|read-only|manage|full`; `exec:PROGRAM WORD…`, each WORD a text of
///   [A-Za-z0-9_@%+:,./=-], `*`, `{qube:GLOB}`, `{number}`, `{name}`, or `**` as the last; `script:sha256:HEX`, for
///   a script of exactly these bytes; `*` for anything, but not with `allow` (write level:full).
/// - ACTION: `allow`, `ask` or `deny`. An exec pattern may hold these words too: the last one in the
///   line is the action.
/// - OPTION: as in rule_options. `deny` takes none; `ttl` and `stdin=collected` need `ask`.
///   Below full, `env=NAME` passes only harmless variables, and `env!=NAME` any.
///
/// Files count in the order of their names, and lines in the order of the file. The first rule that
/// matches decides; if none matches, the request is denied.
class policy {
  public:
    /// A policy, or its problems in the order of the files; after limits::policy_problems of them the
    /// reading ends. One mistake anywhere means no policy, because the rest could allow what the bad line
    /// should deny.
    [[nodiscard]] static tl::expected<policy, std::vector<policy_problem>>
    parse(std::vector<policy_file> files, level_rules levels);

    [[nodiscard]] const std::vector<policy_rule> &rules() const noexcept { return rules_; }
    [[nodiscard]] const level_rules &levels() const noexcept { return levels_; }
    /// Whether any rule names a tag. If not, the caller need not find out the tags of the qubes.
    [[nodiscard]] bool uses_tags() const noexcept;
    /// Lines that are well-formed but probably not meant, for `policy lint`.
    [[nodiscard]] std::vector<policy_problem> doubts() const;

  private:
    std::vector<policy_rule> rules_;
    level_rules levels_;
};

/// The argv that bash would make of a command line; nothing if the line holds no word or needs a shell.
/// It needs a shell if it holds a byte other than [A-Za-z0-9_@%+:,./=-] and blanks (one newline may
/// end it), if its first word holds `=` or `/`, if bash takes the first word as a keyword or as a
/// builtin (echo, false, kill, printf, pwd, test and true count as programs), or if it has more than
/// limits::arguments words or limits::inline_body bytes.
[[nodiscard]] inline std::optional<std::vector<std::string>> simple_command(std::string_view text);

/// Whether a program may run what its arguments or input say, so that its argv does not show what
/// will happen: shells, interpreters, programs that start others (env, xargs, find -exec, sudo …).
/// True for every program that is not known to be harmless in this way.
[[nodiscard]] inline bool interprets(std::span<const std::string> argv);

/// How a request runs: what it asks for, reduced to what the rule allows.
struct run_terms {
    std::vector<std::string>
        argv; ///< runs without a shell; empty: the body runs, in bash or as a script
    std::uint32_t timeout_s = 0; ///< 0: none
    stdin_mode input = stdin_mode::closed;
    bool tty = false;
    std::vector<std::pair<std::string, std::string>> environment; ///< from the client
    std::string user;                                             ///< empty: the daemon's own
    std::optional<std::uint64_t> memory, output;                  ///< bytes
    std::optional<std::uint32_t> pids, cpu;                       ///< count, percent of a processor
    std::optional<std::uint32_t> ttl_s; ///< of an ask: the longest that an approval may last
    bool full = false;                  ///< a `level:full` rule lets it through
    bool may_last =
        false; ///< of an ask: an approval may last for a while. Never without an argv, in
               ///< a terminal, or if the program interprets its arguments or input

    friend bool operator==(const run_terms &, const run_terms &) = default;
};

/// Names what an operator approves: SHA-256 over the peer's name, the kind, the argv or the script
/// with its arguments, and how it runs: environment, tty, detach, dry run, user, limits, time-out,
/// full access, and stdin (its mode, and its bytes if they were collected). The size of the terminal
/// and the request's features are not in it.
[[nodiscard]] inline digest256 request_digest(const peer &who, const envelope &what,
                                              const run_terms &how,
                                              std::optional<std::string_view> collected_stdin);

/// What operators have granted for a while (`approvals allow --for`). An approval for one run is not a
/// grant and is not kept here: the caller compares its digest, and calls decide() again for a request
/// that was approved.
class grants {
  public:
    /// Adds a grant that ends at `until_ms` (CLOCK_BOOTTIME, in milliseconds). If the same request
    /// already has a grant, the later end counts.
    void add(const qube_name &qube, const digest256 &request, std::uint64_t until_ms) {
        std::uint64_t &until = until_[{qube.text(), request}];
        until = std::max(until, until_ms);
    }
    /// Whether there is a grant for the request that has not ended.
    [[nodiscard]] bool hold(const qube_name &qube, const digest256 &request,
                            std::uint64_t now_ms) const {
        const auto at = until_.find({qube.text(), request});
        return at != until_.end() && now_ms < at->second;
    }
    /// Removes the grants of a qube, when its key is gone.
    void revoke(const qube_name &qube) {
        std::erase_if(until_, [&](const auto &e) { return e.first.first == qube.text(); });
    }
    void clear() noexcept { until_.clear(); }
    void forget_expired(std::uint64_t now_ms) {
        std::erase_if(until_, [&](const auto &e) { return e.second <= now_ms; });
    }
    [[nodiscard]] std::size_t size() const noexcept { return until_.size(); }
    [[nodiscard]] bool empty() const noexcept { return until_.empty(); }

  private:
    std::map<std::pair<std::string, digest256>, std::uint64_t> until_;
};

/// The answer, and the line that gave it, for the audit log and `policy check`.
struct verdict {
    using action = policy_action;
    action what = action::deny;
    /// reference() of the rule that decided (of two, from narrower()), or a text if none did.
    std::string rule;
    errc reason = errc::denied; ///< of a deny; of an ask it is errc::denied
    std::string why;            ///< text for the qube, which does not quote the rule
    run_terms how;              ///< of an ask or allow
    bool granted = false;       ///< the rule says ask, and a grant allows it

    [[nodiscard]] bool allowed() const noexcept { return what == action::allow; }
};

/// Decides. `now_ms` is dom0's CLOCK_BOOTTIME. `collected_stdin` is the whole input of a request that an
/// operator is asked about. Until the caller has it, no grant is used for a request whose input is
/// collected.
///
/// - `exec:` and the levels below full match an argv: that of an exec request, or that of a command
///   line that is a simple_command. Such a line then runs without a shell. Any other command line runs
///   in bash, and only `level:full` or `* ask` lets it through. A script can also be allowed by its
///   digest. The digest does not hold for a command line: bash would run the same bytes, whatever
///   their `#!` names.
/// - If tags are unknown, the first rule that could match by tag denies.
/// - If the rule has no options: `ask` collects stdin and gives no tty. `allow` of level:full gives the
///   stdin and the tty that the request asks for; any other `allow` closes stdin and gives no tty. With
///   level:full the client's environment passes, otherwise nothing of it.
/// - A request for a terminal is denied if the rule does not give one. A terminal has live input that
///   no operator sees beforehand, so `ask` gives one only with `tty=yes`, and `stdin=closed` and
///   `stdin=collected` never give one. TERM and COLORTERM pass with a terminal.
/// - A service argument is a level, and can only take away: what that level does not allow is denied,
///   and with a level below full everything runs as below full. An argument that is not a level
///   denies, and so does `deny`.
///
/// The request may lack a body that follows its header. Call decide() again when it is complete. For a
/// text of which not even the digest is known, see could_allow().
[[nodiscard]] inline verdict decide(const peer &who, const envelope &what, const policy &rules,
                                    const grants &given, std::uint64_t now_ms,
                                    std::optional<std::string_view> collected_stdin = {});

/// Combines two verdicts about one request into what both allow: deny if one denies, else ask if one
/// asks, with the narrower of each term. If both rules name an account, and not the same, the result is
/// deny, since neither account is narrower. Used while the policy on disk differs from the loaded one.
[[nodiscard]] inline verdict narrower(const verdict &one, const verdict &other);

/// Decides before the text, the arguments or the tags are here: denies only if no request of the qube
/// could be allowed or asked about, and does not find every such case. After any other answer, call
/// decide() when the request is complete.
[[nodiscard]] inline verdict could_allow(const peer &who, const policy &rules);

} // namespace qvmremote

#include <qvmremote/detail/policy_decide_inl.hpp>
#include <qvmremote/detail/policy_effects_inl.hpp>
#include <qvmremote/detail/policy_lint_inl.hpp>
#include <qvmremote/detail/policy_match_inl.hpp>
#include <qvmremote/detail/policy_parse_inl.hpp>
#include <qvmremote/detail/policy_programs_inl.hpp>
