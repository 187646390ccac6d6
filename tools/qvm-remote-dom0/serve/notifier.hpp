// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A notification on the desktop when a request waits for an operator.

#pragma once

#include <string>
#include <vector>

#include "base/settings.hpp"
#include "decide/approvals.hpp"
#include "execute/warden.hpp"

namespace qvmremote::dom0 {

/// Starts notify-send in the session of dom0's desktop user, the first member of group qubes, if there
/// is one. Nothing waits for it, and a failure has no effect.
class notifier {
  public:
    /// `program` is QVM_REMOTE_NOTIFY: a path, "none", or empty for notify-send.
    notifier(paths where, warden &children) : where_(std::move(where)), children_(children) {}

    void use(std::string program) { program_ = std::move(program); }
    void show(const open_question &asked);

  private:
    paths where_;
    warden &children_;
    std::string program_;
    std::vector<child> shown_; // running ones; the oldest is killed for a new one
};

} // namespace qvmremote::dom0
