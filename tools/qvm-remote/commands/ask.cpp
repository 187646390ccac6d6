// SPDX-License-Identifier: GPL-2.0-or-later
#include "commands/commands.hpp"

#include <cstdio>
#include <optional>
#include <string_view>

#include <qvmremote/config.hpp>
#include <qvmremote/history.hpp>
#include <qvmremote/sanitize.hpp>

namespace qvmremote::qube {

namespace {

void write_way(json_writer &to, const settings &how, const answer_of_dom0 &answer) {
    to.text("transport", how.transport);
    to.number("protocol", answer.protocol);
    to.number("took_ms", static_cast<std::int64_t>(answer.took_ms));
}

// The lines of dom0's status that this version knows.
void write_status(json_writer &to, const answer_of_dom0 &answer) {
    for (const std::string_view word : {"qube", "level", "version", "refuses"})
        if (const auto value = answer.value(word))
            to.text(word, *value);
    for (const std::string_view word : {"running", "waiting", "time"})
        if (const auto value = answer.value(word))
            if (const auto number = parse_decimal<std::int64_t>(*value))
                to.number(word, *number);
}

} // namespace

int ping_command(const invocation &in) {
    if (!in.words.empty())
        return fail_with(fault::usage, in.usage);
    const auto answer = converse(in.how, in.where, request_kind::ping);
    if (!answer)
        return answer.error();
    if (report::instance().is_json())
        write_way(report::instance().result(), in.how, *answer);
    else
        std::printf("dom0 answers over %s in %llu ms\n", answer->over(in.how).c_str(),
                    static_cast<unsigned long long>(answer->took_ms));
    return 0;
}

int status_command(const invocation &in) {
    if (!in.words.empty())
        return fail_with(fault::usage, in.usage);
    const auto answer = converse(in.how, in.where, request_kind::status);
    if (!answer)
        return answer.error();
    if (report::instance().is_json()) {
        write_way(report::instance().result(), in.how, *answer);
        write_status(report::instance().result(), *answer);
        return 0;
    }
    if (answer->untrusted_text.empty())
        std::printf("dom0 answers over %s, which has no status\n", answer->over(in.how).c_str());
    for (const std::string_view line : tail_lines(answer->untrusted_text, SIZE_MAX))
        std::printf("%s\n", for_terminal(line).c_str());
    return 0;
}

} // namespace qvmremote::qube
