// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/host/unix_socket.hpp>

#include <cerrno>
#include <string>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include "support/scratch.hpp"

using namespace qvmremote::host;
using namespace qvmremote_test;

namespace {

struct address_row {
    const char *name;
    bool is_abstract;
    std::string text;
    int want; // errno, or 0
};

const address_row address_rows[] = {
    {"a path", false, "/tmp/x", 0},
    {"a relative path", false, "x", 0},
    {"the longest path", false, std::string(107, 'p'), 0},
    {"one byte too long", false, std::string(108, 'p'), ENAMETOOLONG},
    {"far too long", false, std::string(5000, 'p'), ENAMETOOLONG},
    {"an empty path, which would be an abstract name of zeros", false, "", EINVAL},
    {"a NUL at the start, which would be an abstract name", false, std::string("\0x", 2), EINVAL},
    {"a NUL inside, which would name another file", false, std::string("/tmp/x\0y", 8), EINVAL},
    {"an abstract name", true, "x", 0},
    {"the longest abstract name", true, std::string(107, 'n'), 0},
    {"an abstract name that is one byte too long", true, std::string(108, 'n'), ENAMETOOLONG},
    {"an empty abstract name, with which the kernel would choose one", true, "", EINVAL},
};

std::string says(const unique_fd &from) {
    char text[16];
    const ssize_t n = ::recv(from.get(), text, sizeof text, 0);
    return {text, n > 0 ? static_cast<std::size_t>(n) : 0};
}

unix_address at_path(const std::string &path) { return unix_address::of_path(path).value(); }

} // namespace

TEST_CASE("unix_address: accepts and refuses these names of sockets") {
    for (const address_row &row : address_rows) {
        CAPTURE(row.name);
        const auto made =
            row.is_abstract ? unix_address::of_abstract(row.text) : unix_address::of_path(row.text);
        REQUIRE(made.has_value() == (row.want == 0));
        if (made)
            CHECK(made->text() == (row.is_abstract ? "@" : "") + row.text);
        else
            CHECK(made.error().error_number == row.want);
    }
    CHECK(unix_address::of_path(std::string(108, 'p')).error().what ==
          std::string(108, 'p') + " exceeds 107 bytes; choose a shorter path");
}

TEST_CASE("listen_unix: the file has its mode from the beginning, whatever the umask allows") {
    const scratch root;
    const mode_t before = ::umask(0);
    for (const mode_t mode : {0600u, 0660u, 0700u}) {
        const std::string path = root / std::to_string(mode);
        const auto listener = listen_unix(at_path(path), mode, 4);
        CHECK(listener);
        CHECK(mode_of(path) == mode);
    }
    ::umask(before);
}

TEST_CASE("listen_unix and connect_unix: a byte arrives, and both ends are close-on-exec") {
    const scratch root;
    const auto listener = listen_unix(at_path(root / "s"), 0600, 4);
    REQUIRE(listener);
    CHECK((::fcntl(listener->get(), F_GETFL) & O_NONBLOCK) != 0);
    const auto client = connect_unix(root / "s");
    REQUIRE(client);
    CHECK((::fcntl(client->get(), F_GETFL) & O_NONBLOCK) == 0);
    for (const int fd : {listener->get(), client->get()})
        CHECK((::fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    const unique_fd taken(::accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC));
    REQUIRE(taken);
    REQUIRE(::send(client->get(), "x", 1, 0) == 1);
    CHECK(says(taken) == "x");
}

TEST_CASE("bind_unix: datagrams, by a path and by an abstract name") {
    const scratch root;
    const auto abstract =
        unix_address::of_abstract("qvm-remote-test-" + std::to_string(::getpid()));
    REQUIRE(abstract);
    for (const unix_address &at : {at_path(root / "d"), *abstract}) {
        CAPTURE(at.text());
        const auto server = bind_unix(at, SOCK_DGRAM, 0600);
        REQUIRE(server);
        const auto client = connect_unix(at, SOCK_DGRAM | SOCK_NONBLOCK);
        REQUIRE(client);
        REQUIRE(::send(client->get(), "READY=1", 7, 0) == 7);
        CHECK(says(*server) == "READY=1");
    }
}

TEST_CASE("connect_unix: a failure says why there is no connection") {
    const scratch root;
    CHECK(connect_unix(root / "none").error().error_number == ENOENT);
    CHECK(connect_unix(root / "none").error().what ==
          "cannot connect to " + root / "none" + ": No such file or directory");
    CHECK(connect_unix(std::string(108, 'p')).error().error_number == ENAMETOOLONG);

    const auto silent = bind_unix(at_path(root / "silent"), SOCK_STREAM, 0600);
    REQUIRE(silent);
    CHECK(connect_unix(root / "silent").error().error_number == ECONNREFUSED);

    const auto full = listen_unix(at_path(root / "full"), 0600, 0);
    REQUIRE(full);
    const auto first = connect_unix(root / "full");
    REQUIRE(first);
    CHECK(connect_unix(root / "full", SOCK_STREAM | SOCK_NONBLOCK).error().error_number == EAGAIN);
}

TEST_CASE("bind_unix: an existing file at the path stays") {
    const scratch root;
    const std::string path = put(root / "file", "kept");
    for (const auto &made : {bind_unix(at_path(path), SOCK_STREAM, 0600).map([](auto &&) {}),
                             listen_unix(at_path(path), 0600, 4).map([](auto &&) {})})
        CHECK(made.error().error_number == EADDRINUSE);
    CHECK(text_of(path) == "kept");
    CHECK(bind_unix(at_path(path), SOCK_STREAM, 0600).error().what ==
          "cannot listen at " + path + ": Address already in use");
}
