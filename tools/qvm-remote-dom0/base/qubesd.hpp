// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// One call of qubesd's Admin API, for whoever may wait for the answer.

#pragma once

#include <optional>
#include <string>
#include <string_view>

#include <qvmremote/host/failure.hpp>

namespace qvmremote::dom0 {

/// Calls METHOD+ with a target, the name of a qube or dom0, and waits 10 s at most. Fails when qubesd
/// cannot be asked: nobody listens at the socket, or somebody else than root or our own user does.
/// Returns nothing when it was asked and did not answer in time, or answered with more than 256 KiB.
/// Names in an answer were chosen by qubes, so it is untrusted.
[[nodiscard]] host::outcome<std::optional<std::string>>
ask_qubesd(const std::string &socket, std::string_view method, std::string_view target);

/// The value of a word KEY=VALUE in a good answer, as in that of admin.vm.CurrentState; nothing when the
/// answer is not good or has no such word.
[[nodiscard]] std::optional<std::string_view> qubesd_word(std::string_view untrusted_answer,
                                                          std::string_view key);

} // namespace qvmremote::dom0
