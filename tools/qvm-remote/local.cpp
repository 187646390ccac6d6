// SPDX-License-Identifier: GPL-2.0-or-later
#include "local.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include <dirent.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/crypto.h>

#include <qvmremote/config.hpp>
#include <qvmremote/history.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/sanitize.hpp>

namespace qvmremote::qube {

namespace {

int fail_with(const std::string &what) {
    complain(what);
    return 1;
}

// How many lines or entries are asked for; 0 and a message when the word is no number.
std::uint32_t count_of(std::span<char *> words, std::uint32_t otherwise) {
    if (words.empty())
        return otherwise;
    const auto n = parse_positive(words[0]);
    if (!n || words.size() > 1) {
        complain("'" + for_terminal(words.back(), 64) + "' is no number of lines: use 1 or more");
        return 0;
    }
    return *n;
}

std::vector<std::string> names_in(const std::string &directory) {
    std::vector<std::string> out;
    DIR *const open = ::opendir(directory.c_str());
    if (!open)
        return out;
    while (const dirent *entry = ::readdir(open))
        if (entry->d_name[0] != '.')
            out.emplace_back(entry->d_name);
    ::closedir(open);
    std::sort(out.begin(), out.end());
    return out;
}

void print_key_hint(const secret &key) {
    std::fprintf(stderr,
                 "Fingerprint: %s\n"
                 "In dom0, register it with: qvm-remote-dom0 authorize NAME-OF-THIS-QUBE\n"
                 "This qube can then run any command in dom0: it IS dom0 from then on.\n",
                 key.fingerprint().c_str());
}

int key_generate(const home &where) {
    if (::access(where.key_file().c_str(), F_OK) == 0)
        return fail_with("there is a key already at " + where.key_file() +
                         "; remove that file first if dom0 shall no longer know this qube by it");
    secret_bytes<32> random;
    if (::getrandom(random.value().data(), random.value().size(), 0) != 32)
        return fail_with("the kernel has no random bytes yet");
    const secret key = secret::from_random(random);
    if (auto stored = where.store_key(key); !stored)
        return fail_with(stored.error().what);
    std::printf("%s\n", key.fingerprint().c_str());
    if (::isatty(STDERR_FILENO))
        print_key_hint(key);
    return 0;
}

int key_show(const settings &how, const home &where) {
    auto key = where.load_key();
    if (!key)
        return fail_with(key.error().what);
    const bytes_view text = key->text();
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::printf("\n");
    std::fflush(stdout);
    if (::isatty(STDERR_FILENO) || how.verbose)
        print_key_hint(*key);
    return 0;
}

int key_import(const home &where, std::span<char *> words) {
    std::string text;
    if (!words.empty()) {
        complain("warning: a key on the command line can be read in the list of processes; give it "
                 "on standard input instead");
        text = words[0];
        OPENSSL_cleanse(words[0], std::strlen(words[0]));
    } else {
        auto read = host::read_all(STDIN_FILENO, 256);
        if (!read)
            return fail_with("that is no key: " + read.error().what);
        text = std::move(*read);
    }
    auto key = secret::parse(text);
    const std::size_t size = text.size();
    OPENSSL_cleanse(text.data(), text.size());
    if (!key)
        return fail_with("that is no key: byte " + std::to_string(key.error().offset + 1) + " of " +
                         std::to_string(size) +
                         " does not fit; a key is 64 digits of 0-9 and a-f, without 0x, sign or "
                         "separators");
    if (auto stored = where.store_key(*key); !stored)
        return fail_with(stored.error().what);
    std::printf("%s\n", key->fingerprint().c_str());
    return 0;
}

} // namespace

int key_command(const settings &how, const home &where, std::span<char *> words) {
    const std::string_view verb = words.empty() ? std::string_view() : words[0];
    if (verb == "gen" && words.size() == 1)
        return key_generate(where);
    if (verb == "show" && words.size() == 1)
        return key_show(how, where);
    if (verb == "import" && words.size() <= 2)
        return key_import(where, words.subspan(1));
    return fail_with("usage: qvm-remote key gen | show | import [KEY]");
}

int queue_command(const settings &, const home &where, std::span<char *> words) {
    const std::string_view verb = words.empty() ? std::string_view("status") : words[0];
    if (words.size() > 1 || (verb != "status" && verb != "clean" && verb != "debug"))
        return fail_with("usage: qvm-remote queue [status | clean | debug]");
    std::uint64_t removed = 0;
    for (const char *part : {"pending", "running", "results"}) {
        const std::string directory = where.queue() + "/" + part;
        const auto names = names_in(directory);
        if (verb == "status")
            std::printf("%-8s %zu\n", part, names.size());
        for (const std::string &name : names) {
            const std::string path = directory + "/" + name;
            if (verb == "clean") {
                if (::unlink(path.c_str()) == 0)
                    ++removed;
                else
                    complain("cannot remove " + for_terminal(path) + ": " + std::strerror(errno));
            } else if (verb == "debug") {
                struct stat st {};
                ::lstat(path.c_str(), &st);
                std::printf("%-8s %10lld bytes %8lld s old  %s\n", part,
                            static_cast<long long>(st.st_size),
                            static_cast<long long>(host::local_time::now().seconds - st.st_mtime),
                            for_terminal(name).c_str());
            }
        }
    }
    if (verb != "clean")
        return 0;
    std::printf("removed %llu\n", static_cast<unsigned long long>(removed));
    std::string line = line_queue_clean(host::local_time::now().timestamp(), removed);
    line.pop_back(); // append_line brings its own newline
    if (auto made = host::make_directories(where.directory(), 0700); !made)
        return fail_with(made.error().what);
    if (auto written = host::append_line(where.audit_log(), line, 0600); !written)
        return fail_with(written.error().what);
    return 0;
}

int log_command(const settings &, const home &where, std::span<char *> words) {
    const std::uint32_t n = count_of(words, 20);
    if (n == 0)
        return 1;
    auto text = host::read_tail(where.audit_log(), std::size_t{n} * 512 + 4096);
    if (!text)
        return fail_with(text.error().error_number == ENOENT ? "no command has been run yet"
                                                             : text.error().what);
    for (const std::string_view line : tail_lines(*text, n))
        std::printf("%s\n", for_terminal(line).c_str());
    return 0;
}

namespace {

// Recorded output: as it was into a pipe or file, cleaned onto a terminal.
void print_recorded(const std::string &path) {
    auto text = host::read_text(path, 2 * limits::recorded_output);
    if (!text)
        return;
    if (!::isatty(STDOUT_FILENO)) {
        std::fwrite(text->data(), 1, text->size(), stdout);
        return;
    }
    for (std::string_view left = *text; !left.empty();) {
        const std::size_t end = left.find('\n');
        std::printf("%s\n", for_terminal(left.substr(0, end)).c_str());
        left.remove_prefix(end == left.npos ? left.size() : end + 1);
    }
}

int history_show(const home &where, const char *word) {
    const auto id = command_id::parse(word);
    if (!id)
        return fail_with("'" + for_terminal(word, 64) +
                         "' is no ID of a command; see "
                         "qvm-remote history");
    auto days = names_in(where.history());
    std::reverse(days.begin(), days.end());
    for (const std::string &day : days) {
        const std::string entry = where.history() + "/" + day + "/" + id->text();
        if (::access((entry + "/exit").c_str(), F_OK) != 0)
            continue;
        for (const char *part : {"meta", "command", "out", "err"}) {
            std::printf("--- %s\n", part);
            std::fflush(stdout);
            print_recorded(entry + "/" + part);
        }
        return 0;
    }
    return fail_with("there is no record of " + id->text() + " in " + where.history());
}

} // namespace

int history_command(const settings &, const home &where, std::span<char *> words) {
    if (!words.empty() && words[0] == std::string_view("show")) {
        if (words.size() != 2)
            return fail_with("usage: qvm-remote history show ID");
        return history_show(where, words[1]);
    }
    const std::uint32_t n = count_of(words, 20);
    if (n == 0)
        return 1;
    // A command has two or three lines of a few hundred bytes; the last ones are enough.
    auto text = host::read_tail(where.audit_log(), std::size_t{n} * 1024 + 16384);
    if (!text)
        return fail_with(text.error().error_number == ENOENT ? "no command has been run yet"
                                                             : text.error().what);
    std::map<std::string, std::string, std::less<>> commands;
    std::vector<std::string> lines;
    for (const std::string_view line : tail_lines(*text, SIZE_MAX)) {
        const auto entry = parse_audit_line(line);
        if (!entry)
            continue; // half a line, or another program's
        if (entry->kind == history_kind::submit) {
            commands[std::string(entry->id)] = for_terminal(entry->untrusted_command, 100);
        } else if (entry->kind == history_kind::done || entry->kind == history_kind::timeout) {
            const auto at = commands.find(entry->id);
            lines.push_back(
                std::string(entry->timestamp) + "  " + std::string(entry->id) + "  exit=" +
                std::to_string(entry->kind == history_kind::done ? entry->exit_code : 124) + "  " +
                (at == commands.end() ? "" : at->second));
        }
    }
    const std::size_t skip = lines.size() > n ? lines.size() - n : 0;
    for (std::size_t i = skip; i < lines.size(); ++i)
        std::printf("%s\n", lines[i].c_str());
    return 0;
}

} // namespace qvmremote::qube
