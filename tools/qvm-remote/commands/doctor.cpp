// SPDX-License-Identifier: GPL-2.0-or-later
#include "commands/commands.hpp"

#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/findings.hpp"
#include "doctor/facts.hpp"

namespace qvmremote::qube {

int doctor_command(const invocation &in) {
    bool wants_fix = false;
    for (const std::string_view word : in.words) {
        if (word != "--fix" && word != "--json")
            return fail_with(fault::usage, in.usage);
        if (word == "--json")
            report::instance().set_form(report_form::object);
        else
            wants_fix = true;
    }
    std::vector<named_finding> all;
    facts now = gather(in.how, in.where);
    examine(checks(), now, {}, all);
    if (wants_fix) {
        for (const host::failure &why : fix(checks(), now))
            warn(why.what);
        const auto before = std::exchange(all, {});
        now = gather(in.how, in.where);
        examine(checks(), now, {}, all);
        mark_fixed(before, all);
    }
    if (report::instance().is_json())
        write_findings(report::instance().result(), all);
    else
        for (const named_finding &one : all)
            std::fputs(row_of(one).c_str(), stdout);
    return exit_code_of(all);
}

} // namespace qvmremote::qube
