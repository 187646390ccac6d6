// SPDX-License-Identifier: GPL-2.0-or-later
// Measures the client as a library: commands one after the other on one stream, with new session
// keys for each, and `bash -c true` between them for comparison.
//
//   embedded SOCKET KEY-FILE COUNT           JSON on stdout: {"ours":{…},"bash":{…}}
//   embedded SOCKET KEY-FILE COUNT in-steps  no bash: for each line on stdin runs `true` COUNT
//                                            times, and prints how many of them failed

#include "timing.hpp"

#include <csignal>
#include <cstring>

#include <sys/socket.h>
#include <sys/un.h>

#include <qvmremote/host/client.hpp>
#include <qvmremote/host/files.hpp>

using namespace bench;
using namespace qvmremote;

namespace {

bool run(host::client &dom0, host::command what) {
    return dom0.collect(std::move(what)).result.exit_code() == 0;
}

int run_in_steps(host::client &dom0, int count) {
    for (int c; (c = std::getchar()) != EOF;) {
        if (c != '\n')
            continue;
        int failed = 0;
        for (int i = 0; i < count; ++i)
            failed += !run(dom0, {.kind = request_kind::exec,
                                  .body = {},
                                  .arguments = {"true"},
                                  .environment = {},
                                  .id = {}});
        std::printf("%d\n", failed);
        std::fflush(stdout);
    }
    return 0;
}

} // namespace

int main(int argc, char **argv) {
    const bool in_steps = argc == 5 && std::strcmp(argv[4], "in-steps") == 0;
    if (argc != 4 && !in_steps)
        die("usage: embedded SOCKET KEY-FILE COUNT [in-steps]");
    ::signal(SIGPIPE, SIG_IGN);
    auto text = host::read_text(argv[2], 256);
    if (!text)
        die(text.error().what);
    auto key = secret::parse(*text);
    if (!key)
        die("no key in the key file");
    host::unique_fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
    if (::connect(fd.get(), reinterpret_cast<sockaddr *>(&address), sizeof address) != 0)
        die("cannot connect");
    host::unique_fd copy(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3));
    host::client dom0(host::stream{std::move(fd), std::move(copy), "dom0"}, std::move(*key));
    if (in_steps)
        return run_in_steps(dom0, std::atoi(argv[3]));

    stage bash{{}, {"bash", "-c", "true"}};
    std::vector<double> ours, theirs;
    int failed = 0;
    for (int i = -20, count = std::atoi(argv[3]); i < count; ++i) {
        double begin = now_us();
        failed += !run(dom0, {.body = "true", .arguments = {}, .environment = {}, .id = {}});
        const double took = now_us() - begin;
        long peak = 0;
        begin = now_us();
        failed += !finish(start(bash, -1, -1), peak);
        const double took_bash = now_us() - begin;
        if (i >= 0) {
            ours.push_back(took);
            theirs.push_back(took_bash);
        }
    }
    std::printf("{\"failed\":%d,\"ours\":%s},\"bash\":%s}}\n", failed, summary(ours).c_str(),
                summary(theirs).c_str());
    return 0;
}
