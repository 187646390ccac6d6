// SPDX-License-Identifier: GPL-2.0-or-later
// Starts the programs that run.py compares, all in the same way and in turn, and prints how long
// they took.
//
//   launch [OPTIONS] -- PIPELINE -- PIPELINE ...     one round runs each pipeline once
//   launch --fdatasync FILE --count N                times N syncs, each after 512 bytes; removes FILE
//   launch --create DIRECTORY --count N              makes N empty files
//
// A PIPELINE is `[NAME=VALUE]... WORD... [| [NAME=VALUE]... WORD...]...`. Its first stdin and its last
// stdout are /dev/null. Its time is from before its first program starts until all of them have ended.
// JSON on stdout.
//   --count N     rounds (or runs, with --parallel)
//   --warmup N    rounds before them, of which no time is kept
//   --parallel N  keeps N runs going, and takes the pipelines in turn; each has one stage
//   --ready       a daemon: measures the time until its first notification, then ends it with SIGTERM
//   --samples     also prints each time, in the order of the runs
// After SIGTERM it starts nothing more, and prints what it has measured.

#include "timing.hpp"

#include <cerrno>
#include <csignal>
#include <cstring>
#include <map>
#include <string_view>

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

using namespace bench;

namespace {

volatile std::sig_atomic_t has_to_end = 0;

struct pipeline {
    std::vector<stage> stages;
    std::vector<double> samples;
    std::vector<long> peaks;
    int failed = 0;
};

void run_once(pipeline &what, bool counts) {
    std::vector<pid_t> pids;
    const double begin = now_us();
    int in = -1;
    for (std::size_t i = 0; i < what.stages.size(); ++i) {
        int ends[2] = {-1, -1};
        if (i + 1 < what.stages.size() && ::pipe2(ends, O_CLOEXEC) != 0)
            die("pipe2");
        pids.push_back(start(what.stages[i], in, ends[1]));
        ::close(in);
        ::close(ends[1]);
        in = ends[0];
    }
    bool good = true;
    for (std::size_t i = 0; i < pids.size(); ++i)
        good = finish(pids[i], what.peaks[i]) && good;
    const double took = now_us() - begin;
    if (!good)
        ++what.failed;
    if (counts)
        what.samples.push_back(took);
}

void run_until_ready(pipeline &what, bool counts) {
    char path[] = "/tmp/qvm-remote-bench-XXXXXX";
    if (!::mkdtemp(path))
        die("mkdtemp");
    const std::string name = std::string(path) + "/notify";
    const int ready = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, name.c_str(), name.size());
    if (::bind(ready, reinterpret_cast<const sockaddr *>(&address), sizeof address) != 0)
        die("bind");
    stage daemon = what.stages[0];
    daemon.variables.push_back("NOTIFY_SOCKET=" + name);
    const double begin = now_us();
    const pid_t pid = start(daemon, -1, -1);
    char text[64];
    pollfd wait{ready, POLLIN, 0};
    int got = 0;
    do
        got = ::poll(&wait, 1, 300'000);
    while (got < 0 && errno == EINTR);
    const bool came = got == 1 && ::recv(ready, text, sizeof text, 0) > 0;
    const double took = now_us() - begin;
    ::kill(pid, SIGTERM);
    if (!finish(pid, what.peaks[0]) || !came)
        ++what.failed;
    else if (counts)
        what.samples.push_back(took);
    ::close(ready);
    ::unlink(name.c_str());
    ::rmdir(path);
}

// `count` runs, never more than `limit` at once.
void run_parallel(std::vector<pipeline> &all, int count, int limit) {
    struct started_run {
        pipeline *of;
        double begin;
    };
    std::map<pid_t, started_run> running;
    int started = 0;
    while ((started < count && !has_to_end) || !running.empty()) {
        while (started < count && !has_to_end && static_cast<int>(running.size()) < limit) {
            pipeline &next = all[static_cast<std::size_t>(started++) % all.size()];
            const double begin = now_us();
            running[start(next.stages[0], -1, -1)] = {&next, begin};
        }
        int status = 0;
        rusage used{};
        const pid_t pid = ::wait4(-1, &status, 0, &used);
        const auto at = running.find(pid);
        if (at == running.end())
            continue;
        pipeline &ended = *at->second.of;
        ended.samples.push_back(now_us() - at->second.begin);
        ended.peaks[0] = std::max(ended.peaks[0], used.ru_maxrss);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            ++ended.failed;
        running.erase(at);
    }
}

int measure_sync(const char *path, int count) {
    const int fd = ::open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0)
        die(std::string("cannot open ") + path);
    const std::string record(512, '.');
    std::vector<double> samples;
    for (int i = 0; i < count; ++i) {
        if (::write(fd, record.data(), record.size()) < 0)
            die("write");
        const double begin = now_us();
        if (::fdatasync(fd) != 0)
            die("fdatasync");
        samples.push_back(now_us() - begin);
    }
    ::unlink(path);
    std::printf("%s}\n", summary(std::move(samples)).c_str());
    return 0;
}

