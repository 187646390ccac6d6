// SPDX-License-Identifier: GPL-2.0-or-later
// Kills the client, the agent or shell program, the call, or the daemon with SIGKILL, over the
// qvm-run transport, at any moment in the life of a command of protocol 2 or of an entry of
// protocol 1. In each case no ID runs twice, no process is left over, and a command that ran has
// its START. Only a complete result is reported as 0, an existing result does not change, and any
// other outcome is reported as unknown, with its ID.
//
// The test finds out from the remains in which part of the life a kill happened, and aims the next
// kill at the part that had the fewest. Usage: kills [ROUNDS] [seconds=N]

#include "kills.hpp"

#include <map>
#include <mutex>
#include <random>
#include <set>

#include <qvmremote/host/client.hpp>
#include <qvmremote/token.hpp>

using namespace e2e;

namespace {

/// As much of qubesd as the daemon needs (QUBES.md §8): which qubes run, and that a qube has
/// started, which ends the transport's pause after a broken call.
class qubesd {
  public:
    qubesd(const std::string &path, std::string listing) : listing_(std::move(listing)) {
        listener_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
        require(::bind(listener_.get(), reinterpret_cast<sockaddr *>(&address), sizeof address) ==
                        0 &&
                    ::listen(listener_.get(), 16) == 0,
                "qubesd's socket");
        std::thread([this] { serve(); }).detach();
    }
    void say_started(const std::string &qube) {
        const std::lock_guard lock(mutex_);
        send(std::string("1\0", 2) + qube + std::string("\0domain-start\0\0", 15));
    }

  private:
    void serve() {
        for (;;) {
            unique_fd peer(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
            std::string asked;
            char buffer[256];
            for (ssize_t n; (n = ::read(peer.get(), buffer, sizeof buffer)) > 0;)
                asked.append(buffer, static_cast<std::size_t>(n));
            const std::lock_guard lock(mutex_);
            if (asked.starts_with("admin.Events")) {
                watcher_ = std::move(peer);
                send(std::string("1\0\0connection-established\0\0", 27));
            } else {
                const std::string answer = std::string("0\0", 2) + listing_;
                [[maybe_unused]] const ssize_t n =
                    ::write(peer.get(), answer.data(), answer.size());
            }
        }
    }
    void send(const std::string &event) {
        if (watcher_)
            ::send(watcher_.get(), event.data(), event.size(), MSG_NOSIGNAL);
    }

    std::mutex mutex_;
    unique_fd listener_, watcher_;
    std::string listing_;
};

/// Whether a process is alive. A zombie is not.
bool is_alive(pid_t pid) {
    const std::string stat = read_file("/proc/" + std::to_string(pid) + "/stat");
    const std::size_t name = stat.rfind(") ");
    return name != stat.npos &&
           std::string_view("ZX").find(stat[name + 2]) == std::string_view::npos;
}

enum class victim { client, in_qube, call, daemon };
constexpr std::array<const char *, 4> victim_names = {"client", "agent or shell program",
                                                      "qrexec-client or qvm-run", "daemon"};
enum class way { stream, entry, shell };

/// A command that has begun.
struct begun {
    std::string qube;
    way by;
    std::string id, place;
};

class suite {
  public:
    explicit suite(effort asked)
        : asked_(asked), dom0_(scratch_ / "root", ""), machine_(scratch_ / "m") {
        std::filesystem::create_directories(machine_ + "/qubes");
        for (const std::string &qube : {agent_, shell_}) {
            dom0_.register_key(qube, key_digits('a'));
            std::filesystem::create_directories(queue(qube, "pending"));
            std::filesystem::create_directories(queue(qube, "running"));
            std::filesystem::create_directories(queue(qube, "results"));
            std::filesystem::permissions(home(qube) + "/.qvm-remote",
                                         std::filesystem::perms::owner_all);
            write_file(home(qube) + "/.qvm-remote/auth.key", key_digits('a') + "\n");
            write_file(machine_ + "/qubes/" + qube + "/state", "Running\n");
        }
        const auto client = std::filesystem::path(from_environment("QVMREMOTE_CLIENT"));
        const std::string programs = client.parent_path().parent_path();
        write_file(machine_ + "/qubes/" + agent_ + "/path", programs + "/qvm-remote-agent\n");
        qubesd_.emplace(machine_ + "/qubesd.sock", agent_ + " class=AppVM state=Running\n" +
                                                       shell_ + " class=AppVM state=Running\n");
    }

