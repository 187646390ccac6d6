// SPDX-License-Identifier: GPL-2.0-or-later
// Measures admission of a command (verify, check that the ID is new, decide, durable START) in turn
// with an append of a line and its sync, which shows what the disk needs.
//
//   admission DIRECTORY COUNT           JSON on stdout; DIRECTORY is empty, closed to others, and on
//                                       the disk to measure

#include "timing.hpp"

#include <condition_variable>
#include <functional>
#include <mutex>
#include <utility>

#include <sys/stat.h>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/unique_fd.hpp>

#include "decide/admission.hpp"

using namespace bench;
using namespace qvmremote;
using namespace qvmremote::dom0;

namespace {

// The daemon's loop, as far as admission needs one.
class loop {
  public:
    void post(std::function<void()> work) {
        const std::lock_guard lock(mutex_);
        posted_.push_back(std::move(work));
        wake_.notify_one();
    }
    void run_one() {
        std::vector<std::function<void()>> all;
        {
            std::unique_lock lock(mutex_);
            wake_.wait(lock, [this] { return !posted_.empty(); });
            all.swap(posted_);
        }
        for (const auto &work : all)
            work();
    }

  private:
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::function<void()>> posted_;
};

template <class T>
T must(host::outcome<T> got) {
    if (!got)
        die(got.error().what);
    return std::move(*got);
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 3)
        die("usage: admission DIRECTORY COUNT");
    const paths where = must(paths::below(argv[1]));
    const int count = std::atoi(argv[2]);
    for (const std::string part : {"/var", "/var/log", "/var/log/qubes"})
        ::mkdir((where.root() + part).c_str(), 0700);
    event_log log = must(event_log::open(where.log(), false));
    const keyring keys(where.keys());
    const secret key = secret::parse(std::string(secret::digits, '5')).value();
    const peer from{qube_name::parse("work").value(), "qvm-run", {}, std::nullopt};
    if (auto stored = keys.store(from.name, key); !stored)
        die(stored.error().what);
    const policy_files policies(where.policy());
    if (auto wrote = policies.write_level(from.name, access_level::full); !wrote)
        die(wrote.error().what);
    loop events;
    const auto records = must(journal::open(
        where, {}, [&](std::function<void()> work) { events.post(std::move(work)); }));
    tag_source tags({}, [&](std::function<void()> work) { events.post(std::move(work)); });
    approvals words(1);
    admission gate(where, keys, policies, tags, words, *records, log);
    if (auto loaded = gate.reload(std::nullopt, "both"); !loaded)
        die(loaded.error().what);

    const std::string name = where.root() + "/plain";
    const host::unique_fd plain(
        ::open(name.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    const std::string line(512, '.');
    std::vector<double> disk, ours, check;
    const std::string today = host::local_time::now().compact();
    for (int n = -10; n < count; ++n) { // the first rounds do not count
        double begin = now_us();
        if (::write(plain.get(), line.data(), line.size()) < 0 || ::fdatasync(plain.get()) != 0)
            die("fdatasync");
        if (n >= 0)
            disk.push_back(now_us() - begin);

        const command_id id = command_id::parse(today + "-1-" + std::to_string(n + 10)).value();
        const std::string token = token_v1(key, id);
        begin = now_us();
        auto asked = gate.check_entry(from, id, token, 4, static_cast<std::uint64_t>(n + 11));
        if (!asked)
            die("not let in");
        if (n >= 0)
            check.push_back(now_us() - begin);
        auto whole = request_verifier::complete(std::move(asked->header), "true");
        if (!whole)
            die("no request");
        bool told = false, good = false;
        std::string why;
        gate.admit(from, std::move(*whole), {}, [&](const admission::outcome &answer) {
            told = true;
            good = std::holds_alternative<admitted>(answer);
            if (const auto *no = std::get_if<refusal>(&answer))
                why = no->text + "; " + records->trouble();
        });
        while (!told)
            events.run_one();
        if (!good)
            die("refused: " + why);
        if (n >= 0)
            ours.push_back(now_us() - begin);
    }
    std::printf("{\"disk\":%s},\"check\":%s},\"admission\":%s}}\n",
                summary(std::move(disk)).c_str(), summary(std::move(check)).c_str(),
                summary(std::move(ours)).c_str());
    return 0;
}
