// SPDX-License-Identifier: GPL-2.0-or-later
// Tests the levels against the parser of each tool: tests/policy/parsers.txt says what a tool
// takes, and this test tries every spelling of it.
#include <qvmremote/policy.hpp>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include "support/policies.hpp"

using namespace qvmremote;
using namespace qvmremote::test;

namespace {

using words = std::vector<std::string>;

struct option_row {
    words names;
    std::string value; // empty: takes no value
    bool value_is_optional = false;
};

struct tool {
    std::string program, parser;
    std::vector<option_row> options;
    words verbs, variables;
    std::set<words> monitor, manage, allowed, refused;
    bool anything = false;
};

words split(std::string_view text, char at) {
    words out;
    while (!text.empty()) {
        const std::size_t end = std::min(text.find(at), text.size());
        if (end > 0)
            out.emplace_back(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    return out;
}

option_row option_of(const words &row) {
    REQUIRE(row.size() >= 2);
    REQUIRE(row.size() <= 3);
    option_row out{split(row[1], ','), {}, false};
    if (row.size() == 2)
        return out;
    out.value_is_optional = row[2].starts_with('[');
    out.value = out.value_is_optional ? row[2].substr(1, row[2].size() - 2) : row[2];
    return out;
}

// Adds the options that every program of qubesadmin takes.
void add_common_options(tool &out) {
    for (const words &names : {words{"--verbose", "-v"}, words{"--quiet", "-q"},
                               words{"--force-root"}, words{"--help", "-h"}, words{"--version"}})
        out.options.push_back({names, {}, false});
}

void read_row(const words &row, std::vector<tool> &out) {
    const std::string &kind = row[0];
    if (kind == "tool") {
        REQUIRE(row.size() == 3);
        out.push_back({});
        out.back().program = row[1];
        out.back().parser = row[2];
        if (row[2] == "argparse")
            add_common_options(out.back());
        return;
    }
    REQUIRE_FALSE(out.empty());
    tool &last = out.back();
    const words rest(row.begin() + 1, row.end());
    if (kind == "option") {
        last.options.push_back(option_of(row));
    } else if (kind == "verb") {
        last.verbs.insert(last.verbs.end(), rest.begin(), rest.end());
    } else if (kind == "variable") {
        last.variables = rest;
    } else if (kind == "anything") {
        last.anything = true;
    } else {
        REQUIRE(rest.at(0) == last.program);
        REQUIRE((kind == "monitor" || kind == "manage" || kind == "allowed" || kind == "refused"));
        auto &rows = kind == "monitor"   ? last.monitor
                     : kind == "manage"  ? last.manage
                     : kind == "allowed" ? last.allowed
                                         : last.refused;
        CHECK(rows.insert(rest).second);
    }
}

std::vector<tool> tools() {
    std::ifstream file(std::getenv("QVMREMOTE_PARSERS"));
    REQUIRE(file);
    std::vector<tool> out;
    for (std::string line; std::getline(file, line);) {
        INFO(line);
        const words row = split(std::string_view(line).substr(0, line.find(" | ")), ' ');
        if (!row.empty() && !row[0].starts_with('#'))
            read_row(row, out);
    }
    return out;
}

bool is_short(const std::string &name) { return name.size() == 2; }

void add_long_forms(const tool &of, const option_row &option, const std::string &name,
                    std::vector<words> &out) {
    // An abbreviation may end after any letter. The tool refuses one that fits two options.
    const bool abbreviates = of.parser == "argparse" || of.parser == "getopt_long";
    for (std::size_t size = abbreviates ? 3 : name.size(); size <= name.size(); ++size) {
        const std::string given = name.substr(0, size);
        if (option.value.empty() || option.value_is_optional)
            out.push_back({given});
        if (option.value.empty()) {
            out.push_back({given, given});
            continue;
        }
        out.push_back({given + "=" + option.value});
        out.push_back({given, option.value});
    }
}

bool is_in_a_line(const tool &of, const std::string &flag) {
    const auto holds = [&](const words &row) {
        return std::find(row.begin(), row.end(), flag) != row.end();
    };
    return std::any_of(of.monitor.begin(), of.monitor.end(), holds) ||
           std::any_of(of.manage.begin(), of.manage.end(), holds);
}

void add_short_forms(const tool &of, const option_row &option, const std::string &name,
                     std::vector<words> &out) {
    std::vector<std::string> begins{name}; // alone, and joined to each flag of an allowed line
    for (const option_row &other : of.options)
        for (const std::string &flag : other.names)
            if (is_short(flag) && other.value.empty() && (flag == name || is_in_a_line(of, flag)))
                begins.push_back(flag + name[1]);
    for (const std::string &begin : begins) {
        if (option.value.empty() || option.value_is_optional)
            out.push_back({begin});
        if (option.value.empty()) {
            out.push_back({begin, name});
            continue;
        }
        out.push_back({begin + option.value});
        out.push_back({begin + "=" + option.value});
        out.push_back({begin, option.value});
    }
}

std::vector<words> forms(const tool &of) {
    std::vector<words> out{{"--"}, {"-"}, {"@x"}, {"@/etc/shadow"}, {"-1"}, {"--x"}, {""}};
    for (const option_row &option : of.options)
        for (const std::string &name : option.names)
            (is_short(name) ? add_short_forms : add_long_forms)(of, option, name, out);
    return out;
}

// Words that a tool may take as dom0, several qubes, a path, an option or anything else that the
// line does not allow.
words in_place_of(const std::string &word) {
    words out{"/etc/shadow", "./x",     "../x",    "x/y", "@x",       "a=b", "*",
              "x?",          "[x]",     "-",       "--",  "-1",       "",    " ",
              "x y",         "x%n",     "!x",      "+5",  word + "/", "./",  word + "\n",
              " " + word,    "x\x1b[m", "\xc3\xa4"};
    const auto add = [&](const words &more) { out.insert(out.end(), more.begin(), more.end()); };
    if (word == "dev-1")
        add({"dom0", "Dom0", "DOM0", "Domain-0", "domain-0", "DOMAIN-0", "0", "00", "5", "@adminvm",
             "none", "default", "dev-1-dm", "dev-1,dev-2", "dev-1:x", "uuid:x",
             "00000000-0000-0000-0000-000000000000"});
    if (word == "5")
        add({"all", "inf", "nan", "0x5", "5.5", "5k", "1e3", "5,", "dom0", "dev-1",
             "1234567890123456789"});
    return out;
}

// Compares the levels with the table, and counts the comparisons.
class judge {
  public:
    explicit judge(const tool &of) : tool_(of) {}

    void check(const words &argv) {
        ++count_;
        const bool by_monitor =
            tool_.anything || tool_.monitor.contains(argv) || tool_.allowed.contains(argv);
        const bool by_manage = by_monitor || tool_.manage.contains(argv);
        if (levels().allow(access_level::monitor, argv) == by_monitor &&
            levels().allow(access_level::manage, argv) == by_manage)
            return;
        std::string line;
        for (const std::string &word : argv)
            line += "'" + word + "' ";
        const std::string wanted = by_monitor ? "monitor" : by_manage ? "manage" : "refused";
        FAIL_CHECK(line << "is " << wanted << " in the table, and not so in the levels");
    }
    [[nodiscard]] std::size_t count() const noexcept { return count_; }

  private:
    const tool &tool_;
    std::size_t count_ = 0;
};

void check_changed_words(const tool &of, const words &base, judge &levels) {
    for (std::size_t i = 1; i < base.size(); ++i) {
        words changed = base;
        if (std::find(of.verbs.begin(), of.verbs.end(), base[i]) != of.verbs.end())
            for (const std::string &verb : of.verbs) {
                changed[i] = verb;
                levels.check(changed);
            }
        if (base[i - 1] == "--since") // takes any word: it is read as a time and opens no file
            continue;
        for (const std::string &word : in_place_of(base[i])) {
            changed[i] = word;
            levels.check(changed);
        }
    }
}

std::size_t check_tool(const tool &of) {
    judge levels(of);
    std::set<words> bases = of.monitor;
    bases.insert(of.manage.begin(), of.manage.end());
    const std::vector<words> added = forms(of);
    for (const std::set<words> *rows : {&of.allowed, &of.refused})
        for (const words &argv : *rows)
            levels.check(argv);
    // Otherwise a verb would be read as the name of a qube.
    if (!of.monitor.contains({of.program, "dev-1"}))
        for (const std::string &verb : of.verbs)
            levels.check({of.program, verb});
    for (const words &base : bases) {
        levels.check(base);
        check_changed_words(of, base, levels);
        for (const words &form : added)
            for (std::size_t at = 1; at <= base.size(); ++at) {
                words argv = base;
                argv.insert(argv.begin() + static_cast<std::ptrdiff_t>(at), form.begin(),
                            form.end());
                levels.check(argv);
            }
        if (of.manage.contains(base)) {
            words two = base;
            two.emplace_back("dev-2");
            levels.check(two);
        }
    }
    return levels.count();
}

} // namespace

TEST_CASE("of every form that a tool's parser takes, a level holds only what the table allows") {
    std::size_t count = 0;
    for (const tool &one : tools()) {
        INFO(one.program);
        count += check_tool(one);
    }
    MESSAGE(count, " forms");
    CHECK(count >= 100'000);
}

TEST_CASE("every line of the levels has a row in the table of the parsers") {
    std::map<std::string, tool> by_program;
    for (tool &one : tools()) {
        const std::string program = one.program;
        CHECK(by_program.emplace(program, std::move(one)).second);
    }
    for (const auto level : {access_level::monitor, access_level::manage})
        for (const argv_pattern &line : levels().lines(level)) {
            std::string shown;
            for (const word_pattern &word : line)
                shown += word.text + " ";
            INFO(shown);
            const auto at = by_program.find(line[0].text);
            REQUIRE(at != by_program.end());
            const auto is_shown = [&](const std::set<words> &rows) {
                return std::any_of(rows.begin(), rows.end(),
                                   [&](const words &row) { return matches(line, row); });
            };
            const bool shown_by_monitor = is_shown(at->second.monitor);
            CHECK((shown_by_monitor || is_shown(at->second.manage)));
        }
}

TEST_CASE("variables that change what a tool of the levels reads, runs or shows are withheld") {
    for (const tool &one : tools())
        for (const std::string &variable : one.variables) {
            INFO(one.program, ": ", variable);
            envelope what = exec(*one.monitor.begin());
            what.environment = {{variable, "x"}};
            const verdict v = ask(parsed("work level:monitor allow env=" + variable), what);
            CHECK(v.allowed());
            CHECK(v.how.environment.empty());
        }
}
