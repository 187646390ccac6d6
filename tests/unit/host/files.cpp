// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/host/files.hpp>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include "support/scratch.hpp"

using namespace qvmremote::host;
using namespace qvmremote_test;

namespace {

// A user who is neither root nor we: only root can give files away, so we are root then.
constexpr uid_t stranger = 65534;

std::size_t entries_of(const std::string &directory) { return names_in(directory).value().size(); }

struct umask_of {
    explicit umask_of(mode_t mask) : old(::umask(mask)) {}
    ~umask_of() { ::umask(old); }
    mode_t old;
};

} // namespace

TEST_CASE("a descriptor has one owner") {
    unique_fd a(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    const int number = a.get();
    REQUIRE(a);
    unique_fd b(std::move(a));
    CHECK_FALSE(a);
    CHECK(b.get() == number);
    a = std::move(b);
    CHECK(a.get() == number);
    CHECK_FALSE(b);
    a.reset();
    CHECK(::fcntl(number, F_GETFD) == -1);
    unique_fd c(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    const int lent = c.release();
    CHECK_FALSE(c);
    CHECK(::close(lent) == 0);
}

TEST_CASE("a failure holds a text and an errno") {
    const auto f = failed("cannot read x", ENOENT).value();
    CHECK(f.what == "cannot read x: No such file or directory");
    CHECK(f.error_number == ENOENT);
    CHECK(failed("no words of the system").value().what == "no words of the system");
}

TEST_CASE("I7: modes that give others access are refused, with the command that repairs them") {
    const scratch dir;
    struct row {
        const char *name;
        trusted kind;
        mode_t mode;
        const char *remedy; // null: accepted
    };
    static constexpr row rows[] = {
        {"file of ours", trusted::file, 0644, nullptr},
        {"file read by all", trusted::file, 0444, nullptr},
        {"file written by the group", trusted::file, 0664, "chmod go-w"},
        {"file written by others", trusted::file, 0646, "chmod go-w"},
        {"secret", trusted::secret, 0600, nullptr},
        {"secret, read only", trusted::secret, 0400, nullptr},
        {"secret read by the group", trusted::secret, 0640, "chmod 600"},
        {"secret read by others", trusted::secret, 0604, "chmod 600"},
        {"secret executed by others", trusted::secret, 0601, "chmod 600"},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        const std::string path = put(dir / "f", "x", r.mode);
        const auto fd = open_trusted(path, r.kind);
        CHECK(fd.has_value() == (r.remedy == nullptr));
        if (!fd && r.remedy != nullptr) {
            CHECK(fd.error().error_number == EPERM);
            CHECK(contains(fd.error().what, std::string(r.remedy) + " " + path));
            CHECK_FALSE(contains(fd.error().what, "\n"));
        }
        ::unlink(path.c_str());
    }
}

TEST_CASE("I7: directories above a file are checked") {
    const scratch dir;
    const std::string inner = dir / "inner";
    REQUIRE(make_directories(inner + "/deep", 0755));
    const std::string file = put(inner + "/deep/f", "x");
    CHECK(open_trusted(file, trusted::file));
    CHECK(open_trusted(inner + "//deep/", trusted::directory));
    CHECK(open_trusted("/", trusted::directory));

    for (const mode_t mode : {0775u, 0757u, 0777u}) {
        CAPTURE(mode);
        ::chmod(inner.c_str(), mode);
        const auto fd = open_trusted(file, trusted::file);
        REQUIRE_FALSE(fd);
        CHECK(contains(fd.error().what, "chmod go-w " + inner));
        CHECK(fd.error().error_number == EPERM);
    }
    ::chmod(inner.c_str(), 01777); // like /tmp: others may write, but not rename a file of ours
    CHECK(open_trusted(file, trusted::file));
    CHECK_FALSE(open_trusted(inner, trusted::directory)); // but others may put new files there
}

TEST_CASE("I7: a file or a directory above it that belongs to another user is refused") {
    if (::geteuid() != 0)
        return; // only root can give files away; CI runs this as root
    const scratch dir;
    REQUIRE(make_directories(dir / "d", 0755));
    const std::string file = put(dir / "d/f", "x", 0600);
    REQUIRE(::chown(file.c_str(), stranger, stranger) == 0);
    auto fd = open_trusted(file, trusted::secret);
    REQUIRE_FALSE(fd);
    CHECK(contains(fd.error().what, "chown root " + file));
    REQUIRE(::chown(file.c_str(), 0, 0) == 0);
    REQUIRE(::chown((dir / "d").c_str(), stranger, stranger) == 0);
    fd = open_trusted(file, trusted::secret);
    REQUIRE_FALSE(fd);
    CHECK(contains(fd.error().what, "chown root " + (dir / "d")));
    CHECK(fd.error().error_number == EPERM);

    // The same as an ordinary user: the files of root and our own are trusted, those of others are
    // not.
    const std::string theirs = put(dir / "theirs", "x");
    const std::string third = put(dir / "third", "x");
    ::chmod(dir.path().c_str(), 0755);
    REQUIRE(::chown(theirs.c_str(), stranger, stranger) == 0);
    REQUIRE(::chown(third.c_str(), 4242, 4242) == 0);
    const std::string roots = put(dir / "roots", "x");
    REQUIRE(::seteuid(stranger) == 0);
    const bool trusts_own = open_trusted(theirs, trusted::file).has_value();
    const bool trusts_root = open_trusted(roots, trusted::file).has_value();
    const auto other = open_trusted(third, trusted::file);
    REQUIRE(::seteuid(0) == 0);
    CHECK(trusts_own);
    CHECK(trusts_root);
    REQUIRE_FALSE(other);
    CHECK(contains(other.error().what, "chown 65534 " + third));
}

TEST_CASE("I7: a symbolic link in any component is refused, and the message names its target") {
    const scratch dir;
    REQUIRE(make_directories(dir / "real", 0755));
    put(dir / "real/f", "x");
    REQUIRE(::symlink("real", (dir / "link").c_str()) == 0);
    REQUIRE(::symlink("f", (dir / "real/g").c_str()) == 0);
    REQUIRE(::symlink("nowhere", (dir / "dangling").c_str()) == 0);
    struct row {
        std::string path;
        trusted kind;
        const char *target;
    };
    const row rows[] = {
        {dir / "link/f", trusted::file, "real"},
        {dir / "link", trusted::directory, "real"},
        {dir / "real/g", trusted::file, "f"},
        {dir / "dangling", trusted::file, "nowhere"},
    };
    for (const row &r : rows) {
        CAPTURE(r.path);
        const auto fd = open_trusted(r.path, r.kind);
        REQUIRE_FALSE(fd);
        CHECK(contains(fd.error().what, std::string("symbolic link to ") + r.target));
        CHECK(fd.error().error_number == EPERM);
    }
}

TEST_CASE("a missing file, another kind of file and a bad path have an errno of their own") {
    const scratch dir;
    put(dir / "f", "x");
    REQUIRE(::mkfifo((dir / "fifo").c_str(), 0600) == 0);
    struct row {
        const char *name;
        std::string path;
        trusted kind;
        int want;
    };
    const row rows[] = {
        {"absent", dir / "absent", trusted::file, ENOENT},
        {"absent directory", dir / "absent/f", trusted::file, ENOENT},
        {"file instead of a directory in the path", dir / "f/g", trusted::file, ENOTDIR},
        {"directory for a file", dir.path(), trusted::file, EPERM},
        {"file for a directory", dir / "f", trusted::directory, ENOTDIR},
        {"FIFO, which would hang", dir / "fifo", trusted::file, EPERM},
        {"relative", "f", trusted::file, EINVAL},
        {"empty", "", trusted::file, EINVAL},
        {"dots", dir / "../f", trusted::file, EINVAL},
        {"dot", dir / "./f", trusted::file, EINVAL},
        {"NUL", dir / std::string_view("f\0g", 3), trusted::file, EINVAL},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        const auto fd = open_trusted(r.path, r.kind);
        REQUIRE_FALSE(fd);
        CHECK(fd.error().error_number == r.want);
    }
    // A name cannot forge a line or a command in the message.
    const auto odd = open_trusted(dir / "it's\n here", trusted::file);
    CHECK(contains(odd.error().what, "'\\''s? here'"));
}

TEST_CASE("reading is bounded") {
    const scratch dir;
    put(dir / "ten", "0123456789");
    CHECK(read_text(dir / "ten", 10).value() == "0123456789");
    const auto large = read_text(dir / "ten", 9);
    REQUIRE_FALSE(large);
    CHECK(large.error().error_number == EFBIG);
    CHECK(contains(large.error().what, dir / "ten"));
    CHECK(read_text(put(dir / "none", ""), 0).value().empty());
    CHECK(read_text(dir / "absent", 9).error().error_number == ENOENT);
    CHECK_FALSE(read_text(dir.path(), 9));
    REQUIRE(::mkfifo((dir / "fifo").c_str(), 0600) == 0);
    CHECK_FALSE(read_text(dir / "fifo", 9));                             // and does not hang
    CHECK(read_text("/proc/self/status", 1 << 16).value().size() > 100); // has no size
    CHECK(read_text("/proc/self/status", 100).error().error_number == EFBIG);
    REQUIRE(::symlink("ten", (dir / "link").c_str()) == 0);
    CHECK(read_text(dir / "link", 10));

    CHECK(read_trusted(dir / "ten", trusted::file, 10).value() == "0123456789");
    CHECK(read_trusted(dir / "ten", trusted::secret, 10).error().error_number == EPERM);
    CHECK(read_trusted(dir / "ten", trusted::file, 9).error().error_number == EFBIG);

    // A file larger than the limit is not read: its offset does not change.
    const unique_fd fd(::open((dir / "ten").c_str(), O_RDONLY | O_CLOEXEC));
    CHECK_FALSE(read_all(fd.get(), 9));
    CHECK(::lseek(fd.get(), 0, SEEK_CUR) == 0);

    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    const unique_fd out(ends[0]);
    unique_fd in(ends[1]);
    const std::string long_text(20000, 'x');
    REQUIRE(::write(in.get(), long_text.data(), long_text.size()) == 20000);
    in.reset();
    CHECK(read_all(out.get(), 20000).value() == long_text);
}

TEST_CASE("an atomic write leaves all of the old or all of the new, with its mode") {
    const scratch dir;
    const std::string path = dir / "f";
    for (const durability how : {durability::synced, durability::unsynced}) {
        const umask_of all(0777);
        REQUIRE(write_atomically(path, "one", 0640, how));
        CHECK(mode_of(path) == 0640);
        CHECK(text_of(path) == "one");
        const umask_of none(0);
        REQUIRE(write_atomically(path, "", 0600, how));
        CHECK(mode_of(path) == 0600);
        CHECK(text_of(path).empty());
    }
    const std::string large(3 << 20, 'x');
    REQUIRE(write_atomically(path, large, 0600, durability::unsynced));
    CHECK(text_of(path) == large);
    CHECK(entries_of(dir.path()) == 1);

    // A link is replaced, and its target stays as it is.
    put(dir / "target", "target");
    REQUIRE(::symlink("target", (dir / "link").c_str()) == 0);
    REQUIRE(write_atomically(dir / "link", "new", 0600, durability::unsynced));
    CHECK(text_of(dir / "target") == "target");
    CHECK(text_of(dir / "link") == "new");
}

TEST_CASE("a failed atomic write leaves no file") {
    const scratch dir;
    REQUIRE(make_directories(dir / "taken/x", 0700));
    const auto done = write_atomically(dir / "taken", "x", 0600, durability::synced);
    REQUIRE_FALSE(done);
    CHECK(contains(done.error().what, dir / "taken"));
    CHECK(entries_of(dir.path()) == 1);
    CHECK(write_atomically(dir / "no/f", "x", 0600, durability::synced).error().error_number ==
          ENOENT);
    for (const char *name : {"", ".", "..", "taken/"})
        CHECK(write_atomically(dir / name, "x", 0600, durability::synced).error().error_number ==
              EINVAL);
    CHECK(entries_of(dir.path()) == 1);
}

TEST_CASE("new directories get the mode, and existing ones keep theirs") {
    const scratch dir;
    const umask_of mask(0077);
    ::chmod(dir.path().c_str(), 0701);
    REQUIRE(make_directories(dir / "a//b/c/", 0750));
    for (const char *name : {"a", "a/b", "a/b/c"})
        CHECK(mode_of(dir / name) == 0750);
    CHECK(mode_of(dir.path()) == 0701);
    REQUIRE(make_directories(dir / "a/b/c", 0700));
    CHECK(mode_of(dir / "a/b/c") == 0750);
    put(dir / "f", "x");
    CHECK(make_directories(dir / "f", 0700).error().error_number == ENOTDIR);
    CHECK(make_directories("", 0700).error().error_number == EINVAL);
    REQUIRE(::symlink("a", (dir / "link").c_str()) == 0);
    REQUIRE(make_directories(dir / "link/d", 0700));
    CHECK(mode_of(dir / "a/d") == 0700);
}

TEST_CASE("lines are appended whole, to a regular file") {
    const scratch dir;
    const std::string path = dir / "log";
    {
        const umask_of mask(0777);
        REQUIRE(append_line(path, "one", 0640));
    }
    CHECK(mode_of(path) == 0640);
    REQUIRE(append_line(path, "", 0600));
    REQUIRE(append_line(path, "three", 0600));
    CHECK(mode_of(path) == 0640);
    CHECK(text_of(path) == "one\n\nthree\n");
    CHECK(append_line(path, "four\nfive", 0600).error().error_number == EINVAL);
    CHECK(text_of(path) == "one\n\nthree\n");
    REQUIRE(::symlink("log", (dir / "link").c_str()) == 0);
    CHECK(append_line(dir / "link", "x", 0600).error().error_number == ELOOP);
    CHECK_FALSE(append_line(dir.path(), "x", 0600));
    REQUIRE(::mkfifo((dir / "fifo").c_str(), 0600) == 0);
    CHECK_FALSE(append_line(dir / "fifo", "x", 0600)); // and does not hang
    const unique_fd reader(::open((dir / "fifo").c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    CHECK_FALSE(append_line(dir / "fifo", "x", 0600));
    CHECK_FALSE(append_line("/dev/full", "x", 0600));
}

TEST_CASE("names_in: returns every name once, in order, or a failure") {
    const scratch dir;
    using names = std::vector<std::string>;
    CHECK(names_in(dir.path()).value().empty());
    for (const char *name : {"b", "a", ".hidden", "..c", "with blank", "\xff"})
        put(dir / name, "");
    REQUIRE(::mkdir((dir / "d").c_str(), 0700) == 0);
    REQUIRE(::symlink("d", (dir / "link").c_str()) == 0);
    REQUIRE(::symlink("none", (dir / "dangling").c_str()) == 0);
    REQUIRE(::mkfifo((dir / "fifo").c_str(), 0600) == 0);
    const names all = {"..c",      ".hidden", "a",    "b",          "d",
                       "dangling", "fifo",    "link", "with blank", "\xff"};
    CHECK(names_in(dir.path()).value() == all);
    CHECK(names_in(dir.path(), listed::directories).value() == names{"d"});
    CHECK(names_in(dir / "link").value().empty());

    // The position of the caller's descriptor does not matter and does not move.
    for (const int flags : {O_RDONLY, O_PATH}) {
        const unique_fd open(::open(dir.path().c_str(), flags | O_DIRECTORY | O_CLOEXEC));
        CHECK(names_in(open.get()).value() == all);
        CHECK(names_in(open.get()).value() == all);
    }
    names many;
    for (int i = 1000; i < 3000; ++i)
        many.push_back(put(dir / ("d/" + std::to_string(i)), "").substr((dir / "d/").size()));
    CHECK(names_in(dir / "d").value() == many);
    for (const std::string &name : many)
        ::unlink((dir / ("d/" + name)).c_str());

    struct row {
        const char *name;
        std::string path;
        int want;
    };
    const row rows[] = {
        {"nothing there", dir / "none", ENOENT},
        {"a file", dir / "a", ENOTDIR},
        {"a FIFO, which does not hang", dir / "fifo", ENOTDIR},
        {"a dangling link", dir / "dangling", ENOENT},
        {"an empty path", "", ENOENT},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        const auto made = names_in(r.path);
        REQUIRE_FALSE(made);
        CHECK(made.error().error_number == r.want);
    }
    CHECK(names_in(-1).error().error_number == EBADF);
    const unique_fd file(::open((dir / "a").c_str(), O_RDONLY | O_CLOEXEC));
    CHECK(names_in(file.get()).error().error_number == ENOTDIR);
}

TEST_CASE("names_in leaves no descriptor open, whether it succeeds or fails") {
    const scratch dir;
    const std::string file = put(dir / "file", "");
    const unique_fd open_file(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
    const auto before = names_in("/proc/self/fd").value().size();
    for (int i = 0; i < 100; ++i) {
        CHECK(names_in(dir.path()));
        CHECK_FALSE(names_in(file));
        CHECK_FALSE(names_in(open_file.get()));
    }
    CHECK(names_in("/proc/self/fd").value().size() == before);
}

TEST_CASE("write_all: everything is written across partial writes and signals") {
    struct sigaction interrupts {
    }, kept{};
    interrupts.sa_handler = [](int) {}; // without SA_RESTART, so that write fails with EINTR
    REQUIRE(::sigaction(SIGUSR1, &interrupts, &kept) == 0);
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    const unique_fd out(ends[0]);
    unique_fd in(ends[1]);
    std::string data(1 << 20, '\0');
    for (std::size_t i = 0; i < data.size(); ++i)
        data[i] = static_cast<char>(i % 251);
    std::string got;
    std::thread reader([&, writer = ::pthread_self()] {
        for (int i = 0; i < 20; ++i) { // until the pipe is full
            ::pthread_kill(writer, SIGUSR1);
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        got = read_all(out.get(), data.size()).value();
    });
    CHECK(write_all(in.get(), data));
    in.reset();
    reader.join();
    CHECK(got == data);
    REQUIRE(::sigaction(SIGUSR1, &kept, nullptr) == 0);
}

TEST_CASE("write_all: a failure sets errno") {
    const auto before = std::signal(SIGPIPE, SIG_IGN);
    const unique_fd full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
    const unique_fd readable(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    int closed[2], busy[2];
    REQUIRE(::pipe2(closed, O_CLOEXEC) == 0);
    ::close(closed[0]);
    const unique_fd broken(closed[1]);
    REQUIRE(::pipe2(busy, O_CLOEXEC | O_NONBLOCK) == 0);
    const unique_fd unread(busy[0]), slow(busy[1]);
    struct row {
        const char *name;
        int fd;
        int want;
    };
    const row rows[] = {
        {"no space", full.get(), ENOSPC},
        {"not open for writing", readable.get(), EBADF},
        {"no descriptor", -1, EBADF},
        {"no reader", broken.get(), EPIPE},
        {"a reader that does not read", slow.get(), EAGAIN},
    };
    const std::string data(1 << 20, 'x');
    for (const row &r : rows) {
        CAPTURE(r.name);
        const bool written = write_all(r.fd, data);
        const int error = errno;
        CHECK_FALSE(written);
        CHECK(error == r.want);
        CHECK(write_all(r.fd, "")); // nothing to write
    }
    std::signal(SIGPIPE, before);
}