    void run() {
        // Run half of the rounds with each of the two programs that make a call.
        for (const bool by_qvm_run : {false, true}) {
            const std::string at = from_environment("QVMREMOTE_STANDINS");
            dom0_.use("qvm-run", from_environment("QVMREMOTE_QVM_RUN_PLUGINS"),
                      {"QVMREMOTE_STANDIN=" + machine_, "QVM_REMOTE_PROTOCOL=both",
                       "QVM_REMOTE_QVM_RUN_QVM_RUN=" + at + "/qvm-run",
                       "QVM_REMOTE_QVM_RUN_QREXEC_CLIENT=" +
                           (by_qvm_run ? "none" : at + "/qrexec-client"),
                       "QVM_REMOTE_QVM_RUN_QVM_CHECK=" + at + "/qvm-check",
                       "QVM_REMOTE_QVM_RUN_QUBESD=" + machine_ + "/qubesd.sock"});
            dom0_.start();
            wait_for_calls();
            if (!by_qvm_run) // after a first answer the client uses only protocol 2
                require(honest(connect_to(socket()), 'a')
                                .collect({.kind = request_kind::shell,
                                          .body = "true",
                                          .arguments = {},
                                          .environment = {},
                                          .id = {}})
                                .result.exit_code() == 0,
                        "a first command");
            while (asked_.goes_on(count_, by_qvm_run ? 1 : 0.5))
                round();
            if (!by_qvm_run)
                end_daemon();
        }
        send_again();
        dom0_.stop();
        require(eventually([&] { return processes_with(machine_).empty(); }),
                "processes are left over");
        require(read_file(machine_ + "/violations").empty(), "a call that is not allowed");
        std::printf(
            "%d results were whole, %d were reported as not; %zu IDs sent again, none ran\n",
            whole_, broken_, started_.size());
        for (const auto &[whom, n] : killed_)
            std::printf("%-26s %4d kills\n", victim_names[static_cast<std::size_t>(whom)], n);
        fell_.print();
    }

  private:
    [[nodiscard]] std::string home(const std::string &qube) const {
        return machine_ + "/qubes/" + qube + "/home";
    }
    [[nodiscard]] std::string queue(const std::string &qube, const std::string &name) const {
        return home(qube) + "/.qvm-remote/queue/" + name;
    }
    [[nodiscard]] std::string socket() const { return home(agent_) + "/.qvm-remote/agent.sock"; }

