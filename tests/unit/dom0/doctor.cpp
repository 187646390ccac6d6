// SPDX-License-Identifier: GPL-2.0-or-later
// The checks of dom0's doctor, over facts that no machine has. tests/e2e/doctor.py injects real faults.
#include "administer/doctor/facts.hpp"

#include <cerrno>
#include <string>
#include <vector>

#include <sys/stat.h>
#include <unistd.h>

#include <doctest/doctest.h>

using namespace qvmremote;
using namespace qvmremote::dom0;

namespace {

// A machine on which nothing is wrong.
machine_facts well() {
    machine_facts out;
    out.version = "2.0.0";
    out.daemon->version = "2.0.0";
    out.daemon->cgroups = true;
    out.key_count = 1;
    out.keys.mode = out.audit_directory.mode = S_IFDIR | 0700;
    out.programs = {"/usr/bin/qvm-run"};
    out.qubesd = "/run/qubesd.sock";
    out.system_journal_error = 0;
    out.rooms.push_back({"/var/log/qvm-remote", {}, 1 << 30, 1 << 20});
    out.transports.push_back({"qvm-run", "/usr/lib/qvm-remote/qvm-run.so", {}});
    return out;
}

qube_facts well(const machine_facts &machine) {
    qube_facts out{.machine = &machine, .name = qube_name::parse("work").value()};
    out.key_file = {"/etc/qubes/remote.d/work.key", 0, S_IFREG | 0600, ::geteuid()};
    out.fingerprint = "SHA256:x";
    out.level = "full";
    out.by_qvm_run = out.connected = true;
    out.runs = true;
    probe_facts said;
    said.agent = machine.version;
    said.time = said.asked_at = said.answered_at = 1000;
    said.free_kib = 1 << 20;
    said.key_mode = "600";
    said.key_is_ours = true;
    out.probe = said;
    return out;
}

template <class Facts>
std::vector<std::string> wrong(std::span<const health_check<Facts>> table, const Facts &facts) {
    std::vector<named_finding> all;
    examine(table, facts, {}, all);
    std::vector<std::string> out;
    for (const named_finding &one : all)
        if (one.what.state != health::ok) {
            out.push_back(std::string(one.check) + " " + std::string(name(one.what.state)) +
                          (one.what.fixable ? " fixable" : ""));
            CHECK_FALSE(one.what.cause.empty());
            CHECK_FALSE(one.what.remedy.empty());
        }
    return out;
}

host::failure failure() { return {"it is broken", EIO}; }

} // namespace

TEST_CASE("doctor: a machine on which nothing is wrong, and each fault alone") {
    CHECK(wrong(machine_checks(), well()).empty());
    const struct {
        const char *want;
        void (*spoil)(machine_facts &);
    } rows[] = {
        {"program broken", [](auto &f) { f.program_is_ours = tl::unexpected(failure()); }},
        {"daemon broken", [](auto &f) { f.daemon = tl::unexpected(failure()); }},
        {"daemon warning", [](auto &f) { f.daemon->version = "1.9.9"; }},
        {"daemon warning", [](auto &f) { f.daemon->draining = true; }},
        {"daemon warning", [](auto &f) { f.daemon->dry_run = true; }},
        {"panic broken", [](auto &f) { f.panic = true; }},
        {"settings broken", [](auto &f) { f.settings_read = tl::unexpected(failure()); }},
        {"settings warning", [](auto &f) { f.settings_warnings = {"a name"}; }},
        {"transport broken", [](auto &f) { f.transports[0].plugin = tl::unexpected(failure()); }},
        {"transport broken", [](auto &f) { f.transports[0].socket_error = ECONNREFUSED; }},
        {"programs broken", [](auto &f) { f.missing = f.programs; }},
        {"qubesd broken", [](auto &f) { f.qubesd_answers = tl::unexpected(failure()); }},
        {"keys broken", [](auto &f) { f.keys_read = tl::unexpected(failure()); }},
        {"keys warning", [](auto &f) { f.key_count = 0; }},
        {"keys warning fixable", [](auto &f) { f.keys.mode |= 0055; }},
        {"policy broken", [](auto &f) { f.rules = tl::unexpected(failure()); }},
        {"policy broken", [](auto &f) { f.daemon->policy_trouble = {"broken"}; }},
        {"policy warning", [](auto &f) { f.policy_doubts = 2; }},
        {"audit broken", [](auto &f) { f.audit = tl::unexpected(failure()); }},
        {"audit broken", [](auto &f) { f.daemon->trouble = "it was moved"; }},
        {"audit warning fixable", [](auto &f) { f.audit_directory.mode |= 0011; }},
        {"log warning", [](auto &f) { f.log = tl::unexpected(failure()); }},
        {"journal warning", [](auto &f) { f.system_journal_error = ENOENT; }},
        {"disk broken", [](auto &f) { f.rooms[0].writable = tl::unexpected(failure()); }},
        {"disk warning", [](auto &f) { f.rooms[0].free_bytes = 1000; }},
        {"disk warning", [](auto &f) { f.rooms[0].free_files = 3; }},
        {"clock warning", [](auto &f) { f.audit_is_ahead_s = 3600; }},
        {"cgroups warning",
         [](auto &f) {
             f.daemon->cgroups = false;
             f.daemon->containment = "none";
         }},
    };
    for (const auto &r : rows) {
        machine_facts facts = well();
        r.spoil(facts);
        CAPTURE(r.want);
        CHECK(wrong(machine_checks(), facts) == std::vector<std::string>{r.want});
    }
}

