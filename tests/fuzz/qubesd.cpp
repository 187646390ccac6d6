// SPDX-License-Identifier: GPL-2.0-or-later
// Checks that the bytes of qubesd give the same events in any pieces, only about well-formed names,
// and none after an error. The names of a listing are well-formed and sorted, and each occurs once.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "../../plugins/qvm-run/qubesd.hpp"
#include "target.hpp"

namespace {

struct outcome {
    std::vector<qvm_run::event> events;
    bool failed = false;

    friend bool operator==(const outcome &, const outcome &) = default;
};

outcome read(std::string_view text, std::size_t chunk) {
    qvm_run::event_reader reader;
    outcome out;
    while (!text.empty() && !out.failed) {
        std::string_view part = text.substr(0, chunk);
        text.remove_prefix(part.size());
        while (!part.empty() && !out.failed) {
            const std::size_t before = part.size();
            const auto one = reader.next(part);
            out.failed = !one;
            require(out.failed || part.size() < before);
            if (one && *one)
                out.events.push_back(**one);
        }
    }
    if (out.failed) {
        std::string_view good("1\0\0connection-established\0\0", 27);
        require(!reader.next(good));
    }
    return out;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    const std::string_view text(reinterpret_cast<const char *>(data), size);
    const outcome whole = read(text, size + 1);
    require(whole == read(text, 1));
    require(whole == read(text, 13));
    for (const qvm_run::event &e : whole.events) {
        const bool is_first = &e == &whole.events.front();
        require((e.what == qvm_run::news::connected) == is_first);
        require(is_first ? e.qube.empty() : qvm_run::qube_name::parse(e.qube).has_value());
    }

    if (const auto running = qvm_run::running_qubes(text)) {
        for (const std::string &name : *running) {
            require(qvm_run::qube_name::parse(name).has_value());
            require(text.find(name + " ") != std::string_view::npos);
        }
        require(std::is_sorted(running->begin(), running->end()));
        require(std::adjacent_find(running->begin(), running->end()) == running->end());
    }
    return 0;
}
