// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of policy.hpp: which lines of a level do the same as a denied one.

#pragma once

#include <qvmremote/detail/policy_match_inl.hpp>
#include <qvmremote/detail/policy_programs_inl.hpp>
#include <qvmremote/policy.hpp>

namespace qvmremote {

namespace detail {

// Whether a program of the levels can do to a qube what the denied one does: stop it, start it, list
// its devices. A restart does the first two; a deny of restart denies neither of them alone.
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

// Whether a word names something: a qube, a property, a verb, a unit.
[[nodiscard]] inline bool names_something(const word_pattern &word) noexcept {
    return word.what == word_pattern::kind::qube ||
           (word.what == word_pattern::kind::literal && !word.text.starts_with('-'));
}

// The part of a level's line that has the same effect as `denied` on the same qube or thing; nothing
// when there is none. Options are ignored: the effect is the same with or without them.
[[nodiscard]] inline std::optional<argv_pattern> same_effect(argv_pattern line,
                                                             const argv_pattern &denied) {
    using kind = word_pattern::kind;
    if (!has_effect_of(line[0].text, denied[0].text))
        return std::nullopt;
    // A line about another thing has another effect.
    const auto is_a_thing = [](const word_pattern &word) {
        return word.what == kind::literal && names_something(word);
    };
    if (std::any_of(denied.begin() + 1, denied.end(), is_a_thing) && line[0] == denied[0] &&
        std::any_of(line.begin() + 1, line.end(), [&](const word_pattern &word) {
            return is_a_thing(word) &&
                   std::find(denied.begin(), denied.end(), word) == denied.end();
        }))
        return std::nullopt;
    for (std::size_t i = 1; i < denied.size(); ++i) {
        const word_pattern &wanted = denied[i];
        if (!names_something(wanted))
            continue;
        // The value of an option stands after the same option.
        const bool is_value = denied[i - 1].what == kind::literal &&
                              denied[i - 1].text.starts_with('-') && wanted.what == kind::literal;
        const auto at = std::find_if(line.begin() + 1, line.end(), [&](const word_pattern &w) {
            return (w.what == kind::rest || takes_all_of(w, wanted) || takes_all_of(wanted, w)) &&
                   (!is_value || *(&w - 1) == denied[i - 1]);
        });
        if (at == line.end())
            return std::nullopt;
        if (at->what != kind::rest && takes_all_of(*at, wanted))
            *at = wanted;
    }
    return line;
}

} // namespace detail

} // namespace qvmremote
