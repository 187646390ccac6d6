// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/command_launch.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include <unistd.h>

#include "base/dom0_limits.hpp"
#include "execute/terminal.hpp"

namespace qvmremote::dom0 {

host::outcome<command_launch> launch_of(const admitted &what, const execution_context &context,
                                        const containment &bounds, const std::string &script_name) {
    const envelope &header = what.request();
    const run_terms &terms = what.terms();
    const account &as = what.as() ? *what.as() : context.self;
    command_launch out;
    launch &command = out.what;
    if (what.as())
        command.user = as.who;
    command.no_new_privs = command.confined = bounds.confined;
    command.most = bounds.most;
    command.terminal = terms.tty;
    if (!terms.argv.empty()) {
        command.program = terms.argv[0];
        command.argv = terms.argv;
    } else if (header.kind == request_kind::shell && header.body.size() <= limits::argument_text) {
        command.program = "bash";
        command.argv = {"bash", "-c", "--", header.body};
    } else {
        auto file = script_file::make(context.scripts, script_name, header.body,
                                      what.as() ? what.as()->who.gid : ::getegid());
        if (!file)
            return tl::unexpected(file.error());
        out.script = std::move(*file);
        const bool runs_itself = header.kind == request_kind::script &&
                                 (header.body.starts_with("#!") || header.body.starts_with("\x7f"
                                                                                           "ELF"));
        command.program = runs_itself ? out.script.path() : "bash";
        command.argv = runs_itself ? std::vector{out.script.path()}
                                   : std::vector<std::string>{"bash", "--", out.script.path()};
        command.argv.insert(command.argv.end(), header.arguments.begin(), header.arguments.end());
    }
    command.environment =
        environment_for(as, context.language, what.from().name.text(), header.id->text());
    if (terms.tty)
        describe_terminal(terms, command.environment);
    // These variables come after ours and do not replace them. Policy has removed the ones that it
    // does not allow.
    for (const auto &[key, value] : terms.environment)
        if (std::none_of(
                command.environment.begin(), command.environment.end(),
                [name = key + "="](const std::string &entry) { return entry.starts_with(name); }))
            command.environment.push_back(key + "=" + value);
    command.directory = as.home;
    return out;
}

} // namespace qvmremote::dom0
