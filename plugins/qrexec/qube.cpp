// SPDX-License-Identifier: GPL-2.0-or-later
#include "qube.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <pwd.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/bytes.hpp>
#include <qvmremote/host/clock.hpp>

#include "../common/words.hpp"
#include "../qvm-run/qube.hpp"
#include "descriptor.hpp"

namespace qrexec {
namespace {

using plugins::ms;

constexpr ms slot_limit = 1'000; // then the host checks whether it still needs the call
constexpr int explain_ms = 1'000;

[[noreturn]] void fail_errno(const std::string &what) {
    throw problem{QVMREMOTE_FAILED, what + ": " + std::strerror(errno)};
}

// Finds the home directory in the same way as the client.
std::string home() {
    const char *const set = std::getenv("HOME");
    if (set != nullptr && *set == '/')
        return set;
    const passwd *const who = ::getpwuid(::geteuid());
    if (who == nullptr || who->pw_dir == nullptr || *who->pw_dir == '\0')
        throw problem{QVMREMOTE_FAILED, "there is no home directory: set HOME"};
    return who->pw_dir;
}

bool is_of(std::string_view text, std::size_t most, std::string_view also_allowed) {
    return text.size() <= most && std::all_of(text.begin(), text.end(), [&](char c) {
               return qvmremote::is_alnum(c) || also_allowed.find(c) != std::string_view::npos;
           });
}

} // namespace

std::vector<std::string> call_of(const call_settings &settings) {
    return {settings.client, settings.target,
            std::string(service_name) + (settings.argument.empty() ? "" : "+" + settings.argument)};
}

problem meaning_of(const call_settings &settings, const child_end &end, const std::string &said) {
    const std::string service =
        std::string(service_name) + (settings.argument.empty() ? "" : "+" + settings.argument);
    const std::string detail = said.empty() ? "" : " (" + said + ")";
    if (end.by_signal)
        return {QVMREMOTE_FAILED,
                settings.client + " was killed by signal " + std::to_string(end.number) + detail};
    switch (end.number) {
    case 0:
        return {QVMREMOTE_UNREACHABLE, settings.target + " ended the call to " + service +
                                           " without an answer; in dom0, qvm-remote-dom0 log "
                                           "says why"};
    case 125:
        // Qubes reports 125 for a socket on which nobody listens. A daemon that was killed leaves
        // such a socket.
        return {QVMREMOTE_UNREACHABLE, "qrexec could not make the call to " + service + " in " +
                                           settings.target + detail +
                                           "; is qvm-remote-dom0 running there, and Qubes' qrexec "
                                           "agent here?"};
    case 126:
        return {QVMREMOTE_REFUSED, "the policy of qrexec refuses the call to " + service + " in " +
                                       settings.target + detail +
                                       "; see /etc/qubes/policy.d in dom0, and its log"};
    case 127:
        return {QVMREMOTE_UNREACHABLE, "there is no service " + service + " in " + settings.target +
                                           detail +
                                           "; is qvm-remote-dom0 running there, with the "
                                           "transport qrexec?"};
    default:
        return {QVMREMOTE_FAILED,
                settings.client + " ended with " + std::to_string(end.number) + detail};
    }
}

caller::caller(const qvmremote_options &options) {
    const struct {
        const char *key;
        std::string &value;
    } known[] = {
        {"client", settings_.client},
        {"target", settings_.target},
        {"argument", settings_.argument},
    };
    for (std::uint32_t i = 0; i < options.count; ++i) {
        const std::string key = options.items[i].key;
        const std::string value = options.items[i].value;
        const auto row = std::find_if(std::begin(known), std::end(known),
                                      [&](const auto &r) { return key == r.key; });
        if (row != std::end(known))
            row->value = value;
        else if (key == "kept" && (value == "yes" || value == "no"))
            settings_.kept = value == "yes";
        else if (key == "kept")
            throw problem{QVMREMOTE_BAD_OPTION, "option 'kept': '" + value + "' is not yes or no"};
        else
            throw problem{QVMREMOTE_BAD_OPTION,
                          "unknown option '" + key +
                              "': the options here are client, target, argument, kept"};
    }
    if (!settings_.client.starts_with('/'))
        throw problem{QVMREMOTE_BAD_OPTION,
                      "option 'client': '" + settings_.client + "' is not an absolute path"};
    // qrexec-client-vm would take a name that begins with '-' for an option.
    if (settings_.target.starts_with('-') || !is_of(settings_.target, longest_source, "_.-@:$"))
        throw problem{QVMREMOTE_BAD_OPTION,
                      "option 'target': '" + settings_.target + "' is not the name of a qube"};
    if (settings_.argument.starts_with('+') || !is_of(settings_.argument, longest_argument, "_.+-"))
        throw problem{
            QVMREMOTE_BAD_OPTION,
            "option 'argument': '" + settings_.argument +
                "' must be of letters, digits, '_', '.', '-' and '+', and not begin with '+'"};
    settings_.directory = home() + "/.qvm-remote";
}

void caller::connect(qvmremote_stream &out) {
    if (settings_.kept && connect_to_agent(out))
        return;
    calls_.remove_if([](call &c) { return c.process.take_end().has_value(); });
    unique_fd slot = take_slot();
    // Use a pair for each direction: qrexec-client-vm closes its descriptor 1 when dom0 is done. If
    // its descriptor 0 were the same socket, we would not see that end.
    int up[2], down[2], err[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, up) != 0)
        fail_errno("cannot make a socket pair");
    unique_fd up_near(up[0]);
    const unique_fd up_far(up[1]);
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, down) != 0)
        fail_errno("cannot make a socket pair");
    unique_fd down_near(down[0]);
    const unique_fd down_far(down[1]);
    if (::pipe2(err, O_CLOEXEC) != 0)
        fail_errno("cannot make a pipe");
    unique_fd err_read(err[0]);
    const unique_fd err_write(err[1]);
    auto process = child::start({.argv = call_of(settings_),
                                 .in = up_far.get(),
                                 .out = down_far.get(),
                                 .err = err_write.get(),
                                 .directory = "/"});
    if (!process)
        throw problem{QVMREMOTE_FAILED, process.error().what +
                                            "; the transport qrexec needs Qubes' program in the "
                                            "qube, and option 'client' names another place"};
    calls_.push_back({std::move(*process), std::move(err_read), std::move(slot)});
    out.in_fd = down_near.release();
    out.out_fd = up_near.release();
}

