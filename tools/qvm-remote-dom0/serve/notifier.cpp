// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/notifier.hpp"

#include <algorithm>
#include <optional>

#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/sanitize.hpp>

namespace qvmremote::dom0 {

namespace {

constexpr std::size_t most_at_once = 8;
constexpr std::size_t shown_words = 6;
constexpr std::size_t shown_text = 200; // of a word or a script

struct session {
    std::string user, home, bus;
    identity as;
};

// With --root, the caller's own session, at a path that only a test makes.
std::optional<session> desktop_session(const paths &where) {
    const passwd *who = nullptr;
    if (!where.is_real())
        who = ::getpwuid(::geteuid());
    else if (const group *const members = ::getgrnam("qubes"); members && *members->gr_mem)
        who = ::getpwnam(*members->gr_mem);
    if (!who)
        return std::nullopt;
    session out{who->pw_name,
                who->pw_dir,
                where.root() + "/run/user/" + std::to_string(who->pw_uid) + "/bus",
                {who->pw_uid, who->pw_gid, {}}};
    struct stat st {};
    if (::stat(out.bus.c_str(), &st) != 0 || !S_ISSOCK(st.st_mode) || st.st_uid != who->pw_uid)
        return std::nullopt;
    return out;
}

// One value on a line of its own. If a part is left out, the line says so.
std::string line_of(const std::string &label, std::string_view untrusted_text) {
    const std::string_view shown = untrusted_text.substr(0, shown_text);
    return label + ": " + for_markup(shown, std::string_view::npos) +
           (shown.size() == untrusted_text.size()
                ? "\n"
                : "\n  (" + std::to_string(untrusted_text.size() - shown.size()) +
                      " more bytes)\n");
}

std::string summary_of(const open_question &asked) {
    const std::vector<std::string> &argv = asked.terms.argv;
    if (argv.empty())
        return line_of("in a shell", asked.untrusted_script);
    std::string out;
    for (std::size_t i = 0; i < argv.size() && i < shown_words; ++i)
        out += line_of(std::to_string(i), argv[i]);
    if (argv.size() > shown_words)
        out += "  (" + std::to_string(argv.size() - shown_words) + " more words)\n";
    return out;
}

} // namespace

void notifier::show(const open_question &asked) {
    std::erase_if(shown_, [](child &c) {
        while (const auto event = c.next())
            if (event->kind == child_event::failed || event->kind == child_event::empty ||
                event->kind == child_event::lost)
                return true;
        return false;
    });
    const auto at = program_ == "none" ? std::nullopt : desktop_session(where_);
    const host::unique_fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    if (!at || !null)
        return;
    launch command;
    command.program = program_.empty() ? "notify-send" : program_;
    command.argv = {"notify-send",
                    "--app-name=qvm-remote",
                    "--urgency=critical",
                    "--expire-time=" + std::to_string(approvals::patience_ms),
                    "--",
                    asked.from.name.text() + " asks dom0 to run a command",
                    summary_of(asked) +
                        "All of it, and your answer, in a terminal:\n"
                        "qvm-remote-dom0 approvals allow " +
                        std::to_string(asked.serial)};
    command.environment = {"HOME=" + at->home,    "USER=" + at->user,
                           "LOGNAME=" + at->user, "PATH=/usr/bin:/bin",
                           "LANG=C.UTF-8",        "DBUS_SESSION_BUS_ADDRESS=unix:path=" + at->bus};
    command.directory = "/";
    if (at->as.uid != ::geteuid())
        command.user = at->as;
    command.no_new_privs = true;
    command.in = command.out = command.err = null.get();
    if (auto started = children_.launch(command)) {
        if (shown_.size() >= most_at_once)
            shown_.erase(shown_.begin());
        shown_.push_back(std::move(*started));
    }
}

} // namespace qvmremote::dom0
