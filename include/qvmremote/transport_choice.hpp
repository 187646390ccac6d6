// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Which way a command takes to dom0: a stream of its transport, or the queue of protocol 1; and how
/// long it waits. What is known is given, and nothing is looked up.

#pragma once

#include <cerrno>
#include <cstdint>
#include <string_view>

namespace qvmremote {

/// Which protocols may be used: QVM_REMOTE_PROTOCOL.
enum class allowed_protocol : std::uint8_t { any, one, two };

/// Whether each stream is a call of its own. It may have to wait until other calls of this user end,
/// and until a person answers the question of qrexec's policy.
[[nodiscard]] constexpr bool is_call(std::string_view transport) noexcept {
    return transport == "qrexec";
}

/// What the choice depends on.
struct way_terms {
    std::string_view transport;
    allowed_protocol version = allowed_protocol::any;
    bool is_pinned = false;        ///< dom0 has used protocol 2 with this key
    bool fits_protocol_1 = false;  ///< protocol 1 can carry the command
    std::uint64_t patience_ms = 0; ///< how long to try again; qvm-run has limits of its own

    /// Protocol 1 carries commands as files, which qvm-run fetches.
    [[nodiscard]] constexpr bool has_queue() const noexcept { return transport == "qvm-run"; }
};

enum class next_way : std::uint8_t {
    stream,  ///< connect
    queue,   ///< use protocol 1
    refused, ///< end: it does not help to try again
    too_late ///< end: nobody has answered in time
};

/// Until the agent listens, after `authorize` or after the start of the qube.
inline constexpr std::uint64_t agent_start_ms = 3'000;
/// How long to wait for an agent that dom0 may be starting.
inline constexpr std::uint64_t agent_patience_ms = 30'000;

/// Before the first try.
[[nodiscard]] constexpr next_way first_way(const way_terms &terms) noexcept {
    return terms.has_queue() && terms.version == allowed_protocol::one ? next_way::queue
                                                                       : next_way::stream;
}

/// After a try that failed with an error of errno, `waited_ms` after the first one.
[[nodiscard]] constexpr next_way way_after(int error, std::uint64_t waited_ms,
                                           const way_terms &terms) noexcept {
    const bool has_queue = terms.has_queue();
    if (error != ECONNREFUSED || !(has_queue || is_call(terms.transport)))
        return next_way::refused;
    if (has_queue && terms.version == allowed_protocol::any && !terms.is_pinned &&
        (terms.fits_protocol_1 || waited_ms >= agent_start_ms))
        return next_way::queue;
    // Do not fall back to protocol 1 at once: between two calls of dom0 there is no agent for a
    // moment, and an attacker could force a downgrade by making the agent unavailable.
    return waited_ms >= (has_queue ? agent_patience_ms : terms.patience_ms) ? next_way::too_late
                                                                            : next_way::stream;
}

/// The exit code of a client that could use neither a stream nor the queue.
[[nodiscard]] constexpr int exit_code_of(next_way end, int error, const way_terms &terms) noexcept {
    if (end == next_way::refused)
        return error == EACCES ? 126 : 255;
    // A call is refused when this user has as many as there may be: a slot of the qube's own.
    return is_call(terms.transport) ? 124 : 255;
}

} // namespace qvmremote
