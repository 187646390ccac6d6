// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A transport in C++ types: checks the C table of transport_abi.h and owns what it opens.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/transport_abi.h>

namespace qvmremote::host {

/// Which end of a transport this process is.
enum class role : std::uint32_t { qube = QVMREMOTE_ROLE_QUBE, dom0 = QVMREMOTE_ROLE_DOM0 };

/// Options by name, in the spelling of transport_abi.h ("fault-range").
using transport_options = std::vector<std::pair<std::string, std::string>>;

/// The option that a configuration key sets for the transport `name`:
/// ("qvm-run", "QVM_REMOTE_QVM_RUN_USER") gives "user". Returns nothing for a key that does not begin
/// with this transport's prefix (QVM_REMOTE_QVM_RUN_), or is only the prefix.
[[nodiscard]] inline std::optional<std::string> option_name(std::string_view name,
                                                            std::string_view configuration_key);

/// A stream in both directions, and the name of the other end, as the transport proves it (invariant
/// I3, doc/SECURITY.md). If `in` and `out` are one socket, they are still two descriptors. Closing
/// one of them then does not end a direction: call ::shutdown.
struct stream {
    unique_fd in;
    unique_fd out;
    std::string peer;       ///< in dom0: the name of the qube; in a qube: "dom0"
    std::string argument{}; ///< in dom0: the argument of a qrexec call, if any; in a qube: empty
};

/// One opened transport in one role. Move-only; it closes itself, and then unloads its library.
/// Use it from one thread at a time.
///
/// A failure that the plug-in reports has the plug-in's text, made safe for a terminal. Its
/// error_number is EINVAL for a bad option, ECONNREFUSED when nobody is at the other end now (a later
/// try may succeed), EACCES when the platform forbids it, or EIO when the machine failed. EPROTO means
/// that the plug-in broke its contract. A call for the other role fails with 0.
class transport {
  public:
    /// Loads the plug-in `name`.so from `directory`; open_trusted checks both. No code of the file runs
    /// before its symbol table is found to list QVMREMOTE_TRANSPORT_SYMBOL. Fails with EINVAL for a bad
    /// name, with ENOENT if the file is missing, as open_trusted does, or as the plug-in does. The body
    /// is in host/plugin.hpp, so that a program with only compiled-in transports needs no Boost.
    [[nodiscard]] static outcome<transport> load(const std::string &directory,
                                                 const std::string &name, role as,
                                                 const transport_options &options);

    /// A compiled-in transport. `table` must outlive it.
    [[nodiscard]] static outcome<transport> from_table(const qvmremote_transport_ops *table,
                                                       role as, const transport_options &options) {
        return from_table(table, nullptr, {}, as, options);
    }

    transport(transport &&other) noexcept { swap(other); }
    transport &operator=(transport &&other) noexcept {
        transport(std::move(other)).swap(*this);
        return *this;
    }
    transport(const transport &) = delete;
    transport &operator=(const transport &) = delete;
    ~transport() {
        if (self_ != nullptr)
            ops_.close(self_);
    }

    [[nodiscard]] const std::string &name() const noexcept { return name_; }

    /// Role qube: connects to dom0. May block for 15 s.
    [[nodiscard]] outcome<stream> connect();

    /// Role qube: why the last stream of connect() ended before a byte came from it, as a failure of
    /// connect() would say it; nothing when the transport does not know. May block for a second.
    [[nodiscard]] std::optional<failure> explain();

    /// Role dom0; call it once. Returns a descriptor that is readable when accept has something to do.
    /// The transport owns the descriptor and closes it.
    [[nodiscard]] outcome<int> listen();

    /// Role dom0: the next stream, or none when nothing is left to do now. Never blocks. After a
    /// failure the transport still works; wait a moment before the next call, since the cause may
    /// last.
    [[nodiscard]] outcome<std::optional<stream>> accept();

    /// Role dom0: tells the transport all qubes that are authorised now; the list replaces the one
    /// before. A transport that only listens does not need them: then takes_peers() is false, and
    /// set_peers() does nothing.
    [[nodiscard]] outcome<void> set_peers(std::span<const std::string> names);
    [[nodiscard]] bool takes_peers() const noexcept { return ops_.set_peers != nullptr; }

  private:
    transport() noexcept = default;
    [[nodiscard]] static outcome<transport> from_table(const qvmremote_transport_ops *table,
                                                       std::shared_ptr<const void> library,
                                                       std::string_view configured_name, role as,
                                                       const transport_options &options);
    [[nodiscard]] tl::unexpected<failure> plugin_failed(const char *function, std::int32_t status,
                                                        const char *text) const;
    [[nodiscard]] tl::unexpected<failure> contract_broken(const char *how) const;
    [[nodiscard]] outcome<stream> take(const qvmremote_stream &given, std::string peer) const;

    void swap(transport &other) noexcept {
        std::swap(library_, other.library_);
        std::swap(ops_, other.ops_);
        std::swap(self_, other.self_);
        std::swap(role_, other.role_);
        std::swap(name_, other.name_);
    }

    // First, so that it is destroyed last: close() above is code of the library.
    std::shared_ptr<const void> library_;
    qvmremote_transport_ops
        ops_{}; // a copy of the plug-in's table; functions that it lacks are null
    void *self_ = nullptr;
    role role_ = role::qube;
    std::string name_;
};

} // namespace qvmremote::host

#include <qvmremote/host/detail/transport_inl.hpp>
