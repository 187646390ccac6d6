// SPDX-License-Identifier: GPL-2.0-or-later
#include "decide/keyring.hpp"

#include <cerrno>
#include <string>

#include <sys/stat.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include <qvmremote/host/files.hpp>

#include "support/scratch.hpp"

using namespace qvmremote;
using dom0::keyring;
using qvmremote_test::scratch;

namespace {

const qube_name work = qube_name::parse("work").value();
secret key_of(char digit) { return secret::parse(std::string(64, digit)).value(); }

std::string digits(const host::outcome<std::vector<secret>> &keys) {
    std::string out;
    if (keys)
        for (const secret &key : *keys)
            out += as_text(key.text()).front();
    return out;
}

} // namespace

TEST_CASE("a key is valid until its time is over, by the given clock") {
    const scratch dir;
    const keyring ring(dir / "keys");
    CHECK(ring.usable(work, 0).error().error_number == ENOENT);
    REQUIRE(ring.store(work, key_of('a')));
    CHECK(digits(ring.usable(work, INT64_MAX)) == "a");
    CHECK_FALSE(ring.until(work));
    REQUIRE(ring.store(work, key_of('b'), 1000));
    CHECK(ring.until(work) == 1000);
    CHECK(digits(ring.usable(work, 999)) == "b");
    CHECK(ring.usable(work, 1000).error().error_number == EKEYEXPIRED);
    CHECK(ring.load(work)); // lists still show the key
    REQUIRE(ring.store(work, key_of('c')));
    CHECK(digits(ring.usable(work, 1000)) == "c");
}

TEST_CASE("after a rotation both keys are valid for a day, then only the new one") {
    const scratch dir;
    const keyring ring(dir / "keys");
    CHECK(ring.rotate(work, key_of('b'), 0).error().error_number == ENOENT);
    REQUIRE(ring.store(work, key_of('a')));
    CHECK(ring.rotate(work, key_of('a'), 0).error().error_number == EEXIST);
    REQUIRE(ring.rotate(work, key_of('b'), 5000));
    CHECK(digits(ring.usable(work, 5000)) == "ba");
    CHECK(ring.previous_until(work) == 5000 + keyring::overlap_s);
    CHECK(digits(ring.usable(work, 5000 + keyring::overlap_s - 1)) == "ba");
    CHECK(digits(ring.usable(work, 5000 + keyring::overlap_s)) == "b");
    // Two rotations in a day leave the last two keys.
    REQUIRE(ring.rotate(work, key_of('c'), 6000));
    CHECK(digits(ring.usable(work, 6000)) == "cb");
    // A new authorization replaces all keys.
    REQUIRE(ring.store(work, key_of('d')));
    CHECK(digits(ring.usable(work, 6000)) == "d");
}

TEST_CASE("I7: a file beside a key that cannot be read or trusted never makes a key last longer") {
    const scratch dir;
    const keyring ring(dir / "keys");
    REQUIRE(ring.store(work, key_of('a'), 1000));
    const std::string until = dir / "keys/work.until";
    for (const char *const nonsense : {"", "soon\n", "1e9\n", "-1\n"}) {
        CAPTURE(nonsense);
        REQUIRE(host::write_atomically(until, nonsense, 0600, host::durability::unsynced));
        CHECK(ring.usable(work, 1).error().error_number == EKEYEXPIRED);
    }
    REQUIRE(host::write_atomically(until, "1000\n", 0600, host::durability::unsynced));
    REQUIRE(::chmod(until.c_str(), 0666) == 0);
    CHECK(ring.usable(work, 1).error().error_number == EKEYEXPIRED);
    REQUIRE(ring.store(work, key_of('a')));
    REQUIRE(ring.rotate(work, key_of('b'), 0));
    const std::string previous = dir / "keys/work.previous";
    REQUIRE(::chmod(previous.c_str(), 0644) == 0);
    CHECK(digits(ring.usable(work, 1)) == "b");
    for (const std::string &text : {std::string("nonsense"), std::string(64, 'a'),
                                    std::string(64, 'a') + "\nsoon\n", std::string("x\n99999\n")}) {
        REQUIRE(host::write_atomically(previous, text, 0600, host::durability::unsynced));
        CHECK(digits(ring.usable(work, 1)) == "b");
    }
}

TEST_CASE("expired keys are listed after the usable ones") {
    const scratch dir;
    const keyring ring(dir / "keys");
    constexpr auto end = 5000 + keyring::overlap_s; // when the old key expires
    REQUIRE(ring.store(work, key_of('a')));
    REQUIRE(ring.rotate(work, key_of('b'), 5000));
    REQUIRE(host::write_atomically(dir / "keys/work.until", std::to_string(end + 9) + "\n", 0600,
                                   host::durability::unsynced));
    const struct {
        std::int64_t now;
        std::size_t usable;
        std::int64_t ended_at;
    } rows[] = {{5000, 2, 0}, {end, 1, end}, {end + 8, 1, end}, {end + 9, 0, end + 9}};
    for (const auto &row : rows) {
        CAPTURE(row.now);
        const auto found = ring.known(work, row.now);
        REQUIRE(found);
        CHECK(found->keys.size() == 2);
        CHECK(as_text(found->keys[0].text()).front() == 'b');
        CHECK(found->usable == row.usable);
        CHECK(found->ended_at == row.ended_at);
    }
}

TEST_CASE("I7: a new key whose file cannot be written gives the old one no more time") {
    const scratch dir;
    const keyring ring(dir / "keys");
    REQUIRE(ring.store(work, key_of('a'), 1000));
    const std::string file = dir / "keys/work.key";
    REQUIRE(::unlink(file.c_str()) == 0);
    REQUIRE(::mkdir(file.c_str(), 0700) == 0);
    CHECK_FALSE(ring.store(work, key_of('b'), 9000));
    CHECK(ring.until(work) == 1000);
    CHECK_FALSE(ring.store(work, key_of('b'), 500));
    CHECK(ring.until(work) == 500);
}

TEST_CASE("the present key and the one before it stay pinned to protocol 2") {
    const scratch dir;
    const keyring ring(dir / "keys");
    REQUIRE(ring.store(work, key_of('a')));
    const digest256 marks[] = {{1}, {2}, {3}};
    for (const digest256 &mark : marks) {
        CHECK_FALSE(ring.is_pinned(work, mark));
        REQUIRE(ring.pin(work, mark));
    }
    CHECK_FALSE(ring.is_pinned(work, marks[0]));
    CHECK(ring.is_pinned(work, marks[1]));
    CHECK(ring.is_pinned(work, marks[2]));
}

TEST_CASE("all files of a removed key are removed") {
    const scratch dir;
    const keyring ring(dir / "keys");
    REQUIRE(ring.store(work, key_of('a'), 1000));
    REQUIRE(ring.rotate(work, key_of('b'), 0));
    REQUIRE(ring.pin(work, digest256{}));
    REQUIRE(ring.remove(work));
    CHECK(ring.usable(work, 1).error().error_number == ENOENT);
    CHECK(ring.list()->empty());
    for (const char *const suffix : {".key", ".until", ".previous", ".protocol2"})
        CHECK(::access((dir / ("keys/work" + std::string(suffix))).c_str(), F_OK) != 0);
    CHECK(ring.remove(work).error().error_number == ENOENT);
}
