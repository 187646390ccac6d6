// SPDX-License-Identifier: GPL-2.0-or-later
// qrexec-client -d VM USER:[nogui:]CMD runs the command in the user's shell.
#include "call.hpp"

namespace {
// The longest control message that qrexec passes on. With one more byte both real ends hang for
// good.
constexpr std::size_t longest = 4087;
} // namespace

int main(int argc, char **argv) {
    std::string qube, command;
    for (int at = 1; at < argc; ++at) {
        const std::string_view word = argv[at];
        if (word == "-d" && at + 1 < argc)
            qube = argv[++at];
        else if (word == "-w" && at + 1 < argc)
            ++at;
        else if (word == "--use-stdin-socket")
            continue;
        else if (word[0] != '-' && command.empty())
            command = word;
        else
            return 2;
    }
    standin::note_call("qrexec-client", qube, argv);
    const std::size_t colon = command.find(':');
    if (colon == command.npos || !standin::exists(qube) || standin::state_of(qube) != "Running")
        return 125;
    if (command.size() > longest) {
        ::signal(SIGTERM, SIG_IGN);
        standin::append(standin::machine() + "/violations", "too-long\n");
        for (;;)
            ::pause();
    }
    command.erase(0, colon + 1);
    const bool nogui = command.starts_with("nogui:");
    if (nogui)
        command.erase(0, 6);
    std::string shell = standin::read_line(standin::directory_of(qube) + "/shell");
    if (shell.empty())
        shell = "bash";
    return standin::call(qube, {{shell, "-c", command}, {}, true});
}
