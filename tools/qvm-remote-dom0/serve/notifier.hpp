// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A word on the desktop that an operator is asked for.

#pragma once

#include <string>
#include <vector>

#include "base/settings.hpp"
#include "decide/approvals.hpp"
#include "execute/warden.hpp"

namespace qvmremote::dom0 {

/// Starts notify-send in the session of dom0's desktop user, the first member of group qubes, where
/// there is one. A convenience: nothing waits for it, and its failure is nobody's.
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
    std::vector<child> shown_; // until they have ended; the oldest is killed for a new one
};

} // namespace qvmremote::dom0
