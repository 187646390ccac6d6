// SPDX-License-Identifier: GPL-2.0-or-later
// Checks that a descriptor of qrexec that parses gives the same result when it is written again,
// that its name and argument hold only allowed bytes, and that no descriptor parses with another
// byte before or after it, unless that byte may be part of a word.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "../../plugins/qrexec/descriptor.hpp"
#include "target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    const std::string_view text(reinterpret_cast<const char *>(data), size);
    const auto got = qrexec::parse_descriptor(text);
    if (!got)
        return 0;
    require(text.size() <= qrexec::longest_descriptor);
    require(!got->source.empty() && got->source.size() <= qrexec::longest_source);
    require(got->argument.size() <= qrexec::longest_argument);
    for (const std::string &part : {got->source, got->argument})
        require(std::all_of(part.begin(), part.end(), [](char c) {
            return qvmremote::is_alnum(c) ||
                   std::string_view("_.+-").find(c) != std::string_view::npos;
        }));
    require(qvmremote::is_alpha(got->source[0]));
    // The qube chose the argument and the target. Its name is between them, once.
    const std::string again = "qvmremote.Exec+" + got->argument + " " + got->source;
    require(qrexec::parse_descriptor(again) == got);
    require(text.find(" " + got->source) != std::string_view::npos);
    for (const char c : {' ', '\0', '\n', '/'}) {
        require(!qrexec::parse_descriptor(std::string(text) + c));
        require(!qrexec::parse_descriptor(c + std::string(text)));
    }
    return 0;
}
