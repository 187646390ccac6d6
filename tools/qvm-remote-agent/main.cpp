// SPDX-License-Identifier: GPL-2.0-or-later
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/environment.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/host/transport.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "../../plugins/common/back_off.hpp"
#include "../../plugins/common/words.hpp"
#include "agent.hpp"
#include "common/begin.hpp"
#include "common/cli.hpp"
#include "common/qube_settings.hpp"

using namespace qvmremote;

namespace {

enum : int { opt_keep = cli::own_options };

constexpr cli::option options[] = {
    {opt_keep, "keep", nullptr, "call dom0 over qrexec, keep the call, and share it"},
    {'h', "help", nullptr, "show this and end"},
    {cli::opt_version, "version", nullptr, "show the version and end"},
};

constexpr cli::program this_program = {
    "qvm-remote-agent",
    "Usage: qvm-remote-agent [OPTIONS]\n\n"
    "Carries the commands of this user's qvm-remote to dom0 and their results back.\n"
    "dom0 starts it, with its stream to dom0 as standard input and output; with --keep\n"
    "it makes the call itself.\n",
    options};

// When dom0 has given up the call of an older agent, that agent ends by itself, unless it hangs.
constexpr std::uint64_t patience_ms = 5'000;
constexpr std::uint64_t term_ms = 2'000;
constexpr int refused = 126; // by qrexec's policy: trying again does not help

int fail_with(const std::string &what) {
    std::fprintf(stderr, "qvm-remote-agent: %s\n", what.c_str());
    return 1;
}

flock whole_file() {
    flock out{};
    out.l_type = F_WRLCK;
    out.l_whence = SEEK_SET;
    return out;
}

// Waits until the lock is ours, or until the time is over.
bool lock_within(int fd, std::uint64_t ms) {
    const std::uint64_t end = host::awake_ms() + ms;
    for (;;) {
        flock lock = whole_file();
        if (::fcntl(fd, F_SETLK, &lock) == 0)
            return true;
        if (host::awake_ms() >= end)
            return false;
        ::poll(nullptr, 0, 50);
    }
}

// Each user has one agent of each kind. The kernel names the holder of the lock, so an old file
// cannot mislead us.
host::outcome<host::unique_fd> take_lock(const std::string &base, const char *name) {
    const std::string path = base + name;
    host::unique_fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd)
        return host::failed("cannot open " + path, errno);
    if (lock_within(fd.get(), patience_ms))
        return fd;
    for (const int number : {SIGTERM, SIGKILL}) {
        flock lock = whole_file();
        if (::fcntl(fd.get(), F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK && lock.l_pid > 0)
            ::kill(lock.l_pid, number);
        if (lock_within(fd.get(), term_ms))
            return fd;
    }
    return host::failed("another agent of this user holds " + path + " and does not end: kill it");
}

// A wrong setting only stops the removal of old history: the agent serves without a limit.
agent::history_limits read_history_limits(const std::string &base) {
    const auto values = read_qube_settings(base + "/config");
    auto limits = values ? agent::history_limits_of(*values)
                         : host::outcome<agent::history_limits>(tl::unexpected(values.error()));
    if (limits)
        return *limits;
    fail_with(limits.error().what + "; nothing is removed from the history");
    return {};
}

// Calls dom0, again each time the call ends, until a signal comes or the policy of qrexec refuses.
int keep_call(const std::string &base) {
    // The agent that dom0 starts does not warn: dom0 takes the last line on stderr for the reason when
    // the call ends. The client reads the same file and warns too.
    auto values = read_qube_settings(base + "/config",
                                     [](const std::string &warning) { fail_with(warning); });
    if (!values)
        return fail_with(values.error().what);
    auto transport_options = host::options_of(*values, "qrexec");
    transport_options.emplace_back("kept", "no");
    auto way = host::transport::from_table(&qvmremote_transport_qrexec, host::role::qube,
                                           transport_options);
    if (!way)
        return fail_with(way.error().what);
    const agent::history_limits history = read_history_limits(base);
    plugins::back_off pause;
    plugins::telling told;
    for (;;) {
        const std::uint64_t begin = host::boottime_ms();
        auto stream = way->connect();
        std::optional<host::failure> why;
        if (!stream) {
            why = stream.error();
        } else {
            const auto served = agent::serve(base, stream->in.get(), stream->out.get(),
                                             agent::carrying::sessions, history);
            if (!served)
                return fail_with(served.error().what);
            if (*served == agent::ending::signal)
                return 0;
            if (*served == agent::ending::silent_stream)
                why = way->explain();
            else if (host::boottime_ms() - begin > plugins::first_pause)
                pause.reset();
        }
        if (!why)
            why = host::failure{"dom0 ended the call", 0};
        if (why->error_number == EACCES) {
            fail_with(why->what);
            return refused;
        }
        if (told.is_new(why->error_number, host::boottime_ms()))
            fail_with(why->what);
        std::uint32_t random = 0;
        [[maybe_unused]] const ssize_t n = ::getrandom(&random, sizeof random, 0);
        const std::uint64_t wait = pause.next(random);
        const sigset_t set = agent::signals_of_ours();
        const timespec most = {static_cast<time_t>(wait / 1000),
                               static_cast<long>(wait % 1000) * 1'000'000};
        ::sigprocmask(SIG_BLOCK, &set, nullptr);
        if (::sigtimedwait(&set, nullptr, &most) > 0)
            return 0;
    }
}

} // namespace

int main(int argc, char **argv) {
    begin_with_own_signals({});
    cli::standard_options standard;
    bool keep = false;
    const int first = cli::parse(options, argc, argv, [&](int key, const char *) {
        keep = keep || key == opt_keep;
        return standard.take(key) || key == opt_keep;
    });
    if (first < 0)
        return 1;
    if (first < argc)
        return cli::wrong_call(this_program.name, "there are no arguments but options");
    if (standard.help) {
        cli::print_help(stdout, this_program);
        return 0;
    }
    if (standard.version) {
        cli::print_version(this_program);
        return 0;
    }
    if (!keep && (::isatty(STDIN_FILENO) || ::isatty(STDOUT_FILENO)))
        return fail_with("dom0 starts this program; on a terminal it works only with --keep");
    ::umask(077);
    const auto found = find_home();
    if (!found)
        return fail_with(found.error().what);
    const std::string &base = *found;
    if (auto made = host::make_directories(base, 0700); !made)
        return fail_with(made.error().what);
    auto lock = take_lock(base, keep ? "/agent-qrexec.lock" : "/agent.lock");
    if (!lock)
        return fail_with(lock.error().what);
    if (keep)
        return keep_call(base);
    if (auto served = agent::serve(base, STDIN_FILENO, STDOUT_FILENO, agent::carrying::all,
                                   read_history_limits(base));
        !served)
        return fail_with(served.error().what);
    return 0;
}
