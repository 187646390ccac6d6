// SPDX-License-Identifier: GPL-2.0-or-later
#include "decide/current_files.hpp"

#include <algorithm>
#include <ctime>
#include <utility>

namespace qvmremote::dom0 {

namespace {

// The kernel's file times advance in steps of up to 10 ms: two changes within one step have the same
// time.
constexpr std::int64_t step_ns = 50'000'000;

std::int64_t nanoseconds(const timespec &t) { return t.tv_sec * 1'000'000'000 + t.tv_nsec; }

bool is_same(const struct stat &a, const struct stat &b, bool is_above) {
    if (a.st_dev != b.st_dev || a.st_ino != b.st_ino || a.st_mode != b.st_mode ||
        a.st_uid != b.st_uid || a.st_gid != b.st_gid)
        return false;
    return is_above ||
           (a.st_size == b.st_size && nanoseconds(a.st_mtim) == nanoseconds(b.st_mtim) &&
            nanoseconds(a.st_ctim) == nanoseconds(b.st_ctim));
}

bool say_the_same(const std::vector<policy_rule> &a, const std::vector<policy_rule> &b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](const policy_rule &x, const policy_rule &y) { return x.says_as(y); });
}

} // namespace

file_stamps::stamp file_stamps::look(std::string path, bool is_above) {
    stamp out{std::move(path), is_above, false, {}};
    out.exists = ::lstat(out.path.c_str(), &out.seen) == 0;
    return out;
}

void file_stamps::take(std::vector<std::string> paths) {
    stamps_.clear();
    may_change_unseen_ = false;
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    std::vector<std::string> above;
    for (std::string &path : paths) {
        for (std::size_t slash = path.rfind('/'); slash != std::string::npos && slash > 0;
             slash = path.rfind('/', slash - 1))
            above.push_back(path.substr(0, slash));
        stamps_.push_back(look(std::move(path), false));
        const stamp &last = stamps_.back();
        // A time in the future comes from a clock that was set back, so it does not tell either.
        if (last.exists && nanoseconds(last.seen.st_ctim) > nanoseconds(now) - step_ns)
            may_change_unseen_ = true;
    }
    std::sort(above.begin(), above.end());
    above.erase(std::unique(above.begin(), above.end()), above.end());
    for (std::string &path : above)
        stamps_.push_back(look(std::move(path), true));
}

bool file_stamps::changed() const {
    if (may_change_unseen_)
        return true;
    return std::any_of(stamps_.begin(), stamps_.end(), [](const stamp &before) {
        struct stat now {};
        const bool exists = ::lstat(before.path.c_str(), &now) == 0;
        return exists != before.exists || (exists && !is_same(now, before.seen, before.is_above));
    });
}

void current_files::loaded(const policy &rules) {
    in_force_ = rules.rules();
    stamps_ = {};
    trouble_.clear();
    rules_.reset();
    values_.reset();
    refresh();
}

bool current_files::refresh() {
    if (!stamps_.changed())
        return false;
    std::vector<std::string> paths = policies_.names();
    for (std::string &name : paths)
        name.insert(0, policies_.directory() + "/");
    paths.push_back(policies_.directory());
    paths.push_back(where_.config());
    stamps_.take(std::move(paths));
    const std::string trouble = std::exchange(trouble_, {});
    const std::optional<policy> rules = std::exchange(rules_, {});
    read();
    const bool is_same = rules.has_value() == rules_.has_value() &&
                         (!rules || say_the_same(rules->rules(), rules_->rules()));
    return trouble_ != trouble || !is_same;
}

void current_files::read() {
    auto rules = policies_.load();
    auto values = load_settings(where_, overrides_.vm, overrides_.transport);
    if (!rules)
        trouble_ = rules.error().what;
    else if (!values)
        trouble_ = values.error().what;
    if (rules && !say_the_same(rules->rules(), in_force_))
        rules_ = std::move(*rules);
    values_.reset();
    if (values)
        values_ = std::move(*values);
}

} // namespace qvmremote::dom0
