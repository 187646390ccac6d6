// SPDX-License-Identifier: GPL-2.0-or-later
#include "record/journal_entry.hpp"

namespace qvmremote::dom0 {

namespace {

std::optional<std::string_view> unless_empty(const std::string &text) {
    if (text.empty())
        return std::nullopt;
    return text;
}

} // namespace

audit_record record_of(const journal_entry &e, std::string_view time) {
    audit_record r;
    r.kind = e.kind;
    r.time = time;
    r.peer = unless_empty(e.peer);
    r.id = unless_empty(e.id);
    r.key = e.key;
    if (e.kind != audit_kind::end && e.kind != audit_kind::head && e.kind != audit_kind::admin)
        r.proto = e.protocol;
    if (r.proto == 1u && e.kind == audit_kind::start)
        r.body = "unsigned";
    r.transport = unless_empty(e.transport);
    r.request = unless_empty(e.request);
    if (!e.argv.empty())
        r.argv = e.argv;
    r.script = e.script;
    r.tty = e.tty;
    r.verdict = unless_empty(e.verdict);
    r.policy = unless_empty(e.rule);
    r.approval = e.approval;
    r.digest = e.digest;
    r.user = unless_empty(e.user);
    r.timeout_s = e.timeout_s;
    r.of = e.of;
    r.previous = unless_empty(e.previous);
    r.oldest = e.oldest;
    r.exit = e.exit;
    r.cause = unless_empty(e.cause);
    r.stdin_bytes = e.stdin_bytes;
    r.stdout_bytes = e.stdout_bytes;
    r.stderr_bytes = e.stderr_bytes;
    r.started = unless_empty(e.started);
    r.duration_ms = e.duration_ms;
    r.reason = unless_empty(e.reason);
    r.count = e.count;
    return r;
}

} // namespace qvmremote::dom0
