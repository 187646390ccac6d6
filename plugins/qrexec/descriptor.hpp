// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Parses the first bytes that qrexec writes to the socket of a service: the service, its argument, and
/// the calling qube.
///
/// In dom0 it is `qvmremote.Exec+ARG SOURCE name|keyword TARGET` and a NUL; in other places without the
/// last two words. qrexec vouches for all of it except ARG and TARGET. The calling qube chooses those,
/// from the characters that qrexec allows.

#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include <qvmremote/bytes.hpp>
#include <qvmremote/transport_abi.h>

namespace qrexec {

inline constexpr std::string_view service_name = "qvmremote.Exec";
inline constexpr std::size_t longest_source = sizeof(qvmremote_stream::peer) - 1;
inline constexpr std::size_t longest_argument = sizeof(qvmremote_stream::argument) - 1;
inline constexpr std::size_t longest_target = 127;
/// The size of the longest one, without its NUL.
inline constexpr std::size_t longest_descriptor = service_name.size() + 1 + longest_argument + 1 +
                                                  longest_source + sizeof " keyword " - 1 +
                                                  longest_target;

struct descriptor {
    std::string source;   ///< a letter, then letters, digits, '_', '-', '.'
    std::string argument; ///< of letters, digits, '_', '.', '+', '-'; often empty

    friend bool operator==(const descriptor &, const descriptor &) = default;
};

/// Parses a complete descriptor, without its NUL and with nothing after it. Nothing when it is for
/// another service, or when any part does not have the form above.
[[nodiscard]] inline std::optional<descriptor> parse_descriptor(std::string_view untrusted) {
    using qvmremote::is_alnum;
    using qvmremote::is_alpha;
    const auto is_of = [](std::string_view text, std::size_t most, std::string_view also_allowed) {
        return text.size() <= most && std::all_of(text.begin(), text.end(), [&](char c) {
                   return is_alnum(c) || also_allowed.find(c) != std::string_view::npos;
               });
    };
    // The words, each separated by one blank; none is empty.
    std::string_view words[4];
    std::size_t count = 0;
    for (std::string_view left = untrusted; count < 4; ++count) {
        const std::size_t end = left.find(' ');
        words[count] = left.substr(0, end);
        if (words[count].empty())
            return std::nullopt;
        if (end == std::string_view::npos) {
            ++count;
            break;
        }
        if (count == 3)
            return std::nullopt;
        left.remove_prefix(end + 1);
        if (left.empty())
            return std::nullopt;
    }
    if (count != 2 && count != 4)
        return std::nullopt;

    std::string_view argument = words[0];
    if (!argument.starts_with(service_name))
        return std::nullopt;
    argument.remove_prefix(service_name.size());
    if (!argument.empty() && argument[0] != '+')
        return std::nullopt;
    argument.remove_prefix(std::min<std::size_t>(argument.size(), 1));
    if (!is_of(argument, longest_argument, "_.+-"))
        return std::nullopt;

    const std::string_view source = words[1];
    if (!is_alpha(source[0]) || !is_of(source, longest_source, "_.-"))
        return std::nullopt;

    if (count == 4 && ((words[2] != "name" && words[2] != "keyword") ||
                       !is_of(words[3], longest_target, "_.-@:$")))
        return std::nullopt;
    return descriptor{std::string(source), std::string(argument)};
}

} // namespace qrexec
