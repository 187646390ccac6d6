// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The transport for tests and first tries: UNIX sockets on one machine, peers by configuration.
///
/// Options in dom0: `dir`, where NAME.sock is made for each name in `peers` (separated by blanks), and
/// for each that set_peers names. A test can configure a peer that is not authorised, as a stranger. In
/// a qube: `socket`, one of these. In both: `fault`, a list like "cut:100,in:delay:5" (faults.hpp);
/// `seed` for random values; `fault-range`, the upper limit for '?'.
///
/// It only checks the user of a process that connects: any process of this user may be any peer.

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <list>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/bytes.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/host/unix_socket.hpp>
#include <qvmremote/transport_abi.h>

#include "../common/border.hpp"
#include "faults.hpp"

namespace mock {
namespace {

using plugins::guarded;
using plugins::problem;
using qvmremote::host::trusted;
using qvmremote::host::unix_address;

[[noreturn]] void fail(int32_t status, std::string text) { throw problem{status, std::move(text)}; }

[[noreturn]] void fail_errno(const std::string &what) {
    fail(QVMREMOTE_FAILED, what + ": " + std::strerror(errno));
}

// The form of a peer's name. The name becomes a file name, so any other form is refused.
bool is_name(std::string_view name) {
    return !name.empty() && name.size() < sizeof(qvmremote_stream::peer) &&
           qvmremote::is_alpha(name[0]) && std::all_of(name.begin(), name.end(), [](char c) {
               return qvmremote::is_alnum(c) || c == '_' || c == '-' || c == '.';
           });
}

std::vector<std::string> split(std::string_view text, char separator) {
    std::vector<std::string> out;
    while (!text.empty()) {
        const std::size_t end = std::min(text.find(separator), text.size());
        if (end != 0)
            out.emplace_back(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    return out;
}

unix_address address_of(const std::string &path, const char *option) {
    const auto out = unix_address::of_path(path);
    if (!out)
        fail(QVMREMOTE_BAD_OPTION, std::string("option '") + option + "': " + out.error().what);
    return *out;
}

// Only our own user and root may connect: the mode of the socket allows no others, and this checks
// again.
bool is_our_user(int socket) {
    ucred who{};
    socklen_t size = sizeof who;
    return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0 &&
           (who.uid == ::geteuid() || who.uid == 0);
}

class transport {
  public:
    transport(const qvmremote_options &options, uint32_t role)
        : is_dom0_(role == QVMREMOTE_ROLE_DOM0) {
        std::vector<std::string> peers;
        std::uint64_t seed = 1;
        for (uint32_t i = 0; i < options.count; ++i) {
            const std::string key = options.items[i].key;
            const std::string value = options.items[i].value;
            if (is_dom0_ && key == "dir")
                directory_ = value;
            else if (is_dom0_ && key == "peers")
                peers = split(value, ' ');
            else if (!is_dom0_ && key == "socket")
                socket_ = value;
            else if (key == "fault")
                faults_ = parse_faults(value);
            else if (key == "seed")
                seed = number(key, value);
            else if (key == "fault-range")
                fault_range_ = number(key, value);
            else
                fail(QVMREMOTE_BAD_OPTION, "unknown option '" + key + "': the options here are " +
                                               (is_dom0_ ? "dir, peers" : "socket") +
                                               ", fault, seed, fault-range");
        }
        random_ = prng(seed);
        if (fault_range_ == 0)
            fail(QVMREMOTE_BAD_OPTION, "option 'fault-range' is 0; choose 1 or more");
        if (is_dom0_) {
            if (directory_.empty())
                fail(QVMREMOTE_BAD_OPTION, "option 'dir' is missing; name a directory for sockets");
            configured_ = std::move(peers);
            name_peers({}, "option 'peers'");
        } else {
            if (socket_.empty())
                fail(QVMREMOTE_BAD_OPTION, "option 'socket' is missing; name the daemon's socket");
            static_cast<void>(address_of(socket_, "socket"));
        }
        stop_.reset(::eventfd(0, EFD_CLOEXEC));
        if (!stop_)
            fail_errno("cannot make an event descriptor");
    }
    transport(const transport &) = delete;
    transport &operator=(const transport &) = delete;

    ~transport() {
        ::eventfd_write(stop_.get(), 1);
        relays_.clear(); // joins
        for (const auto &[name, socket] : listening_)
            ::unlink(path_of(name).c_str());
    }

    void connect(qvmremote_stream &out) {
        auto made = qvmremote::host::connect_unix(address_of(socket_, "socket"));
        if (!made) {
            const auto &why = made.error();
            if (why.error_number == ENOENT || why.error_number == ECONNREFUSED)
                fail(QVMREMOTE_UNREACHABLE,
                     "nobody listens at " + socket_ + "; start a daemon with this transport");
            if (why.error_number == EACCES)
                fail(QVMREMOTE_REFUSED, socket_ + " belongs to another user; run as that user");
            fail(QVMREMOTE_FAILED, why.what);
        }
        if (!is_our_user(made->get()))
            fail(QVMREMOTE_REFUSED, "the process that listens at " + socket_ +
                                        " runs as neither this user nor root; "
                                        "find out who made that socket");
        give(std::move(*made), "dom0", out);
    }

    int32_t listen() {
        if (auto made = qvmremote::host::make_directories(directory_, 0700); !made)
            fail(QVMREMOTE_BAD_OPTION, "option 'dir': " + made.error().what);
        if (auto open = qvmremote::host::open_trusted(directory_, trusted::directory); !open)
            fail(QVMREMOTE_BAD_OPTION, "option 'dir': " + open.error().what);
        epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
        if (!epoll_)
            fail_errno("cannot make an epoll descriptor");
        open_sockets();
        return epoll_.get();
    }

    // A list with a bad name changes nothing.
    void name_peers(std::vector<std::string> names, const char *whose) {
        names.insert(names.end(), configured_.begin(), configured_.end());
        std::sort(names.begin(), names.end());
        names.erase(std::unique(names.begin(), names.end()), names.end());
        for (const std::string &name : names) {
            if (!is_name(name))
                fail(QVMREMOTE_BAD_OPTION, std::string(whose) + ": '" + name +
                                               "' is not a qube's name; use letters, digits, "
                                               "'_', '-', '.', a letter first");
            address_of(path_of(name), "dir");
        }
        names_ = std::move(names);
        if (epoll_)
            open_sockets();
    }

    int32_t accept(qvmremote_stream &out) {
        // Closes the connections of users who may not connect, only some at a time, since the host has
        // other work.
        for (int turned_away = 0; turned_away < 64; ++turned_away) {
            epoll_event event{};
            const int ready = ::epoll_wait(epoll_.get(), &event, 1, 0);
            if (ready < 0 && errno != EINTR)
                fail_errno("cannot ask for connections");
            if (ready <= 0)
                return QVMREMOTE_AGAIN;
            const auto socket =
                std::find_if(listening_.begin(), listening_.end(),
                             [&](const auto &row) { return row.second.get() == event.data.fd; });
            if (socket == listening_.end())
                continue;
            unique_fd made(::accept4(event.data.fd, nullptr, nullptr, SOCK_CLOEXEC));
            if (!made && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
                fail_errno("cannot accept a connection from " + socket->first);
            if (!made || !is_our_user(made.get()))
                continue;
            give(std::move(made), socket->first, out);
            return QVMREMOTE_OK;
        }
        return QVMREMOTE_AGAIN;
    }

  private:
    static std::uint64_t number(const std::string &key, const std::string &value) {
        const auto out = qvmremote::parse_decimal<std::uint64_t>(value);
        if (!out)
            fail(QVMREMOTE_BAD_OPTION, "option '" + key + "': '" + value + "' is not a number");
        return *out;
    }

    static std::vector<fault> parse_faults(const std::string &value) {
        std::vector<fault> out;
        for (const std::string &item : split(value, ',')) {
            const auto parsed = parse_fault(item);
            if (!parsed)
                fail(QVMREMOTE_BAD_OPTION,
                     "option 'fault': '" + item +
                         "' is not of the form [in:|out:]KIND:N; KIND is "
                         "delay (N milliseconds, an hour at most), cut, corrupt, duplicate, stall "
                         "or split (N a byte's number or '?')");
            out.push_back(*parsed);
        }
        return out;
    }

    [[nodiscard]] std::string path_of(const std::string &name) const {
        return directory_ + "/" + name + ".sock";
    }

    // Makes and removes sockets, so that there is one for each of names_.
    void open_sockets() {
        for (auto at = listening_.begin(); at != listening_.end();) {
            if (std::binary_search(names_.begin(), names_.end(), at->first)) {
                ++at;
                continue;
            }
            ::unlink(path_of(at->first).c_str());
            at = listening_.erase(at); // this closes it, so epoll forgets it
        }
        for (const std::string &name : names_) {
            if (listening_.contains(name))
                continue;
            unique_fd made = open_socket(path_of(name));
            epoll_event event{};
            event.events = EPOLLIN;
            event.data.fd = made.get();
            if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, made.get(), &event) != 0)
                fail_errno("cannot watch a socket");
            listening_.emplace(name, std::move(made));
        }
    }

    static unique_fd open_socket(const std::string &path) {
        const unix_address address = address_of(path, "dir");
        // A socket without a listener was left by a daemon that was killed.
        const auto probe = qvmremote::host::connect_unix(address);
        if (probe)
            fail(QVMREMOTE_FAILED, "another daemon listens at " + path + "; end it first");
        if (probe.error().error_number == ECONNREFUSED) {
            struct stat at {};
            if (::lstat(path.c_str(), &at) == 0 && S_ISSOCK(at.st_mode))
                ::unlink(path.c_str());
        }
        auto out = qvmremote::host::listen_unix(address, 0600, 128);
        if (!out)
            fail(QVMREMOTE_FAILED, out.error().what);
        return std::move(*out);
    }

    // Without faults the host gets the socket itself, without a relay.
    void give(unique_fd made, const std::string &peer, qvmremote_stream &out) {
        if (!faults_.empty()) {
            relays_.remove_if([](const relay &r) { return r.is_over(); });
            int ends[2];
            if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
                fail_errno("cannot make a socket pair");
            unique_fd host_side(ends[0]);
            relays_.emplace_back(unique_fd(ends[1]), std::move(made),
                                 faulty_stream(faults_, random_, fault_range_), stop_.get());
            made = std::move(host_side);
        }
        std::memcpy(out.peer, peer.c_str(), peer.size() + 1);
        out.in_fd = out.out_fd = made.release();
    }

    bool is_dom0_;
    std::string directory_;
    std::string socket_;
    std::vector<std::string> configured_;
    std::vector<std::string> names_; // sorted
    std::vector<fault> faults_;
    std::uint64_t fault_range_ = 4096;
    prng random_{1};
    unique_fd epoll_;
    unique_fd stop_;
    std::map<std::string, unique_fd> listening_;
    std::list<relay> relays_;
};

transport &from(void *self) { return *static_cast<transport *>(self); }

extern "C" {
int32_t mock_open(const qvmremote_options *options, uint32_t role, void **self, char *error,
                  uint32_t error_size) {
    return guarded(error, error_size, [&] {
        *self = new transport(*options, role);
        return QVMREMOTE_OK;
    });
}

void mock_close(void *self) {
    guarded(nullptr, 0, [&] {
        delete &from(self);
        return QVMREMOTE_OK;
    });
}

int32_t mock_connect(void *self, qvmremote_stream *out, char *error, uint32_t error_size) {
    return guarded(error, error_size, [&] {
        from(self).connect(*out);
        return QVMREMOTE_OK;
    });
}

int32_t mock_listen(void *self, int32_t *event_fd, char *error, uint32_t error_size) {
    return guarded(error, error_size, [&] {
        *event_fd = from(self).listen();
        return QVMREMOTE_OK;
    });
}

int32_t mock_accept(void *self, qvmremote_stream *out, char *error, uint32_t error_size) {
    return guarded(error, error_size, [&] { return from(self).accept(*out); });
}

int32_t mock_set_peers(void *self, const char *const *names, uint32_t count, char *error,
                       uint32_t error_size) {
    return guarded(error, error_size, [&] {
        from(self).name_peers({names, names + count}, "peers");
        return QVMREMOTE_OK;
    });
}
}

} // namespace
} // namespace mock

const qvmremote_transport_ops QVMREMOTE_TRANSPORT_TABLE = {
    sizeof(qvmremote_transport_ops),
    QVMREMOTE_TRANSPORT_ABI,
    "mock",
    QVMREMOTE_ROLE_QUBE | QVMREMOTE_ROLE_DOM0,
    0,
    mock::mock_open,
    mock::mock_close,
    mock::mock_connect,
    mock::mock_listen,
    mock::mock_accept,
    mock::mock_set_peers,
    nullptr,
};
