// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The view of dom0 that a command under a dedicated account gets.
///
/// In dom0 an account alone is no boundary: polkit says yes to everybody there, so whoever reaches the
/// system bus can have systemd start a root unit, and whoever reaches qubesd's socket has the Admin API.
/// A confined process has a mount namespace in which /run is empty, and with it the system bus, systemd's
/// and qubesd's sockets, the sessions of other users and what else listens there. It has a network
/// namespace without any interface, so that abstract sockets and services on the loopback address do not
/// exist for it either. no_new_privs, which the launch sets beside it, closes sudo and every other setuid
/// program. doc/SECURITY.md lists the ways that this closes, and what it leaves.

#pragma once

#include <string>

namespace qvmremote::dom0 {

/// Confines the calling process for good; its children inherit it. Needs CAP_SYS_ADMIN. Makes system
/// calls alone, so it may be called between vfork and exec. Returns 0, or the errno of the step that
/// failed; then the process must not go on, since it may be confined by half.
[[nodiscard]] int confine() noexcept;

/// Why no process can be confined here, as a sentence without an end; empty when one can. Tried in a
/// child; that it works is remembered, a failure may pass.
[[nodiscard]] std::string why_no_confinement();

} // namespace qvmremote::dom0
