// SPDX-License-Identifier: GPL-2.0-or-later
// What the levels allow, what gets around a rule, and what lint says about it.
#include <qvmremote/policy.hpp>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include "support/policies.hpp"

using namespace qvmremote;
using namespace qvmremote::test;

namespace {

// Replaces the escapes of tests/policy/bypass.txt by their bytes.
std::string unescape(std::string_view text) {
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '\\') {
            out.push_back(text[i]);
            continue;
        }
        const char c = text.at(++i);
        if (c == 'x') {
            const int high = hex_value(text.at(i + 1)), low = hex_value(text.at(i + 2));
            REQUIRE(high >= 0);
            REQUIRE(low >= 0);
            out.push_back(static_cast<char>(high * 16 + low));
            i += 2;
        } else {
            REQUIRE((c == 'n' || c == 't' || c == 'r' || c == '\\'));
            out.push_back(c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : '\\');
        }
    }
    return out;
}

std::vector<std::string> split_at_bars(std::string_view text) {
    std::vector<std::string> out;
    for (;;) {
        const std::size_t bar = text.find('|');
        out.push_back(unescape(text.substr(0, bar)));
        if (bar == std::string_view::npos)
            return out;
        text.remove_prefix(bar + 1);
    }
}

} // namespace

TEST_CASE("doubts") {
    struct row {
        const char *text;
        const char *says; // empty: no doubt
    };
    static constexpr row rows[] = {
        {"work level:monitor allow\nwork exec:ls ** allow", ""},
        {"work level:full allow\nwork exec:ls deny", "never reached"},
        {"@anyvm * deny\nwork level:monitor allow", "never reached"},
        {"work exec:ls ask\nwork exec:ls allow", "never reached"},
        {"work exec:bash ** allow", "the same as level:full"},
        {"work exec:frobnicate ** allow", "the same as level:full"},
        {"work exec:frobnicate --status allow", ""},
        {"work exec:systemctl restart * allow", ""},
        {"work exec:systemctl * qubesd allow", "the same as level:full"},
        {"work exec:ls allow env=LC_ALL env=TZ env!=LD_PRELOAD", ""},
        {"work exec:ls allow env=DBUS_SYSTEM_BUS_ADDRESS", "env!=DBUS_SYSTEM_BUS_ADDRESS"},
        {"work level:manage allow env=LD_PRELOAD", "is not passed on"},
        {"work script:sha256:0000000000000000000000000000000000000000000000000000000000000000 ask "
         "env=A",
         "is not passed on"},
        {"work level:full allow env=LD_PRELOAD", ""},
        {"work exec:find ** allow", "the same as level:full"},
        {"work exec:bash /usr/local/bin/report allow", ""},
        {"work exec:rm ** deny\nwork level:full allow", "gets around"},
        {"work exec:ls allow user=bot\ndev level:full allow user=bot", "confined here, and not by"},
        {"dev level:full allow user=bot\nwork level:monitor ask user=bot",
         "confined here, and not by"},
        {"work exec:ls allow user=bot\ndev level:full allow user=other\n", ""},
        {"work exec:ls allow user=bot\ndev level:full allow", ""},
        {"work exec:ls allow user=bot\ndev exec:ls allow user=bot", ""},
    };
    for (const row &r : rows) {
        INFO(std::string(r.text));
        const auto doubts = parsed(r.text).doubts();
        if (!*r.says) {
            CHECK(doubts.empty());
            continue;
        }
        REQUIRE(doubts.size() == 1);
        CHECK(doubts[0].what.find(r.says) != std::string::npos);
    }
}

