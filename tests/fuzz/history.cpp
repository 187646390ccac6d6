// SPDX-License-Identifier: GPL-2.0-or-later
// Checks that for any command the written line is one line without control bytes, and is read back
// with the same values. A meta or exit file that parses is written again with the same values.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include <qvmremote/history.hpp>

#include "target.hpp"

using namespace qvmremote;

namespace {

constexpr std::string_view when = "2026-02-18T10:15:00";

bool printable(std::string_view text) {
    return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c <= 0x7e; });
}

// The line without its newline, which must be the only one.
std::string_view one_line(const std::string &line) {
    require(line.ends_with('\n'));
    const std::string_view text = std::string_view(line).substr(0, line.size() - 1);
    require(printable(text));
    return text;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    const std::string_view text(reinterpret_cast<const char *>(data), size);

    const std::string submit = line_submit(when, "id-1", text);
    const auto submitted = parse_audit_line(one_line(submit));
    require(submitted && submitted->kind == history_kind::submit && submitted->size == size);
    require(submitted->untrusted_command == preview(text, client_preview));
    const std::string started = line_started(when, "id-1", -1, size, text);
    const auto ran = parse_audit_line(one_line(started));
    require(ran && ran->kind == history_kind::started && ran->duration_ms == size);

    if (const auto code = parse_exit(text))
        require(std::to_string(*code) == text);
    if (const auto meta = parse_meta(text)) {
        const std::string again =
            format_meta(meta->id, meta->started, meta->duration_ms, meta->exit_code);
        require(parse_meta(again).value() == *meta);
    }
    if (const auto line = parse_audit_line(text)) {
        require(printable(line->id) && printable(line->timestamp));
        const std::string again = line->kind == history_kind::done
                                      ? line_done(line->timestamp, line->id, line->exit_code)
                                  : line->kind == history_kind::timeout
                                      ? line_timeout(line->timestamp, line->id, line->after_s)
                                  : line->kind == history_kind::queue_clean
                                      ? line_queue_clean(line->timestamp, line->removed)
                                      : std::string();
        require(again.empty() || one_line(again) == text);
    }

    output_lines whole, halves;
    whole.feed(text);
    halves.feed(text.substr(0, size / 2));
    halves.feed(text.substr(size / 2));
    const auto shown = whole.show("  stdout: ");
    require(shown == halves.show("  stdout: "));
    require(shown.size() <= 3 && shown.empty() == text.empty());
    for (const std::string &line : shown)
        require(printable(line) && line.size() <= 10 + 4 * output_preview);

    // The last lines of the last lines are the same, and with the part before them they are the
    // whole block.
    const auto lines = tail_lines(text, size + 1);
    const auto last = tail_lines(text, 2);
    require(last.size() == std::min<std::size_t>(2, lines.size()));
    require(std::equal(last.rbegin(), last.rend(), lines.rbegin()));
    return 0;
}
