// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of policy.hpp: parses rules and writes them as text.

#pragma once

#include <qvmremote/detail/policy_match_inl.hpp>
#include <qvmremote/detail/policy_programs_inl.hpp>
#include <qvmremote/policy.hpp>

namespace qvmremote {

namespace detail {

struct policy_word {
    std::string_view text;
    std::uint32_t column; // from 1
};

// Reads one file and collects its problems.
class policy_reader {
  public:
    policy_reader(std::string file, std::vector<policy_problem> &problems)
        : file_(std::move(file)), problems_(problems) {}

    // Calls `take` with the words of each line that is not empty.
    template <class Take>
    void lines(std::string_view text, Take &&take) {
        if (text.size() > limits::policy_file)
            return wrong(1, "the file is larger than " + std::to_string(limits::policy_file) +
                                " bytes");
        line_ = 0;
        while (!text.empty() && problems_.size() < limits::policy_problems) {
            ++line_;
            const std::size_t end = std::min(text.find('\n'), text.size());
            const std::string_view line = text.substr(0, end);
            text.remove_prefix(std::min(end + 1, text.size()));
            std::vector<policy_word> words;
            if (split(line, words) && !words.empty())
                take(words);
        }
    }

    void wrong(std::uint32_t column, std::string what) {
        problems_.push_back({file_, line_, column, std::move(what)});
    }
    void wrong(const policy_word &at, std::string what) { wrong(at.column, std::move(what)); }

    [[nodiscard]] std::uint32_t line() const noexcept { return line_; }
    [[nodiscard]] const std::string &file() const noexcept { return file_; }

    [[nodiscard]] bool read_argv(std::span<const policy_word> words, argv_pattern &out);
    [[nodiscard]] bool read_rule(std::span<const policy_word> words, policy_rule &out);

  private:
    [[nodiscard]] bool split(std::string_view line, std::vector<policy_word> &out);
    [[nodiscard]] bool read_who(const policy_word &word, qube_selector &out);
    [[nodiscard]] bool read_word(const policy_word &word, bool is_last, word_pattern &out);
    [[nodiscard]] bool read_request(std::span<const policy_word> words, request_pattern &out);
    [[nodiscard]] bool read_option(const policy_word &word, policy_rule &out);