TEST_CASE("a deny before a level: lint prints the lines that are missing") {
    struct row {
        const char *denied, *level;
        std::size_t missing;
        // A command that the missing lines deny, and one that they do not deny.
        const char *one, *not_one;
    };
    static constexpr row rows[] = {
        {"work exec:qvm-shutdown {qube:vault} deny", "work level:manage allow", 10,
         "qvm-kill vault", "qvm-kill dev"},
        {"work exec:qvm-shutdown vault deny", "work level:manage ask", 10,
         "qvm-shutdown --wait --force vault", "qvm-start vault"},
        {"work exec:qvm-shutdown ** deny", "work level:manage allow", 3, "qvm-pause vault",
         "qvm-start vault"},
        {"work exec:qvm-start {qube:sys-*} deny", "@anyvm level:manage allow", 4,
         "qvm-start --skip-if-running sys-usb", "qvm-start dev"},
        {"@anyvm exec:qvm-kill {qube:vault} deny", "work level:manage allow", 10,
         "qvm-restart vault", "qvm-unpause vault"},
        {"work exec:qvm-prefs {qube:vault} memory {number} deny", "work level:manage allow", 9,
         "qvm-prefs -s vault memory 4", "qvm-prefs vault vcpus 4"},
        {"work exec:journalctl -u sshd deny", "work level:monitor allow", 24,
         "journalctl -u sshd -b", "journalctl -u qubesd -b"},
        {"work exec:qvm-block ** deny", "work level:monitor allow", 24, "qvm-device block list",
         "qvm-ls"},
        // another spelling of the same thing
        {"work exec:journalctl -u sshd.service deny", "work level:monitor allow", 24,
         "journalctl -u sshd", "journalctl -k"},
        {"work exec:qvm-prefs vault default-user deny", "work level:monitor allow", 13,
         "qvm-prefs vault default_user", "qvm-prefs vault memory"},
        {"work exec:qvm-prefs vault default_user deny", "work level:monitor allow", 13,
         "qvm-prefs -g vault default-user", "qvm-prefs dev default_user"},
        {"work exec:qvm-prefs {qube:vault} shutdown-timeout {number} deny",
         "work level:manage allow", 11, "qvm-prefs vault shutdown_timeout 5",
         "qvm-prefs vault qrexec_timeout 5"},
        {"work exec:qubes-prefs default-netvm deny", "work level:monitor allow", 7,
         "qubes-prefs --get default_netvm", "qubes-prefs updatevm"},
        {"work exec:qvm-tags vault list deny", "work level:monitor allow", 6, "qvm-tags vault ls",
         "qvm-tags dev ls"},
        {"work exec:qvm-tags vault l deny", "work level:monitor allow", 6, "qvm-tags vault",
         "qvm-tags dev"},
        {"work exec:systemctl is-active sshd deny", "work level:monitor allow", 8,
         "systemctl is-active sshd.service", "systemctl is-active qubesd"},
        // a line that shows the same among other things
        {"work exec:qvm-prefs vault memory deny", "work level:monitor allow", 8, "qvm-prefs vault",
         "qvm-prefs dev"},
        {"work exec:qvm-volume list vault deny", "work level:monitor allow", 6, "qvm-volume",
         "qvm-volume list dev"},
        {"work exec:systemctl is-failed sshd.service deny", "work level:monitor allow", 8,
         "systemctl --failed", "systemctl list-timers"},
        {"work exec:systemctl is-enabled sshd deny", "work level:monitor allow", 3,
         "systemctl list-unit-files", "systemctl list-units"},
        // another program that shows the same
        {"work exec:qvm-service vault cups deny", "work level:monitor allow", 7,
         "qvm-features vault", "qvm-features dev"},
        {"work exec:xl list {qube:vault} deny", "work level:monitor allow", 14, "xl uptime vault",
         "xl uptime dev"},
        {"work exec:xl list {qube:vault} deny", "work level:monitor allow", 14, "qvm-check vault",
         "qvm-prefs vault"},
        {"work exec:qvm-ls ** deny", "work level:monitor allow", 24, "xentop -b -i 1",
         "qvm-features vault"},
        {"work exec:lspci ** deny", "work level:monitor allow", 17, "qvm-pci list vault", "lsusb"},
        {"work exec:qvm-pool ** deny", "work level:monitor allow", 2, "vgs", "lvs"},
        {"work exec:uptime deny", "work level:monitor allow", 4, "cat /proc/uptime",
         "cat /proc/meminfo"},
        {"work exec:cat /proc/meminfo deny", "work level:monitor allow", 10, "free -h",
         "cat /proc/uptime"},
        {"work exec:nproc deny", "work level:monitor allow", 2, "lscpu", "free"},
        {"work exec:hostname deny", "work level:monitor allow", 2, "uname -n", "uptime"},
        {"work exec:whoami deny", "work level:monitor allow", 2, "id -u", "date"},
        {"work exec:rpm -q --whatprovides bash deny", "work level:monitor allow", 1, "rpm -qa",
         "rpm -q --whatprovides zsh"},
        // an option of the denied command that takes no value; words that are no names
        {"work exec:qvm-shutdown --wait vault deny", "work level:manage allow", 10,
         "qvm-kill vault", "qvm-kill dev"},
        {"work exec:qvm-prefs --get vault memory deny", "work level:monitor allow", 8,
         "qvm-prefs vault memory", "qvm-prefs dev memory"},
        {"work exec:qvm-prefs sys-usb deny", "work level:monitor allow", 8,
         "qvm-prefs sys-usb memory", "qvm-prefs sys_usb"},
        {"work exec:journalctl -n 20 deny", "work level:monitor allow", 16, "journalctl -b -n 20",
         "journalctl -n 21"},
        {"work exec:qvm-firewall vault deny", "work level:monitor allow", 4,
         "qvm-firewall vault list", "qvm-firewall dev list"},
        // xl counts like the tools of Qubes; a command that changes something shows nothing
        {"work exec:xl destroy vault deny", "work level:manage allow", 11, "qvm-kill vault",
         "qvm-kill dev"},
        {"work exec:xl unpause {qube:vault} deny", "work level:manage allow", 5, "qvm-start vault",
         "qvm-shutdown vault"},
        {"work exec:xl destroy vault deny", "work level:monitor allow", 0, nullptr, nullptr},
        {"work exec:xl mem-set vault 4 deny", "work level:manage allow", 0, nullptr, nullptr},
        {"work exec:qvm-shutdown {qube:vault} deny", "work level:monitor allow", 0, nullptr,
         nullptr},
        {"work exec:qvm-shutdown {qube:vault} deny", "dev level:manage allow", 0, nullptr, nullptr},
        {"work exec:frobnicate ** deny", "work level:manage allow", 0, nullptr, nullptr},
    };
    for (const row &r : rows) {
        INFO(std::string(r.denied), " | ", r.level);
        const std::string before = std::string(r.denied) + "\n";
        std::string lines;
        std::size_t count = 0;
        for (const policy_problem &p : parsed(before + r.level).doubts()) {
            INFO(p.what);
            CHECK(p.line == 1);
            CHECK(p.what.starts_with("50.policy:2 still allows the same"));
            lines += p.what.substr(p.what.find("add: ") + 5) + "\n";
            ++count;
        }
        INFO(lines);
        CHECK(count == r.missing);
        if (!r.one)
            continue;
        CHECK(said(before + r.level, shell(r.one)) != action::deny);
        const std::string whole = before + lines + r.level;
        CHECK(parsed(whole).doubts().empty());
        CHECK(said(whole, shell(r.one)) == action::deny);
        CHECK(said(whole, shell(r.not_one)) != action::deny);
    }
}

