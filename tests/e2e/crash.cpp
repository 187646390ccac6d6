// SPDX-License-Identifier: GPL-2.0-or-later
// Kills the client, the daemon or the command with SIGKILL at any moment in the life of a command.
// In each case no ID runs twice, no process is left over, and the client does not report 0 for a
// result that is not complete.
//
// The test finds out from the remains in which part of the life a kill happened, and fails unless
// each part had enough kills. Usage: crash [ROUNDS] [seconds=N]

#include "kills.hpp"

#include <random>

using namespace e2e;

namespace {

enum class victim { client, daemon, command };

class suite {
  public:
    explicit suite(effort asked) : asked_(asked), dom0_(scratch_ / "root", "work") {
        dom0_.register_key("work", key_digits('a'));
        std::filesystem::create_directories(scratch_ / "home/.qvm-remote");
        write_file(scratch_ / "home/.qvm-remote/auth.key", key_digits('a') + "\n");
        dom0_.start();
    }

    void run() {
        for (int i = 0; asked_.goes_on(i); ++i)
            round(i);
        std::printf("%d results were whole, %d were reported as not; %d IDs sent again, none ran\n",
                    whole_, broken_, replayed_);
        fell_.print();
    }

  private:
    void round(int i) {
        const part aim = static_cast<part>(i % 5);
        const int turn = i / 5;
        victim whom = turn % 2 ? victim::client : victim::daemon;
        if (aim == part::running && turn % 3 == 0)
            whom = victim::command;
        if (aim == part::exec_to_end)
            whom = turn % 8 == 0 ? victim::client : victim::daemon;

        const std::string mark =
            "crash-" + std::to_string(::getpid()) + "-" + std::to_string(i) + "-";
        const std::string place = scratch_ / ("round-" + std::to_string(i));
        std::filesystem::create_directories(place);
        const std::string ran = place + "/ran", done = place + "/done", pid_file = place + "/pid";
        const std::string command = "echo $$ > " + pid_file + "; " +
                                    payload(mark, place, static_cast<int>(1 + random_() % 9));

        const off_t audit_before = behind_last_line(dom0_.audit());
        const unique_fd out(::open((place + "/out").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        const unique_fd err(::open((place + "/err").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        const pid_t client =
            spawn({from_environment("QVMREMOTE_CLIENT"), "-n", "--transport", "mock",
                   "--plugin-dir", from_environment("QVMREMOTE_PLUGINS"), command},
                  {"HOME=" + (scratch_ / "home"), "QVM_REMOTE_MOCK_SOCKET=" + dom0_.socket("work")},
                  out.get(), err.get());

        switch (aim) {
        case part::before_start:
            ::usleep(static_cast<useconds_t>(random_() % 800));
            break;
        case part::start_to_exec:
            spin_until([&] { return size_of(dom0_.audit()) > audit_before; }, "START");
            break;
        case part::running:
            spin_until([&] { return size_of(ran) > 0; }, "the command");
            ::usleep(static_cast<useconds_t>(random_() % 8000));
            break;
        case part::exec_to_end:
            spin_until([&] { return exists(done); }, "the command's end");
            break;
        case part::after:
            spin_until([&] { return read_records(dom0_.audit(), audit_before).ended; }, "END");
            ::usleep(static_cast<useconds_t>(random_() % 2000));
            break;
        }
        if (whom == victim::client)
            ::kill(client, SIGKILL);
        else if (whom == victim::command)
            ::kill(static_cast<pid_t>(std::stol(read_file(pid_file))), SIGKILL);
        else
            dom0_.kill_now();

        int status = 0;
        require(eventually([&] { return ::waitpid(client, &status, WNOHANG) == client; }),
                "the client hangs");
        require(eventually([&] { return survivors(mark).empty(); }),
                "round " + std::to_string(i) + " leaves processes");
        if (whom == victim::daemon)
            dom0_.start();
        else // the daemon may know of the command only when its records say so
            require(eventually([&] {
                        const records r = read_records(dom0_.audit(), audit_before);
                        return !r.id || r.ended;
                    }),
                    "a command without an END");
        judge(i, whom, status, place, audit_before);
    }

    void judge(int i, victim whom, int status, const std::string &place, off_t audit_before) {
        const records r = read_records(dom0_.audit(), audit_before);
        const std::string ran = read_file(place + "/ran");
        const bool done = exists(place + "/done");
        const std::string in_round = "round " + std::to_string(i) + ": ";

        part where = part::after;
        if (!r.id)
            where = part::before_start;
        else if (ran.empty())
            where = part::start_to_exec;
        else if (!done)
            where = part::running;
        else if (!r.ended || r.cause == "cancelled")
            where = part::exec_to_end;
        fell_.count(where);

        require(ran.empty() || r.id.has_value(), in_round + "it ran, and no START says so (I8)");
        require(ran.empty() || ran == *r.id + "\n", in_round + "an ID ran twice (I2)");

        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
            require(done && read_file(place + "/out") == whole_output(),
                    in_round + "0 for a result that is not whole (I10)");
            ++whole_;
        } else {
            ++broken_;
            // A message of ours says why, unless the client itself was killed.
            require(whom == victim::client ||
                        read_file(place + "/err").find("qvm-remote: ") != std::string::npos,
                    in_round + "a failure without a message");
        }

        if (!r.id)
            return;
        // Send the same ID again, correctly signed.
        host::client again = honest(dom0_, "work", 'a');
        const auto answer = again.collect({.kind = request_kind::shell,
                                           .body = "echo again >> " + place + "/ran",
                                           .arguments = {},
                                           .environment = {},
                                           .id = command_id::parse(*r.id).value()});
        require(answer.result.how == host::run_result::kind::refused &&
                    answer.result.reason == errc::id_used,
                in_round + "a used ID was not refused (I2)");
        require(read_file(place + "/ran") == ran, in_round + "a used ID ran again (I2)");
        ++replayed_;
    }

    effort asked_;
    scratch scratch_;
    daemon_under_test dom0_;
    std::mt19937 random_{20260218};
    tally fell_;
    int whole_ = 0, broken_ = 0, replayed_ = 0;
};

} // namespace

int main(int argc, char **argv) {
    ::signal(SIGPIPE, SIG_IGN);
    suite(effort(argc, argv, 200)).run();
    return 0;
}
