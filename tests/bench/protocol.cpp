// SPDX-License-Identifier: GPL-2.0-or-later
// Measures the protocol alone, in one thread and in memory: operations and bytes a second.
//
//   protocol [SECONDS]                  JSON on stdout: {"name":{"per_s":…,"mb_s":…},…}
//   protocol --audit FILE COUNT         an audit log of COUNT START lines, for the row with many
//   IDs

#include "timing.hpp"

#include <cstring>

#include <sys/stat.h>

#include <qvmremote/audit.hpp>
#include <qvmremote/policy.hpp>
#include <qvmremote/session.hpp>
#include <qvmremote/token.hpp>

#include "shipped_rules.hpp"

using namespace bench;
using namespace qvmremote;

namespace {

secret some_key() { return secret::parse(std::string(secret::digits, '5')).value(); }

audit_record record_of(const std::string &id) {
    audit_record r;
    r.kind = audit_kind::start;
    r.time = "2026-01-02T03:04:05.678901+00:00";
    r.peer = "work";
    r.id = id;
    r.proto = 2;
    r.transport = "mock";
    r.request = "shell";
    r.verdict = "allow";
    r.policy = "full";
    r.user = "root";
    r.timeout_s = 300;
    return r;
}

// The same numbers as run.py puts into the index.
std::string id_number(unsigned n) {
    char text[64];
    std::snprintf(text, sizeof text, "20260102-030405-77-%08x", n);
    return text;
}

int write_audit(const char *path, unsigned count) {
    std::FILE *const to = std::fopen(path, "w");
    if (!to || ::fchmod(::fileno(to), 0600) != 0)
        die(std::string("cannot write ") + path);
    audit_chain chain;
    for (unsigned n = 0; n < count; ++n) {
        const std::string line = chain.append(record_of(id_number(n)));
        std::fwrite(line.data(), 1, line.size(), to);
    }
    return std::fclose(to) == 0 ? 0 : 2;
}

// A policy of `count` rules. Only the last one matches; half of the others are about `work` too.
policy rules_of(unsigned count) {
    std::string text;
    for (unsigned n = 0; n + 1 < count; ++n)
        text += n % 2 == 0 ? "qube-" + std::to_string(n) + " level:manage allow\n"
                           : "work exec:qvm-start {qube:dev-" + std::to_string(n) + "-*} allow\n";
    text += "work level:monitor allow\n";
    return policy::parse({{"50.policy", text}},
                         level_rules::parse(monitor_rules, manage_rules).value())
        .value();
}

bool first = true;

// Calls `work` for `seconds`, and prints a row. `work` handles `bytes` bytes in each call.
template <class Work>
void row(const char *name, double seconds, std::size_t bytes, Work work) {
    for (int i = 0; i < 10; ++i)
        work();
    double best = 0;
    for (int part = 0; part < 5; ++part) {
        std::uint64_t count = 0;
        const double begin = now_us();
        double now = begin;
        do {
            for (int i = 0; i < 16; ++i)
                work();
            count += 16;
            now = now_us();
        } while (now - begin < seconds * 1e6 / 5);
        best = std::max(best, static_cast<double>(count) / (now - begin) * 1e6);
    }
    std::printf("%s\"%s\":{\"per_s\":%.0f,\"mb_s\":%.0f}", first ? "{" : ",", name, best,
                best * static_cast<double>(bytes) / 1e6);
    first = false;
}

void check(bool ok, const char *what) {
    if (!ok)
        die(what);
}

// Measures sealing a frame and opening it as the other end does.
void frames(const char *name, double seconds, std::size_t size, bool gmac) {
    const secret_bytes<32> key(sha256(as_bytes("a session's key")));
    frame_authenticator sender(key), receiver(key);
    if (gmac) {
        sender.use_gmac();
        receiver.use_gmac();
    }
    std::vector<std::uint8_t> room(frame_header::size + size + tag_size, 0x55);
    row(name, seconds, size, [&] {
        const std::size_t whole = sender.seal(room.data(), 1, frame_type::stdout_data, size);
        const bytes_view frame(room.data(), whole);
        auto header = frame_header::decode(frame.first<frame_header::size>(), limits::frame);
        check(header.has_value(), "header");
        check(receiver.open({*header, frame.subspan(frame_header::size)}).has_value(), "tag");
    });
}

} // namespace

int main(int argc, char **argv) {
    if (argc == 4 && std::strcmp(argv[1], "--audit") == 0)
        return write_audit(argv[2], static_cast<unsigned>(std::atoi(argv[3])));
    const double seconds = argc > 1 ? std::atof(argv[1]) : 1.0;

    std::vector<secret> keys;
    keys.push_back(some_key());
    const digest256 t = sha256(as_bytes("hello"));
    const challenge fresh{};
    envelope what;
    what.kind = request_kind::shell;
    what.id = command_id::parse(id_number(1)).value();
    what.set_body("qvm-ls --raw-list");
    const bytes header = what.encode().value();
    const digest256 token = request_signer(keys[0]).token(t, fresh, header);
    bytes payload;
    byte_writer w(payload);
    w.put(token);
    w.put(header);
    row("verify and decode a request", seconds, payload.size(), [&] {
        const auto verified = request_verifier::verify(keys, t, fresh, payload);
        check(verified.has_value() && request_verifier::decode(*verified).has_value(), "verify");
    });
    row("refuse a forged request", seconds, payload.size(), [&] {
        const digest256 other = sha256(as_bytes("not this"));
        check(!request_verifier::verify(keys, other, fresh, payload), "forged");
    });
    const policy rules = rules_of(1000);
    const peer who{qube_name::parse("work").value(), "mock", {}, std::nullopt};
    row("decide, 1000 rules", seconds, what.body.size(),
        [&] { check(decide(who, what, rules, grants{}, 0).allowed(), "decide"); });
    envelope near = what;
    near.set_body("qvm-start dev-x");
    row("decide, 1000 rules, denied", seconds, near.body.size(),
        [&] { check(!decide(who, near, rules, grants{}, 0).allowed(), "decide"); });
    frames("seal and open, 64 B, HMAC", seconds, 64, false);
    frames("seal and open, 64 KiB, HMAC", seconds, max_tagged_payload, false);
    frames("seal and open, 64 KiB, GMAC", seconds, max_tagged_payload, true);
    audit_chain chain;
    const std::string id = id_number(2);
    std::size_t line_size = chain.append(record_of(id)).size();
    row("audit line", seconds, line_size, [&] { line_size = chain.append(record_of(id)).size(); });
    std::printf("}\n");
    return 0;
}