TEST_CASE("a line that names a qube denies what {qube:NAME} of that qube stands for") {
    for (const policy_problem &p : parsed("work exec:qvm-shutdown {qube:vault} deny\n"
                                          "work exec:qvm-kill vault deny\n"
                                          "work level:manage allow")
                                       .doubts())
        CHECK(p.what.find("exec:qvm-kill {qube:vault} deny") == std::string::npos);
}

TEST_CASE("which commands each level holds") {
    struct row {
        const char *line;
        access_level least; // full: in neither level
    };
    static constexpr auto monitor = access_level::monitor, manage = access_level::manage,
                          neither = access_level::full;
    static constexpr row rows[] = {
        {"qvm-ls", monitor},
        {"qvm-ls --raw-data --fields NAME,STATE", monitor},
        {"qvm-check --running work", monitor},
        {"qvm-prefs work", monitor},
        {"qvm-prefs work memory", monitor},
        {"qvm-prefs -g work memory", monitor},
        {"qvm-prefs work memory 4096", manage},
        {"qvm-prefs -s work memory 4096", manage},
        {"qvm-prefs -D work memory", manage},
        {"qvm-prefs work netvm none", neither},
        {"qvm-prefs work kernelopts x", neither},
        {"qvm-prefs work --unset netvm", neither},
        {"qubes-prefs", monitor},
        {"qubes-prefs updatevm", monitor},
        {"qubes-prefs updatevm x", neither},
        {"qvm-features work", monitor},
        {"qvm-features work gui", monitor},
        {"qvm-features work gui 1", neither},
        {"qvm-features --unset work gui", neither},
        {"qvm-tags work", monitor},
        {"qvm-tags work list", monitor},
        {"qvm-tags work add x", neither},
        {"qvm-service work", monitor},
        {"qvm-service work cups", monitor},
        {"qvm-service work cups on", neither},
        {"qvm-service --enable work cups", neither},
        {"qvm-firewall work", monitor},
        {"qvm-firewall work list", monitor},
        {"qvm-firewall work add accept", neither},
        {"qvm-firewall --reload work", neither},
        {"qvm-device pci list", monitor},
        {"qvm-device pci attach work dom0:00_1f", neither},
        {"qvm-block", monitor},
        {"qvm-start work", manage},
        {"qvm-start --cdrom=dom0:/x work", neither},
        {"qvm-start dom0", neither},
        {"qvm-start --all", neither},
        {"qvm-shutdown --wait work", manage},
        {"qvm-kill work", manage},
        {"qvm-pause work", manage},
        {"qvm-unpause work", manage},
        {"qvm-run work id", neither},
        {"qvm-remove work", neither},
        {"qvm-clone work a", neither},
        {"xl list", monitor},
        {"xl dmesg", monitor},
        {"xl dmesg -c", neither},
        {"xl console work", neither},
        {"journalctl -u sshd -n 20", monitor},
        {"journalctl --vacuum-size=1", neither},
        {"journalctl -D /x", neither},
        {"journalctl -n /etc/shadow", neither},
        {"journalctl -n 20", monitor},
        {"systemctl status", neither},
        {"systemctl status qubesd", neither},
        {"systemctl is-active qubesd", monitor},
        {"systemctl is-enabled /etc/x.service", neither},
        {"rpm -qa", monitor},
        {"rpm -q --whatprovides bash", monitor},
        {"rpm -q bash", neither},
        {"rpm -q /etc/shadow", neither},
        {"qvm-prefs work label red", neither},
        {"qvm-prefs work include_in_backups False", neither},
        {"qvm-prefs work autostart True", manage},
        {"qvm-prefs work maxmem 4000", manage},
        {"qvm-prefs work maxmem x", neither},
        {"qvm-shutdown --wait --timeout 5 work", manage},
        {"qvm-shutdown --wait --timeout inf work", neither},
        {"qvm-start Domain-0", neither},
        {"systemctl restart qubesd", neither},
        {"systemctl edit qubesd", neither},
        {"date", monitor},
        {"date +%s", monitor},
        {"date 01010101", neither},
        {"hostname", monitor},
        {"hostname x", neither},
        {"cat /proc/meminfo", monitor},
        {"cat /etc/shadow", neither},
        {"cat /proc/../etc/shadow", neither},
        {"uptime", monitor},
        {"free -s 1", neither},
        {"bash", neither},
        {"true", monitor},
    };
    const policy rules[] = {parsed("work level:monitor allow"), parsed("work level:manage allow")};
    for (const row &r : rows) {
        INFO(std::string(r.line));
        CHECK(ask(rules[0], shell(r.line)).allowed() == (r.least == monitor));
        CHECK(ask(rules[1], shell(r.line)).allowed() == (r.least != neither));
    }
}

