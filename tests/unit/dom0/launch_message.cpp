// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/launch_message.hpp"

#include <sys/mman.h>
#include <sys/stat.h>

#include "warden_fixture.hpp"

using namespace qvmremote_test;

TEST_CASE("a command that cannot be started says why") {
    char directory[] = "/tmp/qvmremote-warden-XXXXXX";
    REQUIRE(::mkdtemp(directory));
    const std::string plain = std::string(directory) + "/plain";
    std::ofstream(plain) << "exit 0\n";
    const std::string text = std::string(directory) + "/text";
    std::ofstream(text) << "exit 0\n";
    ::chmod(text.c_str(), 0755);
    const std::string orphan = std::string(directory) + "/orphan";
    std::ofstream(orphan) << "#!/nowhere/sh\n";
    ::chmod(orphan.c_str(), 0755);
    struct row {
        const char *name;
        std::string program;
        int want;
    };
    const row rows[] = {
        {"not in the PATH", "qvm-remote-no-such-program", ENOENT},
        {"no such file", "/nowhere/program", ENOENT},
        {"not executable", plain, EACCES},
        {"a directory", "/usr/bin/", EACCES},
        {"a directory, searched", "..", EACCES},
        {"neither ELF nor #!", text, ENOEXEC},
        {"no such interpreter", orphan, ENOENT},
        {"a path through a file", plain + "/x", ENOENT},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        CHECK(run(command({r.program})).error_number == r.want);
    }
    for (const std::string &file : {plain, text, orphan})
        ::unlink(file.c_str());
    ::rmdir(directory);
}

TEST_CASE("a launch that cannot be carried out as written is refused before anything runs") {
    struct row {
        const char *name;
        std::function<void(launch &)> spoil;
        int want;
    };
    const row rows[] = {
        {"no program", [](launch &l) { l.program.clear(); }, EINVAL},
        {"no argv", [](launch &l) { l.argv.clear(); }, EINVAL},
        {"NUL in the program", [](launch &l) { l.program.push_back('\0'); }, EINVAL},
        {"NUL in argv", [](launch &l) { l.argv.emplace_back("a\0b", 3); }, EINVAL},
        {"NUL in the environment", [](launch &l) { l.environment.emplace_back("A=\0", 3); },
         EINVAL},
        {"NUL in the directory", [](launch &l) { l.directory.assign("/\0tmp", 5); }, EINVAL},
        {"no stdin", [](launch &l) { l.in = -1; }, EINVAL},
        {"an extra descriptor with the number of stderr",
         [](launch &l) {
             l.extra = {{dev_null(), 2}};
         },
         EINVAL},
        {"a number twice",
         [](launch &l) {
             l.extra = {{dev_null(), 5}, {dev_null(), 5}};
         },
         EINVAL},
        {"17 more",
         [](launch &l) {
             for (int n = 3; n < 20; ++n)
                 l.extra.emplace_back(dev_null(), n);
         },
         EINVAL},
        {"a descriptor that is closed", [](launch &l) { l.out = 1 << 20; }, EBADF},
        {"9 MiB", [](launch &l) { l.argv.emplace_back(9 << 20, 'x'); }, E2BIG},
    };
    for (const row &r : rows) {
        CAPTURE(r.name);
        launch what = command({"true"});
        r.spoil(what);
        const auto c = the_warden->launch(what);
        REQUIRE_FALSE(c);
        CHECK(c.error().error_number == r.want);
    }
}

TEST_CASE("short and long arguments arrive unchanged") {
    for (const std::size_t size : {0u, 1u, 1000u, 60u * 1024, 66u * 1024, 100u * 1024}) {
        CAPTURE(size);
        launch what = command({"bash", "-c", "printf %s \"$#:$1:\"; printf %s \"$2\" | wc -c",
                               "name", "a b'\"$\n\xff", std::string(size, 'y')});
        CHECK(run(what).out == "2:a b'\"$\n\xff:" + std::to_string(size) + "\n");
    }
    // 300 KiB together are more than one message, and less than Linux allows.
    launch what = command({"bash", "-c", "echo $#", "name"});
    for (int i = 0; i < 300; ++i)
        what.argv.emplace_back(1024, 'z');
    CHECK(run(what).out == "300\n");
    what.argv.emplace_back(128 * 1024, 'z');
    CHECK(run(what).error_number == E2BIG);
}

TEST_CASE("a script in memory runs as /dev/fd/N") {
    const unique_fd script(::memfd_create("script", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    std::string text = "echo \"$1\"; exit 3\n#";
    text.append(900 * 1024, '.');
    REQUIRE(::write(script.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()));
    REQUIRE(::fcntl(script.get(), F_ADD_SEALS,
                    F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
    launch what = command({"bash", "/dev/fd/9", "word"});
    what.extra = {{script.get(), 9}};
    const auto r = run(what);
    CHECK(r.out == "word\n");
    CHECK(WEXITSTATUS(r.wait_status) == 3);
}
