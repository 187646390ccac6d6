// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/audit.hpp>

#include <algorithm>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

using namespace qvmremote;
using namespace std::string_view_literals;

namespace {

constexpr std::string_view when = "2026-02-18T10:15:00.123+01:00";

const std::vector<std::string> some_words = {"qvm-prefs", "work", "a\"b\\c\n\x1b\xff"};

audit_record some_start() {
    audit_record record;
    record.kind = audit_kind::start;
    record.time = when;
    record.peer = "work";
    record.id = "20260218-101500-42-0a1b2c3d";
    record.proto = 2;
    record.transport = "qvm-run";
    record.request = "exec";
    record.argv = some_words;
    record.verdict = "allow";
    record.policy = "30-work.policy:2 work level:monitor allow";
    record.user = "root";
    return record;
}

audit_record some_end() {
    audit_record record;
    record.kind = audit_kind::end;
    record.time = when;
    record.peer = "work";
    record.of = 1;
    record.exit = -9;
    record.cause = "timeout";
    record.stdout_bytes = ~std::uint64_t{0};
    return record;
}

std::string_view bare(std::string_view line) {
    REQUIRE(line.ends_with('\n'));
    return line.substr(0, line.size() - 1);
}

} // namespace

TEST_CASE("append: the line that it writes") {
    audit_chain chain;
    // The hash was computed with { printf %064d 0; printf %s '{"n":1,...'; } | sha256sum
    CHECK(chain.append(some_start()) ==
          R"({"n":1,"t":"2026-02-18T10:15:00.123+01:00","kind":"START","peer":"work",)"
          R"("id":"20260218-101500-42-0a1b2c3d","proto":2,"transport":"qvm-run","request":"exec",)"
          R"("argv":["qvm-prefs","work","a\"b\\c\n\u001b\u00ff"],"verdict":"allow",)"
          R"("policy":"30-work.policy:2 work level:monitor allow","user":"root",)"
          R"("h":"880877dccad549a3080fc1f5a44f86e77675212c13c0eaf15f9a736d6a5bd243"})"
          "\n");
    CHECK(chain.append(some_end()) ==
          R"({"n":2,"t":"2026-02-18T10:15:00.123+01:00","kind":"END","peer":"work","of":1,)"
          R"("exit":-9,"cause":"timeout","stdout_bytes":9223372036854775807,)"
          R"("h":"6d86ddf64b5e2f68a2f6508031a2c3a07c9d14882dfa34d42564613bf9f75709"})"
          "\n");
    CHECK(chain.next_serial() == 3);
}

TEST_CASE("parse_audit: returns what was appended") {
    audit_chain chain(41);
    const std::string line = chain.append(some_start());
    const auto entry = parse_audit(bare(line));
    REQUIRE(entry);
    CHECK(entry->serial == 41);
    CHECK(entry->kind == "START");
    CHECK(entry->hash == chain.head());
    CHECK(entry->time() == std::string(when));
    CHECK(entry->peer() == "work");
    CHECK(entry->id() == "20260218-101500-42-0a1b2c3d");
    CHECK(entry->number("proto") == 2);
    // The byte 0xff comes back as the character U+00FF, as for_json says.
    CHECK(entry->list("argv") ==
          std::vector<std::string>{"qvm-prefs", "work", "a\"b\\c\n\x1b\xc3\xbf"});
    CHECK_FALSE(entry->text("exit"));
    CHECK_FALSE(entry->text("proto"));
    CHECK_FALSE(entry->number("peer"));
    CHECK_FALSE(entry->list("peer"));

    const std::string end = chain.append(some_end());
    CHECK(parse_audit(bare(end))->number("exit") == -9);
}

