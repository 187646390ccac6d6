// SPDX-License-Identifier: GPL-2.0-or-later
// Built twice: over EVP, and with QVMREMOTE_DIRECT_SHA256.
#include <qvmremote/digest.hpp>

#include <string>

#include <doctest/doctest.h>

#include "support/vectors.hpp"

using namespace qvmremote;

namespace {
struct hash_row {
    const char *name;
    std::string in;
    std::string_view want;
};
const hash_row hash_rows[] = {
    {"empty", "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    {"FIPS 180-4, one block", "abc",
     "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
    {"FIPS 180-4, two blocks", "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
     "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    {"a million of 'a'", std::string(1'000'000, 'a'),
     "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"},
};

// RFC 4231, test cases 1 to 4, 6 and 7.
struct mac_row {
    const char *name;
    std::string key, in;
    std::string_view want;
};
const mac_row mac_rows[] = {
    {"1", std::string(20, '\x0b'), "Hi There",
     "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"},
    {"2", "Jefe", "what do ya want for nothing?",
     "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"},
    {"3", std::string(20, '\xaa'), std::string(50, '\xdd'),
     "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"},
    {"6, a key longer than a block", std::string(131, '\xaa'),
     "Test Using Larger Than Block-Size Key - Hash Key First",
     "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"},
    {"7, both long", std::string(131, '\xaa'),
     "This is a test using a larger than block-size key and a larger than block-size data. The key "
     "needs to be hashed before being used by the HMAC algorithm.",
     "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2"},
};
} // namespace

TEST_CASE("SHA-256 as in FIPS 180-4, whole and in two pieces") {
    for (const hash_row &row : hash_rows) {
        CAPTURE(row.name);
        CHECK(to_hex(sha256(as_bytes(row.in))) == row.want);
        sha256_hash hash;
        const std::string_view text = row.in;
        hash.update(text.substr(0, text.size() / 3)).update(text.substr(text.size() / 3));
        CHECK(to_hex(hash.finish()) == row.want);
    }
}

TEST_CASE("a copy continues from the state of the original") {
    sha256_hash first;
    first.update(std::string_view("ab"));
    sha256_hash second = first;
    second.update(std::string_view("c"));
    CHECK(to_hex(second.finish()) == hash_rows[1].want);
    second = first;
    second.update(std::string_view("c"));
    CHECK(to_hex(second.finish()) == hash_rows[1].want);
}

TEST_CASE("HMAC-SHA256 as in RFC 4231, used many times, in any pieces") {
    for (const mac_row &row : mac_rows) {
        CAPTURE(row.name);
        hmac_sha256 mac(as_bytes(row.key));
        const bytes_view in = as_bytes(row.in);
        CHECK(to_hex(mac.of({in})) == row.want);
        for (std::size_t cut = 0; cut <= in.size(); ++cut)
            CHECK(to_hex(mac.of({in.first(cut), {}, in.subspan(cut)})) == row.want);
    }
}

TEST_CASE("GMAC as the openssl command computes it, in any pieces") {
    const test::vector_file v("protocol2.txt");
    const bytes &frame = v["frame.stdout_data.gmac"];
    digest256 key;
    std::copy_n(v["gmac_key.d2c"].begin(), key.size(), key.begin());
    // A tag covers session, sequence number (0 here), type and payload.
    bytes covered(frame.begin() + 4, frame.begin() + 8);
    covered.insert(covered.end(), 8, 0);
    covered.push_back(frame[8]);
    covered.insert(covered.end(), frame.begin() + 12, frame.end() - 16);
    const std::string want = to_hex(bytes_view(frame).last(16));

    gmac mac(key);
    const bytes_view all = covered;
    CHECK(to_hex(mac.of(0, {all})) == want);
    for (const std::size_t cut : {0u, 1u, 13u, 16u, 4000u})
        CHECK(to_hex(mac.of(0, {all.first(cut), {}, all.subspan(cut)})) == want);
    CHECK(to_hex(mac.of(1, {all})) != want);
    CHECK(to_hex(mac.of(0, {all})) == want);
}

TEST_CASE("comparison sees every byte and the length") {
    const bytes a(32, 7);
    CHECK(equal_constant_time(a, a));
    CHECK(equal_constant_time({}, {}));
    CHECK_FALSE(equal_constant_time(a, bytes_view(a).first(31)));
    for (std::size_t i = 0; i < a.size(); ++i) {
        bytes b = a;
        b[i] ^= 0x80;
        CHECK_FALSE(equal_constant_time(a, b));
    }
}
