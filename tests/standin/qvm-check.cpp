// SPDX-License-Identifier: GPL-2.0-or-later
#include "call.hpp"

int main(int argc, char **argv) {
    std::string wanted, qube;
    for (int at = 1; at < argc; ++at) {
        const std::string_view word = argv[at];
        if (word == "--running")
            wanted = "Running";
        else if (word == "--paused")
            wanted = "Paused";
        else if (word[0] != '-' && qube.empty())
            qube = word;
        else if (word != "-q" && word != "--quiet")
            return 2;
    }
    if (qube.empty())
        return 2;
    standin::note_call("qvm-check", qube, argv);
    if (const auto faults = standin::faults_of(qube); faults.contains("check-delay"))
        standin::wait_ms(faults.at("check-delay"));
    return standin::exists(qube) && (wanted.empty() || standin::state_of(qube) == wanted) ? 0 : 1;
}
