// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Part of policy::doubts() (policy.hpp): finds the lines of a level that do the same as a denied command.

#pragma once

#include <qvmremote/detail/policy_match_inl.hpp>
#include <qvmremote/detail/policy_programs_inl.hpp>
#include <qvmremote/policy.hpp>

namespace qvmremote {

namespace detail {

// Whether a program of the levels can do to a qube what the denied one does: stop it, start it,
// list its devices. qvm-restart stops and starts a qube, so it has the effect of both. A program that
// only stops or only starts a qube does not have the effect of qvm-restart.
[[nodiscard]] inline bool has_effect_of(std::string_view program,
                                        std::string_view denied) noexcept {
    static constexpr std::string_view stop[] = {"qvm-kill", "qvm-pause", "qvm-shutdown"};
    static constexpr std::string_view start[] = {"qvm-start", "qvm-unpause"};
    static constexpr std::string_view devices[] = {"qvm-block", "qvm-device", "qvm-pci", "qvm-usb"};
    const bool restarts = program == "qvm-restart";
    return program == denied ||
           (is_one_of(stop, denied) && (restarts || is_one_of(stop, program))) ||
           (is_one_of(start, denied) && (restarts || is_one_of(start, program))) ||
           (is_one_of(devices, denied) && is_one_of(devices, program));
}

// Groups of command lines that show the same, by their first words: each line of a group shows what
// a deny of another line hides.
[[nodiscard]] inline std::span<const std::span<const std::string_view>> lines_that_show() noexcept {
    static constexpr std::string_view qubes[] = {"qvm-ls",       "qvm-check", "xl list",
                                                 "xl vcpu-list", "xl domid",  "xl domname",
                                                 "xl uptime",    "xentop"};
    static constexpr std::string_view properties[] = {"qvm-prefs", "qvm-ls"};
    static constexpr std::string_view services[] = {"qvm-features", "qvm-service"};
    static constexpr std::string_view block[] = {"qvm-block", "qvm-device", "xl block-list",
                                                 "lsblk"};
    static constexpr std::string_view usb[] = {"qvm-usb", "qvm-device", "lsusb"};
    static constexpr std::string_view pci[] = {"qvm-pci", "qvm-device", "xl pci-list",
                                               "xl pci-assignable-list", "lspci"};
    static constexpr std::string_view volumes[] = {"qvm-volume", "lvs"};
    static constexpr std::string_view pools[] = {"qvm-pool", "vgs", "pvs"};
    static constexpr std::string_view running[] = {"systemctl is-active", "systemctl is-failed",
                                                   "systemctl list-units", "systemctl --failed"};
    static constexpr std::string_view enabled[] = {"systemctl is-enabled",
                                                   "systemctl list-unit-files"};
    static constexpr std::string_view uptime[] = {"uptime", "cat /proc/uptime",
                                                  "cat /proc/loadavg"};
    static constexpr std::string_view memory[] = {"free", "cat /proc/meminfo", "vmstat", "xl info"};
    static constexpr std::string_view processors[] = {"lscpu", "nproc", "cat /proc/cpuinfo"};
    static constexpr std::string_view load[] = {"vmstat", "cat /proc/stat"};
    static constexpr std::string_view kernel[] = {"uname", "cat /proc/version"};
    static constexpr std::string_view host[] = {"hostname", "uname -n", "uname -a"};
    static constexpr std::string_view user[] = {"id", "whoami"};
    static constexpr std::span<const std::string_view> all[] = {
        qubes,   properties, services, block,      usb,  pci,    volumes, pools, running,
        enabled, uptime,     memory,   processors, load, kernel, host,    user,
    };
    return all;
}

// Programs that list when they get no verb.
[[nodiscard]] inline bool lists_by_default(std::string_view program) noexcept {
    static constexpr std::string_view known[] = {"qvm-block", "qvm-device", "qvm-firewall",
                                                 "qvm-pci",   "qvm-pool",   "qvm-tags",
                                                 "qvm-usb",   "qvm-volume"};
    return is_one_of(known, program);
}

// The standard spelling of a word, since a program takes several spellings for the same thing.
[[nodiscard]] inline std::string known_as(std::string_view program, std::string word) {
    if (program == "qvm-prefs" || program == "qubes-prefs")
        std::replace(word.begin(), word.end(), '-', '_');
    else if ((program == "journalctl" || program == "systemctl") && word.ends_with(".service"))
        word.resize(word.size() - std::string_view(".service").size());
    else if (lists_by_default(program) && (word == "l" || word == "ls"))
        word = "list";
    return word;
}

// Another spelling that a program takes for the same property or unit; empty if there is none.
[[nodiscard]] inline std::string other_spelling(std::string_view program, const std::string &word) {
    std::string out = known_as(program, word);
    if (program == "journalctl" || program == "systemctl")
        return out != word ? out : word.find('.') == std::string::npos ? word + ".service" : "";
    if (program != "qvm-prefs" && program != "qubes-prefs")
        return {};
    if (out == word)
        std::replace(out.begin(), out.end(), '_', '-');
    return out != word ? out : "";
}

// Whether a word names something: a qube, a property, a verb, a unit.
[[nodiscard]] inline bool names_something(const word_pattern &word) noexcept {
    // These options choose what is shown, as a verb does.
    static constexpr std::string_view verbs[] = {"--disk-usage", "--failed", "--list-boots",
                                                 "--list-device-classes", "-k"};
    return word.what == word_pattern::kind::qube ||
           (word.what == word_pattern::kind::literal &&
            (!word.text.starts_with('-') || is_one_of(verbs, word.text)));
}

// Whether some argv matches both patterns. It misses two {qube:GLOB} that overlap without one covering
// the other; the levels hold only {qube:*}, which covers all.
[[nodiscard]] inline bool overlap(std::span<const word_pattern> one,
                                  std::span<const word_pattern> other) {
    for (std::size_t i = 0; i < one.size() && i < other.size(); ++i) {
        if (one[i].what == word_pattern::kind::rest || other[i].what == word_pattern::kind::rest)
            return true;
        if (!takes_all_of(one[i], other[i]) && !takes_all_of(other[i], one[i]))
            return false;
    }
    const auto is_open = [](std::span<const word_pattern> longer, std::size_t size) {
        return longer.size() == size + 1 && longer.back().what == word_pattern::kind::rest;
    };
    return one.size() == other.size() || is_open(one, other.size()) || is_open(other, one.size());
}

// Translates a denied command of xl into the tool of Qubes that does the same; returns any other
// command unchanged.
[[nodiscard]] inline argv_pattern as_tool_of_qubes(argv_pattern denied) {
    static constexpr std::pair<std::string_view, std::string_view> verbs[] = {
        {"destroy", "qvm-kill"}, {"pause", "qvm-pause"},       {"reboot", "qvm-restart"},
        {"create", "qvm-start"}, {"shutdown", "qvm-shutdown"}, {"unpause", "qvm-unpause"},
    };
    if (denied[0].text != "xl" || denied.size() < 2)
        return denied;
    for (const auto &[verb, program] : verbs)
        if (denied[1] == word_pattern{word_pattern::kind::literal, std::string(verb)}) {
            denied.erase(denied.begin());
            denied[0].text = program;
            break;
        }
    return denied;
}

// Finds the lines of a level that have the effect of a denied pattern. If the denied command only
// shows something, a line that shows the same and more counts too.
class same_effect {
  public:
    same_effect(const argv_pattern &denied, const level_rules &levels)
        : denied_(as_tool_of_qubes(denied)) {
        for (argv_pattern &line : levels.lines(access_level::monitor))
            if (overlap(line, denied_))
                shown_.push_back(std::move(line));
    }

