// SPDX-License-Identifier: GPL-2.0-or-later
// The main program of the warden's tests. It starts a warden before anything else. Some tests run
// it as their command.
#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <new>

#include <sys/mman.h>
#include <sys/syscall.h>

#define DOCTEST_CONFIG_IMPLEMENT
#include "warden_fixture.hpp"

namespace qvmremote_test {

warden *the_warden = nullptr;

namespace {

// Forks without end, at most 200 processes at a time. Some stay and have children; others fork once
// and end. Each has its own session and ignores every signal that can be ignored.
[[noreturn]] void fork_bomb() {
    auto *const living = new (::mmap(nullptr, sizeof(std::atomic<int>), PROT_READ | PROT_WRITE,
                                     MAP_SHARED | MAP_ANONYMOUS, -1, 0)) std::atomic<int>(1);
    for (int n = 1; n < NSIG; ++n)
        ::signal(n, SIG_IGN);
    if (::write(1, "up\n", 3) != 3)
        ::_exit(1);
    for (unsigned turn = static_cast<unsigned>(::getpid());; ++turn) {
        if (living->fetch_add(1) >= 200) {
            living->fetch_sub(1);
            ::usleep(200);
            continue;
        }
        const pid_t pid = ::fork();
        if (pid == 0)
            ::setsid();
        if (pid < 0)
            living->fetch_sub(1);
        if (pid > 0 && turn % 2 == 0) {
            living->fetch_sub(1);
            ::_exit(0);
        }
    }
}

[[noreturn]] void print_descriptors() {
    for (int fd = 0; fd < 1024; ++fd)
        if (::fcntl(fd, F_GETFD) >= 0)
            ::dprintf(1, "%d ", fd);
    ::_exit(0);
}

// Plays a daemon with a warden and a stubborn tree; prints the warden's process ID and waits. It
// does not run in doctest, so it uses no macros of it.
[[noreturn]] void fake_daemon(const char *with) {
    ::setpgid(0, 0);
    auto by = warden::start();
    int ends[2];
    if (!by || ::pipe2(ends, O_CLOEXEC) != 0)
        ::_exit(1);
    launch what = shell(stubborn);
    what.environment.push_back(with);
    what.out = ends[1];
    const auto c = by->launch(what);
    char up;
    if (!c || ::read(ends[0], &up, 1) != 1)
        ::_exit(1);
    ::dprintf(1, "%d\n", by->pid());
    for (;;)
        ::pause();
}

} // namespace
} // namespace qvmremote_test

using namespace qvmremote_test;

int main(int argc, char **argv) {
    if (argc > 1 && std::strcmp(argv[1], "--bomb") == 0)
        fork_bomb();
    if (argc > 1 && std::strcmp(argv[1], "--descriptors") == 0)
        print_descriptors();
    if (argc > 2 && std::strcmp(argv[1], "--daemon") == 0)
        fake_daemon(argv[2]);
    // The caller of the daemon may have ignored this signal, which glibc does not let a program
    // change.
    struct {
        void (*handler)(int);
        std::uint64_t flags, restorer, mask;
    } const ignored{SIG_IGN, 0, 0, 0};
    ::syscall(SYS_rt_sigaction, 32, &ignored, nullptr, std::size_t{8});
    auto started = warden::start();
    if (!started) {
        std::fprintf(stderr, "%s\n", started.error().what.c_str());
        return 1;
    }
    the_warden = &*started;
    doctest::Context context(argc, argv);
    return context.run();
}
