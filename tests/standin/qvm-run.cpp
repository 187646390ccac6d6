// SPDX-License-Identifier: GPL-2.0-or-later
// qvm-run calls the service qubes.VMShell. Its bash reads the command from stdin, and the command
// inherits the rest of stdin.
#include "call.hpp"

int main(int argc, char **argv) {
    bool pass_io = false, autostart = true, quiet = false;
    int at = 1;
    for (; at < argc && argv[at][0] == '-'; ++at) {
        const std::string_view word = argv[at];
        if (word == "-p" || word == "--pass-io")
            pass_io = true;
        else if (word == "-n" || word == "--no-autostart")
            autostart = false;
        else if (word == "-u" || word == "--user")
            ++at;
        else if (word == "-q" || word == "--quiet")
            quiet = true;
        else if (word != "--no-gui" && !word.starts_with("--user=")) {
            std::fprintf(stderr, "qvm-run: error: unrecognized arguments: %s\n", argv[at]);
            return 2;
        }
    }
    if (argc - at != 2)
        return 2;
    const std::string qube = argv[at], command = argv[at + 1];
    standin::note_call("qvm-run", qube, argv);
    if (!standin::exists(qube)) {
        std::fprintf(stderr, "usage: qvm-run ...: error: no such domain: '%s'\n", qube.c_str());
        return 2;
    }
    if (standin::state_of(qube) != "Running") {
        if (!autostart) {
            if (!quiet)
                std::fprintf(stderr, "qvm-run: error: domain is not running: %s\n", qube.c_str());
            return 1;
        }
        standin::append(standin::machine() + "/violations", "started " + qube + "\n");
        return 1;
    }
    if (!pass_io) {
        if (!quiet)
            std::fprintf(stderr, "Running '%s' on %s\n", command.c_str(), qube.c_str());
        const int null = ::open("/dev/null", O_RDWR);
        for (const int fd : {0, 1, 2})
            ::dup2(null, fd);
    }
    std::string shell = standin::read_line(standin::directory_of(qube) + "/shell");
    return standin::call(qube, {{shell.empty() ? "bash" : shell}, command + "; exit\n", true});
}