TEST_CASE("ways around a rule: none is allowed") {
    std::ifstream file(std::getenv("QVMREMOTE_BYPASS"));
    REQUIRE(file);
    const std::string text(std::istreambuf_iterator<char>(file), {});
    const policy rules[] = {
        parsed("work level:monitor allow"),
        parsed("work level:manage allow"),
        parsed("work exec:qvm-start {qube:dev-*} allow\nwork exec:qvm-ls --raw-list allow\n"
               "work exec:qvm-prefs {qube:*} * allow\nwork exec:cat /proc/uptime allow\n"
               "work exec:journalctl -u * allow\nwork exec:echo * allow\n"
               "work script:sha256:" +
               to_hex(sha256(as_bytes("uptime -p"))) + " allow\nwork script:sha256:" +
               to_hex(sha256(as_bytes("#!/usr/bin/python3\nprint(1)\n"))) + " allow\n"),
    };
    std::size_t count = 0, line_number = 0;
    for (std::string_view rest = text; !rest.empty();) {
        const std::size_t end = std::min(rest.find('\n'), rest.size());
        const std::string_view line = rest.substr(0, end);
        rest.remove_prefix(std::min(end + 1, rest.size()));
        ++line_number;
        if (line.empty() || line.starts_with('#'))
            continue;
        INFO("bypass.txt:", line_number, ": ", std::string(line));
        const std::size_t blank = line.find(' ');
        const std::string_view kind = line.substr(0, blank), said = line.substr(blank + 1);
        envelope what;
        if (kind == "shell") {
            what = shell(unescape(said));
        } else if (kind == "exec") {
            what = exec(split_at_bars(said));
        } else {
            REQUIRE(kind == "script");
            auto parts = split_at_bars(said);
            what = script(parts[0], {parts.begin() + 1, parts.end()});
        }
        ++count;
        for (const policy &p : rules) {
            const verdict v = ask(p, what);
            INFO(v.rule);
            CHECK(v.what == action::deny);
        }
    }
    CHECK(count >= 150);
}
