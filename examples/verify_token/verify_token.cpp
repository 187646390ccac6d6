// SPDX-License-Identifier: GPL-2.0-or-later
// Does what dom0 does with a request before it reads a word of it: asks whether the key made it.
// Header-only: nothing here touches the machine. The key comes on standard input, since everybody
// can see a command line.
//
//   verify_token 1 ID TOKEN < key                      protocol 1: the token of an ID
//   verify_token 2 HELLO CHALLENGE REQUEST < key       protocol 2: payloads as hexadecimal digits
//
//   g++ -std=c++20 verify_token.cpp $(pkg-config --cflags --libs qvm-remote) -o verify_token

#include <algorithm>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <openssl/crypto.h>

#include <qvmremote/qvmremote.hpp>

using namespace qvmremote;

namespace {

int refuse(errc why) {
    std::fprintf(stderr, "refused: %s\n", std::string(message(why)).c_str());
    return 126;
}

int protocol_1(const secret &key, std::string_view untrusted_id, std::string_view untrusted_token) {
    const auto id = command_id::parse(untrusted_id);
    if (!id)
        return refuse(id.error().code);
    if (!equal_constant_time(as_bytes(token_v1(key, *id)), as_bytes(untrusted_token)))
        return refuse(errc::bad_token);
    std::printf("verified: %s\n", std::string(id->text()).c_str());
    return 0;
}

int protocol_2(const secret &key, bytes_view hello, bytes_view challenge_bytes,
               bytes_view request) {
    challenge fresh{};
    if (challenge_bytes.size() != fresh.size())
        return refuse(errc::bad_envelope);
    std::copy(challenge_bytes.begin(), challenge_bytes.end(), fresh.begin());
    // Token first, header second: decode() takes only what verify() has returned.
    const auto signed_bytes = request_verifier::verify({&key, 1}, sha256(hello), fresh, request);
    if (!signed_bytes)
        return refuse(signed_bytes.error().code);
    const auto header = request_verifier::decode(*signed_bytes);
    if (!header)
        return refuse(header.error().code);
    const envelope &what = **header;
    std::printf("verified: %s %s\n", std::string(name(what.kind)).c_str(),
                std::string(what.id->text()).c_str());
    for (const std::string &argument : what.arguments)
        std::printf("argument: %s\n", for_terminal(argument).c_str());
    if (!what.body.empty())
        std::printf("body: %s\n", for_terminal(what.body).c_str());
    return 0;
}

} // namespace

int main(int argc, char **argv) {
    const std::span<char *const> words(argv, static_cast<std::size_t>(argc));
    const std::string_view version = argc > 1 ? words[1] : "";
    if (!(version == "1" && argc == 4) && !(version == "2" && argc == 5)) {
        std::fputs("usage: verify_token 1 ID TOKEN < key\n"
                   "       verify_token 2 HELLO CHALLENGE REQUEST < key\n",
                   stderr);
        return 1;
    }
    char line[128] = {};
    if (std::fgets(line, sizeof line, stdin) == nullptr)
        line[0] = '\0';
    const auto key = secret::parse(line);
    OPENSSL_cleanse(line, sizeof line);
    if (!key)
        return refuse(key.error().code);
    if (version == "1")
        return protocol_1(*key, words[2], words[3]);
    const auto hello = from_hex(words[2]), fresh = from_hex(words[3]), request = from_hex(words[4]);
    if (!hello || !fresh || !request) {
        std::fputs("verify_token: these are not hexadecimal digits\n", stderr);
        return 1;
    }
    return protocol_2(*key, *hello, *fresh, *request);
}
