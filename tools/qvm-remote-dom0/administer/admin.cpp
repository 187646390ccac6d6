// SPDX-License-Identifier: GPL-2.0-or-later
#include "administer/admin.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <openssl/crypto.h>

#include <qvmremote/history.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/sanitize.hpp>
#include <qvmremote/secret.hpp>

#include "administer/audit_commands.hpp"
#include "administer/moment.hpp"
#include "administer/report.hpp"
#include "administer/typed_answer.hpp"
#include "common/cli.hpp"
#include "common/helper.hpp"
#include "common/key_text.hpp"
#include "decide/keyring.hpp"
#include "decide/policy_files.hpp"
#include "record/journal.hpp"
#include "serve/control.hpp"

namespace qvmremote::dom0 {

int fail_with(error_name name, const std::string &what) {
    report::instance().say(name, what);
    return 1;
}
int fail_with(const std::string &what) {
    return fail_with(what.starts_with("usage: ") ? fault::usage : fault::local_failure, what);
}
int fail_with(const host::failure &why) {
    const bool not_root = why.error_number == EACCES && ::geteuid() != 0;
    return fail_with(why.error_number == EINVAL ? fault::usage : fault::local_failure,
                     why.what + (not_root ? ": run this as root" : ""));
}

int no_answer(const host::failure &why) { return fail_with(fault::unreachable, why.what); }

int done_by_daemon(std::string_view answer) {
    return answer == "ok\n" ? 0
                            : fail_with(fault::daemon_refused,
                                        for_terminal(answer.substr(0, answer.find('\n'))));
}

host::outcome<qube_name> named_qube(std::string_view typed) {
    auto qube = qube_name::parse(typed);
    if (!qube)
        return tl::unexpected(host::failure{"'" + for_terminal(typed, 64) + "' is " +
                                                std::string(message(qube.error().code)),
                                            EINVAL});
    return std::move(*qube);
}

void tell_daemon(const paths &where) {
    if (auto answer = ask_daemon(where, "reload"); answer && *answer != "ok\n")
        report::instance().warn(daemon_says(*answer));
}

std::string daemon_says(std::string_view answer) {
    if (answer.ends_with('\n'))
        answer.remove_suffix(1);
    return "the daemon says: " + for_terminal(answer, 512);
}

namespace {

using nlohmann::ordered_json;

// Whether the operator types the expected word, at a terminal or through a pipe.
bool confirmed(const char *prompt, std::string_view expected) {
    return typed_line(stderr, prompt) == expected;
}

host::outcome<secret> parse_key(std::string text) {
    auto key = read_key(std::move(text));
    if (!key)
        return host::failed(key.error().what + "; in the qube, `qvm-remote key show` prints it");
    return key;
}

constexpr std::chrono::seconds call_limit{15};

// Returns the command that runs a fixed shell text in a running qube. The text never contains what
// somebody typed.
std::vector<std::string> call_into(const qube_name &qube, const char *text) {
    return {"qvm-run", "--no-gui", "--no-autostart", "--pass-io", qube.text(), text};
}

host::outcome<secret> fetch_key(const qube_name &qube) {
    const std::string otherwise = "; or run `qvm-remote key show` there and give its output to "
                                  "`qvm-remote-dom0 authorize " +
                                  qube.text() + "`";
    std::fprintf(stderr, "Reading the key in %s, for %d seconds at most ...\n", qube.text().c_str(),
                 static_cast<int>(call_limit.count()));
    auto said = run_helper(call_into(qube, "cat ~/.qvm-remote/auth.key"), 256, call_limit);
    if (!said)
        return host::failed("cannot read the key in " + qube.text() + ": " + said.error().what +
                            otherwise);
    if (said->exit_code != 0)
        return host::failed("cannot read the key in " + qube.text() +
                            ": start the qube, and call `qvm-remote key gen` there" + otherwise);
    auto key = parse_key(std::move(said->untrusted_output));
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
    auto said = run_helper(std::move(argv), 65536, std::chrono::minutes(2));
    if (!said)
        return fail_with(said.error());
    if (said->exit_code != 0)
        return fail_with("systemctl " + std::string(verb) +
                         " failed; is the package with "
                         "qvm-remote-dom0.service installed?");
    return 0;
}

} // namespace

namespace {

// Adds a qube to the list in remote.conf, or removes it. Without a list every qube that has a key is
// served, so nothing changes.
host::outcome<void> set_listed(const paths &where, const qube_name &qube, bool wanted) {
    auto text = host::read_trusted(where.config(), host::trusted::file, limits::config_file);
    if (!text)
        return text.error().error_number == ENOENT ? host::outcome<void>()
                                                   : tl::unexpected(text.error());
    const auto values = config::parse(*text);
    if (!values)
        return host::failed(where.config() + ":" +
                            std::to_string(config::line_of(*text, values.error().offset)) + ": " +
                            std::string(message(values.error().code)));
    const auto before = listed_qubes(*values);
    if (before.empty())
        return {};
    // An empty list counts as no list, so it would serve every qube with a key. No qube has this name.
    constexpr std::string_view nobody = "-";
    std::string after;
    const auto add = [&](std::string_view name) { (after += after.empty() ? "" : " ") += name; };
    for (const std::string_view name : before)
        if (name != qube.text() && name != nobody)
            add(name);
    if (wanted)
        add(qube.text());
    else if (after.empty())
        add(nobody);
    struct stat st {};
    const mode_t mode = ::stat(where.config().c_str(), &st) == 0 ? st.st_mode & 0777 : mode_t{0644};
    return host::write_atomically(where.config(), with_value(*text, "QVM_REMOTE_VMS", after), mode,
                                  host::durability::synced);
}

// What `authorize` and `connect` were asked for.
struct newcomer {
    qube_name qube;
    char *typed_key = nullptr; // null if the key is to come from elsewhere
    std::optional<access_level> level;
    std::optional<std::int64_t> until;
    bool fetch = false;
};

// Prints what is wrong, and gives nothing then.
std::optional<newcomer> read_newcomer(const invocation &in) {
    static constexpr cli::option table[] = {
        {'l', "level", "LEVEL", "deny, monitor, read-only, manage or full (full)"},
        {'f', "fetch", nullptr, "read the key in the running qube and ask to confirm it"},
        {'u', "until", "TIME",
         "let the key expire after 30m, 8h or 7d, or at YYYY-MM-DD or YYYY-MM-DDTHH:MM"},
    };
    std::string level_text, until_text;
    bool fetch = false;
    std::vector<char *> words{const_cast<char *>("qvm-remote-dom0")};
    words.insert(words.end(), in.arguments.begin(), in.arguments.end());
    std::vector<char *> plain;
    // People also type options after the qube's name.
    for (std::size_t at = 1; at < words.size();) {
        words[at - 1] = words[0];
        const int next = cli::parse(table, static_cast<int>(words.size() - at + 1),
                                    words.data() + at - 1, [&](int key, const char *value) {
                                        if (key == 'f')
                                            fetch = true;
                                        else
                                            (key == 'l' ? level_text : until_text) = value;
                                        return true;
                                    });
        if (next < 0)
            return std::nullopt;
        at += static_cast<std::size_t>(next) - 1;
        if (at < words.size())
            plain.push_back(words[at++]);
    }
    const auto refuse = [](const std::string &why) {
        static_cast<void>(fail_with(fault::usage, why));
        return std::nullopt;
    };
    if (plain.empty() || plain.size() > 2)
        return refuse(in.usage);
    auto qube = named_qube(plain[0]);
    if (!qube)
        return refuse(qube.error().what);
    newcomer out{*qube, plain.size() == 2 ? plain[1] : nullptr, {}, {}, fetch};
    if (!level_text.empty() && !(out.level = parse_level(level_text)))
        return refuse("'" + for_terminal(level_text, 32) +
                      "' is not a level: use deny, monitor, read-only, manage or full");
    if (!until_text.empty()) {
        const std::int64_t now = host::local_time::now().seconds;
        out.until = parse_moment(until_text, now);
        if (!out.until || *out.until <= now)
            return refuse("--until '" + for_terminal(until_text, 32) +
                          "' is not a time in the future: use 30m, 8h, 7d, YYYY-MM-DD or "
                          "YYYY-MM-DDTHH:MM");
    }
    if (in.where.is_real()) {
        const auto checked =
            run_helper({"qvm-check", "--quiet", out.qube.text()}, 4096, call_limit);
        if (checked && checked->exit_code != 0)
            return refuse("there is no qube '" + out.qube.text() + "': qvm-ls lists them");
    }
    return out;
}

// The first line of standard input.
host::outcome<secret> read_key(const qube_name &qube) {
    if (::isatty(STDIN_FILENO))
        std::fprintf(stderr,
                     "Key of %s (as `qvm-remote key show` prints it there): ", qube.text().c_str());
    std::string text(256, '\0');
    std::size_t n = 0;
    for (ssize_t got;
         n < text.size() && (got = ::read(STDIN_FILENO, text.data() + n, text.size() - n)) > 0;) {
        n += static_cast<std::size_t>(got);
        if (text.find('\n') < n)
            break;
    }
    std::string taken = text.substr(0, n);
    OPENSSL_cleanse(text.data(), text.size());
    return parse_key(std::move(taken));
}

host::outcome<secret> key_of(const newcomer &who) {
    if (who.typed_key == nullptr)
        return who.fetch ? fetch_key(who.qube) : read_key(who.qube);
    std::fprintf(stderr, "qvm-remote-dom0: warning: a key on the command line can be read in the "
                         "list of processes; give it on standard input instead\n");
    auto key = parse_key(who.typed_key);
    OPENSSL_cleanse(who.typed_key, std::strlen(who.typed_key));
    return key;
}

void show_key(const qube_name &qube, const secret &key) {
    if (report::instance().is_json())
        report::instance().result() = {{"qube", qube.text()}, {"fingerprint", key.fingerprint()}};
    else
        std::printf("%s %s\n", qube.text().c_str(), key.fingerprint().c_str());
}

int let_in(const invocation &in, const char *verb, bool listed) {
    const auto who = read_newcomer(in);
    if (!who)
        return 1;
    const auto key = key_of(*who);
    if (!key)
        return fail_with(key.error());
    // A new key does not change the level: a qube below full stays there until --level says otherwise.
    const policy_files policies(in.where.policy());
    const bool keeps = !who->level && policies.has_level(who->qube);
    const access_level level = who->level.value_or(access_level::full);
    if (keeps)
        std::fprintf(stderr, "qvm-remote-dom0: the level stays as it is; --level changes it\n");
    else if (level == access_level::full)
        std::fprintf(stderr, full_warning, who->qube.text().c_str());
    const std::string to = keeps ? "kept" : std::string(name(level));
    if (auto recorded =
            record_admin(in.where, verb, who->qube.text(),
                         "level=" + to + " key=" + key->fingerprint() +
                             (who->until ? " until=" + std::to_string(*who->until) : ""));
        !recorded)
        return fail_with("nothing was changed, since the audit log cannot record it: " +
                         recorded.error().what);
    if (!keeps)
        if (auto written = policies.write_level(who->qube, level); !written)
            return fail_with(written.error());
    if (auto stored = keyring(in.where.keys()).store(who->qube, *key, who->until); !stored)
        return fail_with(stored.error());
    if (listed)
        if (auto done = set_listed(in.where, who->qube, true); !done)
            return fail_with(done.error());
    tell_daemon(in.where);
    show_key(who->qube, *key);
    if (report::instance().is_json() && !keeps)
        report::instance().result()["level"] = to;
    return 0;
}

// Removes the key and the level of a qube. Returns the exit code.
int shut_out(const invocation &in, const qube_name &qube, const char *verb) {
    auto removed = keyring(in.where.keys()).remove(qube);
    const auto forgotten = policy_files(in.where.policy()).remove_level(qube);
    tell_daemon(in.where); // after a failure too: it ends sessions whose key was removed before
    if (removed)           // removing the key matters more than the record
        if (auto recorded = record_admin(in.where, verb, qube.text(), {}); !recorded)
            return fail_with("the key is removed, but that is not recorded: " +
                             recorded.error().what);
    if (!removed && removed.error().error_number == ENOENT)
        return fail_with(fault::key_missing,
                         "'" + qube.text() + "' has no key here: qvm-remote-dom0 keys lists them");
    if (!removed)
        return fail_with(removed.error());
    if (report::instance().is_json())
        report::instance().result()["qube"] = qube.text();
    return forgotten ? 0 : fail_with(forgotten.error());
}

constexpr const char *count_queue =
    "cd ~/.qvm-remote/queue 2>/dev/null || { echo no queue; exit; }\n"
    "for d in pending running results; do n=0\n"
    "for f in $d/*; do [ -f \"$f\" ] && n=$((n + 1)); done\n"
    "echo $d $n; done";
constexpr const char *list_queue =
    "cd ~/.qvm-remote/queue 2>/dev/null || { echo no queue; exit; }\n"
    "id; date; df -k .; ls -lan pending running results";
constexpr const char *empty_queue =
    "cd ~/.qvm-remote/queue 2>/dev/null || { echo no queue; exit; }\n"
    "n=0; for f in pending/* running/* results/* pending/.[!.]* results/.[!.]*; do\n"
    "[ -f \"$f\" ] || [ -L \"$f\" ] || continue\n"
    "rm -f \"$f\" && n=$((n + 1)) || exit; done\n"
    "echo removed $n";
// Does what the daemon does after the carrier's `stale`, for a time when no daemon runs.
constexpr const char *recover_queue =
    "umask 077; cd ~/.qvm-remote/queue 2>/dev/null || { echo no queue; exit; }\n"
    "for f in running/*; do i=${f#*/}\n"
    "[ -f \"$f\" ] || continue; case $i in .*|-*|*[!A-Za-z0-9._-]*) continue;; esac\n"
    "if [ -f results/$i.exit ]; then rm -f \"$f\" && continue || exit; fi\n"
    "printf 'id=%s\\nstarted=%s\\nduration_ms=0\\nexit_code=130\\n' $i $(date +%Y-%m-%dT%H:%M:%S) "
    ">results/$i.meta &&\n"
    "echo 'qvm-remote-dom0: dom0 ended while this command ran: its outcome is unknown' "
    ">results/$i.err &&\n"
    ": >results/$i.out && printf 130 >results/.$i.exit && mv results/.$i.exit results/$i.exit &&\n"
    "rm -f \"$f\" && echo $i || exit; done";

// The entry of a qube in the object of `queue`: what is counted is a number, other lines are texts.
ordered_json queue_entry(const qube_name &qube, const std::vector<std::string_view> &lines) {
    ordered_json out = {{"qube", qube.text()}, {"runs", true}};
    auto texts = ordered_json::array();
    for (const std::string_view line : lines) {
        const std::size_t blank = std::min(line.find(' '), line.size());
        const std::string word(line.substr(0, blank));
        const auto number =
            parse_decimal<std::uint64_t>(line.substr(std::min(blank + 1, line.size())));
        if (number &&
            (word == "pending" || word == "running" || word == "results" || word == "removed"))
            out[word] = *number;
        else
            texts.push_back(for_terminal(line));
    }
    out["lines"] = std::move(texts);
    return out;
}

// Runs one of these texts in a qube and prints its output, line by line.
int in_queue_of(const qube_name &qube, const char *text) {
    const auto said = run_helper(call_into(qube, text), 1 << 20, call_limit);
    if (!said)
        return fail_with(qube.text() + ": " + said.error().what);
    const auto lines = tail_lines(said->untrusted_output, SIZE_MAX);
    if (report::instance().is_json())
        report::instance().result()["qubes"].push_back(queue_entry(qube, lines));
    else
        for (const std::string_view line : lines)
            std::printf("%s: %s\n", qube.text().c_str(), for_terminal(line).c_str());
    if (said->exit_code != 0)
        return fail_with(qube.text() + ": qvm-run ended with " + std::to_string(said->exit_code) +
                         ": start the qube, then try again");
    return 0;
}

} // namespace

// The qube makes the key and keeps it in a file beside the old one. dom0 accepts it before the qube
// uses it, so that no command is refused during the change.
constexpr const char *make_key = "umask 077; cd ~/.qvm-remote && od -An -v -N32 -tx1 /dev/urandom "
                                 "| tr -d ' \\n' >.auth.key.new && "
                                 "[ $(wc -c <.auth.key.new) -eq 64 ] && cat .auth.key.new";
constexpr const char *use_key =
    "cd ~/.qvm-remote && sync .auth.key.new && mv -f .auth.key.new auth.key";

int rotate_key(const invocation &in) {
    if (in.arguments.size() != 1)
        return fail_with(in.usage);
    const auto qube = named_qube(in.arguments[0]);
    if (!qube)
        return fail_with(qube.error());
    const keyring ring(in.where.keys());
    if (const auto present = ring.load(*qube); !present)
        return present.error().error_number == ENOENT
                   ? fail_with(fault::key_missing,
                               "'" + qube->text() + "' has no key here; authorize it first")
                   : fail_with(present.error());
    auto said = run_helper(call_into(*qube, make_key), 256, call_limit);
    if (!said)
        return fail_with(said.error());
    if (said->exit_code != 0)
        return fail_with("cannot make a key in " + qube->text() +
                         ": start the qube, call `qvm-remote key gen` there if it never had a "
                         "key, and see that its home is not full");
    const auto key = parse_key(std::move(said->untrusted_output));
    if (!key)
        return fail_with(key.error());
    if (const auto recorded =
            record_admin(in.where, "rotate", qube->text(), "key=" + key->fingerprint());
        !recorded)
        return fail_with("nothing was changed, since the audit log cannot record it: " +
                         recorded.error().what);
    if (const auto done = ring.rotate(*qube, *key, host::local_time::now().seconds); !done)
        return fail_with(done.error());
    tell_daemon(in.where);
    const auto used = run_helper(call_into(*qube, use_key), 256, call_limit);
    show_key(*qube, *key);
    if (!used || used->exit_code != 0)
        return fail_with("the qube still uses its old key, which is good for 24 hours more: there, "
                         "mv ~/.qvm-remote/.auth.key.new ~/.qvm-remote/auth.key");
    return 0;
}

int authorize(const invocation &in) { return let_in(in, "authorize", false); }
int connect(const invocation &in) { return let_in(in, "connect", true); }

int revoke(const invocation &in) {
    if (in.arguments.size() != 1)
        return fail_with(in.usage);
    auto qube = named_qube(in.arguments[0]);
    return qube ? shut_out(in, *qube, "revoke") : fail_with(qube.error());
}

int disconnect(const invocation &in) {
    if (in.arguments.size() != 1)
        return fail_with(in.usage);
    auto qube = named_qube(in.arguments[0]);
    if (!qube)
        return fail_with(qube.error());
    // The key first: if anything else fails, the qube cannot run commands any more.
    int code = shut_out(in, *qube, "disconnect");
    if (auto done = set_listed(in.where, *qube, false); !done)
        code = fail_with(done.error());
    const auto running =
        run_helper({"qvm-check", "--quiet", "--running", qube->text()}, 4096, call_limit);
    if (running && running->exit_code == 0)
        code = std::max(code, in_queue_of(*qube, empty_queue));
    return code;
}

int queue(const invocation &in) {
    const std::string_view verb =
        in.arguments.empty() ? std::string_view("status") : in.arguments[0];
    const char *const text = verb == "status"    ? count_queue
                             : verb == "clean"   ? empty_queue
                             : verb == "recover" ? recover_queue
                             : verb == "debug"   ? list_queue
                                                 : nullptr;
    if (!text || in.arguments.size() > 2)
        return fail_with(in.usage);
    if (text == recover_queue)
        if (const auto answer = ask_daemon(in.where, "status"); answer)
            return fail_with(
                "the daemon is running, and it recovers the queue itself when it connects to the "
                "qube; commands in running/ may run now");
    if (in.arguments.size() == 2) {
        auto qube = named_qube(in.arguments[1]);
        return qube ? in_queue_of(*qube, text) : fail_with(qube.error());
    }
    auto qubes = keyring(in.where.keys()).list();
    if (!qubes)
        return fail_with(qubes.error());
    int code = 0;
    for (const qube_name &qube : *qubes) {
        const auto running =
            run_helper({"qvm-check", "--quiet", "--running", qube.text()}, 4096, call_limit);
        if (!running)
            code = fail_with(running.error());
        else if (running->exit_code != 0 && report::instance().is_json())
            report::instance().result()["qubes"].push_back(
                {{"qube", qube.text()}, {"runs", false}, {"lines", ordered_json::array()}});
        else if (running->exit_code != 0)
            std::printf("%s: not running\n", qube.text().c_str());
        else
            code = std::max(code, in_queue_of(qube, text));
    }
    return code;
}

int keys(const invocation &in) {
    if (!in.arguments.empty())
        return fail_with(in.usage);
    const bool json = report::instance().is_json();
    const keyring ring(in.where.keys());
    auto qubes = ring.list();
    if (!qubes)
        return fail_with(qubes.error());
    const auto rules = policy_files(in.where.policy()).load();
    auto out = ordered_json::array();
    int code = rules ? 0 : fail_with(rules.error());
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
        const std::string level = rules ? level_word(*rules, qube) : "unusable";
        const std::string fingerprint = key ? key->fingerprint() : "unusable";
        if (json)
            out.push_back({{"qube", qube.text()},
                           {"fingerprint", fingerprint},
                           {"level", level},
                           {"protocol", 2},
                           {"last_used", last ? ordered_json(when) : nullptr}});
        else
            std::printf("%-31s %s %s 2 %s\n", qube.text().c_str(), fingerprint.c_str(),
                        level.c_str(), when.c_str());
    }
    if (json) { // a list, as it was before the other subcommands had --json
        report::instance().has_own_form();
        std::printf("%s\n", out.dump(2).c_str());
    }
    return code;
}

