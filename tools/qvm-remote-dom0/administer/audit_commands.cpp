// SPDX-License-Identifier: GPL-2.0-or-later
#include "administer/audit_commands.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <pwd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include <qvmremote/audit.hpp>
#include <qvmremote/history.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/sanitize.hpp>

#include "administer/report.hpp"
#include "common/cli.hpp"
#include "common/helper.hpp"
#include "record/admin_records.hpp"
#include "record/audit_files.hpp"
#include "record/heads.hpp"
#include "serve/control.hpp"

namespace qvmremote::dom0 {

namespace {

constexpr std::size_t most_heads = 100'000; // of the newest, from the system journal
constexpr std::size_t head_line = 128;      // bytes; a head is shorter
constexpr std::chrono::seconds journalctl_limit{120};

struct open_file {
    std::string path;
    std::uint64_t last = 0; ///< serial of its last line; 0: not known, since the file grows
    host::unique_fd fd;
};

// Opens all files of the log, the oldest first. They are opened together, so that no line is missed
// when the daemon begins a new file.
host::outcome<std::vector<open_file>> open_log(const paths &where) {
    constexpr int tries = 3;
    for (int i = 0; i < tries; ++i) {
        auto newest = host::open_trusted(where.audit(), host::trusted::secret);
        if (!newest && newest.error().error_number != ENOENT)
            return tl::unexpected(newest.error());
        auto kept = kept_audit_files(where);
        if (!kept && kept.error().error_number == ENOENT)
            return host::failed("there is no audit log at " + where.audit() +
                                    ": the daemon has not run yet",
                                ENOENT);
        if (!kept)
            return tl::unexpected(kept.error());
        struct stat st {};
        if (newest && ::fstat(newest->get(), &st) != 0)
            return host::failed("cannot look at " + where.audit(), errno);
        std::vector<open_file> out;
        bool moved = false;
        for (const kept_audit_file &f : *kept) {
            auto fd = host::open_trusted(f.path, host::trusted::secret);
            moved = moved || (newest && f.inode == st.st_ino) ||
                    (!fd && fd.error().error_number == ENOENT);
            if (!moved && !fd)
                return tl::unexpected(fd.error());
            if (fd)
                out.push_back({f.path, f.last, std::move(*fd)});
        }
        if (moved)
            continue;
        if (newest)
            out.push_back({where.audit(), 0, std::move(*newest)});
        if (out.empty())
            return host::failed("there is no audit log at " + where.audit() +
                                    ": the daemon has not run yet",
                                ENOENT);
        return out;
    }
    return host::failed("the files of the audit log change too fast; try again");
}

// Whether a process holds the log: the daemon, or a command that appends a line.
bool is_written(const paths &where) {
    const host::unique_fd fd(::open(where.audit_lock().c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
    return fd && ::flock(fd.get(), LOCK_SH | LOCK_NB) != 0;
}

void take_heads(std::string_view untrusted_text, std::vector<audit_head> &to) {
    for (const std::string_view line : tail_lines(untrusted_text, SIZE_MAX))
        if (auto head = parse_audit_head(line))
            to.push_back(std::move(*head));
}

// From the system journal: only lines that root wrote.
host::outcome<std::vector<audit_head>> heads_of_journal(const paths &where) {
    std::vector<std::string> argv = {"journalctl", "--no-pager", "--quiet", "--output=cat",
                                     "--lines=" + std::to_string(most_heads)};
    if (!where.is_real())
        argv.push_back("--root=" + where.root());
    argv.push_back("SYSLOG_IDENTIFIER=" + std::string(head_identifier));
    argv.push_back("_UID=" + std::to_string(::geteuid()));
    const auto said = run_helper(std::move(argv), most_heads * head_line, journalctl_limit);
    if (!said)
        return tl::unexpected(said.error());
    if (said->exit_code != 0)
        return host::failed("journalctl ended with " + std::to_string(said->exit_code) +
                            " (see above)");
    std::vector<audit_head> out;
    take_heads(said->untrusted_output, out);
    return out;
}

host::outcome<std::vector<audit_head>> heads_of_file(const std::string &name) {
    const host::unique_fd opened(name == "-" ? -1 : ::open(name.c_str(), O_RDONLY | O_CLOEXEC));
    if (name != "-" && !opened)
        return host::failed("cannot open " + for_terminal(name), errno);
    const auto text =
        host::read_all(name == "-" ? STDIN_FILENO : opened.get(), most_heads * head_line);
    if (!text)
        return tl::unexpected(text.error());
    std::vector<audit_head> out;
    take_heads(*text, out);
    if (out.empty())
        return host::failed("no line of " + for_terminal(name) +
                            " ends in a head: such a line is \"" + format_audit_head(1, "HASH") +
                            "\"");
    return out;
}

int verify(const invocation &in, const std::string &heads_file) {
    // Heads first: lines that are written after this are not missing ones.
    auto heads = heads_file.empty() ? heads_of_journal(in.where) : heads_of_file(heads_file);
    if (!heads && !heads_file.empty())
        return fail_with(heads.error());
    auto files = open_log(in.where);
    if (!files)
        return fail_with(files.error());
    audit_verifier verifier(heads ? std::move(*heads) : std::vector<audit_head>());
    const auto bad = [](const std::string &place, std::uint64_t serial, std::string_view what) {
        report::instance().say(errc::chain_broken, place + " (serial " + std::to_string(serial) +
                                                       ") " + std::string(what));
        report::instance().say(errc::chain_broken,
                               "keep all files of the log, and find out who changed them as root; "
                               "to begin a new log, move them away");
        return 1;
    };
    std::string place, first_place;
    for (std::size_t n = 0; n < files->size(); ++n) {
        const open_file &f = (*files)[n];
        line_reader lines(f.fd.get());
        for (std::uint64_t number = 1;; ++number) {
            const auto line = lines.next();
            place = f.path + ":" + std::to_string(number);
            if (!line && line.error().error_number != EFBIG)
                return fail_with(f.path + ": " + line.error().what);
            if (line && !*line)
                break;
            const auto fault = line ? verifier.push(**line) : audit_fault::malformed;
            if (fault)
                return bad(place, verifier.last() + 1, message(*fault));
            if (first_place.empty())
                first_place = place;
        }
        place = f.path;
        if (lines.torn() && n + 1 < files->size())
            return bad(place, verifier.last() + 1, "ends within a line: its end is missing");
        if (lines.torn() && !is_written(in.where))
            report::instance().say(fault::local_failure,
                                   f.path + " ends within a line, as after a crash; the daemon "
                                            "removes that part when it starts");
    }
    if (const auto fault = verifier.finish(); fault == audit_fault::cut)
        return bad(place, verifier.last(),
                   std::string(message(*fault)) + ", up to serial " +
                       std::to_string(verifier.noted()));
    else if (fault)
        return bad(first_place, verifier.first(), message(*fault));
    const std::uint64_t lines = verifier.last() == 0 ? 0 : verifier.last() - verifier.first() + 1;
    if (report::instance().is_json()) {
        auto &result = report::instance().result();
        result = {{"lines", lines},
                  {"files", files->size()},
                  {"first", verifier.first()},
                  {"last", verifier.last()},
                  {"head", verifier.hash()}};
        if (heads)
            result["heads"] = {{"compared", verifier.compared()}, {"last", verifier.noted()}};
        else
            report::instance().say(fault::local_failure,
                                   "heads are not compared: " + heads.error().what);
        return 0;
    }
    std::printf("good: %llu lines in %zu files, serial %llu to %llu, head %s\n",
                static_cast<unsigned long long>(lines), files->size(),
                static_cast<unsigned long long>(verifier.first()),
                static_cast<unsigned long long>(verifier.last()),
                std::string(verifier.hash()).c_str());
    if (!heads)
        std::printf("heads: not compared, so missing lines at the end would not be found: %s; "
                    "give the heads with --heads FILE\n",
                    heads.error().what.c_str());
    else
        std::printf("heads: %zu compared, the last with serial %llu\n", verifier.compared(),
                    static_cast<unsigned long long>(verifier.noted()));
    return 0;
}

// A value as people read it. Bytes that were escaped in the file are escaped again, for the terminal.
std::string shown(const audit_entry &entry, std::string_view key, std::string_view raw) {
    if (const auto words = entry.list(key)) {
        std::string out;
        for (const std::string &word : *words)
            out += (out.empty() ? "" : " ") + (word.empty() || word.find(' ') != word.npos
                                                   ? "'" + for_terminal(word) + "'"
                                                   : for_terminal(word));
        return out;
    }
    const auto text = entry.text(key);
    return text ? for_terminal(*text) : for_terminal(raw);
}

void print_fields(const audit_entry &entry) {
    for (const auto &[key, raw] : entry.fields())
        if (key != "h")
            std::printf("%-14s %s\n", key == "n" ? "serial" : std::string(key).c_str(),
                        shown(entry, key, raw).c_str());
}

void print_line(const audit_entry &entry) {
    std::printf("%s %llu %s", shown(entry, "t", {}).c_str(),
                static_cast<unsigned long long>(entry.serial), std::string(entry.kind).c_str());
    for (const auto &[key, raw] : entry.fields())
        if (key != "n" && key != "t" && key != "kind" && key != "h")
            std::printf(" %s=%s", std::string(key).c_str(), shown(entry, key, raw).c_str());
    std::printf("\n");
}

// Calls `see(entry, line)` for each line with this serial or a later one, until it returns false.
template <class See>
host::outcome<void> each_from(const paths &where, std::uint64_t from, See see) {
    auto files = open_log(where);
    if (!files)
        return tl::unexpected(files.error());
    for (const open_file &f : *files) {
        if (f.last != 0 && f.last < from)
            continue;
        line_reader lines(f.fd.get());
        for (std::uint64_t number = 1;; ++number) {
            const auto line = lines.next();
            if (!line)
                return host::failed(f.path + ":" + std::to_string(number) + ": " +
                                    line.error().what);
            if (!*line)
                break;
            const auto entry = parse_audit(**line);
            if (!entry)
                return host::failed(
                    f.path + ":" + std::to_string(number) +
                    " is not a line that dom0 wrote: run qvm-remote-dom0 audit verify");
            if (entry->serial >= from && !see(*entry, **line))
                return {};
        }
    }
    return {};
}

int show(const invocation &in, std::uint64_t serial) {
    const bool json = report::instance().is_json();
    const auto show_record = [&](const audit_entry &entry, std::string_view line) {
        if (!json)
            return print_fields(entry);
        report::instance().result()["records"].push_back(
            nlohmann::ordered_json::parse(line, nullptr, false));
    };
    bool found = false, ended = false;
    std::optional<std::uint64_t> start; // the serial of the START whose END is wanted
    const auto look = [&](const audit_entry &entry, std::string_view line) {
        const auto of = entry.number("of");
        if (!found) {
            if (entry.serial != serial)
                return false;
            found = true;
            if (entry.kind == name(audit_kind::end) && of && *of > 0) {
                start = static_cast<std::uint64_t>(*of);
                return false;
            }
            show_record(entry, line);
            if (entry.kind == name(audit_kind::start))
                start = serial;
            return start.has_value();
        }
        if (entry.kind != name(audit_kind::end) || !of || !std::cmp_equal(*of, *start))
            return true;
        if (!json)
            std::printf("\n");
        show_record(entry, line);
        if (entry.text("cause") == "unknown" && !json)
            std::printf("outcome unknown: the daemon ended while this ran\n");
        ended = true;
        return false;
    };
    if (auto read = each_from(in.where, serial, look); !read)
        return fail_with(read.error());
    if (found && start && *start != serial) // it is an END: show its START too
        return *start < serial ? show(in, *start)
                               : fail_with("this END does not name a START before it: run "
                                           "qvm-remote-dom0 audit verify");
    if (!found)
        return fail_with(fault::no_record, "there is no record with serial " +
                                               std::to_string(serial) +
                                               ": qvm-remote-dom0 audit export lists them");
    if (json)
        report::instance().result()["running"] = start && !ended && is_written(in.where);
    else if (start && !ended)
        std::printf("\n%s\n", is_written(in.where)
                                  ? "no END yet: it is running"
                                  : "no END: outcome unknown, since no daemon is running");
    return 0;
}

int export_from(const invocation &in, std::uint64_t since, bool as_text) {
    report::instance().has_own_form();
    const auto print = [&](const audit_entry &entry, std::string_view line) {
        if (as_text)
            print_line(entry);
        else
            std::printf("%.*s\n", static_cast<int>(line.size()), line.data());
        return true;
    };
    if (auto read = each_from(in.where, since, print); !read)
        return fail_with(read.error());
    return std::fflush(stdout) == 0
               ? 0
               : fail_with(host::failed("cannot write to standard output", errno).value());
}

int rotate(const invocation &in) {
    const auto answer = ask_daemon(in.where, "audit rotate");
    if (!answer)
        return fail_with(fault::unreachable,
                         answer.error().what + ": only the daemon begins a new file");
    return *answer == "ok\n" ? 0 : fail_with(daemon_says(*answer));
}

std::string administrator_name() {
    uid_t uid = ::getuid();
    if (const auto text = host::read_text("/proc/self/loginuid", 32))
        if (const auto login = parse_decimal<std::uint32_t>(*text); login && *login != UINT32_MAX)
            uid = *login;
    const passwd *const account = ::getpwuid(uid);
    return account ? account->pw_name : std::to_string(uid);
}

} // namespace

int audit(const invocation &in) {
    static constexpr cli::option table[] = {
        {'H', "heads", "FILE", "heads as the system journal prints them; - is standard input"},
        {'s', "since", "SERIAL", "leave out what is older"},
        {'f', "format", "FORMAT", "json (as it stands in the log) or text"},
    };
    if (in.arguments.empty())
        return fail_with(in.usage);
    const std::string_view verb = in.arguments[0];
    std::string heads, since = "1", format = "json";
    std::vector<char *> words(in.arguments.begin(), in.arguments.end());
    words[0] = const_cast<char *>("qvm-remote-dom0");
    const int next = cli::parse(
        table, static_cast<int>(words.size()), words.data(), [&](int key, const char *value) {
            const std::string_view wanted = key == 'H' ? "verify" : "export";
            (key == 'H' ? heads : key == 's' ? since : format) = value;
            return verb == wanted;
        });
    if (next < 0)
        return 1;
    const auto left = std::span(words).subspan(static_cast<std::size_t>(next));
    if (verb == "show" && left.size() == 1)
        since = left[0];
    else if (!left.empty() || verb == "show")
        return fail_with(in.usage);
    const auto serial = parse_decimal<std::uint64_t>(since);
    if (!serial || *serial == 0)
        return fail_with(fault::usage,
                         "'" + for_terminal(since, 32) + "' is not a serial: use a number above 0");
    if (format != "json" && format != "text")
        return fail_with(fault::usage,
                         "'" + for_terminal(format, 32) + "' is not a format: use json or text");
    if (verb == "verify")
        return verify(in, heads);
    if (verb == "show")
        return show(in, *serial);
    if (verb == "export")
        return export_from(in, *serial, format == "text");
    return verb == "rotate" ? rotate(in) : fail_with(in.usage);
}

host::outcome<void> record_admin(const paths &where, std::string_view act, std::string_view peer,
                                 std::string_view words) {
    const std::string who = administrator_name();
    constexpr int tries = 250;
    for (int i = 0; i < tries; ++i) {
        const auto answer =
            ask_daemon(where, "admin\t" + std::string(act) + "\t" + std::string(peer) + "\t" + who +
                                  "\t" + std::string(words));
        if (answer && *answer == "ok\n")
            return {};
        if (answer)
            return host::failed(daemon_says(*answer));
        if (answer.error().error_number != ENOENT && answer.error().error_number != ECONNREFUSED)
            return tl::unexpected(answer.error());
        auto written = journal::append(where, audit_limits{}, admin_entry(act, peer, who, words));
        if (written || written.error().error_number != EWOULDBLOCK)
            return written;
        ::usleep(20'000); // a daemon starts or ends
    }
    return host::failed(
        "a daemon holds the audit log and does not answer: try again, or restart it with "
        "systemctl restart qvm-remote-dom0");
}

} // namespace qvmremote::dom0
