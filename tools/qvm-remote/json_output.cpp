// SPDX-License-Identifier: GPL-2.0-or-later
#include "json_output.hpp"

#include <algorithm>

#include <qvmremote/limits.hpp>

namespace qvmremote::qube {

namespace {

// The longest piece of output that one line carries.
constexpr std::size_t longest_piece = 16 * 1024;

std::string_view name_of(host::run_state state) {
    switch (state) {
    case host::run_state::sent:
        return "sent";
    case host::run_state::waiting:
        return "waiting";
    case host::run_state::pending:
        return "approval";
    case host::run_state::running:
        return "started";
    case host::run_state::noticed:
        return "notice";
    default:
        return "silent";
    }
}

std::string_view cause_of(const host::run_result &r) {
    using kind = host::run_result::kind;
    switch (r.how) {
    case kind::refused:
        return r.reason == errc::slot_timeout ? "timed_out" : "refused";
    case kind::rejected:
        return "rejected";
    case kind::not_sent:
        return "not_sent";
    case kind::interrupted:
        return "interrupted";
    case kind::ended:
        return name(r.end.cause);
    default:
        return "incomplete";
    }
}

} // namespace

std::size_t json_sink::take(bytes_view data) {
    report &to = report::instance();
    if (!to.has_lines()) {
        const std::size_t room = limits::recorded_output - kept_.size();
        // Untouched memory is not used, and growth by doubling would need more.
        if (kept_.size() + data.size() > 64 * 1024)
            kept_.reserve(limits::recorded_output);
        kept_.append(as_text(data.first(std::min(room, data.size()))));
    } else {
        // Take nothing while the reader is slow, so that dom0 waits as it does for a pipe.
        std::size_t done = std::exchange(has_first_, false) && !data.empty() ? 1 : 0;
        while (done < data.size() && to.flush()) {
            const bytes_view piece =
                data.subspan(done, std::min(data.size() - done, longest_piece));
            kept_.append(as_text(piece));
            const std::size_t whole = whole_characters(kept_);
            add_line(std::string_view(kept_).substr(0, whole));
            kept_.erase(0, whole);
            done += piece.size();
        }
        // While the reader has not taken all, one byte counts as not taken, so that the caller waits
        // for the reader and calls again.
        if (!to.flush() && done > 0) {
            has_first_ = true;
            --done;
        }
        data = data.first(done);
    }
    bytes_ += data.size();
    if (record_)
        record_->output(name_ == "stdout", data);
    return data.size();
}

void json_sink::end() {
    if (!report::instance().has_lines())
        return;
    add_line(kept_);
    kept_.clear();
}

void json_sink::add_line(std::string_view untrusted_bytes) {
    if (untrusted_bytes.empty())
        return;
    std::string line;
    json_writer w(line);
    w.begin();
    w.text("event", name_);
    w.content(untrusted_bytes);
    w.end();
    report::instance().add_line(line);
}

void json_sink::write(json_writer &to) const {
    to.begin(name_);
    if (!report::instance().has_lines()) {
        const std::string_view all = kept_;
        const bool is_cut = bytes_ > kept_.size();
        // A character that the limit has cut must not turn all of the text into base64.
        const std::string_view whole = all.substr(0, whole_characters(all));
        to.content(is_cut && is_utf8(whole) ? whole : all);
        to.flag("truncated", is_cut);
    }
    to.number("bytes", static_cast<std::int64_t>(bytes_));
    if (skipped_ > 0)
        to.number("skipped", static_cast<std::int64_t>(skipped_));
    to.end();
}

void add_event(host::run_state state, std::string_view untrusted_text) {
    std::string line;
    json_writer w(line);
    w.begin();
    w.text("event", name_of(state));
    if (!untrusted_text.empty())
        w.text(state == host::run_state::sent ? "id" : "message", untrusted_text);
    w.end();
    report::instance().add_line(line);
    static_cast<void>(report::instance().flush());
}

void report_run(const run_identity &run, const host::run_result &r, json_sink &out,
                json_sink &err) {
    out.end();
    err.end(); // these may be lines, so they come before the result begins
    json_writer &to = report::instance().result();
    using kind = host::run_result::kind;
    to.text("transport", run.transport);
    to.number("protocol", run.protocol);
    to.text("id", run.id);
    to.text("end", cause_of(r));
    if (r.how == kind::ended && r.end.cause == end_cause::exited)
        to.number("status", r.end.value);
    if (r.how == kind::ended && r.end.cause == end_cause::signalled)
        to.number("signal", r.end.value);
    if (r.signal != 0)
        to.number("forwarded_signal", r.signal);
    to.flag("may_have_run", r.may_have_run);
    to.number("took_ms", static_cast<std::int64_t>(run.took_ms));
    out.write(to);
    err.write(to);
}

} // namespace qvmremote::qube
