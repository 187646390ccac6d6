// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A transport as the host sees it: the C table of transport_abi.h, checked, owned and in our
/// types.

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
/// ("qvm-run", "QVM_REMOTE_QVM_RUN_USER") gives "user". None when the key is not that transport's.
[[nodiscard]] inline std::optional<std::string> option_name(std::string_view name,
                                                            std::string_view configuration_key);

/// Bytes both ways and who is at the other end, as the transport proves it (invariant I3).
/// `in` and `out` are two descriptors even for one socket, so closing one does not end a direction
/// of it; shut it down.
struct stream {
    unique_fd in;
    unique_fd out;
    std::string peer;       ///< the qube in dom0, "dom0" in a qube
    std::string argument{}; ///< in dom0 what the platform's call was made with; empty elsewhere
};

/// One opened transport in one role. Move-only; it closes itself, then lets go of its library.
/// Use it from one thread at a time.
///
/// The failures of what the plug-in does carry its own words, made safe for a terminal, and as
/// error_number: EINVAL for a bad option, ECONNREFUSED when nobody is at the other end now (later
/// there may be), EACCES when the platform forbids it, EPROTO when the plug-in broke the contract,
/// EIO otherwise.
class transport {
  public:
    /// A plug-in: NAME.so in `directory`, both checked by open_trusted. Nothing of the file runs
    /// until its symbol table lists QVMREMOTE_TRANSPORT_SYMBOL. The body is in host/plugin.hpp, so
    /// that a program which only has compiled-in transports needs no Boost.
    [[nodiscard]] static outcome<transport> load(const std::string &directory,
                                                 const std::string &name, role as,
                                                 const transport_options &options);

    /// One that is compiled in. `table` outlives the transport.
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

    /// Role qube: a stream to dom0. May block for 15 s.
    [[nodiscard]] outcome<stream> connect();

    /// Role qube: why the stream that connect() gave last ended before a byte came from it, as
    /// connect() would have failed; nothing when the transport knows no more than that it did.
    [[nodiscard]] std::optional<failure> explain();

    /// Role dom0, once: a descriptor that is readable when accept has something to do. Borrowed:
    /// the transport closes it.
    [[nodiscard]] outcome<int> listen();

    /// Role dom0: the next stream, none when all is done for now. Never blocks. After a failure the
    /// transport is as good as before; wait a moment before asking again, as what caused it may
    /// last.
    [[nodiscard]] outcome<std::optional<stream>> accept();

    /// Role dom0: all qubes that are authorised now. A transport that only listens has no use for
    /// them: then takes_peers() is false and this does nothing.
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

    // First, so that it goes last: close() above is code of the library.
    std::shared_ptr<const void> library_;
    qvmremote_transport_ops ops_{}; // a copy in our size: what the plug-in does not have is null
    void *self_ = nullptr;
    role role_ = role::qube;
    std::string name_;
};

} // namespace qvmremote::host

#include <qvmremote/host/detail/transport_inl.hpp>
