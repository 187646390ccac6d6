// SPDX-License-Identifier: GPL-2.0-or-later
// Runs two commands in dom0 over one connection that is kept, and shows what came of each.
//
//   embed_client PLUGIN-DIRECTORY TRANSPORT KEY-FILE [OPTION=VALUE]...
//   embed_client "$(pkg-config --variable=plugindir qvm-remote)" mock key socket=/tmp/work.sock
//
//   g++ -std=c++20 embed_client.cpp $(pkg-config --cflags --libs qvm-remote) -o embed_client

#include <csignal>
#include <cstdio>
#include <string>
#include <string_view>

#include <openssl/crypto.h>

#include <qvmremote/host/client.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/host/plugin.hpp>
#include <qvmremote/sanitize.hpp>

using namespace qvmremote;

namespace {

int fail(std::string_view what) {
    std::fprintf(stderr, "embed_client: %.*s\n", static_cast<int>(what.size()), what.data());
    return 1;
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 4)
        return fail("usage: embed_client PLUGIN-DIRECTORY TRANSPORT KEY-FILE [OPTION=VALUE]...");
    ::signal(SIGPIPE, SIG_IGN); // a stream that broke is a result like others

    // Refused unless the file is ours and closed to others; and its text does not stay in memory.
    auto text = host::read_trusted(argv[3], host::trusted::secret, 256);
    if (!text)
        return fail(text.error().what);
    auto key = secret::parse(*text);
    OPENSSL_cleanse(text->data(), text->size());
    if (!key)
        return fail("the key file holds no key of 64 hexadecimal digits");

    host::transport_options options;
    for (int i = 4; i < argc; ++i) {
        const std::string_view option = argv[i];
        const auto equals = option.find('=');
        if (equals == option.npos)
            return fail("an option has the form NAME=VALUE");
        options.emplace_back(option.substr(0, equals), option.substr(equals + 1));
    }
    // The transport stays until the stream it made is no longer used.
    auto transport = host::transport::load(argv[1], argv[2], host::role::qube, options);
    if (!transport)
        return fail(transport.error().what);
    auto stream = transport->connect();
    if (!stream)
        return fail(stream.error().what);
    host::client dom0(std::move(*stream), std::move(*key));

    int last = 0;
    for (const char *line :
         {"echo hello from $QVM_REMOTE_PEER", "echo and a complaint >&2; exit 3"}) {
        host::command what;
        what.body = line;
        const host::collected done = dom0.collect(std::move(what));
        last = done.result.exit_code();
        std::printf("$ %s\n%sexit code %d\n", line, done.out.c_str(), last);
        std::fprintf(stderr, "%s", done.err.c_str());
        if (done.result.how != host::run_result::kind::ended)
            return fail("did not end well: " + std::string(message(done.result.reason)) + "; " +
                        for_terminal(done.result.untrusted_text));
    }
    return last == 3 ? 0 : 1;
}
