// SPDX-License-Identifier: GPL-2.0-or-later
// Built twice: over EVP, and with QVMREMOTE_DIRECT_SHA256.
#include <qvmremote/token.hpp>

#include <type_traits>

#include <doctest/doctest.h>

#include "support/vectors.hpp"

using namespace qvmremote;

namespace {

const test::vector_file one("protocol1.txt");
const test::vector_file two("protocol2.txt");

template <std::size_t N>
std::array<std::uint8_t, N> array_of(const bytes &from) {
    REQUIRE(from.size() == N);
    std::array<std::uint8_t, N> out;
    std::copy(from.begin(), from.end(), out.begin());
    return out;
}

secret key() { return secret::parse(two.text("key")).value(); }
digest256 t() { return array_of<32>(two["t"]); }
challenge fresh() { return array_of<32>(two["challenge"]); }

std::vector<secret> keys(std::initializer_list<std::string> texts) {
    std::vector<secret> out;
    for (const std::string &text : texts)
        out.push_back(secret::parse(text).value());
    return out;
}

bytes signed_payload(const std::string &kind) {
    bytes out = two["token." + kind];
    const bytes &header = two["envelope." + kind];
    out.insert(out.end(), header.begin(), header.end());
    return out;
}

const std::string other_key(64, '7');

frame_view view_of(const bytes &frame) {
    const auto header =
        frame_header::decode(std::span(frame).first<frame_header::size>(), limits::frame);
    REQUIRE(header);
    return {*header, bytes_view(frame).subspan(frame_header::size)};
}

frame_authenticator direction(const frame_rule &rule, bool gmac = false) {
    frame_authenticator out(
        secret_bytes<32>(array_of<32>(two[rule.from == sender::dom0 ? "d2c" : "c2d"])));
    if (gmac)
        out.use_gmac();
    return out;
}

} // namespace

TEST_CASE("protocol 1: the tokens of the vectors") {
    for (const std::string which : {"lower", "upper"}) {
        const secret registered = secret::parse(one.text("key." + which)).value();
        for (const std::string id : {"usual", "ping", "foreign", "shortest", "longest"}) {
            CAPTURE(id);
            CHECK(token_v1(registered, command_id::parse(one.text("id." + id)).value()) ==
                  one.text("token." + which + "." + id));
        }
    }
    CHECK(one.text("token.lower.usual") != one.text("token.upper.usual"));
}

TEST_CASE("tokens and keys of the vectors") {
    CHECK(sha256(two["hello"]) == t());
    for (const std::string kind :
         {"shell", "exec", "script", "script_follows", "ping", "status", "dry_run", "terminal"}) {
        CAPTURE(kind);
        request_signer signer(key());
        const digest256 token = signer.token(t(), fresh(), two["envelope." + kind]);
        CHECK(to_hex(token) == to_hex(two["token." + kind]));
        const auto registered = keys({two.text("key")});
        const bytes payload = signed_payload(kind);
        const auto header = request_verifier::verify(registered, t(), fresh(), payload);
        REQUIRE(header);
        CHECK((**header).key_index == 0);
        CHECK(request_verifier::decode(*header));
    }
}

TEST_CASE("I1: a request verifies only under a registered key, and the result names the key") {
    const bytes payload = signed_payload("shell");
    const auto right_last = keys({other_key, two.text("key")});
    const auto header = request_verifier::verify(right_last, t(), fresh(), payload);
    REQUIRE(header);
    CHECK((**header).key_index == 1);

    CHECK(request_verifier::verify(keys({other_key}), t(), fresh(), payload).error().code ==
          errc::bad_token);
    CHECK(request_verifier::verify({}, t(), fresh(), payload).error().code == errc::bad_token);
    // The same digits in the other case are another key, as in protocol 1.
    std::string upper = two.text("key");
    std::transform(upper.begin(), upper.end(), upper.begin(),
                   [](char c) { return c >= 'a' ? static_cast<char>(c - 32) : c; });
    CHECK_FALSE(request_verifier::verify(keys({upper}), t(), fresh(), payload));
}