    // The patterns, within a line of a level, that have the same effect on the same qube or thing, one
    // for each spelling of the thing; empty if the line has another effect. An option does not change
    // the effect, except those that choose what is shown (names_something).
    [[nodiscard]] std::vector<argv_pattern> of(const argv_pattern &line) const {
        std::vector<argv_pattern> out;
        if (auto same = by_program(line)) {
            add_spellings(line, *same, out);
            out.push_back(std::move(*same));
        } else if (auto shows = by_what_it_shows(line)) {
            out.push_back(std::move(*shows));
        }
        return out;
    }

  private:
    using kind = word_pattern::kind;

    [[nodiscard]] static bool is_default_verb(std::string_view program, const word_pattern &word) {
        return word.what == kind::literal && lists_by_default(program) &&
               known_as(program, word.text) == "list";
    }

    // A thing is what a literal word names, except the verb `list` where a program lists by default.
    [[nodiscard]] static bool is_thing(std::string_view program, const word_pattern &word) {
        return word.what == kind::literal && names_something(word) &&
               !is_default_verb(program, word);
    }

    [[nodiscard]] bool is_denied_thing(const std::string &thing) const {
        return std::any_of(denied_.begin() + 1, denied_.end(), [&](const word_pattern &word) {
            return is_thing(denied_[0].text, word) && known_as(denied_[0].text, word.text) == thing;
        });
    }

