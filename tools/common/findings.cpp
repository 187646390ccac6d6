// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/findings.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <qvmremote/host/files.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/sanitize.hpp>

#include "common/helper.hpp"
#include "common/installed.hpp"

namespace qvmremote {

std::string_view name(health state) noexcept {
    switch (state) {
    case health::ok:
        return "ok";
    case health::warning:
        return "warning";
    default:
        return "broken";
    }
}

finding good(std::string what) { return {health::ok, std::move(what), {}}; }
finding doubtful(std::string cause, std::string remedy) {
    return {health::warning, std::move(cause), std::move(remedy)};
}
finding broken(std::string cause, std::string remedy) {
    return {health::broken, std::move(cause), std::move(remedy)};
}
finding fixable(finding it) {
    it.fixable = true;
    return it;
}
finding broken(const host::failure &why, const std::string &otherwise) {
    // The contract of host::open_trusted: such a message ends with the command that repairs it.
    constexpr std::string_view run = "; run: ";
    const std::size_t at = why.error_number == EPERM ? why.what.rfind(run) : std::string::npos;
    if (at == std::string::npos)
        return broken(for_terminal(why.what), otherwise);
    return broken(for_terminal(why.what.substr(0, at)),
                  for_terminal(why.what.substr(at + run.size())));
}

void mark_fixed(const std::vector<named_finding> &before, std::vector<named_finding> &now) {
    for (named_finding &one : now)
        one.fixed = one.what.state == health::ok &&
                    std::any_of(before.begin(), before.end(), [&](const named_finding &earlier) {
                        return earlier.what.fixable && earlier.check == one.check &&
                               earlier.qube == one.qube;
                    });
}

health worst_of(const std::vector<named_finding> &all) noexcept {
    health out = health::ok;
    for (const named_finding &one : all)
        out = std::max(out, one.what.state);
    return out;
}

int exit_code_of(const std::vector<named_finding> &all) noexcept {
    return worst_of(all) == health::broken ? exit_broken : 0;
}

std::string row_of(const named_finding &one) {
    const auto column = [](std::string text, std::size_t width) {
        text.resize(std::max(text.size(), width), ' ');
        return text + " ";
    };
    std::string out = column(std::string(name(one.what.state)), 7);
    out += column((one.qube.empty() ? "" : one.qube + ": ") + std::string(one.check), 11);
    out += one.what.cause;
    if (one.fixed)
        out += " (fixed now)";
    if (!one.what.remedy.empty())
        out += "; " + one.what.remedy;
    if (one.what.fixable)
        out += " (doctor --fix does it)";
    return out + "\n";
}

void write_findings(json_writer &to, const std::vector<named_finding> &all) {
    to.text("version", QVMREMOTE_VERSION);
    to.text("state", name(worst_of(all)));
    to.begin_array("findings");
    for (const named_finding &one : all) {
        to.begin();
        to.text("check", one.check);
        if (!one.qube.empty())
            to.text("qube", one.qube);
        to.text("state", name(one.what.state));
        to.text("cause", one.what.cause);
        to.text("remedy", one.what.remedy);
        to.flag("fixable", one.what.fixable);
        to.flag("fixed", one.fixed);
        to.end();
    }
    to.end();
}

std::string json_of(const std::vector<named_finding> &all,
                    const std::vector<std::string> &warnings) {
    std::string out;
    json_writer to(out);
    to.begin();
    to.begin("result");
    write_findings(to, all);
    to.end();
    to.number("exit_code", exit_code_of(all));
    to.begin_array("warnings");
    for (const std::string &one : warnings)
        to.text(one);
    to.end();
    to.end();
    return out + "\n";
}

file_facts look_at(std::string path) {
    file_facts out;
    struct stat at {};
    if (::lstat(path.c_str(), &at) != 0)
        out.error = errno;
    out.mode = at.st_mode;
    out.owner = at.st_uid;
    out.path = std::move(path);
    return out;
}

room_facts room_in(const std::string &directory) {
    room_facts out;
    out.path = directory;
    const std::string probe = directory + "/.doctor-" + std::to_string(::getpid());
    const host::unique_fd fd(
        ::open(probe.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!fd)
        out.writable = host::failed("cannot make a file in " + for_terminal(directory), errno);
    else if (const std::string data(4096, '\0'); !host::write_all(fd.get(), data))
        out.writable = host::failed("cannot write a file in " + for_terminal(directory), errno);
    if (fd)
        ::unlink(probe.c_str());
    struct statvfs room {};
    if (::statvfs(directory.c_str(), &room) == 0) {
        out.free_bytes = std::uint64_t{room.f_bavail} * room.f_frsize;
        // A file system without a fixed number of files says that it has none.
        out.free_files = room.f_files == 0 ? UINT64_MAX : std::uint64_t{room.f_favail};
    }
    return out;
}

finding judge_room(const room_facts &room) {
    constexpr std::uint64_t little_bytes = 16 * 1024 * 1024;
    constexpr std::uint64_t few_files = 256;
    const std::string where = for_terminal(room.path);
    if (!room.writable)
        return broken(room.writable.error(), "make room there, or see who changed its mode");
    if (room.free_bytes < little_bytes || room.free_files < few_files)
        return doubtful("only " + std::to_string(room.free_bytes / 1024) + " KiB and " +
                            std::to_string(room.free_files) + " files are free in " + where,
                        "make room there");
    return good(std::to_string(room.free_bytes / (1024 * 1024)) + " MiB free in " + where);
}

program_facts ask_version(std::string path) {
    constexpr std::chrono::seconds limit{10};
    constexpr std::size_t longest = 256;
    program_facts out;
    const auto said = run_helper({path, "--version"}, longest, limit, helper_messages::dropped);
    std::string_view line = said ? std::string_view(said->untrusted_output) : std::string_view();
    line = line.substr(0, line.find('\n'));
    line.remove_prefix(std::min(line.rfind(' ') + 1, line.size())); // npos + 1 is 0: all of it
    if (!said)
        out.version = tl::unexpected(said.error());
    else if (said->exit_code != 0 || line.empty())
        out.version = host::failed(for_terminal(path) + " does not say its version");
    else
        out.version = for_terminal(line, 64);
    out.path = std::move(path);
    return out;
}

host::outcome<void> narrow_mode(const std::string &path, unsigned most) {
    const host::unique_fd fd(
        ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    struct stat at {};
    if (!fd || ::fstat(fd.get(), &at) != 0)
        return host::failed("cannot open " + for_terminal(path), errno);
    if (at.st_uid != ::geteuid())
        return host::failed("cannot change the mode of " + for_terminal(path), EPERM);
    if (::fchmod(fd.get(), at.st_mode & most) != 0)
        return host::failed("cannot change the mode of " + for_terminal(path), errno);
    return {};
}

} // namespace qvmremote
