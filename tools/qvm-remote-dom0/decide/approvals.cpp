// SPDX-License-Identifier: GPL-2.0-or-later
#include "decide/approvals.hpp"

#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include <qvmremote/bytes.hpp>

namespace qvmremote::dom0 {

std::optional<std::uint64_t> approvals::ask(question what, std::uint64_t now_ms, answer tell) {
    const auto of_this_qube = std::count_if(waiting_.begin(), waiting_.end(), [&](const auto &w) {
        return w.second.what.from.name == what.from.name;
    });
    if (waiting_.size() >= most_in_all || static_cast<std::size_t>(of_this_qube) >= most_of_a_qube)
        return std::nullopt;
    open_question shown{std::move(what), ++last_serial_, now_ms + patience_ms};
    waiting_.emplace(last_serial_, waiting{std::move(shown), std::move(tell)});
    ++version_;
    return last_serial_;
}

void approvals::withdraw(std::uint64_t serial) { version_ += waiting_.erase(serial); }

void approvals::withdraw_all(const qube_name *of, errc why) {
    of ? grants_.revoke(*of) : grants_.clear();
    // Whoever is told may withdraw others.
    std::vector<std::uint64_t> serials;
    for (const auto &[serial, w] : waiting_)
        if (!of || w.what.from.name == *of)
            serials.push_back(serial);
    for (const std::uint64_t serial : serials)
        if (const auto at = waiting_.find(serial); at != waiting_.end())
            settle(at, tl::unexpected(why));
}

tl::expected<void, std::string> approvals::allow(std::uint64_t serial,
                                                 std::optional<std::uint32_t> for_s,
                                                 std::string who, std::uint64_t now_ms) {
    const auto at = waiting_.find(serial);
    if (at == waiting_.end() || now_ms >= at->second.what.deadline_ms)
        return tl::unexpected("nothing waits under the serial " + std::to_string(serial) +
                              "; see qvm-remote-dom0 approvals list");
    const open_question &what = at->second.what;
    if (for_s) {
        if (!what.how.may_last)
            return tl::unexpected(std::string(
                "what this runs depends on more than its words, so it is approved once at a time; "
                "leave --for out"));
        const std::uint32_t most = what.how.ttl_s.value_or(longest_grant_s);
        if (*for_s > most)
            return tl::unexpected("the rule lets an approval last " +
                                  std::to_string(std::max(most / 60, 1u)) + " minutes at most");
        grants_.forget_expired(now_ms);
        grants_.add(what.from.name, what.digest, now_ms + std::uint64_t{*for_s} * 1000);
    }
    settle(at, approval{serial, what.digest, std::move(who)});
    return {};
}

tl::expected<void, std::string> approvals::deny(std::uint64_t serial) {
    const auto at = waiting_.find(serial);
    if (at == waiting_.end())
        return tl::unexpected("nothing waits under the serial " + std::to_string(serial) +
                              "; see qvm-remote-dom0 approvals list");
    settle(at, tl::unexpected(errc::approval_denied));
    return {};
}

void approvals::expire(std::uint64_t now_ms) {
    std::vector<std::uint64_t> serials;
    for (const auto &[serial, w] : waiting_)
        if (now_ms >= w.what.deadline_ms)
            serials.push_back(serial);
    for (const std::uint64_t serial : serials)
        if (const auto at = waiting_.find(serial); at != waiting_.end())
            settle(at, tl::unexpected(errc::approval_timeout));
}

std::uint64_t approvals::due_ms() const {
    std::uint64_t out = UINT64_MAX;
    for (const auto &[serial, w] : waiting_)
        out = std::min(out, w.what.deadline_ms);
    return out;
}

std::vector<const open_question *> approvals::open() const {
    std::vector<const open_question *> out;
    for (const auto &[serial, w] : waiting_)
        out.push_back(&w.what);
    return out;
}

const open_question *approvals::find(std::uint64_t serial) const {
    const auto at = waiting_.find(serial);
    return at == waiting_.end() ? nullptr : &at->second.what;
}

void approvals::settle(table::iterator at, tl::expected<approval, errc> with) {
    const answer tell = std::move(at->second.tell);
    waiting_.erase(at);
    ++version_;
    tell(std::move(with));
}

std::string to_json(const open_question &what, std::uint64_t now_ms) {
    constexpr std::size_t most_text = 16 * 1024;
    const auto name_of = [](stdin_mode mode) {
        return mode == stdin_mode::live        ? "live"
               : mode == stdin_mode::collected ? "collected"
                                               : "closed";
    };
    nlohmann::ordered_json out = {
        {"serial", what.serial},
        {"qube", what.from.name.text()},
        {"id", what.id},
        {"kind", what.kind},
        {"text", what.untrusted_text.substr(0, most_text)},
        {"bytes", what.untrusted_text.size()},
        {"shell", what.how.argv.empty()},
        {"user", what.how.user.empty() ? "root" : what.how.user},
        {"stdin", name_of(what.how.input)},
        {"tty", what.how.tty},
        {"timeout_s", what.how.timeout_s},
        {"digest", to_hex(what.digest)},
        {"may_last", what.how.may_last},
        {"left_ms", what.deadline_ms > now_ms ? what.deadline_ms - now_ms : 0},
    };
    if (what.input_size)
        out["stdin_bytes"] = *what.input_size;
    for (const auto &[key, value] : what.how.environment)
        out["environment"].push_back(key + "=" + value);
    // Bytes that are no UTF-8 become a sign for that; the digest tells what they were.
    return out.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace);
}

} // namespace qvmremote::dom0