// Connects to an agent that shares its call, if there is one. Its socket has another name than that
// of qvm-run.
bool caller::connect_to_agent(qvmremote_stream &out) const {
    const std::string path = settings_.directory + "/agent-qrexec.sock";
    if (::access(path.c_str(), F_OK) != 0)
        return false;
    const qvmremote_option item = {"socket", path.c_str()};
    const qvmremote_options options = {sizeof options, 1, &item};
    char text[256] = {};
    void *agent = nullptr;
    std::int32_t status = qvm_run::qvm_run_qube_open(&options, &agent, text, sizeof text);
    if (status == QVMREMOTE_OK) {
        status = qvm_run::qvm_run_qube_connect(agent, &out, text, sizeof text);
        qvm_run::qvm_run_qube_close(agent);
    }
    if (status == QVMREMOTE_REFUSED)
        throw problem{status, text};
    return status == QVMREMOTE_OK;
}

// Takes one of several locks. The kernel drops a lock when the process that holds it ends, so no
// lock is left over.
unique_fd caller::take_slot() const {
    const std::string prefix = settings_.directory + "/qrexec-";
    ::mkdir(settings_.directory.c_str(), 0700);
    unique_fd files[calls_at_once];
    const ms end = qvmremote::host::boottime_ms() + slot_limit;
    for (int pause = 1;; pause = std::min(2 * pause, 20)) {
        for (int i = 0; i < calls_at_once; ++i) {
            if (!files[i]) {
                const std::string path = prefix + std::to_string(i) + ".lock";
                files[i].reset(
                    ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
                if (!files[i])
                    fail_errno("cannot open " + path);
            }
            if (::flock(files[i].get(), LOCK_EX | LOCK_NB) == 0)
                return std::move(files[i]);
        }
        // The host checks for signals between two attempts.
        if (::poll(nullptr, 0, pause) < 0 || qvmremote::host::boottime_ms() >= end)
            throw problem{QVMREMOTE_UNREACHABLE,
                          std::to_string(calls_at_once) +
                              " calls of this user are open, and none has ended; `qvm-remote-agent "
                              "--keep` lets all share one"};
    }
}

std::int32_t caller::explain(std::string &text) {
    if (calls_.empty())
        return QVMREMOTE_AGAIN; // it was the agent's call: the agent knows the reason
    call &last = calls_.back();
    pollfd ended{last.process.descriptor(), POLLIN, 0};
    int ready;
    do
        ready = ::poll(&ended, 1, explain_ms);
    while (ready < 0 && errno == EINTR);
    const auto end = last.process.take_end();
    if (!end)
        return QVMREMOTE_AGAIN;
    plugins::last_line said;
    ::fcntl(last.err.get(), F_SETFL, O_NONBLOCK);
    char room[4096];
    const ssize_t n = ::read(last.err.get(), room, sizeof room);
    if (n > 0)
        said.feed({room, static_cast<std::size_t>(n)});
    calls_.pop_back();
    problem why = meaning_of(settings_, *end, said.text());
    text = std::move(why.text);
    return why.status;
}

} // namespace qrexec

namespace {

using plugins::guarded;

qrexec::caller &from(void *self) { return *static_cast<qrexec::caller *>(self); }

} // namespace

extern "C" {
std::int32_t qrexec_qube_open(const qvmremote_options *options, void **self, char *error,
                              std::uint32_t error_size) {
    return guarded(error, error_size, [&] {
        *self = new qrexec::caller(*options);
        return QVMREMOTE_OK;
    });
}

void qrexec_qube_close(void *self) { delete &from(self); }

std::int32_t qrexec_qube_connect(void *self, qvmremote_stream *out, char *error,
                                 std::uint32_t error_size) {
    return guarded(error, error_size, [&] {
        from(self).connect(*out);
        return QVMREMOTE_OK;
    });
}

std::int32_t qrexec_qube_explain(void *self, char *error, std::uint32_t error_size) {
    return guarded(error, error_size, [&] {
        std::string text;
        const std::int32_t status = from(self).explain(text);
        if (error != nullptr && error_size != 0)
            std::snprintf(error, error_size, "%s", text.c_str());
        return status;
    });
}
}
