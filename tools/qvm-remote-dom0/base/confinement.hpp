// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The view of dom0 that a command under a dedicated account gets.
///
/// In dom0 a separate account is not a boundary: polkit allows everything there, so a process that
/// reaches the system bus can make systemd start a root unit, and a process that reaches qubesd's
/// socket has the Admin API. A confined process has a mount namespace in which /run is empty: it does
/// not see the system bus, the sockets of systemd and qubesd, the sessions of other users, and whatever
/// else listens there. It has a network namespace without interfaces, so it does not reach abstract
/// sockets or services on the loopback address. The launch also sets no_new_privs, which disables sudo
/// and every other setuid program. doc/SECURITY.md lists the ways that this closes, and those that it
/// leaves open.

#pragma once

#include <string>

namespace qvmremote::dom0 {

/// Confines the calling process for ever; its children inherit this. Needs CAP_SYS_ADMIN. It only makes
/// system calls, so it may be called between vfork and exec. Returns 0, or the errno of the step that
/// failed; then the process must end, since it may be confined only in part.
[[nodiscard]] int confine() noexcept;

/// Why no process can be confined here, as a clause; empty when it works. It is tried in a child. A
/// success is remembered; after a failure the next call tries again.
[[nodiscard]] std::string why_no_confinement();

} // namespace qvmremote::dom0