    std::string file_;
    std::vector<policy_problem> &problems_;
    std::uint32_t line_ = 1;
};

// A word of the file, for a message. It is printable ASCII already; a long one is cut.
[[nodiscard]] inline std::string shown(std::string_view word) {
    constexpr std::size_t most = 64;
    return "'" + std::string(word.substr(0, most)) + (word.size() > most ? "...'" : "'");
}

[[nodiscard]] constexpr bool is_action(std::string_view word) noexcept {
    return word == "allow" || word == "ask" || word == "deny";
}

inline bool policy_reader::split(std::string_view line, std::vector<policy_word> &out) {
    if (line.size() > limits::policy_line) {
        wrong(1, "the line is longer than " + std::to_string(limits::policy_line) + " bytes");
        return false;
    }
    for (std::size_t at = skip_blanks(line, 0); at < line.size(); at = skip_blanks(line, at)) {
        if (line[at] == '#') {
            for (; at < line.size(); ++at)
                if (is_control(line[at]) && line[at] != '\t') {
                    wrong(static_cast<std::uint32_t>(at + 1), "a control character in a comment");
                    return false;
                }
            break;
        }
        const std::size_t begin = at;
        for (; at < line.size() && !is_blank(line[at]); ++at) {
            const auto byte = static_cast<std::uint8_t>(line[at]);
            if (byte > 0x20 && byte < 0x7f)
                continue;
            wrong(
                static_cast<std::uint32_t>(at + 1),
                "byte 0x" + to_hex({&byte, 1}) +
                    (byte == '\r' ? ": lines end in a newline alone" : " is not printable ASCII"));
            return false;
        }
        out.push_back({line.substr(begin, at - begin), static_cast<std::uint32_t>(begin + 1)});
    }
    return true;
}

[[nodiscard]] inline bool is_account(std::string_view text) {
    return !text.empty() && text.size() <= 32 && (is_alpha(text[0]) || text[0] == '_') &&
           std::all_of(text.begin(), text.end(),
                       [](char c) { return is_alnum(c) || c == '_' || c == '-'; });
}
[[nodiscard]] inline bool is_variable(std::string_view text) {
    return !text.empty() && text.size() <= 64 && !is_digit(text[0]) &&
           std::all_of(text.begin(), text.end(), [](char c) { return is_alnum(c) || c == '_'; });
}

inline bool policy_reader::read_who(const policy_word &word, qube_selector &out) {
    using kind = qube_selector::kind;
    if (word.text == "@anyvm") {
        out = {kind::any, {}};
        return true;
    }
    if (word.text.starts_with("@tag:")) {
        const std::string_view tag = word.text.substr(5);
        if (tag.empty() || tag.size() > limits::qube_tag ||
            !std::all_of(tag.begin(), tag.end(),
                         [](char c) { return is_alnum(c) || c == '_' || c == '-' || c == '.'; })) {
            wrong(word.column + 5, "a tag is letters, digits, '_', '-' and '.', " +
                                       std::to_string(limits::qube_tag) + " at most");
            return false;
        }
        out = {kind::tag, std::string(tag)};
        return true;
    }
    if (word.text.starts_with('@')) {
        wrong(word, shown(word.text) + " is not a qube's name, @tag:TAG or @anyvm");
        return false;
    }
    const auto qube = qube_name::parse(word.text);
    if (!qube) {
        wrong(word.column + qube.error().offset, shown(word.text) + " is " +
                                                     std::string(message(qube.error().code)) +
                                                     ", @tag:TAG or @anyvm");
        return false;
    }
    out = {kind::name, qube->text()};
    return true;
}

inline bool policy_reader::read_word(const policy_word &word, bool is_last, word_pattern &out) {
    using kind = word_pattern::kind;
    if (word.text == "*") {
        out = {kind::word, {}};
        return true;
    }
    if (word.text == "**") {
        if (!is_last)
            wrong(word, "** stands for all words that follow, so it must be the last word");
        out = {kind::rest, {}};
        return is_last;
    }
    if (word.text == "{number}" || word.text == "{name}") {
        out = {word.text == "{number}" ? kind::number : kind::name, {}};
        return true;
    }
    if (word.text.starts_with("{qube:") && word.text.ends_with('}')) {
        const std::string_view glob = word.text.substr(6, word.text.size() - 7);
        const auto bad = std::find_if(glob.begin(), glob.end(), [](char c) {
            return !is_alnum(c) && c != '_' && c != '-' && c != '*';
        });
        if (glob.empty() || bad != glob.end() || glob.size() > 2 * limits::qube_name) {
            wrong(word.column + 6, "a pattern for qubes is letters, digits, '_', '-' and '*', " +
                                       std::to_string(2 * limits::qube_name) + " at most");
            return false;
        }
        out = {kind::qube, std::string(glob)};
        return true;
    }
    const auto bad =
        std::find_if(word.text.begin(), word.text.end(), [](char c) { return !is_plain(c); });
    if (bad != word.text.end()) {
        const auto at = static_cast<std::uint32_t>(bad - word.text.begin());
        wrong(
            word.column + at,
            *bad == '*'
                ? "* stands alone, as a whole word; inside a word it is allowed only in {qube:GLOB}"
                : shown({&*bad, 1}) +
                      " is not allowed in a word: words are of "
                      "[A-Za-z0-9_@%+:,./=-], *, **, {qube:GLOB}, {number} or {name}");
        return false;
    }
    out = {kind::literal, std::string(word.text)};
    return true;
}

// The words of an exec pattern; the first one still begins with `exec:`.
inline bool policy_reader::read_argv(std::span<const policy_word> words, argv_pattern &out) {
    const std::string_view program = words[0].text.substr(5);
    const std::uint32_t column = words[0].column + 5;
    const bool good = !program.empty() && program[0] != '-' && program[0] != '.' &&
                      std::all_of(program.begin(), program.end(), [](char c) {
                          return is_alnum(c) || c == '_' || c == '-' || c == '.' || c == '+';
                      });
    if (!good) {
        wrong(column,
              program.empty() ? "a program's name follows exec: without a blank"
              : program.find('/') != std::string_view::npos
                  ? "a program is named without its directory: it is found in a fixed PATH"
                  : shown(program) +
                        " is not a program's name: use letters, digits, '_', '-', '.' and '+'");
        return false;
    }
    if (words.size() > limits::arguments) {
        wrong(words[limits::arguments], "the pattern has too many words");
        return false;
    }
    out.push_back({word_pattern::kind::literal, std::string(program)});
    for (std::size_t i = 1; i < words.size(); ++i) {
        word_pattern word;
        if (!read_word(words[i], i + 1 == words.size(), word))
            return false;
        out.push_back(std::move(word));
    }
    return true;
}

inline bool policy_reader::read_request(std::span<const policy_word> words, request_pattern &out) {
    using kind = request_pattern::kind;
    const policy_word &first = words[0];
    if (first.text.starts_with("exec:")) {
        out.what = kind::exec;
        return read_argv(words, out.words);
    }
    constexpr std::string_view script = "script:sha256:";
    if (first.text == "*") {
        out.what = kind::any;
    } else if (first.text.starts_with("level:")) {
        const auto level = parse_level(first.text.substr(6));
        if (!level || *level == access_level::deny) {
            wrong(first.column + 6, shown(first.text.substr(6)) +
                                        " is not a level: use monitor, read-only, manage or full");
            return false;
        }
        out.what = kind::level;
        out.level = *level;
    } else if (first.text.starts_with(script)) {
        const std::string_view digits = first.text.substr(script.size());
        for (std::size_t i = 0; i < digits.size(); ++i)
            if (i == 2 * out.digest.size() || hex_value(digits[i]) < 0 ||
                (digits[i] >= 'A' && digits[i] <= 'F')) {
                wrong(first.column + static_cast<std::uint32_t>(script.size() + i),
                      "a digest is 64 digits of 0-9 and a-f, as sha256sum prints them");
                return false;
            }
        const auto digest = from_hex(digits);
        if (!digest || digest->size() != out.digest.size()) {
            wrong(first, "a digest is 64 digits of 0-9 and a-f, as sha256sum prints them");
            return false;
        }
        std::copy(digest->begin(), digest->end(), out.digest.begin());
        out.what = kind::script;
    } else {
        wrong(first, shown(first.text) +
                         " is not a request: use level:LEVEL, exec:PROGRAM WORD..., "
                         "script:sha256:DIGEST or *");
        return false;
    }
    if (words.size() > 1) {
        wrong(words[1], shown(words[1].text) + " is not allow, ask or deny");
        return false;
    }
    return true;
}

inline bool policy_reader::read_option(const policy_word &word, policy_rule &out) {
    const std::size_t equals = word.text.find('=');
    const std::string_view key = word.text.substr(0, equals);
    const std::string_view value = word.text.substr(equals + 1);
    rule_options &o = out.options;
    const auto bad = [&](std::string_view form) {
        wrong(word.column + static_cast<std::uint32_t>(equals) + 1,
              std::string(key) + "= takes " + std::string(form));
        return false;
    };
    const auto once = [&](auto &field, auto parsed, std::string_view form) {
        if (field) {
            wrong(word, std::string(key) + "= is given twice");
            return false;
        }
        if (!parsed)
            return bad(form);
        field = std::move(*parsed);
        return true;
    };
    constexpr std::string_view duration = "seconds, or a number with s, m, h or d; a year at most";
    constexpr std::string_view size = "bytes up to 2147483647, or a number with K, M or G";
    constexpr std::string_view count = "a number from 1 to 1000000";
    if (key == "ttl")
        return once(o.ttl_s, parse_duration(value), duration);
    if (key == "timeout")
        return once(o.timeout_s, parse_duration(value), duration);
    if (key == "memory")
        return once(o.memory, parse_size(value), size);
    if (key == "output")
        return once(o.output, parse_size(value), size);
    if (key == "pids")
        return once(o.pids, parse_count(value), count);
    if (key == "cpu")
        return once(o.cpu,
                    value.ends_with('%') ? parse_count(value.substr(0, value.size() - 1))
                                         : std::nullopt,
                    "a percentage of one processor, like 50%");
    if (key == "user")
        return once(o.user, is_account(value) ? std::optional(std::string(value)) : std::nullopt,
                    "the name of an account");
    if (key == "tty")
        return once(o.tty,
                    value == "yes"  ? std::optional(true)
                    : value == "no" ? std::optional(false)
                                    : std::nullopt,
                    "yes or no");
    if (key == "stdin")
        return once(o.input,
                    value == "closed"      ? std::optional(stdin_mode::closed)
                    : value == "collected" ? std::optional(stdin_mode::collected)
                    : value == "live"      ? std::optional(stdin_mode::live)
                                           : std::nullopt,
                    "closed, collected or live");
    if (key == "env" || key == "env!") {
        if (!is_variable(value))
            return bad("the name of one variable");
        if (std::any_of(o.environment.begin(), o.environment.end(),
                        [&](const passed_variable &v) { return v.name == value; })) {
            wrong(word, "env=" + std::string(value) + " is given twice");
            return false;
        }
        o.environment.push_back({std::string(value), key == "env!"});
        return true;
    }
    wrong(word, shown(key) +
                    " is not an option: use ttl, timeout, user, stdin, tty, env, memory, pids, "
                    "cpu or output");
    return false;
}

inline bool policy_reader::read_rule(std::span<const policy_word> words, policy_rule &out) {
    out.file = file_;
    out.line = line_;
    if (!read_who(words[0], out.who))
        return false;
    // Read the line from its end, first the options and then the action, because an exec pattern
    // may hold any word.
    std::size_t action = words.size() - 1;
    while (action > 1 && !is_action(words[action].text) &&
           words[action].text.find('=') != std::string_view::npos)
        --action;
    if (action < 2 || !is_action(words[action].text)) {
        const policy_word &last = words.back();
        wrong(action < 2 ? last.column + static_cast<std::uint32_t>(last.text.size())
                         : words[action].column,
              action < 2 ? "a rule is QUBE REQUEST ACTION; the action is allow, ask or deny"
                         : shown(words[action].text) + " is not allow, ask or deny, nor an option "
                                                       "(KEY=VALUE) that follows one of them");
        return false;
    }
    if (!read_request(words.subspan(1, action - 1), out.request))
        return false;
    const std::string_view word = words[action].text;
    out.action = word == "allow" ? policy_action::allow
                 : word == "ask" ? policy_action::ask
                                 : policy_action::deny;
    if (out.request.what == request_pattern::kind::any && out.action == policy_action::allow) {
        wrong(words[1], "* cannot be allowed: for everything, write level:full");
        return false;
    }
    for (const policy_word &option : words.subspan(action + 1)) {
        if (out.action == policy_action::deny) {
            wrong(option, "deny takes no options");
            return false;
        }
        if (!read_option(option, out))
            return false;
        const bool asks = out.action == policy_action::ask;
        if (!asks && (out.options.ttl_s || out.options.input == stdin_mode::collected)) {
            wrong(option, shown(option.text) + " goes with ask alone");
            return false;
        }
    }
    return true;
}

[[nodiscard]] inline std::string shown_size(std::uint64_t bytes) {
    std::size_t unit = 0;
    for (; unit < 3 && bytes % 1024 == 0; ++unit)
        bytes /= 1024;
    return std::to_string(bytes) + std::string("KMG").substr(unit - (unit > 0), unit > 0);
}

[[nodiscard]] inline std::string text_of(const request_pattern &request) {
    using kind = request_pattern::kind;
    switch (request.what) {
    case kind::any:
        return "*";
    case kind::level:
        return "level:" + std::string(name(request.level));
    case kind::script:
        return "script:sha256:" + to_hex(request.digest);
    case kind::exec:
        break;
    }
    std::string out;
    for (const word_pattern &word : request.words) {
        out += out.empty() ? "exec:" : " ";
        switch (word.what) {
        case word_pattern::kind::literal:
            out += word.text;
            break;
        case word_pattern::kind::word:
            out += "*";
            break;
        case word_pattern::kind::qube:
            out += "{qube:" + word.text + "}";
            break;
        case word_pattern::kind::number:
            out += "{number}";
            break;
        case word_pattern::kind::name:
            out += "{name}";
            break;
        case word_pattern::kind::rest:
            out += "**";
            break;
        }
    }
    return out;
}

} // namespace detail

inline std::string policy_rule::text() const {
    using kind = qube_selector::kind;
    std::string out = who.what == kind::any   ? "@anyvm"
                      : who.what == kind::tag ? "@tag:" + who.text
                                              : who.text;
    out += " " + detail::text_of(request) + " " + std::string(name(action));
    const auto add = [&](std::string_view key, const std::string &value) {
        (out += " ").append(key).append("=").append(value);
    };
    if (options.ttl_s)
        add("ttl", std::to_string(*options.ttl_s));
    if (options.timeout_s)
        add("timeout", std::to_string(*options.timeout_s));
    if (options.user)
        add("user", *options.user);
    if (options.input)
        add("stdin", *options.input == stdin_mode::live        ? "live"
                     : *options.input == stdin_mode::collected ? "collected"
                                                               : "closed");
    if (options.tty)
        add("tty", *options.tty ? "yes" : "no");
    for (const passed_variable &variable : options.environment)
        add(variable.whatever_it_is ? "env!" : "env", variable.name);
    if (options.memory)
        add("memory", detail::shown_size(*options.memory));
    if (options.pids)
        add("pids", std::to_string(*options.pids));
    if (options.cpu)
        add("cpu", std::to_string(*options.cpu) + "%");
    if (options.output)
        add("output", detail::shown_size(*options.output));
    return out;
}

inline tl::expected<level_rules, std::vector<policy_problem>>
level_rules::parse(std::string_view monitor, std::string_view manage) {
    level_rules out;
    std::vector<policy_problem> problems;
    const auto read = [&](const char *file, std::string_view text, patterns &to) {
        detail::policy_reader reader(file, problems);
        reader.lines(text, [&](std::span<const detail::policy_word> words) {
            argv_pattern pattern;
            if (!words[0].text.starts_with("exec:"))
                return reader.wrong(words[0], "a line here is exec:PROGRAM WORD...");
            if (reader.read_argv(words, pattern)) {
                auto &of_program = to[pattern[0].text];
                of_program.push_back(std::move(pattern));
            }
        });
    };
    read("monitor.rules", monitor, out.monitor_);
    read("manage.rules", manage, out.manage_);
    if (!problems.empty())
        return tl::unexpected(std::move(problems));
    return out;
}

inline bool level_rules::allow(access_level level, std::span<const std::string> argv) const {
    if (argv.empty())
        return false;
    const auto held = [&](const patterns &in) {
        const auto at = in.find(argv[0]);
        return at != in.end() &&
               std::any_of(at->second.begin(), at->second.end(),
                           [&](const argv_pattern &pattern) { return matches(pattern, argv); });
    };
    return (level >= access_level::monitor && held(monitor_)) ||
           (level >= access_level::manage && held(manage_));
}

inline std::vector<argv_pattern> level_rules::lines(access_level level) const {
    std::vector<argv_pattern> out;
    for (const patterns *list : {&monitor_, &manage_})
        if (level >= (list == &monitor_ ? access_level::monitor : access_level::manage))
            for (const auto &[program, of_program] : *list)
                out.insert(out.end(), of_program.begin(), of_program.end());
    return out;
}

inline tl::expected<policy, std::vector<policy_problem>>
policy::parse(std::vector<policy_file> files, level_rules levels) {
    std::sort(files.begin(), files.end(),
              [](const policy_file &a, const policy_file &b) { return a.name < b.name; });
    policy out;
    out.levels_ = std::move(levels);
    std::vector<policy_problem> problems;
    for (const policy_file &file : files) {
        detail::policy_reader reader(file.name, problems);
        reader.lines(file.text, [&](std::span<const detail::policy_word> words) {
            policy_rule rule;
            if (problems.size() < limits::policy_problems && reader.read_rule(words, rule))
                out.rules_.push_back(std::move(rule));
        });
        if (out.rules_.size() > limits::policy_rules && problems.empty())
            reader.wrong(1,
                         "there are more than " + std::to_string(limits::policy_rules) + " rules");
    }
    if (!problems.empty())
        return tl::unexpected(std::move(problems));
    return out;
}

inline bool policy::uses_tags() const noexcept {
    return std::any_of(rules_.begin(), rules_.end(), [](const policy_rule &rule) {
        return rule.who.what == qube_selector::kind::tag;
    });
}

} // namespace qvmremote