    // The part of the line that has the denied effect, if the line's program can have it.
    [[nodiscard]] std::optional<argv_pattern> by_program(argv_pattern line) const {
        const std::string &program = denied_[0].text;
        if (!has_effect_of(line[0].text, program))
            return std::nullopt;
        const auto names_a_thing = [&](const word_pattern &word) {
            return is_thing(program, word);
        };
        // A line about another thing has another effect.
        if (std::any_of(denied_.begin() + 1, denied_.end(), names_a_thing) &&
            line[0] == denied_[0] &&
            std::any_of(line.begin() + 1, line.end(), [&](const word_pattern &word) {
                return is_thing(program, word) && !is_denied_thing(known_as(program, word.text));
            }))
            return std::nullopt;
        for (std::size_t i = 1; i < denied_.size(); ++i)
            if (names_something(denied_[i]) && !is_default_verb(program, denied_[i]) &&
                !narrow(line, i))
                return std::nullopt;
        return line;
    }

    // Finds the denied word's place in the line, and puts the word there if it is the narrower one.
    // Returns false if the line can neither name the denied word nor show it along with others.
    [[nodiscard]] bool narrow(argv_pattern &line, std::size_t index) const {
        const std::string &program = denied_[0].text;
        const word_pattern &wanted = denied_[index];
        // A word after such an option is its value, so it must follow the same option.
        static constexpr std::string_view with_value[] = {"-i",      "-n",        "-u",
                                                          "--since", "--timeout", "--whatprovides"};
        const bool is_value = denied_[index - 1].what == kind::literal &&
                              is_one_of(with_value, denied_[index - 1].text) &&
                              wanted.what == kind::literal && !wanted.text.starts_with('-');
        const auto at = std::find_if(line.begin() + 1, line.end(), [&](const word_pattern &word) {
            if (word.what == kind::rest)
                return true;
            const bool is_same = word.what == kind::literal && wanted.what == kind::literal &&
                                 known_as(program, word.text) == known_as(program, wanted.text);
            return (is_same || takes_all_of(word, wanted) || takes_all_of(wanted, word)) &&
                   (!is_value || *(&word - 1) == denied_[index - 1]);
        });
        if (at == line.end())
            return !shown_.empty() && line[0] == denied_[0];
        if (at->what != kind::rest && takes_all_of(*at, wanted))
            *at = wanted;
        return true;
    }

    // Adds the pattern with each other spelling of a word that narrow() put into the line.
    static void add_spellings(const argv_pattern &line, const argv_pattern &same,
                              std::vector<argv_pattern> &out) {
        for (std::size_t i = 1; i < line.size(); ++i) {
            if (line[i].what != kind::name || same[i].what != kind::literal)
                continue;
            const std::string other = other_spelling(line[0].text, same[i].text);
            if (other.empty())
                continue;
            out.push_back(same);
            out.back()[i].text = other;
        }
    }

    // Whether a pattern begins with `words` or, with `may`, could match an argv that does.
    [[nodiscard]] static bool begins(const argv_pattern &pattern, std::string_view words,
                                     bool may) {
        for (std::size_t i = 0; !words.empty(); ++i) {
            const std::string word(words.substr(0, words.find(' ')));
            words.remove_prefix(std::min(word.size() + 1, words.size()));
            if (i == pattern.size())
                return false;
            if (may && pattern[i].what == kind::rest)
                return true;
            if (may ? !word_matches(pattern[i], word)
                    : pattern[i].what != kind::literal || pattern[i].text != word)
                return false;
        }
        return true;
    }

    // The word of the denied pattern that stands for a qube; nullptr if there is none.
    [[nodiscard]] const word_pattern *denied_qube() const {
        for (std::size_t i = 1; i < denied_.size(); ++i)
            for (const argv_pattern &line : shown_)
                if (denied_[i].what == kind::qube ||
                    (denied_[i].what == kind::literal && i < line.size() &&
                     line[i].what == kind::qube))
                    return &denied_[i];
        return nullptr;
    }

    // The line, for the denied qube only, if it shows what the denied command shows.
    [[nodiscard]] std::optional<argv_pattern> by_what_it_shows(argv_pattern line) const {
        const auto groups = lines_that_show();
        const auto holds_both = [&](std::span<const std::string_view> group) {
            return std::any_of(group.begin(), group.end(),
                               [&](std::string_view w) { return begins(denied_, w, true); }) &&
                   std::any_of(group.begin(), group.end(),
                               [&](std::string_view w) { return begins(line, w, false); });
        };
        if (shown_.empty() || std::none_of(groups.begin(), groups.end(), holds_both))
            return std::nullopt;
        const word_pattern *qube = denied_qube();
        for (word_pattern &word : line) {
            if (qube && word == word_pattern{kind::literal, "dom0"})
                return std::nullopt;
            if (qube && word.what == kind::qube && takes_all_of(word, *qube))
                word = *qube;
        }
        return line;
    }

    argv_pattern denied_;
    // The lines of monitor that overlap the denied pattern; if there are none, it does not only show.
    std::vector<argv_pattern> shown_;
};

} // namespace detail

} // namespace qvmremote