TEST_CASE("I1: a token does not verify for a prefix, or with any bit of request, challenge or T "
          "changed") {
    const auto registered = keys({two.text("key")});
    for (const std::string kind : {"shell", "script_follows"}) {
        const bytes payload = signed_payload(kind);
        for (std::size_t n = 0; n < payload.size(); ++n)
            REQUIRE_FALSE(
                request_verifier::verify(registered, t(), fresh(), bytes_view(payload).first(n)));
        for (std::size_t i = 0; i < payload.size(); ++i)
            for (int bit = 0; bit < 8; ++bit) {
                bytes bad = payload;
                bad[i] ^= static_cast<std::uint8_t>(1 << bit);
                REQUIRE_FALSE(request_verifier::verify(registered, t(), fresh(), bad));
            }
        for (std::size_t i = 0; i < 32; ++i) {
            digest256 bad_t = t();
            bad_t[i] ^= 1;
            REQUIRE_FALSE(request_verifier::verify(registered, bad_t, fresh(), payload));
            challenge bad_c = fresh();
            bad_c[i] ^= 1;
            REQUIRE_FALSE(request_verifier::verify(registered, t(), bad_c, payload));
        }
    }
}

TEST_CASE("I1: only the verifier makes a verified value") {
    static_assert(!std::is_constructible_v<verified<envelope>, envelope>);
    static_assert(!std::is_constructible_v<verified<request>, request>);
    static_assert(!std::is_default_constructible_v<verified<request>>);
}

TEST_CASE("the tags of all vectors are made and verified") {
    for (const frame_rule &rule : frame_rules) {
        if (rule.tag == tagging::none)
            continue;
        CAPTURE(rule.name);
        // Both ends send CREDIT; the vector is one that the qube sends.
        const bytes &frame = two["frame." + std::string(rule.name)];
        frame_authenticator opener = direction(rule);
        const auto payload = opener.open(view_of(frame));
        REQUIRE(payload);
        bytes again(frame.size());
        std::copy(payload->begin(), payload->end(), again.begin() + frame_header::size);
        frame_authenticator sealer = direction(rule);
        CHECK(sealer.seal(again.data(), 1, rule.type, payload->size()) == frame.size());
        CHECK(again == frame);
    }
}

TEST_CASE("GMAC is used from 4096 bytes of data on, and HMAC for all other frames") {
    const frame_rule &rule = *rule_of(frame_type::stdout_data);
    for (const std::string name : {"frame.stdout_data.gmac", "frame.stdout_data.below_gmac"}) {
        CAPTURE(name);
        frame_authenticator opener = direction(rule, true);
        CHECK(opener.open(view_of(two[name])).has_value());
        frame_authenticator without = direction(rule);
        CHECK(without.open(view_of(two[name])).has_value() == (name != "frame.stdout_data.gmac"));
    }
    frame_authenticator opener = direction(*rule_of(frame_type::body), true);
    CHECK(opener.open(view_of(two["frame.body"])));
}

TEST_CASE("I1: a tagged frame that is damaged, cut or out of order does not open") {
    for (const frame_rule &rule : frame_rules) {
        if (rule.tag == tagging::none)
            continue;
        CAPTURE(rule.name);
        const bytes &frame = two["frame." + std::string(rule.name)];
        for (std::size_t i = 4; i < frame.size(); ++i)
            for (const std::uint8_t damage : bytes{0x01, 0x80}) {
                bytes bad = frame;
                bad[i] ^= damage;
                const auto header =
                    frame_header::decode(std::span(bad).first<frame_header::size>(), limits::frame);
                if (!header)
                    continue;
                frame_authenticator opener = direction(rule);
                REQUIRE_FALSE(opener.open({*header, bytes_view(bad).subspan(frame_header::size)}));
            }
        const frame_view whole = view_of(frame);
        for (std::size_t n = 0; n < whole.untrusted_payload.size(); ++n) {
            frame_authenticator opener = direction(rule);
            REQUIRE_FALSE(opener.open({whole.header, whole.untrusted_payload.first(n)}));
        }
        // A second time it does not open, since the sequence number is higher.
        frame_authenticator opener = direction(rule);
        CHECK(opener.open(whole));
        CHECK_FALSE(opener.open(whole));
        // With the key of the other direction it does not open.
        frame_rule turned = rule;
        turned.from = rule.from == sender::dom0 ? sender::qube : sender::dom0;
        frame_authenticator back = direction(turned);
        CHECK_FALSE(back.open(whole));
    }
    const bytes &large = two["frame.stdout_data.gmac"];
    for (std::size_t i = frame_header::size; i < large.size(); ++i) {
        bytes bad = large;
        bad[i] ^= 0x10;
        frame_authenticator opener = direction(*rule_of(frame_type::stdout_data), true);
        REQUIRE_FALSE(opener.open(view_of(bad)));
    }
}

