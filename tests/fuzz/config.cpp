// SPDX-License-Identifier: GPL-2.0-or-later
// Checks that a configuration that is written again from its entries parses to the same entries,
// and that setting a value changes no other entry. The place of an error is in the text.
// parse_positive agrees with the C library on every text that it accepts.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include <qvmremote/config.hpp>

#include "target.hpp"

using namespace qvmremote;

namespace {

void check_number(std::string_view text) {
    const auto number = parse_positive(text);
    if (!number) {
        require(number.error().offset <= text.size());
        return;
    }
    require(*number > 0 && *number < 1u << 31 && std::to_string(*number) == text);
    require(std::strtoul(std::string(text).c_str(), nullptr, 0) == *number);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    const std::string_view text(reinterpret_cast<const char *>(data), size);
    check_number(text);

    const auto parsed = config::parse(text);
    if (!parsed) {
        require(parsed.error().offset <= size);
        require(config::line_of(text, parsed.error().offset) >= 1);
        return 0;
    }
    std::string rebuilt;
    for (const auto &[key, value] : parsed->entries()) {
        check_number(value);
        for (const std::string_view word : split_words(value)) {
            require(!word.empty());
            static_cast<void>(choose_for(value, word));
        }
        rebuilt = with_value(rebuilt, key, value);

        constexpr std::string_view other_value = "a 'b' \"$\\` #";
        const std::string other_text = with_value(text, key, other_value);
        if (other_text.size() > limits::config_file)
            return 0;
        const auto changed = config::parse(other_text);
        require(changed && changed->get(key) == other_value);
        require(changed->entries().size() == parsed->entries().size());
        for (const auto &other : parsed->entries())
            require(other.first == key || changed->get(other.first) == parsed->get(other.first));
    }
    if (rebuilt.size() <= limits::config_file) {
        const auto again = config::parse(rebuilt);
        require(again && again->entries() == parsed->entries());
    }
    require(listed_qubes(*parsed).size() <= size);
    return 0;
}