int measure_create(const std::string &directory, int count) {
    std::vector<double> samples;
    for (int i = 0; i < count; ++i) {
        const std::string path = directory + "/" + std::to_string(i);
        const double begin = now_us();
        const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0)
            die("cannot make " + path);
        ::close(fd);
        samples.push_back(now_us() - begin);
    }
    std::printf("%s}\n", summary(std::move(samples)).c_str());
    return 0;
}

} // namespace

int main(int argc, char **argv) {
    int count = 1, warmup = 0, parallel = 0;
    bool ready = false, samples = false;
    const char *sync = nullptr, *create = nullptr;
    int i = 1;
    for (; i < argc && std::strcmp(argv[i], "--") != 0; ++i) {
        const std::string_view option = argv[i];
        const auto value = [&] {
            if (i + 1 >= argc)
                die(std::string(option) + " needs a value");
            return argv[++i];
        };
        if (option == "--count")
            count = std::atoi(value());
        else if (option == "--warmup")
            warmup = std::atoi(value());
        else if (option == "--parallel")
            parallel = std::atoi(value());
        else if (option == "--ready")
            ready = true;
        else if (option == "--samples")
            samples = true;
        else if (option == "--fdatasync")
            sync = value();
        else if (option == "--create")
            create = value();
        else
            die("unknown option " + std::string(option));
    }
    if (sync)
        return measure_sync(sync, count);
    if (create)
        return measure_create(create, count);
    std::vector<pipeline> all;
    for (; i < argc; ++i) {
        const std::string_view word = argv[i];
        if (word == "--") {
            all.emplace_back().stages.emplace_back();
        } else if (word == "|") {
            all.back().stages.emplace_back();
        } else {
            stage &last = all.back().stages.back();
            const bool variable =
                last.words.empty() && word.substr(0, word.find('/')).find('=') != word.npos;
            (variable ? last.variables : last.words).emplace_back(word);
        }
    }
    if (all.empty())
        die("no PIPELINE is given");
    for (pipeline &p : all) {
        p.peaks.resize(p.stages.size());
        for (const stage &s : p.stages)
            if (s.words.empty())
                die("a PIPELINE has a stage without a command");
        if ((ready || parallel > 0) && p.stages.size() > 1)
            die("with --ready and --parallel, a PIPELINE has one stage");
    }
    ::signal(SIGTERM, [](int) { has_to_end = 1; });
    const double begin = now_us();
    if (parallel > 0)
        run_parallel(all, count, parallel);
    else
        for (int round = -warmup; round < count && !has_to_end; ++round)
            for (pipeline &p : all)
                if (!has_to_end)
                    ready ? run_until_ready(p, round >= 0) : run_once(p, round >= 0);
    std::printf("{\"wall_us\":%.1f,\"rows\":[", now_us() - begin);
    for (const pipeline &p : all) {
        std::printf("%s%s,\"failed\":%d,\"peak_kib\":[", &p == &all[0] ? "" : ",",
                    summary(p.samples).c_str(), p.failed);
        for (const long &peak : p.peaks)
            std::printf("%s%ld", &peak == &p.peaks[0] ? "" : ",", peak);
        std::printf("]");
        if (samples) {
            std::printf(",\"samples_us\":[");
            for (const double &sample : p.samples)
                std::printf("%s%.1f", &sample == &p.samples[0] ? "" : ",", sample);
            std::printf("]");
        }
        std::printf("}");
    }
    std::printf("]}\n");
    return 0;
}
