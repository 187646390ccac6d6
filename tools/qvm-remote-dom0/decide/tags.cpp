// SPDX-License-Identifier: GPL-2.0-or-later
#include "decide/tags.hpp"

#include <algorithm>
#include <chrono>
#include <csignal>

#include <qvmremote/host/clock.hpp>
#include <qvmremote/limits.hpp>

#include "base/qubesd.hpp"
#include "common/helper.hpp"

namespace qvmremote::dom0 {

namespace {

constexpr std::chrono::seconds answer_limit{10};
constexpr std::size_t largest_answer = 256 * 1024;

// Parses the lines of a list of tags. Nothing if one of them could not be a tag in a policy.
known_tags parse_lines(std::string_view untrusted) {
    std::vector<std::string> out;
    while (!untrusted.empty()) {
        const std::size_t end = untrusted.find('\n');
        if (end == std::string_view::npos)
            return std::nullopt; // the last line is not whole
        const std::string_view tag = untrusted.substr(0, end);
        untrusted.remove_prefix(end + 1);
        if (tag.empty() || tag.size() > limits::qube_tag ||
            std::any_of(tag.begin(), tag.end(), [](char c) { return c <= ' ' || c > '~'; }))
            return std::nullopt;
        out.emplace_back(tag);
    }
    return out;
}

} // namespace

known_tags parse_tag_answer(std::string_view untrusted) {
    constexpr std::string_view good("0\0", 2);
    if (!untrusted.starts_with(good))
        return std::nullopt;
    return parse_lines(untrusted.substr(good.size()));
}

tag_origin tag_origin::of(const settings &from, const paths &where) {
    tag_origin out;
    if (!where.is_real())
        out.qubesd = out.program = "";
    // The transport qvm-run asks the same qubesd, so there is one setting for both.
    const auto set = [&](std::string_view key, std::string &to) {
        if (const auto value = from.values.get(key))
            to = *value == "none" ? std::string() : std::string(*value);
    };
    set("QVM_REMOTE_QVM_RUN_QUBESD", out.qubesd);
    set("QVM_REMOTE_QVM_TAGS", out.program);
    return out;
}

known_tags ask_tags(const qube_name &qube, const tag_origin &origin) {
    if (!origin.qubesd.empty())
        if (const auto answer = ask_qubesd(origin.qubesd, "admin.vm.tag.List", qube.text()))
            return *answer ? parse_tag_answer(**answer) : std::nullopt;
    if (origin.program.empty())
        return std::nullopt;
    const auto listed = run_helper({origin.program, qube.text()}, largest_answer, answer_limit);
    return listed && listed->exit_code == 0 ? parse_lines(listed->untrusted_output) : std::nullopt;
}

tag_source::~tag_source() {
    {
        const std::lock_guard lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable())
        thread_.join();
}

const known_tags *tag_source::fresh(const qube_name &qube, std::uint64_t now_ms) const {
    const auto at = entries_.find(qube.text());
    return at != entries_.end() && at->second.known && now_ms - at->second.read_ms < fresh_ms
               ? &at->second.tags
               : nullptr;
}

void tag_source::ask(const qube_name &qube, std::function<void(known_tags)> on_answer) {
    entry &e = entries_[qube.text()];
    e.waiting.push_back(std::move(on_answer));
    if (e.waiting.size() == 1)
        queue_question(qube);
}

void tag_source::queue_question(const qube_name &qube) {
    {
        const std::lock_guard lock(mutex_);
        asked_.push_back(qube);
        if (!thread_.joinable())
            thread_ = std::thread([this] { run(); });
    }
    wake_.notify_one();
}

void tag_source::forget(tag_origin origin) {
    for (auto &[name, e] : entries_)
        e.known = false;
    const std::lock_guard lock(mutex_);
    if (origin == origin_)
        return;
    origin_ = std::move(origin);
    ++origin_number_;
}

void tag_source::run() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
    std::unique_lock lock(mutex_);
    for (;;) {
        wake_.wait(lock, [this] { return stop_ || !asked_.empty(); });
        if (stop_)
            return;
        const qube_name qube = asked_.front();
        asked_.pop_front();
        const tag_origin origin = origin_;
        const std::uint64_t number = origin_number_;
        lock.unlock();
        auto tags = ask_tags(qube, origin);
        post_([this, qube, number, tags = std::move(tags)]() mutable {
            keep_answer(qube, number, std::move(tags));
        });
        lock.lock();
    }
}

void tag_source::keep_answer(const qube_name &qube, std::uint64_t origin_number, known_tags tags) {
    // A reload has changed whom to ask, so this answer does not count: ask again.
    if (origin_number != origin_number_) // only this thread changes it
        return queue_question(qube);
    entry &e = entries_[qube.text()];
    e.tags = std::move(tags);
    e.read_ms = host::boottime_ms();
    e.known = true;
    for (auto &on_answer : std::exchange(e.waiting, {}))
        on_answer(e.tags);
}

} // namespace qvmremote::dom0