TEST_CASE("append: cuts what is too long, and adds the digest of the whole") {
    struct row {
        const char *name;
        std::vector<std::string> argv;
        std::int64_t count; // 0: not cut
        std::size_t recorded;
    };
    static const std::string half(limits::audit_argument / 2, 'x');
    static const row rows[] = {
        {"no words", {}, 0, 0},
        {"empty words", {"", ""}, 0, 2},
        {"exactly the limit", {half, half}, 0, 2},
        {"one byte more", {half, half + "y"}, 2, 2},
        {"one word more", {half, half, ""}, 3, 2},
        {"one long word", {std::string(limits::command, 'x')}, 1, 1},
        {"a long word of ESCs", {std::string(limits::command, '\x1b')}, 1, 1},
        {"a thousand words", std::vector<std::string>(1024, "xxxxxxxxx"), 1024, 911},
        {"all empty words", std::vector<std::string>(1024, ""), 0, 1024},
        {"more than fit", std::vector<std::string>(10000, ""), 10000, 5457},
    };
    for (const row &r : rows) {
        INFO(std::string(r.name));
        audit_record record = some_start();
        record.argv = r.argv;
        audit_chain chain;
        const std::string line = chain.append(record);
        CHECK(line.size() <= limits::audit_line);
        CHECK(verify_link(audit_first_hash, bare(line)));
        const auto entry = parse_audit(bare(line));
        REQUIRE(entry);
        CHECK(entry->list("argv").value().size() == r.recorded);
        CHECK(entry->number("argv_count").value_or(0) == r.count);
        if (r.count == 0) {
            CHECK(entry->list("argv") == r.argv);
            CHECK_FALSE(entry->text("argv_sha256"));
            continue;
        }
        std::string all;
        for (const std::string &word : r.argv)
            all.append(word).push_back('\0');
        CHECK(entry->text("argv_sha256") == to_hex(sha256(as_bytes(all))));
        CHECK(entry->number("argv_bytes") == static_cast<std::int64_t>(all.size()) - r.count);
    }
    CHECK(parse_audit(bare([] {
              audit_record record = some_start();
              static const std::vector<std::string> words = {
                  std::string(limits::audit_argument - 1, 'x') + "\xc3\xa9"};
              record.argv = words;
              return audit_chain().append(record);
          }()))
              ->list("argv")
              .value()[0]
              .ends_with("xx..."));
}

TEST_CASE("append: with hostile texts in every field it is one line within its limit") {
    const std::string hostile(limits::command, '\x01');
    const std::vector<std::string> words(3, hostile);
    audit_record record;
    record.kind = audit_kind::refused;
    record.time = hostile;
    record.argv = words;
    record.script.emplace();
    for (auto *field : {&record.peer, &record.id, &record.body, &record.transport, &record.request,
                        &record.verdict, &record.policy, &record.user, &record.cause,
                        &record.started, &record.ended, &record.reason})
        *field = hostile;
    for (auto *field : {&record.of, &record.stdin_bytes, &record.stdout_bytes, &record.stderr_bytes,
                        &record.duration_ms})
        *field = ~std::uint64_t{0};
    record.proto = record.timeout_s = ~std::uint32_t{0};
    record.exit = -2147483647 - 1;
    audit_chain chain(9223372036854775807u);
    const std::string line = chain.append(record);
    CHECK(line.size() <= limits::audit_line);
    CHECK(line.find('\n') == line.size() - 1);
    CHECK(parse_audit(bare(line)));
    CHECK(verify_link(audit_first_hash, bare(line)));
}

TEST_CASE("verify_link: no prefix of a line and no damaged byte of it passes") {
    audit_chain chain;
    const std::string first = chain.append(some_start());
    const std::string previous(chain.head());
    const std::string second = chain.append(some_end());

    CHECK(verify_link(audit_first_hash, bare(first)).value() == previous);
    CHECK(verify_link(previous, bare(second)).value() == chain.head());
    CHECK_FALSE(verify_link(audit_first_hash, bare(second)));
    CHECK_FALSE(verify_link(previous, bare(first)));
    CHECK_FALSE(verify_link("", bare(first)));
    CHECK_FALSE(verify_link(previous, second)); // with its newline
    CHECK_FALSE(verify_link(previous, ""));

    for (const std::string_view line : {bare(first), bare(second)}) {
        const std::string_view before = line == bare(first) ? audit_first_hash : previous;
        for (std::size_t n = 0; n < line.size(); ++n) {
            CAPTURE(n);
            CHECK_FALSE(verify_link(before, line.substr(0, n)));
            CHECK_FALSE(parse_audit(line.substr(0, n)));
            for (const int flip : {0x01, 0x20, 0x80}) {
                std::string damaged(line);
                damaged[n] = static_cast<char>(damaged[n] ^ flip);
                const auto hash = verify_link(before, damaged);
                REQUIRE_FALSE(hash);
                CHECK(hash.error().code == errc::chain_broken);
            }
        }
    }
}