TEST_CASE("doctor: a qube with which nothing is wrong, and each fault alone") {
    const machine_facts machine = well();
    CHECK(wrong(qube_checks(), well(machine)).empty());
    const struct {
        const char *want;
        void (*spoil)(qube_facts &);
    } rows[] = {
        {"key broken",
         [](auto &f) {
             f.key_problem = host::failure{"there is none", ENOENT};
         }},
        {"key broken", [](auto &f) { f.key_problem = failure(); }},
        {"key broken fixable",
         [](auto &f) {
             f.key_problem = failure();
             f.key_file.mode |= 0044;
         }},
        {"key broken", // others could have written to it
         [](auto &f) {
             f.key_problem = failure();
             f.key_file.mode |= 0066;
         }},
        {"key warning", [](auto &f) { f.expires_in_s = 60; }},
        {"served warning", [](auto &f) { f.listed = false; }},
        {"policy broken", [](auto &f) { f.level = "none"; }},
        {"policy warning", [](auto &f) { f.level = "deny"; }},
        {"call broken",
         [](auto &f) {
             f.connected = false;
             f.probe = host::outcome<probe_facts>(tl::unexpected(failure()));
         }},
        {"call broken", [](auto &f) { f.connected = false; }},
        {"agent warning", [](auto &f) { (*f.probe)->agent.clear(); }},
        {"agent warning", [](auto &f) { (*f.probe)->agent = "1.9.9"; }},
        {"qube-key broken", [](auto &f) { (*f.probe)->key_mode = "none"; }},
        {"qube-key broken", [](auto &f) { (*f.probe)->key_mode = "644"; }},
        {"qube-key broken", [](auto &f) { (*f.probe)->key_is_ours = false; }},
        {"files broken", [](auto &f) { (*f.probe)->links = {"queue"}; }},
        {"files warning", [](auto &f) { (*f.probe)->free_kib = 5; }},
        {"clock warning", [](auto &f) { *(*f.probe)->time += 3600; }},
        {"clock warning", [](auto &f) { *(*f.probe)->time -= 3600; }},
    };
    for (const auto &r : rows) {
        qube_facts facts = well(machine);
        r.spoil(facts);
        CAPTURE(r.want);
        CHECK(wrong(qube_checks(), facts) == std::vector<std::string>{r.want});
    }
}

TEST_CASE("doctor: a qube that does not run, or is served by qrexec, is not asked for more") {
    const machine_facts machine = well();
    qube_facts halted = well(machine);
    halted.runs = false;
    halted.connected = false;
    halted.probe.reset();
    CHECK(wrong(qube_checks(), halted).empty());
    qube_facts by_qrexec = well(machine);
    by_qrexec.by_qvm_run = by_qrexec.connected = false;
    (*by_qrexec.probe)->agent.clear();
    CHECK(wrong(qube_checks(), by_qrexec).empty());
}
