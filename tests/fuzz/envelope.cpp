// SPDX-License-Identifier: GPL-2.0-or-later
// Checks that a header that parses encodes to the same bytes, and keeps every rule that later code
// relies on. In a daemon this parser runs only after the MAC; here it is called directly.

#include <qvmremote/envelope.hpp>

#include "target.hpp"

using namespace qvmremote;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    const bytes_view input(data, size);
    const auto header = envelope::decode(input);
    if (!header) {
        require(header.error().offset <= size);
        return 0;
    }
    const auto again = header->encode();
    require(again && std::equal(again->begin(), again->end(), input.begin(), input.end()));

    require(size <= limits::request_header && header->id);
    require(name(header->kind) != "unknown" && !(header->features & ~feature::known));
    require(header->arguments.size() <= limits::arguments);
    require(header->environment.size() <= limits::environment);
    require(header->body_length <= limits::command);
    require(header->body_follows ? header->body.empty()
                                 : header->body.size() == header->body_length);
    for (const std::string &argument : header->arguments)
        require(argument.find('\0') == argument.npos);
    for (const auto &[key, value] : header->environment)
        require(!key.empty() && key.find('=') == key.npos && value.find('\0') == value.npos);
    if (header->kind == request_kind::shell)
        require(header->body.find('\0') == std::string::npos);
    if (header->has_packed_arguments())
        require(header->arguments.empty() && header->body_follows && header->body_length > 0);
    else if (header->kind == request_kind::exec)
        require(!header->arguments.empty() && !header->arguments[0].empty());
    return 0;
}
