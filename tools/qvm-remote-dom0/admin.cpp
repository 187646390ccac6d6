// SPDX-License-Identifier: GPL-2.0-or-later
#include "admin.hpp"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <openssl/crypto.h>

#include <qvmremote/history.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/sanitize.hpp>
#include <qvmremote/secret.hpp>

#include "../cli.hpp"
#include "control.hpp"
#include "journal.hpp"
#include "keyring.hpp"

extern char **environ;

namespace qvmremote::dom0 {

namespace {

int fail_with(const std::string &what) {
    std::fprintf(stderr, "qvm-remote-dom0: %s\n", what.c_str());
    return 1;
}
int fail_with(const host::failure &why) { return fail_with(why.what); }

// The name of a qube as people type it.
host::outcome<qube_name> named_qube(std::string_view typed) {
    auto qube = qube_name::parse(typed);
    if (!qube)
        return host::failed("'" + for_terminal(typed, 64) + "' is " +
                            std::string(message(qube.error().code)));
    return std::move(*qube);
}

// Tells a running daemon; none running is no fault.
void tell_daemon(const paths &where) {
    if (auto answer = ask_daemon(where, "reload"); answer && *answer != "ok\n")
        std::fprintf(stderr, "qvm-remote-dom0: the daemon says: %s",
                     for_terminal(*answer).c_str());
}

// Runs a program of dom0's and takes what it prints, up to `limit` bytes.
host::outcome<std::string> output_of(std::vector<std::string> argv, std::size_t limit,
                                     int &exit_code) {
    int fds[2];
    if (::pipe2(fds, O_CLOEXEC) != 0)
        return host::failed("cannot make a pipe", errno);
    const host::unique_fd read_end(fds[0]);
    host::unique_fd write_end(fds[1]);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, write_end.get(), STDOUT_FILENO);
    ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    std::vector<char *> words;
    for (std::string &word : argv)
        words.push_back(word.data());
    words.push_back(nullptr);
    pid_t pid = 0;
    const int error =
        ::posix_spawnp(&pid, words[0], &actions, nullptr, words.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    if (error != 0)
        return host::failed("cannot run " + argv[0], error);
    write_end.reset();
    auto text = host::read_all(read_end.get(), limit);
    int status = 0;
    ::waitpid(pid, &status, 0);
    exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return text;
}

// A word typed by the operator, at a terminal or from a pipe.
bool confirmed(const char *question, std::string_view expected) {
    std::fprintf(stderr, "%s", question);
    std::fflush(stderr);
    std::string typed;
    for (char c; ::read(STDIN_FILENO, &c, 1) == 1 && c != '\n';)
        if (typed.size() < 64)
            typed.push_back(c);
    return typed == expected;
}

host::outcome<secret> parse_key(std::string text) {
    auto key = secret::parse(text);
    const std::size_t size = text.size();
    OPENSSL_cleanse(text.data(), text.size());
    if (!key)
        return host::failed("that is no key: byte " + std::to_string(key.error().offset + 1) +
                            " of " + std::to_string(size) +
                            " does not fit; a key is 64 digits of 0-9 and a-f as `qvm-remote key "
                            "show` prints them in the qube, without 0x, sign or separators");
    return std::move(*key);
}

host::outcome<secret> fetch_key(const qube_name &qube) {
    int code = 0;
    auto text = output_of({"qvm-run", "--no-gui", "--no-autostart", "--pass-io", qube.text(),
                           "cat ~/.qvm-remote/auth.key"},
                          256, code);
    if (!text)
        return tl::unexpected(text.error());
    if (code != 0)
        return host::failed("cannot read the key in " + qube.text() +
                            ": is it running, and was `qvm-remote key gen` called there?");
    auto key = parse_key(std::move(*text));
    if (!key)
        return key;
    std::fprintf(stderr, "%s has the key %s\n", qube.text().c_str(), key->fingerprint().c_str());
    if (!confirmed("Is this what `qvm-remote key show` prints there? Type yes: ", "yes"))
        return host::failed("not confirmed; nothing was changed");
    return key;
}

constexpr const char *full_warning =
    "warning: with this key the qube '%s' can run any command in dom0, as root.\n"
    "         It IS dom0 from now on: whoever controls the qube controls this machine.\n";

int systemctl(const invocation &in, const char *verb) {
    std::vector<std::string> argv = {"systemctl"};
    if (!in.where.is_real())
        argv.push_back("--root=" + in.where.root());
    else if (verb == std::string_view("enable") || verb == std::string_view("disable"))
        argv.push_back("--now");
    argv.insert(argv.end(), {verb, "qvm-remote-dom0.service"});
    int code = 0;
    auto said = output_of(std::move(argv), 65536, code);
    if (!said)
        return fail_with(said.error());
    if (code != 0)
        return fail_with("systemctl " + std::string(verb) + " failed; is the package with "
                         "qvm-remote-dom0.service installed?");
    return 0;
}

} // namespace

int authorize(const invocation &in) {
    static constexpr cli::option table[] = {
        {'l', "level", "LEVEL", "full is the only one so far"},
        {'f', "fetch", nullptr, "read the key in the running qube and ask to confirm it"},
    };
    std::string level = "full";
    bool fetch = false;
    std::vector<char *> words{const_cast<char *>("authorize")};
    words.insert(words.end(), in.arguments.begin(), in.arguments.end());
    std::vector<char *> plain;
    // Options may stand behind the qube's name, as people type them.
    for (std::size_t at = 1; at < words.size();) {
        words[at - 1] = words[0];
        const int next =
            cli::parse(table, static_cast<int>(words.size() - at + 1), words.data() + at - 1,
                       [&](int key, const char *value) {
                           key == 'l' ? void(level = value) : void(fetch = true);
                           return true;
                       });
        if (next < 0)
            return 1;
        at += static_cast<std::size_t>(next) - 1;
        if (at < words.size())
            plain.push_back(words[at++]);
    }
    if (plain.empty() || plain.size() > 2)
        return fail_with("usage: qvm-remote-dom0 authorize VM [KEY] [--level full] [--fetch]");
    auto qube = named_qube(plain[0]);
    if (!qube)
        return fail_with(qube.error());
    if (level != "full")
        return fail_with("level '" + for_terminal(level, 32) +
                         "' is not built yet: only full is, and it makes the qube dom0");
    if (in.where.is_real()) {
        int code = 0;
        const auto checked = output_of({"qvm-check", "--quiet", qube->text()}, 4096, code);
        if (checked && code != 0)
            return fail_with("there is no qube '" + qube->text() + "'; see qvm-ls");
    }

    host::outcome<secret> key = host::failed("");
    if (plain.size() == 2) {
        std::fprintf(stderr, "qvm-remote-dom0: warning: a key on the command line can be read in the "
                             "list of processes; give it on standard input instead\n");
        key = parse_key(plain[1]);
        OPENSSL_cleanse(plain[1], std::strlen(plain[1]));
    } else if (fetch) {
        key = fetch_key(*qube);
    } else {
        if (::isatty(STDIN_FILENO))
            std::fprintf(stderr, "Key of %s (as `qvm-remote key show` prints it there): ",
                         qube->text().c_str());
        std::string text(256, '\0');
        std::size_t n = 0;
        for (ssize_t got; n < text.size() && (got = ::read(STDIN_FILENO, text.data() + n,
                                                           text.size() - n)) > 0;) {
            n += static_cast<std::size_t>(got);
            if (text.find('\n') < n)
                break;
        }
        std::string taken = text.substr(0, n);
        OPENSSL_cleanse(text.data(), text.size());
        key = parse_key(std::move(taken));
    }
    if (!key)
        return fail_with(key.error());
    std::fprintf(stderr, full_warning, qube->text().c_str());
    if (auto stored = keyring(in.where.keys()).store(*qube, *key); !stored)
        return fail_with(stored.error());
    tell_daemon(in.where);
    std::printf("%s %s\n", qube->text().c_str(), key->fingerprint().c_str());
    return 0;
}

int revoke(const invocation &in) {
    if (in.arguments.size() != 1)
        return fail_with("usage: qvm-remote-dom0 revoke VM");
    auto qube = named_qube(in.arguments[0]);
    if (!qube)
        return fail_with(qube.error());
    auto removed = keyring(in.where.keys()).remove(*qube);
    tell_daemon(in.where); // even then: the key may be gone already, and its sessions not
    if (!removed)
        return fail_with(removed.error().error_number == ENOENT
                             ? "'" + qube->text() + "' has no key here; see qvm-remote-dom0 keys"
                             : removed.error().what);
    return 0;
}

int keys(const invocation &in) {
    bool json = false;
    for (const char *argument : in.arguments) {
        if (argument != std::string_view("--json"))
            return fail_with("usage: qvm-remote-dom0 keys [--json]");
        json = true;
    }
    const keyring ring(in.where.keys());
    auto qubes = ring.list();
    if (!qubes)
        return fail_with(qubes.error());
    auto out = nlohmann::ordered_json::array();
    int code = 0;
    for (const qube_name &qube : *qubes) {
        auto key = ring.load(qube);
        if (!key)
            code = fail_with(key.error());
        const auto last = last_used(in.where, qube);
        std::string when = "never";
        if (last) {
            host::local_time t;
            const time_t seconds = *last;
            ::localtime_r(&seconds, &t.fields);
            when = t.timestamp();
        }
        const std::string fingerprint = key ? key->fingerprint() : "unusable";
        if (json)
            out.push_back({{"qube", qube.text()},
                           {"fingerprint", fingerprint},
                           {"level", "full"},
                           {"protocol", 2},
                           {"last_used", last ? nlohmann::ordered_json(when) : nullptr}});
        else
            std::printf("%-31s %s full 2 %s\n", qube.text().c_str(), fingerprint.c_str(),
                        when.c_str());
    }
    if (json)
        std::printf("%s\n", out.dump(2).c_str());
    return code;
}

int status(const invocation &in) {
    if (!in.arguments.empty())
        return fail_with("usage: qvm-remote-dom0 status");
    auto answer = ask_daemon(in.where, "status");
    if (!answer)
        return fail_with(answer.error().what +
                         (answer.error().error_number == EACCES
                              ? "; run this as root"
                              : "; start it with systemctl start qvm-remote-dom0"));
    std::fputs(answer->c_str(), stdout);
    return 0;
}

int log(const invocation &in) {
    std::uint32_t lines = 20;
    if (in.arguments.size() > 1)
        return fail_with("usage: qvm-remote-dom0 log [N]");
    if (in.arguments.size() == 1) {
        const auto n = parse_positive(in.arguments[0]);
        if (!n)
            return fail_with("'" + for_terminal(in.arguments[0], 32) +
                             "' is no number of lines: use 1 or more");
        lines = *n;
    }
    auto text = host::read_tail(in.where.log(), std::size_t{lines} * 1024 + 4096);
    if (!text)
        return fail_with(text.error());
    for (const std::string_view line : tail_lines(*text, lines))
        std::printf("%s\n", for_terminal(line).c_str());
    return 0;
}

int enable(const invocation &in) {
    if (!in.arguments.empty())
        return fail_with("usage: qvm-remote-dom0 enable");
    std::fprintf(stderr,
                 "This starts qvm-remote-dom0 now and at every boot. Each qube that has a key here can\n"
                 "then run commands in dom0, as root: such a qube IS dom0, and so is whoever gets into it.\n");
    if (!confirmed("Type yes to go on: ", "yes"))
        return fail_with("not confirmed; nothing was changed");
    return systemctl(in, "enable");
}

int disable(const invocation &in) {
    if (!in.arguments.empty())
        return fail_with("usage: qvm-remote-dom0 disable");
    return systemctl(in, "disable");
}

} // namespace qvmremote::dom0
