// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The tags of qubes: from qubesd, or from qvm-tags when qubesd cannot be reached.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <qvmremote/command_id.hpp>

#include "base/settings.hpp"

namespace qvmremote::dom0 {

/// The tags of one qube, or nothing: unknown.
using known_tags = std::optional<std::vector<std::string>>;

/// Parses the answer of qubesd to admin.vm.tag.List: `0`, a NUL, and a line for each tag. Nothing for
/// an exception, or for anything else.
[[nodiscard]] known_tags parse_tag_answer(std::string_view untrusted);

/// Whom to ask for tags. With --root, nobody is asked unless the settings name a program or a
/// socket, since this machine's qubes are not those of a test.
struct tag_origin {
    std::string qubesd = "/run/qubesd.sock"; ///< empty: not asked
    std::string program = "qvm-tags";        ///< empty: not asked

    [[nodiscard]] static tag_origin of(const settings &from, const paths &where);
    bool operator==(const tag_origin &) const = default;
};

/// Asks for the tags, and waits some seconds at most. If qubesd answers that it does not know,
/// qvm-tags is not asked: unknown is an answer.
[[nodiscard]] known_tags ask_tags(const qube_name &qube, const tag_origin &origin);

/// Asks on a thread of its own, so that the loop never waits. Keeps an answer for fresh_ms: long enough
/// for a burst of requests, and short enough that a removed tag soon stops counting.
class tag_source {
  public:
    using poster = std::function<void(std::function<void()>)>;
    static constexpr std::uint64_t fresh_ms = 5000;

    tag_source(tag_origin origin, poster post)
        : origin_(std::move(origin)), post_(std::move(post)) {}
    ~tag_source();
    tag_source(const tag_source &) = delete;
    tag_source &operator=(const tag_source &) = delete;

    /// The answer of the last fresh_ms; null when there is none.
    [[nodiscard]] const known_tags *fresh(const qube_name &qube, std::uint64_t now_ms) const;
    /// Asks, and calls back on the loop, once, when the answer is in fresh().
    void ask(const qube_name &qube, std::function<void(known_tags)> on_answer);
    /// For a reload: forgets all answers, and changes whom to ask.
    void forget(tag_origin origin);

  private:
    struct entry {
        known_tags tags;
        std::uint64_t read_ms = 0;
        bool known = false;
        std::vector<std::function<void(known_tags)>> waiting;
    };
    void run();
    void queue_question(const qube_name &qube);
    void keep_answer(const qube_name &qube, std::uint64_t origin_number, known_tags tags);

    // For the loop's thread.
    std::map<std::string, entry> entries_;

    // Shared.
    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<qube_name> asked_;
    tag_origin origin_;
    std::uint64_t origin_number_ = 0; // how often origin_ was changed
    bool stop_ = false;

    poster post_;
    std::thread thread_; // started by the first question, since most policies use no tags
};

} // namespace qvmremote::dom0
