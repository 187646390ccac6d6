// SPDX-License-Identifier: GPL-2.0-or-later
#include "explain.hpp"

#include <cerrno>
#include <cstring>
#include <string>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/sanitize.hpp>

#include "report.hpp"

namespace qvmremote::qube {

namespace {

std::string reason_words(const host::run_result &r) {
    std::string out(message(r.reason));
    if (!r.untrusted_text.empty() && r.untrusted_text != out)
        out += " (" + for_terminal(r.untrusted_text, limits::reason_text) + ")";
    return out;
}

std::string remedy(errc reason) {
    switch (reason) {
    case errc::bad_token:
        return "; is this qube authorized in dom0 with the key that `qvm-remote key show` prints?";
    case errc::challenge_stale:
        return "; the request took too long on its way: try again";
    case errc::id_outdated:
        return "; set the clock or the time zone of this qube";
    case errc::bad_version:
    case errc::unsupported:
    case errc::protocol_retired:
        return "; update qvm-remote in this qube and in dom0";
    case errc::key_revoked:
        return "; in dom0: qvm-remote-dom0 authorize";
    case errc::approval_timeout:
        return "; in dom0: qvm-remote-dom0 approvals watch";
    case errc::panicked:
        return "; in dom0: qvm-remote-dom0 resume";
    case errc::id_used:
    case errc::bad_tag:
    case errc::bad_digest:
        return "; try again";
    case errc::command_too_large:
        return "; copy the data to dom0 by standard input instead";
    case errc::busy:
    case errc::draining:
        return "; try again later";
    default:
        return "";
    }
}

} // namespace

void explain(const host::run_result &r, int sink_error, bool needs_jobs) {
    using kind = host::run_result::kind;
    switch (r.how) {
    case kind::ended:
        break;
    case kind::refused:
        return complain(
            r.reason, (r.reason == errc::slot_timeout ? "command timed out: " : "dom0 refuses: ") +
                          reason_words(r) + remedy(r.reason));
    case kind::rejected:
        return complain(r.reason, "refused: " + reason_words(r) + " (not confirmed by dom0)" +
                                      remedy(r.reason));
    case kind::not_sent:
        if (r.reason == errc::unsupported && needs_jobs)
            return complain(
                r.reason,
                "the qvm-remote-dom0 that runs in dom0 is older and has no jobs: update it");
        if (r.reason == errc::unsupported)
            return complain(
                r.reason,
                "the qvm-remote-dom0 that runs in dom0 is older and takes at most 1024 words "
                "and 16 KiB of them: update it, or send the data by standard input");
        return complain(r.reason, std::string(message(r.reason)) + remedy(r.reason));
    case kind::lost:
        return complain(
            fault::stream_broke,
            "the result is incomplete: " + for_terminal(r.untrusted_text) +
                (r.may_have_run
                     ? "; command " + r.id + " may have run: in dom0, qvm-remote-dom0 log shows it"
                     : "; command " + r.id + " was not sent: try again"));
    case kind::interrupted:
        if (r.signal == 0)
            return complain(fault::interrupted,
                            "left by the escape; command " + r.id + " is being ended in dom0");
        return complain(fault::interrupted,
                        "interrupted; command " + r.id +
                            (r.may_have_run ? " is being ended in dom0" : " was not started"));
    case kind::sink_broken:
        if (sink_error != EPIPE)
            complain(fault::local_failure,
                     host::failed("cannot write the output", sink_error).value().what);
        return;
    }
    switch (r.end.cause) {
    case end_cause::timed_out:
        return complain(fault::timed_out,
                        "command timed out after " + std::to_string(r.end.value) + "s");
    case end_cause::not_found:
        return complain(fault::program_not_found,
                        "no such program in dom0" +
                            (r.end.text.empty() ? "" : ": " + for_terminal(r.end.text)));
    case end_cause::not_started:
        return complain(fault::program_not_started,
                        "dom0 could not start the command: " +
                            (r.end.text.empty()
                                 ? std::string(::strerror(static_cast<int>(r.end.value)))
                                 : for_terminal(r.end.text)));
    case end_cause::cancelled:
        return complain(static_cast<errc>(r.end.value),
                        "dom0 ended the command: " +
                            (r.end.text.empty()
                                 ? std::string(message(static_cast<errc>(r.end.value)))
                                 : for_terminal(r.end.text)));
    case end_cause::detached:
        return; // run_by_stream prints the ID
    case end_cause::signalled:
        if (r.signal == 0)
            complain(fault::killed_by_signal,
                     "the command was killed by signal " + std::to_string(r.end.value) +
                         (r.end.text.empty() ? "" : ": " + for_terminal(r.end.text)));
        return;
    default:
        return;
    }
}

} // namespace qvmremote::qube
