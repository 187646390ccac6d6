// SPDX-License-Identifier: GPL-2.0-or-later
#include "decide/approvals.hpp"

#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include <qvmremote/bytes.hpp>
#include <qvmremote/sanitize.hpp>

namespace qvmremote::dom0 {

std::optional<std::uint64_t> approvals::ask(question what, std::uint64_t now_ms,
                                            answer on_decision) {
    const auto of_this_qube = std::count_if(waiting_.begin(), waiting_.end(), [&](const auto &w) {
        return w.second.what.from.name == what.from.name;
    });
    if (waiting_.size() >= most_in_all || static_cast<std::size_t>(of_this_qube) >= most_of_a_qube)
        return std::nullopt;
    open_question shown{std::move(what), ++last_serial_, now_ms + patience_ms};
    waiting_.emplace(last_serial_, waiting{std::move(shown), std::move(on_decision)});
    ++version_;
    return last_serial_;
}

void approvals::withdraw(std::uint64_t serial) { version_ += waiting_.erase(serial); }

void approvals::withdraw_all(const qube_name *of, errc why) {
    of ? grants_.revoke(*of) : grants_.clear();
    // A callback may withdraw other questions.
    std::vector<std::uint64_t> serials;
    for (const auto &[serial, w] : waiting_)
        if (!of || w.what.from.name == *of)
            serials.push_back(serial);
    for (const std::uint64_t serial : serials)
        if (const auto at = waiting_.find(serial); at != waiting_.end())
            settle(at, tl::unexpected(why));
}

namespace {
tl::unexpected<std::string> nothing_waits(std::uint64_t serial) {
    return tl::unexpected("nothing waits under the serial " + std::to_string(serial) +
                          "; see qvm-remote-dom0 approvals list");
}
} // namespace

tl::expected<void, std::string> approvals::allow(std::uint64_t serial, std::string_view digest,
                                                 std::optional<std::uint32_t> for_s,
                                                 std::string who, std::uint64_t now_ms) {
    const auto at = waiting_.find(serial);
    if (at == waiting_.end() || now_ms >= at->second.what.deadline_ms)
        return nothing_waits(serial);
    const open_question &asked = at->second.what;
    if (to_hex(asked.digest) != digest)
        return tl::unexpected(
            "this is not the digest of the request with the serial " + std::to_string(serial) +
            "; read it: qvm-remote-dom0 approvals show " + std::to_string(serial));
    if (for_s) {
        if (!asked.terms.may_last)
            return tl::unexpected(std::string(
                "what this runs depends on more than its words, so it is approved once at a time; "
                "leave --for out"));
        const std::uint32_t most = asked.terms.ttl_s.value_or(longest_grant_s);
        if (*for_s > most)
            return tl::unexpected("the rule lets an approval last " +
                                  std::to_string(std::max(most / 60, 1u)) + " minutes at most");
        grants_.forget_expired(now_ms);
        grants_.add(asked.from.name, asked.digest, now_ms + std::uint64_t{*for_s} * 1000);
    }
    settle(at, approval{serial, asked.digest, std::move(who)});
    return {};
}

tl::expected<void, std::string> approvals::deny(std::uint64_t serial) {
    const auto at = waiting_.find(serial);
    if (at == waiting_.end())
        return nothing_waits(serial);
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
    const answer on_decision = std::move(at->second.on_decision);
    waiting_.erase(at);
    ++version_;
    on_decision(std::move(with));
}

namespace {

// Passes texts on up to a number of bytes, and remembers whether something was left out.
class allowance {
  public:
    explicit allowance(extent much)
        : left_(much == extent::whole ? std::string_view::npos : beginning) {}

    std::string text(std::string_view untrusted_text) {
        const std::string_view taken = untrusted_text.substr(0, left_);
        is_complete_ = is_complete_ && taken.size() == untrusted_text.size();
        left_ -= std::min(left_, taken.size());
        return for_terminal(taken, std::string_view::npos);
    }

    // A word or a variable is shown whole, or not at all.
    nlohmann::ordered_json list(const std::vector<std::string> &untrusted_words) {
        auto out = nlohmann::ordered_json::array();
        for (const std::string &word : untrusted_words) {
            if (word.size() >= left_) { // an empty word counts as one byte
                is_complete_ = false;
                left_ = 0;
                break;
            }
            out.push_back(text(word));
            --left_;
        }
        return out;
    }

    [[nodiscard]] bool is_complete() const noexcept { return is_complete_; }

  private:
    static constexpr std::size_t beginning = 2048;

    std::size_t left_;
    bool is_complete_ = true;
};

const char *name_of(stdin_mode mode) {
    return mode == stdin_mode::live        ? "live"
           : mode == stdin_mode::collected ? "collected"
                                           : "closed";
}

} // namespace

std::string to_json(const open_question &shown, std::uint64_t now_ms, extent much) {
    const run_terms &terms = shown.terms;
    allowance texts(much);
    nlohmann::ordered_json out = {{"serial", shown.serial},
                                  {"qube", shown.from.name.text()},
                                  {"id", shown.id},
                                  {"transport", shown.from.transport},
                                  {"kind", shown.kind},
                                  {"shell", terms.argv.empty()},
                                  {"digest", to_hex(shown.digest)}};
    if (terms.argv.empty()) {
        out["script_bytes"] = shown.untrusted_script.size();
        out["script"] = texts.text(shown.untrusted_script);
        out["arguments_count"] = shown.untrusted_arguments.size();
        out["arguments"] = texts.list(shown.untrusted_arguments);
    } else {
        out["argv_count"] = terms.argv.size();
        out["argv"] = texts.list(terms.argv);
    }
    std::vector<std::string> environment;
    for (const auto &[name, value] : terms.environment)
        environment.push_back(name + "=" + value);
    out["environment_count"] = environment.size();
    out["environment"] = texts.list(environment);
    out["stdin"] = name_of(terms.input);
    if (shown.untrusted_stdin) {
        out["stdin_bytes"] = shown.untrusted_stdin->size();
        out["stdin_text"] = texts.text(*shown.untrusted_stdin);
    }
    out["user"] = terms.user.empty() ? "root" : terms.user;
    out["tty"] = terms.tty;
    out["detached"] = shown.is_detached;
    out["timeout_s"] = terms.timeout_s;
    auto limits = nlohmann::ordered_json::object();
    const auto limit = [&](const char *name, const auto &value) {
        if (value)
            limits[name] = *value;
    };
    limit("memory", terms.memory);
    limit("pids", terms.pids);
    limit("cpu", terms.cpu);
    limit("output", terms.output);
    out["limits"] = std::move(limits);
    out["may_last"] = terms.may_last;
    out["left_ms"] = shown.deadline_ms > now_ms ? shown.deadline_ms - now_ms : 0;
    out["complete"] = texts.is_complete();
    return out.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace);
}

} // namespace qvmremote::dom0