TEST_CASE("I1: a header accepts only the body that it announced") {
    const auto registered = keys({two.text("key")});
    const bytes payload = signed_payload("script_follows");
    const auto header = request_verifier::verify(registered, t(), fresh(), payload);
    REQUIRE(header);
    const auto decoded = request_verifier::decode(*header);
    REQUIRE(decoded);
    const std::string body = two.text("body");
    const auto whole = request_verifier::complete(*decoded, body);
    REQUIRE(whole);
    CHECK((**whole).header.body == body);

    for (std::size_t n = 0; n < body.size(); ++n)
        CHECK(request_verifier::complete(*decoded, body.substr(0, n)).error().code ==
              errc::bad_digest);
    for (std::size_t i = 0; i < body.size(); ++i) {
        std::string bad = body;
        bad[i] = static_cast<char>(bad[i] ^ 1);
        CHECK(request_verifier::complete(*decoded, bad).error().code == errc::bad_digest);
    }
    CHECK(request_verifier::complete(*decoded, body + "x").error().code == errc::bad_digest);

    const bytes inline_payload = signed_payload("script");
    const auto with_body = request_verifier::decode(
        *request_verifier::verify(registered, t(), fresh(), inline_payload));
    REQUIRE(with_body);
    CHECK(request_verifier::complete(*with_body, ""));
    CHECK(request_verifier::complete(*with_body, "rm -rf /").error().code == errc::bad_digest);
}

TEST_CASE("arguments from the body are returned like those from a header") {
    const auto registered = keys({two.text("key")});
    for (const std::string name : {"exec_packed", "script_packed"}) {
        CAPTURE(name);
        const bytes payload = signed_payload(name);
        const auto header = request_verifier::verify(registered, t(), fresh(), payload);
        REQUIRE(header);
        const auto decoded = request_verifier::decode(*header);
        REQUIRE(decoded);
        CHECK((**decoded).has_packed_arguments());
        const bytes &raw = two["body." + name];
        const auto whole = request_verifier::complete(*decoded, std::string(as_text(raw)));
        REQUIRE(whole);
        const envelope &got = (**whole).header;
        CHECK_FALSE(got.has_packed_arguments());
        if (name == "exec_packed") {
            CHECK(got.arguments == std::vector<std::string>{"printf", "%s", ""});
            CHECK(got.body.empty());
        } else {
            CHECK(got.arguments == std::vector<std::string>{"one", "two words"});
            CHECK(got.body == two.text("body"));
        }
        for (std::size_t n = 0; n < raw.size(); ++n)
            CHECK(request_verifier::complete(*decoded, std::string(as_text(raw)).substr(0, n))
                      .error()
                      .code == errc::bad_digest);
    }
}

TEST_CASE("a command line in a body must not hold a NUL, although its digest matches") {
    envelope header;
    header.kind = request_kind::shell;
    header.id = command_id::parse("a").value();
    const std::string body("true\0; evil", 11);
    header.body_follows = true;
    header.body_length = static_cast<std::uint32_t>(body.size());
    header.body_digest = sha256(as_bytes(body));
    const bytes encoded = header.encode().value();
    request_signer signer(key());
    const digest256 token = signer.token(t(), fresh(), encoded);
    bytes payload(token.begin(), token.end());
    payload.insert(payload.end(), encoded.begin(), encoded.end());
    const auto registered = keys({two.text("key")});
    const auto decoded =
        request_verifier::decode(*request_verifier::verify(registered, t(), fresh(), payload));
    REQUIRE(decoded);
    CHECK(request_verifier::complete(*decoded, body).error() == error{errc::binary_content, 4});
}
