// SPDX-License-Identifier: GPL-2.0-or-later
// Checks that a record of any bytes becomes one line that parses and follows from the line before
// it, and that the verifier finds a change of any of its bytes. A line that parses holds no control
// byte.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include <qvmremote/audit.hpp>

#include "target.hpp"

using namespace qvmremote;

namespace {

void check_text(std::string_view line) {
    const auto entry = parse_audit(line);
    if (!entry) {
        require(entry.error().offset <= line.size());
        return;
    }
    require(std::none_of(line.begin(), line.end(), detail::is_control));
    for (const auto &[key, raw] : entry->fields()) {
        const int types = entry->text(key).has_value() + entry->number(key).has_value() +
                          entry->list(key).has_value();
        require(types == 1);
        // A text has only one spelling, except for bytes that were not UTF-8.
        const auto text = entry->text(key);
        if (text && raw.find("\\u00") == std::string_view::npos)
            require(raw.substr(1, raw.size() - 2) == for_json(*text));
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    const std::string_view text(reinterpret_cast<const char *>(data), size);
    check_text(text);
    static_cast<void>(verify_link(audit_first_hash, text));

    std::vector<std::string> words(1);
    for (const char c : text) {
        if (c == '\0')
            words.emplace_back();
        else
            words.back().push_back(c);
    }
    audit_record record;
    record.kind = static_cast<audit_kind>(size % 6);
    record.time = text.substr(0, 30);
    record.peer = text;
    record.argv = words;
    record.policy = text;
    record.of = size;
    record.exit = -static_cast<std::int32_t>(size);

    audit_chain chain(size + 1);
    const std::string before(chain.head());
    const std::string line = chain.append(record);
    require(line.size() <= limits::audit_line && line.ends_with('\n'));
    std::string bare = line.substr(0, line.size() - 1);
    check_text(bare);
    const auto entry = parse_audit(bare);
    require(entry && entry->serial == size + 1 && entry->hash == chain.head());
    require(entry->kind == name(record.kind));
    require(verify_link(before, bare).value() == chain.head());

    // The input decides which byte is damaged, and how.
    const std::size_t at =
        size == 0 ? 0 : (data[0] * std::size_t{251} + data[size - 1]) % bare.size();
    bare[at] = static_cast<char>(bare[at] ^ (1 << size % 8));
    require(!verify_link(before, bare));
    return 0;
}
