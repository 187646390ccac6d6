// SPDX-License-Identifier: GPL-2.0-or-later
// Finds the way to dom0: the configured transport, or a private daemon for the mock one. It is a file
// of its own because the loader of plug-ins needs Boost.

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>

#include <fcntl.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <qvmremote/host/child.hpp>
#include <qvmremote/host/environment.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/host/plugin.hpp>
#include <qvmremote/host/unix_socket.hpp>

#include "common/installed.hpp"
#include "reach.hpp"
#include "terminal.hpp"

namespace qvmremote::qube {

namespace {

constexpr int start_limit_ms = 15'000;
constexpr int agent_look_ms = 100;

std::string own_directory() {
    std::error_code ec;
    return std::filesystem::read_symlink("/proc/self/exe", ec).parent_path().string();
}

} // namespace

std::string build_directory() {
    constexpr std::string_view place = "/tools/qvm-remote";
    std::string directory = own_directory();
    if (!directory.ends_with(place))
        return {};
    directory.resize(directory.size() - place.size());
    return directory;
}

std::string plugin_directory(const settings &how) {
    if (!how.plugin_directory.empty())
        return how.plugin_directory;
    const std::string built = build_directory() + "/plugins/" + how.transport;
    return !build_directory().empty() && ::access(built.c_str(), F_OK) == 0 ? built
                                                                            : QVMREMOTE_PLUGIN_DIR;
}

namespace {

// A qvm-remote-dom0 with a directory of its own. It serves one qube, "mock", over a socket there.
class private_daemon {
  public:
    private_daemon() = default;
    private_daemon(const private_daemon &) = delete;
    private_daemon &operator=(const private_daemon &) = delete;
    ~private_daemon() {
        if (process_) {
            process_->signal(SIGTERM);
            process_->wait();
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
            return host::failed("the kernel has no random bytes yet: try again in a minute");
        secret key = secret::from_random(random);
        const std::string keys = root_ + "/etc/qubes/remote.d";
        if (auto made = host::make_directories(keys, 0700); !made)
            return tl::unexpected(made.error());
        if (auto written = host::write_atomically(keys + "/mock.key", as_text(key.text()), 0600,
                                                  host::durability::unsynced);
            !written)
            return tl::unexpected(written.error());
        // The qube may run everything: its commands run as this user, who can run them anyway.
        const std::string policy = root_ + "/etc/qubes/remote-policy.d";
        if (auto made = host::make_directories(policy, 0700); !made)
            return tl::unexpected(made.error());
        if (auto written =
                host::write_atomically(policy + "/50-mock.policy", "mock level:full allow\n", 0600,
                                       host::durability::unsynced);
            !written)
            return tl::unexpected(written.error());

        const std::string notify = root_ + "/notify";
        const auto address = host::unix_address::of_path(notify);
        if (!address)
            return tl::unexpected(address.error());
        const auto ready = host::bind_unix(*address, SOCK_DGRAM, 0600);
        if (!ready)
            return tl::unexpected(ready.error());

        host::child_plan plan;
        plan.argv = {program,        "--root", root_,    "--transport", "mock",
                     "--plugin-dir", plugins,  "--once", "--wait",      "60"};
        plan.err = STDERR_FILENO;
        plan.group = host::child_group::own; // we forward a Ctrl-C ourselves
        plan.environment = {"NOTIFY_SOCKET=" + notify, "QVM_REMOTE_MOCK_DIR=" + root_,
                            "QVM_REMOTE_MOCK_PEERS=mock"};
        for (char **entry = environ; *entry; ++entry)
            if (const std::string_view e = *entry;
                !e.starts_with("NOTIFY_SOCKET=") && !e.starts_with("QVM_REMOTE_"))
                plan.environment->emplace_back(e);
        auto started = host::child::start(plan);
        if (!started)
            return tl::unexpected(started.error());
        process_.emplace(std::move(*started));

        pollfd wait{ready->get(), POLLIN, 0};
        for (int waited = 0; ::poll(&wait, 1, 100) != 1; waited += 100) {
            if (process_->take_end())
                return host::failed("the private daemon ended at once; its message is above");
            if (waited > start_limit_ms)
                return host::failed("the private daemon did not start within " +
                                    std::to_string(start_limit_ms / 1000) + " s: try again");
        }
        return key;
    }

    [[nodiscard]] std::string socket() const { return root_ + "/mock.sock"; }

  private:
    std::string root_;
    std::optional<host::child> process_;
};

} // namespace

bool has_compiled_in_transport(const settings &how) {
    return how.transport == "qvm-run" && how.plugin_directory.empty();
}

bool has_daemon(const settings &how) {
    const auto options = host::options_of(how.values, how.transport);
    return std::any_of(options.begin(), options.end(),
                       [](const auto &o) { return o.first == "socket"; });
}

tl::expected<access, no_access> open_access(const settings &how, const home &where) {
    const auto refuse = [](error_name name, const host::failure &why, int exit_code) {
        return tl::unexpected(no_access{name, why.what, exit_code});
    };
    access out;
    auto options = host::options_of(how.values, how.transport);
    if (how.transport == "mock" && !has_daemon(how)) {
        const auto program = private_daemon::program();
        if (!program)
            return refuse(fault::transport_unusable, program.error(), 1);
        auto daemon = std::make_shared<private_daemon>();
        auto key = daemon->start(*program, plugin_directory(how));
        if (!key)
            return refuse(fault::unreachable, key.error(), 255);
        out.key.emplace(std::move(*key));
        options.emplace_back("socket", daemon->socket());
        out.private_daemon = std::move(daemon);
    } else {
        auto key = where.load_key();
        if (!key)
            return refuse(home::fault_of_key(key.error()), key.error(), 1);
        out.key.emplace(std::move(*key));
    }
    // The default transport is compiled in: it only opens a socket, and loading a plug-in takes longer.
    auto opened =
        has_compiled_in_transport(how)
            ? host::transport::from_table(&qvmremote_transport_qvm_run, host::role::qube, options)
            : host::transport::load(plugin_directory(how), how.transport, host::role::qube,
                                    options);
    if (!opened)
        return refuse(fault::transport_unusable, opened.error(), 1);
    out.transport.emplace(std::move(*opened));
    return out;
}

tl::expected<route, no_access> find_route(const settings &how, const home &where,
                                          std::uint64_t patience_ms, bool by_protocol_1,
                                          int signal_fd) {
    auto way = open_access(how, where);
    if (!way)
        return tl::unexpected(way.error());
    route out{std::move(*way), {}};
    way_terms terms{how.transport, how.version, false, by_protocol_1, patience_ms};
    if (first_way(terms) == next_way::queue)
        return out;
    const std::uint64_t begin_ms = host::awake_ms();
    std::optional<waiting_line> shown;
    for (;;) {
        auto stream = out.way.transport->connect();
        if (stream) {
            out.stream.emplace(std::move(*stream));
            return out;
        }
        const int error = stream.error().error_number;
        terms.is_pinned = where.is_pinned(); // another client may have done it meanwhile
        const next_way next = way_after(error, host::awake_ms() - begin_ms, terms);
        if (next == next_way::queue)
            return out;
        if (next != next_way::stream) {
            std::string why = stream.error().what;
            if (next == next_way::too_late && terms.has_queue() &&
                how.version == allowed_protocol::any && terms.is_pinned)
                why += "; dom0 has used protocol 2 with this key before, so protocol 1 is not "
                       "used: if dom0 now has a program without protocol 2, remove " +
                       where.pin_file();
            const int code = exit_code_of(next, error, terms);
            if (code == 124)
                why = "command timed out: " + why;
            return tl::unexpected(no_access{code == 124 ? fault::timed_out
                                            : code == 126 && is_call(how.transport)
                                                ? fault::qubes_denied
                                                : fault::unreachable,
                                            why, code});
        }
        if (is_call(how.transport)) {
            if (!shown)
                shown.emplace(::isatty(STDERR_FILENO) && !how.quiet);
            shown->set("waiting for a call to dom0: " + stream.error().what);
            shown->tick();
        }
        pollfd signal{signal_fd, POLLIN, 0};
        std::uint8_t number = 0;
        // Ask a transport again at once if it waits by itself.
        if (::poll(&signal, 1, terms.has_queue() ? agent_look_ms : 0) > 0 &&
            ::read(signal_fd, &number, 1) == 1)
            return tl::unexpected(no_access{fault::interrupted,
                                            "interrupted before a command was sent", 128 + number});
    }
}

} // namespace qvmremote::qube
