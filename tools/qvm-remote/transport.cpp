// SPDX-License-Identifier: GPL-2.0-or-later
// Finding the way to dom0: the configured transport, or a private daemon for the mock one. Apart from
// the rest, since the loader of plug-ins brings Boost.

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <qvmremote/host/environment.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/host/plugin.hpp>

#include "common/installed.hpp"
#include "remote.hpp"

extern char **environ;

namespace qvmremote::qube {

namespace {

constexpr int start_limit_ms = 15'000;

std::string own_directory() {
    std::error_code ec;
    return std::filesystem::read_symlink("/proc/self/exe", ec).parent_path().string();
}

// Where this program was built, if it runs from there: then the other programs are near.
std::string build_directory() {
    constexpr std::string_view place = "/tools/qvm-remote";
    std::string directory = own_directory();
    if (!directory.ends_with(place))
        return {};
    directory.resize(directory.size() - place.size());
    return directory;
}

// A tree that was built and not installed has the plug-ins of its own.
std::string plugin_directory(const settings &how) {
    if (!how.plugin_directory.empty())
        return how.plugin_directory;
    const std::string built = build_directory() + "/plugins/" + how.transport;
    return !build_directory().empty() && ::access(built.c_str(), F_OK) == 0 ? built
                                                                            : QVMREMOTE_PLUGIN_DIR;
}

// qvm-remote-dom0 below a directory of its own, serving one qube called "mock" over a socket there.
class private_daemon {
  public:
    private_daemon() = default;
    private_daemon(const private_daemon &) = delete;
    private_daemon &operator=(const private_daemon &) = delete;
    ~private_daemon() {
        if (pid_ > 0) {
            ::kill(pid_, SIGTERM);
            ::waitpid(pid_, nullptr, 0);
        }
        std::error_code ec;
        if (!root_.empty())
            std::filesystem::remove_all(root_, ec);
    }

    static host::outcome<std::string> program() {
        const std::string built = build_directory();
        for (const std::string &path :
             {built.empty() ? own_directory() + "/qvm-remote-dom0"
                            : built + "/tools/qvm-remote-dom0/qvm-remote-dom0",
              std::string(QVMREMOTE_LIBEXEC_DIR) + "/qvm-remote-dom0"})
            if (::access(path.c_str(), X_OK) == 0)
                return path;
        return host::failed("the mock transport needs qvm-remote-dom0, which is not installed "
                            "here: install qvm-remote-devel (Debian: qvm-remote-dev)");
    }

