// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/job_table.hpp"

#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/sanitize.hpp>

#include "base/dom0_limits.hpp"
#include "execute/command_launch.hpp"
#include "execute/process_tree.hpp"

namespace qvmremote::dom0 {

namespace {

using host::unique_fd;

constexpr std::size_t shown_bytes = 120;
constexpr std::size_t timestamp_size = 19; // YYYY-MM-DDTHH:MM:SS
constexpr int ending_keeper_ms = 3000;

[[nodiscard]] std::string script_name(const job &what) { return "job-" + what.name; }

void measure(job &what, const job_files &files) {
    what.kept_bytes = job_output::kept(files.out.get()) + job_output::kept(files.err.get());
    what.gone = {job_output::extent_of(files.out.get()).first,
                 job_output::extent_of(files.err.get()).first};
}

[[nodiscard]] std::string subject(const job &what) {
    return "vm=" + what.qube.text() + " id=" + what.id.text() + " job";
}

[[nodiscard]] job_end unknown_end() {
    return {.how = {.cause = end_cause::cancelled,
                    .value = static_cast<std::uint32_t>(errc::outcome_unknown),
                    .text = std::string(message(errc::outcome_unknown))}};
}

} // namespace

job_table::~job_table() {
    for (auto &[of, one] : jobs_)
        if (one->events)
            (void)one->events->release(); // its link closes it
}

host::outcome<unique_fd> job_table::directory_of(const qube_name &qube, bool make) const {
    if (make && ::mkdirat(root_.get(), qube.text().c_str(), 0700) != 0 && errno != EEXIST)
        return host::failed("cannot make " + where_.jobs() + "/" + qube.text(), errno);
    unique_fd out(::openat(root_.get(), qube.text().c_str(),
                           O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!out)
        return host::failed("cannot open " + where_.jobs() + "/" + qube.text(), errno);
    return out;
}

host::outcome<void> job_table::take_over() {
    for (const std::string &directory : {where_.jobs(), where_.job_sockets()}) {
        if (auto made = host::make_directories(directory, 0700); !made)
            return made;
        auto safe = host::open_trusted(directory, host::trusted::directory);
        if (!safe)
            return tl::unexpected(safe.error());
        if (::fchmod(safe->get(), 0700) != 0)
            return host::failed("cannot close " + directory + " to others", errno);
        if (!root_)
            root_ = std::move(*safe);
    }
    const auto qubes = host::names_in(root_.get(), host::listed::directories);
    if (!qubes)
        return tl::unexpected(qubes.error());
    for (const std::string &name : *qubes)
        if (const auto qube = qube_name::parse(name))
            read_qube(*qube);
    end_other_jobs(groups_, [&](std::string_view name) {
        return std::any_of(jobs_.begin(), jobs_.end(), [&](const auto &row) {
            return row.second->link && row.second->name == name;
        });
    });
    return {};
}

void job_table::read_qube(const qube_name &qube) {
    const auto directory = directory_of(qube, false);
    if (!directory)
        return;
    const auto names = host::names_in(directory->get(), host::listed::directories);
    for (const std::string &name : names.value_or(std::vector<std::string>{}))
        if (const auto id = command_id::parse(name))
            read_job(qube, directory->get(), *id);
}

// A job without an end runs if its keeper answers. Otherwise its outcome is unknown.
void job_table::read_job(const qube_name &qube, int directory, const command_id &id) {
    const auto files = job_files::open(directory, id);
    const auto record = files ? files->record() : tl::unexpected(files.error());
    if (!record)
        return remove_job_files(directory, id); // a crash while it was made, before START
    auto one = std::make_unique<job>(qube, id);
    one->name = record->name;
    one->key_mark = record->key_mark;
    one->started_s = record->started_s;
    one->started = record->started;
    one->shown = record->shown;
    if (const auto request = record->request())
        one->tty = request->tty;
    one->end = files->ended();
    if (!one->end) {
        auto link = job_link::connect(where_.job_sockets(), *record);
        if (link && link->check(groups_))
            one->link.emplace(std::move(*link));
        else if (link)
            link->await_end(ending_keeper_ms); // without a cgroup, it ends by itself now
        if (!one->link)
            one->end = files->ended(); // its keeper may just have written it
    }
    measure(*one, *files);
    jobs_[key(qube.text(), id.text())] = std::move(one);
}

bool job_table::recognizes(const id_index::open_start &start) {
    const auto at = jobs_.find(key(start.peer, start.id));
    if (at == jobs_.end())
        return false;
    job &found = *at->second;
    // The journal writes END "unknown" for those that it may not spare.
    if (!found.end && !found.link) {
        write_unknown_end(found);
        return false;
    }
    found.serial = start.serial;
    return true;
}

void job_table::serve(execution_context &context, const job_limits &most) {
    context_ = &context;
    most_ = most;
    std::vector<job *> never_started;
    for (auto &[of, one] : jobs_) {
        if (one->link && one->serial) {
            ++running_;
            one->kept_bytes = most_.job_bytes;
            await_events(*one);
            context_->log.write(log_category::info, subject(*one) + " goes on");
        } else if (one->end) {
            record_end(*one);
            tidy(*one);
        } else {
            never_started.push_back(one.get()); // a crash between its files and its START
        }
    }
    for (job *one : never_started)
        if (one->link) { // its START has an END already
            one->link->order(job_order::kill);
            one->link.reset();
            write_unknown_end(*one);
        } else if (context_->records.was_started(one->qube, one->id)) {
            write_unknown_end(*one);
        } else {
            remove(*one);
        }
}

// Forgets ended jobs of a qube, the oldest first: those that are too old or too many, and then as many
// as a new job needs room for.
host::outcome<void> job_table::make_room(const qube_name &qube) {
    const std::vector<job *> all = list(&qube);
    std::size_t running = 0, ended = 0;
    std::uint64_t bytes = most_.job_bytes;
    for (const job *one : all) {
        ++(one->end ? ended : running);
        bytes += one->kept_bytes;
    }
    if (running >= limits::jobs_per_qube || running_ >= limits::jobs)
        return host::failed(std::to_string(running) + " jobs of this qube run, and " +
                            std::to_string(running_) + " in all: wait for one to end");
    const std::int64_t now = host::local_time::now().seconds;
    for (job *one : all) {
        if (!one->end || !one->watchers.empty())
            continue;
        const bool is_old = now - one->started_s > most_.kept_s;
        if (!is_old && ended < limits::ended_jobs_per_qube && bytes <= most_.qube_bytes)
            break;
        --ended;
        bytes -= std::min(bytes, one->kept_bytes);
        remove(*one);
    }
    if (bytes > most_.qube_bytes)
        return host::failed("the output of jobs of this qube fills the " +
                            std::to_string(most_.qube_bytes) +
                            " bytes that dom0 keeps: wait for one to end");
    return {};
}

host::outcome<job *> job_table::prepare(const peer &from, const envelope &header,
                                        const digest256 &key_mark) {
    look_for_group();
    if (auto room = make_room(from.name); !room)
        return tl::unexpected(room.error());
    auto directory = directory_of(from.name, true);
    if (!directory)
        return tl::unexpected(directory.error());
    std::array<std::uint8_t, 8 + 32> random{};
    if (::getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size()))
        return host::failed("cannot make a secret for a job", errno);
    job_record record;
    record.name = to_hex(bytes_view(random).first(8));
    std::copy_n(random.begin() + 8, record.secret.size(), record.secret.begin());
    record.qube = from.name.text();
    record.transport = from.transport;
    record.service_argument = from.service_argument;
    record.key_mark = key_mark;
    const auto now = host::local_time::now();
    record.started_s = now.seconds;
    record.started = now.precise();
    record.shown = preview(command_text(header), shown_bytes);
    envelope plain = header;
    if (auto fits = plain.make_header_fit(); fits)
        plain.set_body(std::move(plain.body));
    auto encoded = plain.encode();
    if (!encoded)
        return host::failed("cannot record the request of a job", EINVAL);
    record.header = std::move(*encoded);
    if (plain.body_follows)
        record.body = std::move(plain.body);
    const auto before = jobs_.find(key(from.name.text(), header.id->text()));
    if (before != jobs_.end() && (!before->second->end || !before->second->watchers.empty()))
        return host::failed("a job with this ID runs, or its output is being read", EEXIST);
    remove_job_files(directory->get(), *header.id); // of a request with this ID that never started
    if (auto made = job_files::make(directory->get(), *header.id, record); !made) {
        remove_job_files(directory->get(), *header.id);
        return tl::unexpected(made.error());
    }
    auto one = std::make_unique<job>(from.name, *header.id);
    one->name = record.name;
    one->key_mark = key_mark;
    one->started_s = record.started_s;
    one->started = record.started;
    one->shown = record.shown;
    one->tty = header.tty;
    one->kept_bytes = most_.job_bytes;
    auto &place = jobs_[key(from.name.text(), header.id->text())];
    place = std::move(one);
    ++running_;
    return place.get();
}

void job_table::forget(job &what) {
    --running_;
    tidy(what);
    remove(what);
}

void job_table::remove(job &what) {
    if (const auto directory = directory_of(what.qube, false))
        remove_job_files(directory->get(), what.id);
    jobs_.erase(key(what.qube.text(), what.id.text()));
}

void job_table::start(job &what, const admitted &request) {
    what.serial = request.serial();
    {
        auto lines = context_->log.begin();
        lines.add(log_category::auth_ok, subject(what));
        lines.add(log_category::exec, subject(what));
        lines.add(log_category::cmd, subject(what) + " cmd=" + what.shown);
    }
    auto launched = launch_job(what, request);
    if (launched)
        return await_events(what);
    context_->log.write(log_category::error, subject(what) + " " + for_log(launched.error().what));
    what.end = {.how = {.cause = end_cause::not_started,
                        .value = static_cast<std::uint32_t>(launched.error().error_number),
                        .text = launched.error().what}};
    if (const auto files = files_of(what))
        (void)host::write_all(files->end.get(), as_text(what.end->encode()));
    finish(what);
}

// Opens what a keeper gets, and fills in what each job has.
host::outcome<job_table::opened> job_table::open_for_keeper(const job &what) const {
    opened out;
    auto files = files_of(what);
    if (!files)
        return tl::unexpected(files.error());
    auto record = files->record();
    if (!record)
        return tl::unexpected(record.error());
    const int in = files->directory.get();
    out.out.reset(::openat(in, "out", O_RDWR | O_NOFOLLOW | O_CLOEXEC));
    out.err.reset(::openat(in, "err", O_RDWR | O_NOFOLLOW | O_CLOEXEC));
    if (!out.out || !out.err)
        return host::failed("cannot open the files of a job", errno);
    auto listener = listen_for_job(where_.job_sockets(), what.name);
    if (!listener)
        return tl::unexpected(listener.error());
    out.files = std::move(*files);
    out.record = std::move(*record);
    out.listener = std::move(*listener);
    out.launch = {.name = what.name,
                  .secret = out.record.secret,
                  .home = groups_,
                  .kept_bytes = most_.job_bytes,
                  .end = out.files.end.get(),
                  .listener = out.listener.get()};
    return out;
}

host::outcome<void> job_table::connect(job &what, const job_record &record) {
    auto link = job_link::connect(where_.job_sockets(), record);
    if (!link)
        return tl::unexpected(link.error());
    what.link.emplace(std::move(*link));
    return {};
}

host::outcome<void> job_table::launch_job(job &what, const admitted &request) {
    auto files = open_for_keeper(what);
    if (!files)
        return tl::unexpected(files.error());
    const unique_fd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    if (!null)
        return host::failed("cannot open /dev/null", errno);
    const containment bounds = within(request.bounds(), context_->ceiling);
    auto command = launch_of(request, *context_, bounds, script_name(what));
    if (!command)
        return tl::unexpected(command.error());
    const envelope &header = request.request();
    launch &how = command->what;
    how.in = null.get();
    how.out = files->out.get();
    how.err = files->err.get();
    how.job = files->launch;
    how.job->output_bytes = bounds.output_bytes;
    how.job->timeout_s = request.terms().timeout_s;
    how.job->takes_input = request.terms().input == stdin_mode::live;
    how.job->ends_with_first = header.ends_with_first_process();
    how.job->columns = header.columns;
    how.job->rows = header.rows;
    // Connect first: a short job ends, and its keeper too, before we could do it.
    if (auto connected = connect(what, files->record); !connected)
        return connected;
    auto started = context_->children.launch(how);
    if (!started) {
        what.link.reset();
        return tl::unexpected(started.error());
    }
    if (!groups_)
        what.held.emplace(std::move(*started));
    command->script.leave();
    return {};
}

host::outcome<void> job_table::go_on(job &what, const running_command &command) {
    const resources most = within(command.request.bounds(), context_->ceiling).most;
    if ((most.memory_bytes != 0 && !groups_.memory) || (most.pids != 0 && !groups_.pids) ||
        (most.cpu_percent != 0 && !groups_.cpu))
        return host::failed("its limits cannot be kept in " + groups_.name);
    const command_cgroup group(groups_, what.name);
    if (auto made = group.make(); !made)
        return made;
    if (auto limited = group.limit(most, groups_); !limited)
        return limited;
    auto files = open_for_keeper(what);
    if (!files)
        return tl::unexpected(files.error());
    files->launch.output_bytes = command.output_bytes;
    files->launch.timeout_s = command.timeout_s;
    if (!command.script.empty()) // its new name tells the next daemon that it is in use
        ::rename(command.script.c_str(), (where_.scripts() + "/" + script_name(what)).c_str());
    // Connect first: once the keeper has the message, nothing may fail any more.
    if (auto connected = connect(what, files->record); !connected)
        return connected;
    if (auto sent = command.process.go_on_as(
            files->launch, {command.in.ours(), command.in.of_command(), files->out.get(),
                            files->err.get(), files->files.end.get(), files->listener.get()});
        !sent) {
        what.link.reset();
        return sent;
    }
    what.serial = command.request.serial();
    await_events(what);
    return {};
}

void job_table::await_events(job &what) {
    if (!what.events)
        what.events.emplace(context_->loop, what.link->descriptor());
    what.events->async_wait(
        boost::asio::posix::stream_descriptor::wait_read,
        [this, of = key(what.qube.text(), what.id.text())](boost::system::error_code ec) {
            const auto at = ec ? jobs_.end() : jobs_.find(of);
            if (at != jobs_.end() && at->second->link)
                on_events(*at->second);
        });
}

void job_table::on_events(job &what) {
    while (auto event = what.link->next()) {
        const auto watchers = what.watchers;
        switch (event->kind) {
        case job_link::event::more:
            for (job_watcher *one : watchers)
                if (what.watchers.contains(one))
                    one->on_more();
            break;
        case job_link::event::input:
            if (job_watcher *const asked = std::exchange(what.asks_for_input, nullptr)) {
                what.has_input = event->error_number == 0 ? asked : nullptr;
                if (event->error_number == 0)
                    asked->on_input(std::move(event->input_end));
                else if (event->error_number == EBUSY)
                    asked->on_input(host::failed("another program types into it", EBUSY));
                else
                    asked->on_input(host::failed("the job takes no input", EPIPE));
            } else if (event->error_number == 0) {
                what.link->order(job_order::give_back);
            }
            break;
        case job_link::event::ended:
        case job_link::event::gone:
            return finish(what);
        }
    }
    await_events(what);
}

// The job has ended, or its keeper has.
void job_table::finish(job &what) {
    if (what.events)
        (void)what.events->release(); // the link closes it
    what.events.reset();
    what.link.reset();
    what.held.reset();
    --running_;
    const auto files = files_of(what);
    if (!what.end && files)
        what.end = files->ended();
    if (!what.end)
        write_unknown_end(what);
    if (files)
        measure(what, *files);
    tidy(what);
    record_end(what);
    for (job_watcher *one : std::set(what.watchers))
        if (what.watchers.contains(one))
            one->on_end();
}

// Its keeper did not write how it ended, so nobody else does.
void job_table::write_unknown_end(job &what) {
    const command_cgroup group(groups_, what.name);
    group.kill();
    what.end = unknown_end();
    // Not into the keeper's file, in case it still writes.
    const std::string path = where_.jobs() + "/" + what.qube.text() + "/" + what.id.text() + "/end";
    (void)host::write_atomically(path, as_text(what.end->encode()), 0600,
                                 host::durability::unsynced);
}

// Removes what only a running job needs.
void job_table::tidy(job &what) {
    ::unlink(job_socket(where_.job_sockets(), what.name).c_str());
    ::unlink((where_.scripts() + "/" + script_name(what)).c_str());
    (void)command_cgroup(groups_, what.name).remove();
}

// Writes END, once: a START with an END is not in `serial`.
void job_table::record_end(job &what) {
    const auto serial = std::exchange(what.serial, std::nullopt);
    if (!serial)
        return;
    const run_end &how = what.end->how;
    journal_entry entry;
    entry.kind = audit_kind::end;
    entry.peer = what.qube.text();
    entry.id = what.id.text();
    entry.of = *serial;
    entry.exit = how.exit_code();
    entry.cause = name(how.cause);
    if (how.cause == end_cause::cancelled)
        entry.reason = name(static_cast<errc>(how.value));
    entry.stdin_bytes = what.end->stdin_bytes;
    entry.stdout_bytes = how.stdout_bytes;
    entry.stderr_bytes = how.stderr_bytes;
    entry.started = what.started;
    entry.duration_ms = what.end->duration_ms;
    context_->records.note(std::move(entry));
    context_->log.write(how.exit_code() == 0 ? log_category::done : log_category::done_fail,
                        subject(what) + " exit=" + std::to_string(how.exit_code()) +
                            " duration=" + std::to_string(what.end->duration_ms) + "ms");
}

job *job_table::find(const qube_name &qube, const command_id &id) {
    const auto at = jobs_.find(key(qube.text(), id.text()));
    // One whose START is not written yet is not there.
    return at != jobs_.end() && (at->second->end || at->second->link) ? at->second.get() : nullptr;
}

std::vector<job *> job_table::list(const qube_name *qube) {
    std::vector<job *> out;
    for (const auto &[of, one] : jobs_)
        if (!qube || one->qube == *qube)
            out.push_back(one.get());
    std::stable_sort(out.begin(), out.end(),
                     [](const job *a, const job *b) { return a->started_s < b->started_s; });
    return out;
}

job_row job_table::row_of(const job &what) const {
    job_row out;
    out.id = what.id.text();
    out.started = what.started.substr(0, timestamp_size);
    out.tty = what.tty;
    out.shown = what.shown;
    if (what.end) {
        const run_end &how = what.end->how;
        const bool is_unknown = how.cause == end_cause::cancelled &&
                                how.value == static_cast<std::uint32_t>(errc::outcome_unknown);
        out.state = is_unknown ? "unknown" : name(how.cause);
        out.exit = how.exit_code();
        out.seconds = what.end->duration_ms / 1000;
        out.written = {how.stdout_bytes, how.stderr_bytes};
        out.gone = what.gone;
        return out;
    }
    out.state = "running";
    out.seconds = static_cast<std::uint64_t>(
        std::max<std::int64_t>(0, host::local_time::now().seconds - what.started_s));
    if (const auto files = files_of(what)) {
        const auto of_out = job_output::extent_of(files->out.get());
        const auto of_err = job_output::extent_of(files->err.get());
        out.written = {of_out.end, of_err.end};
        out.gone = {of_out.first, of_err.first};
    }
    return out;
}

host::outcome<job_files> job_table::files_of(const job &what) const {
    const auto directory = directory_of(what.qube, false);
    if (!directory)
        return tl::unexpected(directory.error());
    return job_files::open(directory->get(), what.id);
}

void job_table::watch(job &what, job_watcher &by) {
    what.watchers.insert(&by);
    if (what.link)
        what.link->order(job_order::watch);
}

void job_table::leave(job &what, job_watcher &by) {
    what.watchers.erase(&by);
    if (what.asks_for_input == &by)
        what.asks_for_input = nullptr;
    if (what.has_input == &by) {
        what.has_input = nullptr;
        if (what.link)
            what.link->order(job_order::give_back);
    }
}

void job_table::borrow_input(job &what, job_watcher &by) {
    if (!what.link)
        return by.on_input(host::failed("the job has ended", EPIPE));
    if (what.asks_for_input || what.has_input)
        return by.on_input(host::failed("another client types into it", EBUSY));
    what.asks_for_input = &by;
    what.link->order(job_order::borrow);
}

void job_table::end_input(job &what, job_watcher &by) {
    if (what.link && what.has_input == &by)
        what.link->order(job_order::end_input);
}

void job_table::interrupt(job &what, int number) {
    if (what.link)
        what.link->order(job_order::interrupt, number);
}

void job_table::cancel(job &what) {
    if (what.link)
        what.link->order(job_order::terminate);
}

void job_table::kill(job &what, errc why) {
    if (!what.link)
        return;
    what.link->order(job_order::kill, static_cast<int>(why));
    command_cgroup(groups_, what.name).kill();
}

void job_table::kill_all(errc why) {
    for (auto &[of, one] : jobs_)
        kill(*one, why);
}

void job_table::kill_if(const std::function<std::optional<errc>(const job &)> &why_over) {
    for (auto &[of, one] : jobs_)
        if (one->link)
            if (const auto why = why_over(*one))
                kill(*one, *why);
}

bool job_table::uses_script(const std::string &name) const {
    return std::any_of(jobs_.begin(), jobs_.end(), [&](const auto &row) {
        return !row.second->end && script_name(*row.second) == name;
    });
}

host::outcome<std::pair<peer, envelope>> job_table::request_of(const job &what) const {
    const auto files = files_of(what);
    const auto record = files ? files->record() : tl::unexpected(files.error());
    if (!record)
        return tl::unexpected(record.error());
    auto request = record->request();
    if (!request)
        return tl::unexpected(request.error());
    return std::pair{peer{what.qube, record->transport, record->service_argument, std::nullopt},
                     std::move(*request)};
}

std::vector<pid_t> job_table::keepers() const {
    std::vector<pid_t> out;
    for (const auto &[of, one] : jobs_)
        if (one->link && one->link->keeper() > 0)
            out.push_back(one->link->keeper());
    return out;
}

} // namespace qvmremote::dom0