TEST_CASE("a chain is the same if it is continued after a restart") {
    audit_chain whole;
    std::vector<std::string> lines;
    for (int i = 0; i < 4; ++i)
        lines.push_back(whole.append(some_start()));

    audit_chain part;
    static_cast<void>(part.append(some_start()));
    const std::string second = part.append(some_start());
    const auto last = parse_audit(bare(second)).value();
    audit_chain resumed(last.serial + 1, last.hash);
    CHECK(resumed.append(some_start()) == lines[2]);

    const audit_chain kept = resumed; // to go back to after a failed write
    CHECK(resumed.append(some_start()) == lines[3]);
    resumed = kept;
    CHECK(resumed.append(some_start()) == lines[3]);

    // If a line was removed or moved, the next line does not follow.
    const std::string first_hash(parse_audit(bare(lines[0]))->hash);
    CHECK_FALSE(verify_link(first_hash, bare(lines[2])));
}

TEST_CASE("parse_audit: is strict, and names the place of an error") {
    static const std::string tail = R"(,"h":")" + std::string(64, '0') + "\"}";
    static const std::string head = R"({"n":1,"t":"x","kind":"START")"; // 29 bytes
    struct row {
        const char *name;
        std::string in;
        std::uint32_t at;
    };
    const row rows[] = {
        {"empty", "", 0},
        {"no object", "[]", 0},
        {"empty object", "{}", 1},
        {"newline at the end", head + tail + "\n", 101},
        {"two records", head + tail + head + tail, 101},
        {"blank before a key", head + R"(, "a":1)" + tail, 30},
        {"blank after a colon", head + R"(,"a": 1)" + tail, 34},
        {"capital in a key", head + R"(,"A":1)" + tail, 31},
        {"escape in a key", head + R"(,"\u0061":1)" + tail, 31},
        {"empty key", head + R"(,"":1)" + tail, 31},
        {"long key", head + ",\"" + std::string(33, 'a') + "\":1" + tail, 63},
        {"key twice", head + R"(,"a":1,"a":2)" + tail, 36},
        {"serial twice", head + R"(,"n":2)" + tail, 30},
        {"field after the hash", head + tail.substr(0, tail.size() - 1) + R"(,"a":1})", 101},
        {"object inside", head + R"(,"a":{})" + tail, 34},
        {"array inside an array", head + R"(,"a":[[]])" + tail, 35},
        {"number in an array", head + R"(,"a":[1])" + tail, 35},
        {"comma at the end of an array", head + R"(,"a":["b",])" + tail, 39},
        {"true", head + R"(,"a":true)" + tail, 34},
        {"null", head + R"(,"a":null)" + tail, 34},
        {"fraction", head + R"(,"a":1.5)" + tail, 35},
        {"leading zero", head + R"(,"a":01)" + tail, 34},
        {"minus zero", head + R"(,"a":-0)" + tail, 34},
        {"plus", head + R"(,"a":+1)" + tail, 34},
        {"beyond 64 bits", head + R"(,"a":9223372036854775808)" + tail, 34},
        {"newline in a string", head + ",\"a\":\"\n\"" + tail, 35},
        {"NUL in a string", head + ",\"a\":\"" + '\0' + "\"" + tail, 35},
        {"escape sequence", head + ",\"a\":\"\x1b\"" + tail, 35},
        {"bad UTF-8", head + ",\"a\":\"\xc0\xaf\"" + tail, 35},
        {"raw C1 control", head + ",\"a\":\"\xc2\x9b\"" + tail, 35},
        {"escaped letter", head + R"(,"a":"\u0061")" + tail, 35},
        {"escaped slash", head + R"(,"a":"\/")" + tail, 35},
        {"capital in an escape", head + R"(,"a":"\u001B")" + tail, 35},
        {"long form of a newline", head + R"(,"a":"\u000a")" + tail, 35},
        {"surrogate", head + R"(,"a":"\ud800")" + tail, 35},
        {"escape cut short", head + R"(,"a":"\u00)", 35},
        {"open string", head + R"(,"a":"b)", 36},
        {"serial 0", R"({"n":0,"t":"x","kind":"START")" + tail, 0},
        {"serial negative", R"({"n":-1,"t":"x","kind":"START")" + tail, 0},
        {"serial as text", R"({"n":"1","t":"x","kind":"START")" + tail, 0},
        {"time as number", R"({"n":1,"t":1,"kind":"START")" + tail, 0},
        {"kind as number", R"({"n":1,"t":"x","kind":1)" + tail, 0},
        {"kind in lower case", R"({"n":1,"t":"x","kind":"start")" + tail, 0},
        {"no kind", R"({"n":1,"t":"x")" + tail, 0},
        {"other order", R"({"t":"x","n":1,"kind":"START")" + tail, 0},
        {"no hash", head + "}", 0},
        {"hash as number", head + R"(,"h":1})", 35},
        {"hash in capitals", head + R"(,"h":")" + std::string(64, 'A') + "\"}", 100},
        {"hash too short", head + R"(,"h":")" + std::string(63, '0') + "\"}", 99},
        {"too long", std::string(limits::audit_line + 1, '{'), limits::audit_line},
    };
    for (const row &r : rows) {
        INFO(std::string(r.name));
        const auto entry = parse_audit(r.in);
        REQUIRE_FALSE(entry);
        CHECK(entry.error() == error{errc::bad_json, r.at});
    }
    CHECK(parse_audit(head + tail));
    CHECK(parse_audit(head + R"(,"future":["x"],"b":-1)" + tail));

    std::string many = head;
    for (int i = 0; i < 61; ++i)
        many += ",\"k" + std::to_string(i) + "\":0";
    CHECK_FALSE(parse_audit(many + tail));
}

