// SPDX-License-Identifier: GPL-2.0-or-later
#include "commands/commands.hpp"

#include <cstdio>
#include <cstring>
#include <string>

#include <sys/random.h>
#include <unistd.h>

#include <openssl/crypto.h>

#include <qvmremote/host/files.hpp>

#include "common/key_text.hpp"

namespace qvmremote::qube {

namespace {

void print_key_hint(const secret &key) {
    std::fprintf(stderr,
                 "Fingerprint: %s\n"
                 "In dom0, register it with: qvm-remote-dom0 authorize NAME-OF-THIS-QUBE\n"
                 "This qube can then run any command in dom0: it IS dom0 from then on.\n",
                 key.fingerprint().c_str());
}

// Says which key this user has now.
void show_fingerprint(const home &where, const secret &key) {
    if (!report::instance().is_json()) {
        std::printf("%s\n", key.fingerprint().c_str());
        return;
    }
    json_writer &to = report::instance().result();
    to.text("fingerprint", key.fingerprint());
    to.text("file", where.key_file());
}

int key_generate(const home &where) {
    if (::access(where.key_file().c_str(), F_OK) == 0)
        return fail_with(fault::key_exists,
                         "there is a key already at " + where.key_file() +
                             ": remove that file first to replace it; dom0 knows this qube by it");
    secret_bytes<32> random;
    if (::getrandom(random.value().data(), random.value().size(), 0) != 32)
        return fail_with(fault::local_failure,
                         "the kernel has no random bytes yet: try again in a minute");
    const secret key = secret::from_random(random);
    if (auto stored = where.store_key(key); !stored)
        return fail_with(fault::local_failure, stored.error().what);
    show_fingerprint(where, key);
    if (::isatty(STDERR_FILENO))
        print_key_hint(key);
    return 0;
}

int key_show(const settings &how, const home &where) {
    auto key = where.load_key();
    if (!key)
        return fail_with(home::fault_of_key(key.error()), key.error().what);
    if (report::instance().is_json()) {
        report::instance().result().text("key", as_text(key->text()));
        show_fingerprint(where, *key);
        return 0;
    }
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
        warn("warning: a key on the command line can be read in the list of processes; give it "
             "on standard input instead");
        text = words[0];
        OPENSSL_cleanse(words[0], std::strlen(words[0]));
    } else {
        auto read = host::read_all(STDIN_FILENO, 256);
        if (!read)
            return fail_with(fault::local_failure, "cannot read the key: " + read.error().what);
        text = std::move(*read);
    }
    const auto key = read_key(std::move(text));
    if (!key)
        return fail_with(errc::bad_key, key.error().what);
    if (auto stored = where.store_key(*key); !stored)
        return fail_with(fault::local_failure, stored.error().what);
    show_fingerprint(where, *key);
    return 0;
}

} // namespace

int key_command(const invocation &in) {
    const auto words = in.words;
    const std::string_view verb = words.empty() ? std::string_view() : words[0];
    if (verb == "gen" && words.size() == 1)
        return key_generate(in.where);
    if (verb == "show" && words.size() == 1)
        return key_show(in.how, in.where);
    if (verb == "import" && words.size() <= 2)
        return key_import(in.where, words.subspan(1));
    return fail_with(fault::usage, in.usage);
}

} // namespace qvmremote::qube
