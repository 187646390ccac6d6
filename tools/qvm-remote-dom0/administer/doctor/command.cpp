// SPDX-License-Identifier: GPL-2.0-or-later
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "administer/admin.hpp"
#include "administer/doctor/facts.hpp"
#include "administer/report.hpp"
#include "common/findings.hpp"

namespace qvmremote::dom0 {

namespace {

struct examined {
    machine_facts machine;
    std::vector<qube_facts> qubes;
    std::vector<named_finding> all;
};

// The facts of a qube name those of the machine, so an object does not move.
void examine_all(const daemon_options &how, examined &out) {
    out.machine = gather_machine(how);
    out.qubes = gather_qubes(how, out.machine);
    out.all.clear();
    examine(machine_checks(), out.machine, {}, out.all);
    for (const qube_facts &qube : out.qubes)
        examine(qube_checks(), qube, qube.name.text(), out.all);
}

} // namespace

int doctor(const invocation &in) {
    const bool wants_fix = in.arguments.size() == 1 && in.arguments[0] == std::string_view("--fix");
    if (!in.arguments.empty() && !wants_fix)
        return fail_with(in.usage);
    std::vector<std::string> warnings;
    examined now;
    examine_all(in.how, now);
    if (wants_fix) {
        auto failures = fix(machine_checks(), now.machine);
        for (const qube_facts &qube : now.qubes)
            for (host::failure &why : fix(qube_checks(), qube))
                failures.push_back(std::move(why));
        for (const host::failure &why : failures) {
            fail_with(why);
            warnings.push_back(why.what);
        }
        const auto before = now.all;
        examine_all(in.how, now);
        mark_fixed(before, now.all);
    }
    if (report::instance().is_json()) {
        report::instance().has_own_form(); // it is the same, made by what both doctors share
        std::fputs(json_of(now.all, warnings).c_str(), stdout);
    } else {
        for (const named_finding &one : now.all)
            std::fputs(row_of(one).c_str(), stdout);
    }
    return exit_code_of(now.all);
}

} // namespace qvmremote::dom0