int status(const invocation &in) {
    if (!in.arguments.empty())
        return fail_with(in.usage);
    const bool json = report::instance().is_json();
    const auto answer = ask_daemon(in.where, json ? "status json" : "status");
    if (!answer)
        return no_answer(answer.error());
    if (!json) {
        std::fputs(answer->c_str(), stdout);
        return 0;
    }
    auto fields = ordered_json::parse(*answer, nullptr, false);
    if (!fields.is_object())
        return fail_with(errc::unsupported, "the daemon that runs is of an older version; "
                                            "systemctl restart qvm-remote-dom0");
    report::instance().result() = std::move(fields);
    return 0;
}

int log(const invocation &in) {
    const std::vector<std::string_view> words(in.arguments.begin(), in.arguments.end());
    const auto lines = cli::count_of(words, 20);
    if (!lines)
        return fail_with(fault::usage, "'" + for_terminal(words.back(), 32) +
                                           "' is not a number of lines: use 1 or more");
    // The daemon may begin a new file at any time.
    const std::size_t most = std::size_t{*lines} * 1024 + 4096;
    const auto before = host::read_tail(in.where.log() + ".1", most);
    const auto now = host::read_tail(in.where.log(), most);
    if (!now && !(before && now.error().error_number == ENOENT))
        return fail_with(now.error());
    const std::string text = before.value_or("") + now.value_or("");
    if (report::instance().is_json())
        report::instance().result()["lines"] = ordered_json::array();
    // Not for_terminal: the daemon has escaped the text already, so backslashes would be doubled.
    for (const std::string_view line : tail_lines(text, *lines))
        if (const std::string shown = preview(line, sanitized_text); report::instance().is_json())
            report::instance().result()["lines"].push_back(shown);
        else
            std::printf("%s\n", shown.c_str());
    return 0;
}

int enable(const invocation &in) {
    if (!in.arguments.empty())
        return fail_with(in.usage);
    std::fprintf(
        stderr,
        "This starts qvm-remote-dom0 now and at every boot. Each qube that has a key here can\n"
        "then run in dom0 what policy allows it. One with level full runs anything, as root: such\n"
        "a qube IS dom0, and so is whoever gets into it.\n");
    if (!confirmed("Type yes to go on: ", "yes"))
        return fail_with("not confirmed; nothing was changed");
    return systemctl(in, "enable");
}

int disable(const invocation &in) {
    if (!in.arguments.empty())
        return fail_with(in.usage);
    return systemctl(in, "disable");
}

} // namespace qvmremote::dom0