    // The process IDs of the call and of the first process in the qube; zeros without a call.
    [[nodiscard]] std::pair<pid_t, pid_t> call_of(const std::string &qube) const {
        std::error_code none;
        for (const auto &mark :
             std::filesystem::directory_iterator(machine_ + "/qubes/" + qube + "/calls", none)) {
            const std::string in_qube = read_file(mark.path());
            const auto call = static_cast<pid_t>(std::stol(mark.path().filename()));
            if (is_alive(call) && in_qube.ends_with('\n'))
                return {call, static_cast<pid_t>(std::stol(in_qube))};
            if (!is_alive(call)) // a killed call cannot remove its mark itself
                std::filesystem::remove(mark.path(), none);
        }
        return {};
    }
    void wait_for_calls() {
        for (const std::string &qube : {agent_, shell_})
            require(eventually([&] {
                        if (call_of(qube).first != 0)
                            return true;
                        qubesd_->say_started(qube); // ends the pause before the next call
                        ::usleep(20'000);
                        return false;
                    }),
                    "no call to " + qube);
        require(eventually([&] {
                    unique_fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
                    sockaddr_un address{};
                    address.sun_family = AF_UNIX;
                    std::strncpy(address.sun_path, socket().c_str(), sizeof address.sun_path - 1);
                    return ::connect(fd.get(), reinterpret_cast<sockaddr *>(&address),
                                     sizeof address) == 0;
                }),
                "no agent");
    }
    void end_daemon() {
        dom0_.kill_now();
        require(eventually([&] { return processes_with("QVMREMOTE_STANDIN=" + machine_).empty(); }),
                "a dead daemon leaves processes");
    }

    // Writes an entry as COMPAT-V1.md says.
    void leave(const std::string &qube, const command_id &id, const std::string &text) const {
        write_file(queue(qube, "pending/" + id.text()), text);
        write_file(queue(qube, "pending/" + id.text() + ".auth"), token_v1(key_of('a'), id));
    }

    // Waits for the part of the way in which the victim is to fall.
    void await(part aim, way by, const std::string &place, const std::string &result,
               off_t audit_before) {
        switch (aim) {
        case part::before_start: // the shell program looks every 250 ms
            ::usleep(static_cast<useconds_t>(random_() % (by == way::shell ? 100'000 : 1'000)));
            break;
        case part::start_to_exec:
            spin_until([&] { return size_of(dom0_.audit()) > audit_before; }, "START");
            break;
        case part::running:
            spin_until([&] { return size_of(place + "/ran") > 0; }, "the command");
            ::usleep(static_cast<useconds_t>(random_() % 8000));
            break;
        case part::exec_to_end:
            spin_until([&] { return exists(place + "/done"); }, "the command's end");
            break;
        case part::after:
            if (by != way::stream && random_() % 2) // between the last steps of the carrier
                spin_until([&] { return exists(result + ".exit"); }, "a result");
            else
                spin_until([&] { return read_records(dom0_.audit(), audit_before).ended; }, "END");
            ::usleep(static_cast<useconds_t>(random_() % 2 * (random_() % 2000)));
            break;
        }
    }
    void kill_victim(victim whom, way by, pid_t client, std::pair<pid_t, pid_t> of_call) {
        switch (whom) {
        case victim::client:
            ::kill(client, SIGKILL);
            break;
        case victim::in_qube: // the shell program is several processes
            ::kill(by == way::shell ? -of_call.second : of_call.second, SIGKILL);
            break;
        case victim::call:
            ::kill(of_call.first, SIGKILL);
            break;
        case victim::daemon:
            dom0_.kill_now();
            break;
        }
    }

    void round() {
        const int i = count_++;
        // A round with the shell program takes half a second, so do fewer of them.
        const unsigned turn = static_cast<unsigned>(random_() % 20);
        const way by = turn < 12 ? way::stream : turn < 19 ? way::entry : way::shell;
        const std::string qube = by == way::shell ? shell_ : agent_;
        // The test itself is the client of an entry, so it is not a victim.
        const auto whom =
            static_cast<victim>(by == way::stream ? random_() % 4 : 1 + random_() % 3);
        const part aim = fell_.rarest();
        ++killed_[whom];

        const std::string mark =
            "kills-" + std::to_string(::getpid()) + "-" + std::to_string(i) + "-";
        const std::string place = scratch_ / ("round-" + std::to_string(i));
        std::filesystem::create_directories(place);
        const std::string command = payload(mark, place, static_cast<int>(1 + random_() % 3));
        const std::pair<pid_t, pid_t> processes = call_of(qube);
        const pid_t call = processes.first, in_qube = processes.second;
        require(call != 0, "there is no call");

        const off_t audit_before = behind_last_line(dom0_.audit());
        const command_id id = host::client::make_id();
        const std::string result = queue(qube, "results/" + id.text());
        pid_t client = 0;
        if (by == way::stream) {
            const unique_fd out(
                ::open((place + "/out").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
            const unique_fd err(
                ::open((place + "/err").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
            client = spawn({from_environment("QVMREMOTE_CLIENT"), "-n", command},
                           {"HOME=" + home(agent_)}, out.get(), err.get());
        } else {
            leave(qube, id, command);
        }

        await(aim, by, place, result, audit_before);
        kill_victim(whom, by, client, processes);
        fell_.count(where_now(place, audit_before));
        const std::string acknowledged = by == way::stream ? "" : read_file(result + ".exit");

        if (whom == victim::in_qube || whom == victim::call) {
            require(eventually([&] {
                        return !exists("/proc/" + std::to_string(call)) && !is_alive(in_qube);
                    }),
                    "a broken call does not end");
        }
        if (whom == victim::daemon) {
            end_daemon();
            dom0_.start();
        }
        if (whom != victim::client)
            wait_for_calls();
        int status = 0;
        if (client != 0)
            require(eventually([&] { return ::waitpid(client, &status, WNOHANG) == client; }),
                    "the client hangs");
        const std::string in_round = "round " + std::to_string(i) + " (" +
                                     victim_names[static_cast<std::size_t>(whom)] + "): ";
        if (by != way::stream)
            require(eventually([&] {
                        return exists(result + ".exit") &&
                               !exists(queue(qube, "running/" + id.text()));
                    }),
                    in_round + "an entry is lost");
        require(eventually([&] { return survivors(mark).empty(); }), in_round + "leaves processes");
        records r;
        require(eventually([&] {
                    r = read_records(dom0_.audit(), audit_before);
                    return whom == victim::daemon || !r.id || r.ended;
                }),
                in_round + "a command without an END");

        const std::string ran = read_file(place + "/ran");
        require(ran.empty() || r.id.has_value(), in_round + "it ran, and no START says so (I8)");
        require(ran.empty() || ran == *r.id + "\n", in_round + "an ID ran twice (I2)");
        if (r.id)
            started_.push_back({qube, by, *r.id, place});
        if (by == way::stream)
            judge_client(in_round, whom, status, place, r);
        else
            judge_entry(in_round, result, place, acknowledged);
    }

    static part where_of(const records &r, const std::string &place) {
        if (!r.id)
            return part::before_start;
        if (size_of(place + "/ran") == 0)
            return part::start_to_exec;
        if (!exists(place + "/done"))
            return part::running;
        return r.ended ? part::after : part::exec_to_end;
    }
    part where_now(const std::string &place, off_t audit_before) const {
        return where_of(read_records(dom0_.audit(), audit_before), place);
    }

    void judge_client(const std::string &in_round, victim whom, int status,
                      const std::string &place, const records &r) {
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
            require(r.id && exists(place + "/done") && read_file(place + "/out") == whole_output(),
                    in_round + "0 for a result that is not whole (I10)");
            ++whole_;
            return;
        }
        ++broken_;
        if (whom == victim::client)
            return;
        const std::string err = read_file(place + "/err");
        require(WIFEXITED(status) && WEXITSTATUS(status) == 255 && err.starts_with("qvm-remote: "),
                in_round + "a lost result is not reported with 255 and a message: " + err);
        require(!r.id || (err.find(*r.id) != err.npos && err.find("may have run") != err.npos),
                in_round +
                    "the message does not say that the outcome is unknown, with the ID: " + err);
    }

    void judge_entry(const std::string &in_round, const std::string &result,
                     const std::string &place, const std::string &acknowledged) {
        const std::string code = read_file(result + ".exit");
        require(acknowledged.empty() || acknowledged == code,
                in_round + "an existing result has changed: " + acknowledged + ", " + code);
        if (code == "0") {
            require(exists(place + "/done") && read_file(result + ".out") == whole_output(),
                    in_round + "0 for a result that is not whole (I10)");
            ++whole_;
            return;
        }
        ++broken_;
        require(code == "130" && read_file(result + ".err").find("unknown") != std::string::npos,
                in_round + "the message does not say that the outcome is unknown: " + code + " " +
                    read_file(result + ".err"));
    }

    // Sends each ID that has begun again, correctly signed.
    void send_again() {
        std::optional<host::client> dom0(honest(connect_to(socket()), 'a'));
        std::vector<begun> left;
        for (const begun &each : started_) {
            const command_id id = command_id::parse(each.id).value();
            const std::string text = "echo again >> " + each.place + "/ran";
            if (each.by == way::stream) {
                const auto answer = dom0->collect({.kind = request_kind::shell,
                                                   .body = text,
                                                   .arguments = {},
                                                   .environment = {},
                                                   .id = id});
                require(answer.result.how == host::run_result::kind::refused &&
                            answer.result.reason == errc::id_used,
                        "a used ID was not refused (I2)");
            } else {
                const std::string result = queue(each.qube, "results/" + each.id);
                for (const char *suffix : {".out", ".err", ".exit", ".meta"})
                    ::unlink((result + suffix).c_str());
                leave(each.qube, id, text);
                left.push_back(each);
            }
        }
        for (const begun &each : left) {
            const std::string result = queue(each.qube, "results/" + each.id);
            require(eventually([&] { return exists(result + ".exit"); }), "an entry is lost");
            require(read_file(result + ".exit") == "126", "a used ID was not refused (I2)");
        }
        for (const begun &each : started_)
            require(read_file(each.place + "/ran").find("again") == std::string::npos,
                    "a used ID ran again (I2)");
    }

    const std::string agent_ = "work", shell_ = "old";
    effort asked_;
    int count_ = 0;
    scratch scratch_;
    daemon_under_test dom0_;
    std::string machine_;
    std::optional<qubesd> qubesd_;
    std::mt19937 random_{20260218};
    tally fell_;
    std::map<victim, int> killed_;
    std::vector<begun> started_;
    int whole_ = 0, broken_ = 0;
};

} // namespace

int main(int argc, char **argv) {
    ::signal(SIGPIPE, SIG_IGN);
    suite(effort(argc, argv, 500)).run();
    return 0;
}