namespace {

// A log as the daemon writes it: STARTs with their ENDs, and a HEAD at the beginning of a file.
std::vector<std::string> some_log(std::size_t lines, std::uint64_t first = 1) {
    audit_chain chain(first);
    std::vector<std::string> out;
    while (out.size() < lines) {
        audit_record record = chain.next_serial() % 2 == 0 ? some_end() : some_start();
        std::string previous(chain.head());
        if (chain.next_serial() % 16 == 9) {
            record = audit_record();
            record.kind = audit_kind::head;
            record.time = when;
            record.of = chain.next_serial() - 1;
            record.previous = previous;
            record.oldest = first;
        }
        out.push_back(chain.append(record));
        out.back().pop_back();
    }
    return out;
}

audit_head head_of(const std::string &line) {
    const auto entry = parse_audit(line).value();
    return {entry.serial, std::string(entry.hash)};
}

// The index of the first faulty line, or of the end; nothing if there is no fault.
std::optional<std::pair<std::size_t, audit_fault>> check_log(const std::vector<std::string> &lines,
                                                             std::vector<audit_head> heads = {}) {
    audit_verifier verifier(std::move(heads));
    for (std::size_t n = 0; n < lines.size(); ++n)
        if (const auto fault = verifier.push(lines[n]))
            return std::pair{n, *fault};
    if (const auto fault = verifier.finish())
        return std::pair{lines.size(), *fault};
    return std::nullopt;
}

// Gives every line from `at` on a new hash, so that the chain is valid again.
void rewrite_from(std::vector<std::string> &lines, std::size_t at) {
    std::string previous(at == 0 ? audit_first_hash : parse_audit(lines[at - 1])->hash);
    for (; at < lines.size(); ++at) {
        lines[at].resize(lines[at].size() - detail::hash_field);
        constexpr std::string_view key = "\"prev\":\"";
        if (const std::size_t place = lines[at].find(key); place != std::string::npos)
            lines[at].replace(place + key.size(), previous.size(), previous);
        previous = detail::chain_hash(previous, lines[at]);
        lines[at] += detail::hash_tail(previous);
    }
}

} // namespace

TEST_CASE("audit_verifier: accepts a whole log, and one whose older files were removed") {
    const auto lines = some_log(64);
    CHECK_FALSE(check_log(lines));
    CHECK_FALSE(check_log({}));
    CHECK_FALSE(check_log(lines, {head_of(lines[63]), head_of(lines[0]), head_of(lines[63])}));

    // Line 9 is a HEAD that begins a file. Without the lines before it the rest is valid only if
    // they were removed on purpose, which a later HEAD says.
    const auto tail = [&](std::uint64_t oldest) {
        std::vector<std::string> out;
        audit_chain chain(9, parse_audit(lines[7])->hash);
        while (out.size() < 32) {
            audit_record record = some_start();
            const std::string previous(chain.head());
            if (out.size() % 16 == 0) {
                record = audit_record();
                record.kind = audit_kind::head;
                record.time = when;
                record.of = chain.next_serial() - 1;
                record.previous = previous;
                record.oldest = out.empty() ? 1 : oldest;
            }
            out.push_back(chain.append(record));
            out.back().pop_back();
        }
        return out;
    };
    CHECK_FALSE(check_log(tail(9)));
    CHECK_FALSE(check_log(tail(9), {head_of(lines[3])})); // a head of a removed line is ignored
    CHECK(check_log(tail(8)) == std::pair{std::size_t{32}, audit_fault::beheaded});
    CHECK(check_log(std::vector(lines.begin() + 8, lines.end())) ==
          std::pair{std::size_t{56}, audit_fault::beheaded});
    CHECK(check_log(std::vector(lines.begin() + 9, lines.end())) ==
          std::pair{std::size_t{0}, audit_fault::misplaced});
}