    host::outcome<secret> start(const std::string &program, const std::string &plugins) {
        std::array<char, 32> name{"/tmp/qvm-remote-XXXXXX"};
        if (!::mkdtemp(name.data()))
            return host::failed("cannot make a directory in /tmp", errno);
        root_ = name.data();

        secret_bytes<32> random;
        if (::getrandom(random.value().data(), random.value().size(), 0) != 32)
            return host::failed("the kernel has no random bytes yet");
        secret key = secret::from_random(random);
        const std::string keys = root_ + "/etc/qubes/remote.d";
        if (auto made = host::make_directories(keys, 0700); !made)
            return tl::unexpected(made.error());
        if (auto written = host::write_atomically(keys + "/mock.key", as_text(key.text()), 0600,
                                                  host::durability::unsynced);
            !written)
            return tl::unexpected(written.error());
        // Its qube may do all: it is this user, who could do it without.
        const std::string policy = root_ + "/etc/qubes/remote-policy.d";
        if (auto made = host::make_directories(policy, 0700); !made)
            return tl::unexpected(made.error());
        if (auto written =
                host::write_atomically(policy + "/50-mock.policy", "mock level:full allow\n", 0600,
                                       host::durability::unsynced);
            !written)
            return tl::unexpected(written.error());

        const std::string notify = root_ + "/notify";
        const host::unique_fd ready(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::memcpy(address.sun_path, notify.c_str(), notify.size());
        if (::bind(ready.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address) != 0)
            return host::failed("cannot listen at " + notify, errno);

        std::vector<std::string> words = {program,        "--root", root_,    "--transport", "mock",
                                          "--plugin-dir", plugins,  "--once", "--wait",      "60"};
        std::vector<std::string> variables = {"NOTIFY_SOCKET=" + notify,
                                              "QVM_REMOTE_MOCK_DIR=" + root_,
                                              "QVM_REMOTE_MOCK_PEERS=mock"};
        for (char **entry = environ; *entry; ++entry)
            if (const std::string_view e = *entry;
                !e.starts_with("NOTIFY_SOCKET=") && !e.starts_with("QVM_REMOTE_"))
                variables.emplace_back(e);
        if (auto spawned = spawn(words, variables); !spawned)
            return tl::unexpected(spawned.error());

        pollfd wait{ready.get(), POLLIN, 0};
        for (int waited = 0; ::poll(&wait, 1, 100) != 1; waited += 100) {
            int status = 0;
            if (::waitpid(pid_, &status, WNOHANG) == pid_) {
                pid_ = 0;
                return host::failed("the private daemon ended at once; it said why above");
            }
            if (waited > start_limit_ms)
                return host::failed("the private daemon does not come up");
        }
        return key;
    }

    [[nodiscard]] std::string socket() const { return root_ + "/mock.sock"; }

  private:
    host::outcome<void> spawn(std::vector<std::string> &words,
                              std::vector<std::string> &variables) {
        const auto pointers = [](std::vector<std::string> &texts) {
            std::vector<char *> out;
            for (std::string &text : texts)
                out.push_back(text.data());
            out.push_back(nullptr);
            return out;
        };
        posix_spawn_file_actions_t actions;
        posix_spawnattr_t attributes;
        ::posix_spawn_file_actions_init(&actions);
        ::posix_spawnattr_init(&attributes);
        ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDWR, 0);
        ::posix_spawn_file_actions_adddup2(&actions, STDIN_FILENO, STDOUT_FILENO);
        // A Ctrl-C is ours to forward; our SIGPIPE is not the daemon's.
        ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF);
        sigset_t set;
        sigfillset(&set);
        ::posix_spawnattr_setsigdefault(&attributes, &set);
        const int error = ::posix_spawn(&pid_, words[0].c_str(), &actions, &attributes,
                                        pointers(words).data(), pointers(variables).data());
        ::posix_spawnattr_destroy(&attributes);
        ::posix_spawn_file_actions_destroy(&actions);
        if (error != 0) {
            pid_ = 0;
            return host::failed("cannot start " + words[0], error);
        }
        return {};
    }

    std::string root_;
    pid_t pid_ = 0;
};

} // namespace

tl::expected<access, no_access> open_access(const settings &how, const home &where) {
    const auto refuse = [](const host::failure &why, int exit_code) {
        return tl::unexpected(no_access{why.what, exit_code});
    };
    access out;
    auto options = host::options_of(how.values, how.transport);
    const bool has_socket = std::any_of(options.begin(), options.end(),
                                        [](const auto &o) { return o.first == "socket"; });
    if (how.transport == "mock" && !has_socket) {
        const auto program = private_daemon::program();
        if (!program)
            return refuse(program.error(), 1);
        auto daemon = std::make_shared<private_daemon>();
        auto key = daemon->start(*program, plugin_directory(how));
        if (!key)
            return refuse(key.error(), 255);
        out.key.emplace(std::move(*key));
        options.emplace_back("socket", daemon->socket());
        out.private_daemon = std::move(daemon);
    } else {
        auto key = where.load_key();
        if (!key)
            return refuse(key.error(), 1);
        out.key.emplace(std::move(*key));
    }
    // The default one is compiled in: it is a socket and no more, and loading it would cost more
    // than using it.
    auto opened =
        how.transport == "qvm-run" && how.plugin_directory.empty()
            ? host::transport::from_table(&qvmremote_transport_qvm_run, host::role::qube, options)
            : host::transport::load(plugin_directory(how), how.transport, host::role::qube,
                                    options);
    if (!opened)
        return refuse(opened.error(), 1);
    out.transport.emplace(std::move(*opened));
    return out;
}

} // namespace qvmremote::qube
