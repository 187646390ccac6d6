// SPDX-License-Identifier: GPL-2.0-or-later
// The same rows as C++ sees them: a plug-in and its host may be written in one language each.
#pragma GCC diagnostic ignored "-Wnarrowing"
#include "transport_abi.c"

#include <type_traits>

static_assert(std::is_standard_layout_v<qvmremote_transport_ops> &&
              std::is_trivially_copyable_v<qvmremote_transport_ops>);
static_assert(std::is_standard_layout_v<qvmremote_stream> &&
              std::is_trivially_copyable_v<qvmremote_stream>);
// The types of the functions too: an offset does not show an argument that came or went.
static_assert(std::is_same_v<decltype(qvmremote_transport_ops::open),
                             decltype(restated_transport_ops::open)>);
static_assert(std::is_same_v<decltype(qvmremote_transport_ops::close),
                             decltype(restated_transport_ops::close)>);
static_assert(std::is_same_v<decltype(qvmremote_transport_ops::connect),
                             decltype(restated_transport_ops::connect)>);
static_assert(std::is_same_v<decltype(qvmremote_transport_ops::listen),
                             decltype(restated_transport_ops::listen)>);
static_assert(std::is_same_v<decltype(qvmremote_transport_ops::accept),
                             decltype(restated_transport_ops::accept)>);
static_assert(std::is_same_v<decltype(qvmremote_transport_ops::set_peers),
                             decltype(restated_transport_ops::set_peers)>);