TEST_CASE("audit_verifier: finds each of 10 000 random edits, moves and removals") {
    const auto whole = some_log(100);
    const std::vector<audit_head> heads = {head_of(whole[99])};
    std::mt19937 random(20260218);
    const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
    for (int round = 0; round < 10'000; ++round) {
        auto lines = whole;
        const std::size_t at = below(lines.size()), to = below(lines.size());
        std::size_t first = at; // the line where it must show: this one or the next
        const unsigned how = static_cast<unsigned>(round) % 8;
        CAPTURE(how);
        CAPTURE(at);
        CAPTURE(to);
        switch (how) {
        case 0: { // changes a byte
            char &c = lines[at][below(lines[at].size())];
            c = static_cast<char>(static_cast<unsigned>(c) ^ (1 + random() % 255));
            break;
        }
        case 1: // moves a line
            if (at == to)
                continue;
            lines.erase(lines.begin() + static_cast<std::ptrdiff_t>(at));
            lines.insert(lines.begin() + static_cast<std::ptrdiff_t>(to), whole[at]);
            first = std::min(at, to);
            break;
        case 2: // removes lines
            lines.erase(lines.begin() + static_cast<std::ptrdiff_t>(std::min(at, to)),
                        lines.begin() + static_cast<std::ptrdiff_t>(std::max(at, to)) + 1);
            first = std::min(at, to);
            break;
        case 3: // repeats a line
            lines.insert(lines.begin() + static_cast<std::ptrdiff_t>(to), whole[at]);
            // If it is repeated at its own place, the second one shows.
            first = at == to ? to + 1 : to;
            break;
        case 4: // exchanges two lines
            if (at == to)
                continue;
            std::swap(lines[at], lines[to]);
            first = std::min(at, to);
            break;
        case 5: { // edits a line and gives it the right hash
            lines[at].resize(lines[at].size() - detail::hash_field);
            lines[at] += ",\"future\":1";
            lines[at] += detail::hash_tail(detail::chain_hash(
                at == 0 ? audit_first_hash : parse_audit(whole[at - 1])->hash, lines[at]));
            first = std::min(at + 1, std::size_t{99}); // the last one does not match its head
            break;
        }
        case 6: // cuts off the end, or all
            lines.resize(at);
            first = at;
            break;
        case 7: // edits a line and rewrites all lines after it
            lines[at].insert(lines[at].size() - detail::hash_field, ",\"future\":1");
            rewrite_from(lines, at);
            first = 99;
            break;
        }
        const auto found = check_log(lines, heads);
        REQUIRE(found);
        CHECK(found->first <= std::max(first, lines.size()));
        // A HEAD is accepted as the first line; then the line after it is the first fault.
        if (how != 2 && how != 6)
            CHECK((found->first == first || (first == 0 && found->first == 1)));
        if (how == 6)
            CHECK(found->second == audit_fault::cut);
        if (how == 7)
            CHECK(found->second == audit_fault::rewritten);
    }
}

TEST_CASE("audit heads: a head is read from a line, whatever the journal puts before it") {
    const std::string hash(64, 'a');
    CHECK(format_audit_head(42, hash) == "audit head 42 " + hash);
    for (const std::string before : {"", "Feb 18 10:15:00 dom0 qvm-remote-audit[7]: "}) {
        const auto head = parse_audit_head(before + format_audit_head(42, hash));
        REQUIRE(head);
        CHECK(head->serial == 42);
        CHECK(head->hash == hash);
    }
    for (const std::string &bad :
         {std::string(), "audit head " + hash, "audit head 0 " + hash, std::string("audit head 42"),
          "audit head 42 " + hash + "\n", "audit head 42 " + std::string(64, 'A'),
          "audit head -1 " + hash, "audit head 42 " + hash.substr(1)}) {
        CAPTURE(bad);
        CHECK_FALSE(parse_audit_head(bad));
    }
}
