// SPDX-License-Identifier: GPL-2.0-or-later
// The subcommands about this qube's jobs in dom0.
#include <algorithm>
#include <cstdio>
#include <string>
#include <string_view>
#include <tuple>

#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <qvmremote/sanitize.hpp>

#include "commands/commands.hpp"

namespace qvmremote::qube {

namespace {

using verb = job_request::verb;

void write_list(json_writer &to, const std::vector<job_row> &rows) {
    to.begin_array("jobs");
    for (const job_row &row : rows) {
        to.begin();
        to.text("id", row.id);
        to.text("state", row.state);
        if (row.exit >= 0)
            to.number("exit_code", row.exit);
        to.text("started", row.started);
        to.number("seconds", static_cast<std::int64_t>(row.seconds));
        to.flag("tty", row.tty);
        to.text("command", row.shown);
        for (const auto &[name, bytes, gone] : {std::tuple{"stdout", row.written.out, row.gone.out},
                                                {"stderr", row.written.err, row.gone.err}}) {
            to.begin(name);
            to.number("bytes", static_cast<std::int64_t>(bytes));
            if (gone > 0)
                to.number("skipped", static_cast<std::int64_t>(gone));
            to.end();
        }
        to.end();
    }
    to.end();
}

int print_list(const invocation &in) {
    const auto rows = list_jobs(in.how, in.where);
    if (!rows)
        return rows.error();
    if (report::instance().is_json()) {
        write_list(report::instance().result(), *rows);
        return 0;
    }
    std::size_t widest = 2;
    for (const job_row &row : *rows)
        widest = std::max(widest, row.id.size());
    if (!rows->empty())
        std::printf("%-*s  %-11s %4s  %-19s %8s %12s  %s\n", static_cast<int>(widest), "ID",
                    "STATE", "EXIT", "STARTED", "SECONDS", "OUTPUT", "COMMAND");
    for (const job_row &row : *rows)
        std::printf("%-*s  %-11s %4s  %-19s %8llu %12llu  %s\n", static_cast<int>(widest),
                    row.id.c_str(), for_terminal(row.state, 11).c_str(),
                    row.exit < 0 ? "-" : std::to_string(row.exit).c_str(),
                    for_terminal(row.started, 19).c_str(),
                    static_cast<unsigned long long>(row.seconds),
                    static_cast<unsigned long long>(row.written.out + row.written.err),
                    for_terminal(row.shown, 200).c_str());
    return 0;
}

bool is_null(int fd) {
    struct stat at {};
    return ::fstat(fd, &at) != 0 || (S_ISCHR(at.st_mode) && at.st_rdev == makedev(1, 3));
}

// Whether a job has a terminal, so that ours is used for it.
bool has_terminal(const std::vector<job_row> &rows, const std::string &id) {
    return std::any_of(rows.begin(), rows.end(),
                       [&](const job_row &row) { return row.id == id && row.tty; });
}

} // namespace

int job_command(const invocation &in) {
    const auto &words = in.words;
    const std::string_view name = words.empty() ? std::string_view("list") : words[0];
    if (name == "list")
        return words.size() <= 1 ? print_list(in) : fail_with(fault::usage, in.usage);
    const bool follows = name == "logs" && words.size() == 3 && words[1] == std::string_view("-f");
    const bool is_known = name == "attach" || name == "logs" || name == "wait" || name == "cancel";
    if (!is_known || words.size() != (follows ? 3u : 2u))
        return fail_with(fault::usage, in.usage);
    job_run request;
    request.about.what = name == "attach"   ? verb::attach
                         : name == "wait"   ? verb::wait
                         : name == "cancel" ? verb::cancel
                         : follows          ? verb::follow
                                            : verb::logs;
    auto id = command_id::parse(words.back());
    if (!id)
        return fail_with(errc::bad_command_id, "'" + for_terminal(words.back(), 80) +
                                                   "' is not the ID of a job: see "
                                                   "qvm-remote job list");
    request.about.id = std::move(*id);
    if (request.about.what == verb::attach) {
        request.reads_stdin = !is_null(STDIN_FILENO);
        if (::isatty(STDIN_FILENO) && !report::instance().is_json()) {
            const auto rows = list_jobs(in.how, in.where);
            if (!rows)
                return rows.error();
            request.has_terminal = has_terminal(*rows, request.about.id->text());
        }
    }
    return run_about_job(in.how, in.where, std::move(request));
}

} // namespace qvmremote::qube
