// SPDX-License-Identifier: GPL-2.0-or-later
#include "serve/control.hpp"

#include <cstring>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include "support/scratch.hpp"

using namespace qvmremote;
using dom0::who_asks;
using qvmremote_test::scratch;

namespace {

// A listening socket, and processes that connect to it.
class listener {
  public:
    listener() {
        address_.sun_family = AF_UNIX;
        std::strncpy(address_.sun_path, (place_ / "s").c_str(), sizeof address_.sun_path - 1);
        REQUIRE(::bind(fd_.get(), reinterpret_cast<sockaddr *>(&address_), sizeof address_) == 0);
        REQUIRE(::listen(fd_.get(), 4) == 0);
    }

    // A process that connects, and ends when this test closes `life` or ends.
    struct client {
        pid_t pid;
        host::unique_fd connection; // our end
        host::unique_fd life;

        void end() {
            life.reset();
            REQUIRE(::waitpid(pid, nullptr, 0) == pid);
        }
    };
    client connect() {
        int life[2];
        REQUIRE(::pipe2(life, O_CLOEXEC) == 0);
        const pid_t pid = ::fork();
        REQUIRE(pid >= 0);
        if (pid == 0) {
            ::close(life[1]);
            const int made = ::socket(AF_UNIX, SOCK_STREAM, 0);
            char byte = 0;
            if (::connect(made, reinterpret_cast<sockaddr *>(&address_), sizeof address_) == 0)
                [[maybe_unused]]
                const ssize_t n = ::read(life[0], &byte, 1);
            ::_exit(0);
        }
        ::close(life[0]);
        return {pid, host::unique_fd(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC)),
                host::unique_fd(life[1])};
    }

  private:
    scratch place_;
    sockaddr_un address_{};
    host::unique_fd fd_{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
};

} // namespace

TEST_CASE("the peer is the process that connected") {
    listener here;
    auto one = here.connect();
    const auto who = who_asks(one.connection.get());
    REQUIRE(who);
    CHECK(who->uid == ::getuid());
    CHECK(who->pid == one.pid);
    CHECK(who->is_root());
    CHECK(who->lives());
    one.end();
    CHECK_FALSE(who->lives());
}

TEST_CASE("a process that has ended before the look is not alive") {
    listener here;
    auto one = here.connect();
    one.end();
    const auto who = who_asks(one.connection.get());
    CHECK((!who || !who->lives()));
}

TEST_CASE("a descriptor that is not a UNIX socket has no peer") {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    const host::unique_fd in(ends[0]), out(ends[1]);
    CHECK_FALSE(who_asks(in.get()));
}
