// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The one decision point (I12): may this peer have this request? Pure and total.

#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <qvmremote/command_id.hpp>
#include <qvmremote/envelope.hpp>
#include <qvmremote/error.hpp>

namespace qvmremote {

/// Who asks, as the transport proves it and dom0 knows it.
struct peer {
    qube_name name;
    std::string transport;                        ///< through which it came
    std::string service_argument;                 ///< what a qrexec call was made with; else empty
    std::optional<std::vector<std::string>> tags; ///< nothing: unknown
};

/// What the operator has written down. Until policy files are read (DESIGN.md §6) there is one
/// level, and the daemon fills this from the keys that are registered.
struct policy {
    std::set<std::string, std::less<>> full; ///< names of qubes that may do everything
};

/// What an operator has granted for a while; empty until there are approvals.
struct grants {};

/// The answer, and the line that gave it, for the audit log and `policy check`.
struct verdict {
    enum class action : std::uint8_t { deny, ask, allow };
    action what = action::deny;
    std::string rule;
    errc reason = errc::denied; ///< of a deny

    [[nodiscard]] bool allowed() const noexcept { return what == action::allow; }
};

[[nodiscard]] constexpr std::string_view name(verdict::action what) noexcept {
    switch (what) {
    case verdict::action::deny:
        return "deny";
    case verdict::action::ask:
        return "ask";
    case verdict::action::allow:
        return "allow";
    }
    return "deny";
}

/// Decides. `now` is seconds of dom0's clock. The request may still lack a body that follows its
/// header: what is decided then is decided again when it is whole.
[[nodiscard]] inline verdict decide(const peer &who, const envelope &what, const policy &rules,
                                    const grants &, std::int64_t /*now*/) {
    if (!rules.full.contains(who.name.text()))
        return {verdict::action::deny, "no rule matches", errc::denied};
    if (what.tty || what.detach)
        return {verdict::action::deny, "terminals and detached jobs are not built yet",
                errc::unsupported};
    return {verdict::action::allow, "level:full", errc::denied};
}

} // namespace qvmremote
