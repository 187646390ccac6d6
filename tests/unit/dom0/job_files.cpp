// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/job_files.hpp"

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <doctest/doctest.h>

using namespace qvmremote;
using namespace qvmremote::dom0;

namespace {

struct place {
    place() {
        char name[] = "/tmp/qvm-remote-job-XXXXXX";
        REQUIRE(::mkdtemp(name) != nullptr);
        path = name;
        directory.reset(::open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    }
    ~place() { std::filesystem::remove_all(path); }

    std::string path;
    host::unique_fd directory;
};

job_record example() {
    job_record out;
    out.name = "0123456789abcdef";
    out.secret.fill(7);
    out.qube = "work";
    out.transport = "mock";
    out.started_s = 1771425022;
    out.started = "2026-02-18T14:30:22.000+00:00";
    envelope what;
    what.kind = request_kind::shell;
    what.id = command_id::parse("a-job").value();
    what.detach = true;
    what.features = feature::jobs;
    what.set_body("make");
    out.header = what.encode().value();
    out.shown = "make";
    return out;
}

// Reads all that is there. Each gap is a '|' and its size.
std::string all_of(int file, std::uint64_t from = 0) {
    std::string out;
    job_output reader(file, from);
    std::vector<std::uint8_t> data(1000);
    for (;;) {
        const auto piece = reader.read(data);
        if (piece.skipped > 0)
            out += "|" + std::to_string(piece.skipped) + "|";
        if (piece.size == 0)
            return out;
        out.append(as_text(bytes_view(data).first(piece.size)));
    }
}

} // namespace

TEST_CASE("a record is read as it was written, and a damaged one is refused") {
    const job_record one = example();
    const bytes file = one.encode();
    const auto got = job_record::decode(file);
    REQUIRE(got);
    CHECK(got->encode() == file);
    CHECK(got->request()->body == "make");
    CHECK(got->request()->detach);
    for (std::size_t n = 0; n < file.size(); ++n)
        CHECK_FALSE(job_record::decode(bytes_view(file).first(n)));
    bytes longer = file;
    longer.push_back(0);
    CHECK_FALSE(job_record::decode(longer));
    job_record strange = example();
    strange.name = "../../etc/passwd";
    CHECK_FALSE(job_record::decode(strange.encode()));
}

TEST_CASE("an end is complete or it is none") {
    job_end one;
    one.how = {end_cause::cancelled, 37, 5, 6, "panic"};
    one.duration_ms = 1234;
    const bytes file = one.encode();
    const auto got = job_end::decode(file);
    REQUIRE(got);
    CHECK(got->encode() == file);
    for (std::size_t n = 0; n < file.size(); ++n)
        CHECK_FALSE(job_end::decode(bytes_view(file).first(n)));
}

TEST_CASE("files are made once, and only for their user") {
    place p;
    const auto id = command_id::parse("a-job").value();
    auto made = job_files::make(p.directory.get(), id, example());
    REQUIRE(made);
    CHECK_FALSE(job_files::make(p.directory.get(), id, example()));
    for (const char *name : {"", "/job", "/out", "/err", "/end"}) {
        struct stat at {};
        REQUIRE(::stat((p.path + "/a-job" + name).c_str(), &at) == 0);
        CHECK((at.st_mode & 0777) == (*name ? 0600 : 0700));
    }
    CHECK_FALSE(made->ended());
    const auto opened = job_files::open(p.directory.get(), id);
    REQUIRE(opened);
    CHECK(opened->record()->name == example().name);
    // A symbolic link in place of a file is not followed.
    REQUIRE(::unlink((p.path + "/a-job/out").c_str()) == 0);
    REQUIRE(::symlink("/etc/hostname", (p.path + "/a-job/out").c_str()) == 0);
    CHECK_FALSE(job_files::open(p.directory.get(), id));
    remove_job_files(p.directory.get(), id);
    CHECK_FALSE(std::filesystem::exists(p.path + "/a-job"));
}

TEST_CASE("what is kept is the end of each stream, at the same offsets") {
    place p;
    auto made = job_files::make(p.directory.get(), command_id::parse("a-job").value(), example());
    REQUIRE(made);
    constexpr std::uint64_t most = 64 * 1024;
    job_recorder recorder(made->out.get(), made->err.get(), most);
    std::string whole;
    const std::string few = "some words on stderr\n";
    recorder.append(false, as_bytes(few));
    for (int i = 0; i < 30'000; ++i) {
        const std::string line = "line " + std::to_string(i) + "\n";
        whole += line;
        recorder.append(true, as_bytes(line));
        const auto extent = job_output::extent_of(made->out.get());
        REQUIRE(extent.end == whole.size());
        REQUIRE(extent.end - extent.first <= most);
    }
    CHECK(all_of(made->err.get()) == few); // the shorter stream is not cut
    const auto extent = job_output::extent_of(made->out.get());
    if (extent.first == 0) {
        MESSAGE("skipped: this file system makes no holes");
        return;
    }
    CHECK(extent.end - extent.first > most / 2);
    CHECK(all_of(made->out.get()) ==
          "|" + std::to_string(extent.first) + "|" + whole.substr(extent.first));
    CHECK(all_of(made->out.get(), extent.first + 5) == whole.substr(extent.first + 5));
    CHECK(all_of(made->out.get(), extent.end).empty());
    CHECK(all_of(made->out.get(), extent.end + 1000).empty());
    CHECK(job_output::kept(made->out.get()) <= most + 2 * 4096);
}

TEST_CASE("zeros that a job writes are not taken for a hole") {
    place p;
    auto made = job_files::make(p.directory.get(), command_id::parse("a-job").value(), example());
    REQUIRE(made);
    job_recorder recorder(made->out.get(), made->err.get(), 1024 * 1024);
    const std::string zeros(200'000, '\0');
    recorder.append(true, as_bytes(zeros));
    CHECK(all_of(made->out.get()) == zeros);
}
