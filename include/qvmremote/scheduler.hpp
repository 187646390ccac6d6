// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Decides which request runs next: it limits how many run, how many of them are new, and how many
/// start each second; qubes take turns.

#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include <qvmremote/limits.hpp>

namespace qvmremote {

/// Gives slots. A waiting request is a function that is called when it may go on. It returns false when
/// it does not need the slot any more (its client has gone).
class scheduler {
  public:
    using go = std::function<bool()>;

    /// `beginning` is how many commands of a qube may be in their first limits::beginning_ms. Most
    /// commands end within this time. So a burst of them uses only as many processors, and a command of
    /// another qube does not have to share with all of them.
    explicit scheduler(std::size_t beginning) : beginning_(beginning) {}

    /// Names a request that waits, so that it can be withdrawn.
    using ticket = std::uint64_t;

    /// Enqueues; nothing when too much waits already, of this qube or in all. `held_bytes` is what the
    /// request keeps in memory meanwhile.
    [[nodiscard]] std::optional<ticket> submit(const std::string &qube, std::size_t held_bytes,
                                               go start) {
        queue &q = queues_[qube];
        if (q.waiting.size() >= limits::waiting_per_qube ||
            q.held + held_bytes > limits::waiting_headers_per_qube ||
            held_ + held_bytes > limits::waiting_headers)
            return std::nullopt;
        q.waiting.push_back({++tickets_, held_bytes, std::move(start)});
        q.held += held_bytes;
        held_ += held_bytes;
        return tickets_;
    }

    /// Forgets a request that waits no longer, so that it does not use up the places of others.
    void withdraw(const std::string &qube, ticket which) {
        queue &q = queues_[qube];
        const auto at = std::find_if(q.waiting.begin(), q.waiting.end(),
                                     [=](const item &i) { return i.number == which; });
        if (at == q.waiting.end())
            return;
        q.held -= at->bytes;
        held_ -= at->bytes;
        q.waiting.erase(at);
    }

    /// Gives back the slot of a started request.
    void release(const std::string &qube) {
        queue &q = queues_[qube];
        --q.running;
        --running_;
        if (!q.begun_ms.empty())
            q.begun_ms.pop_front(); // most likely its own
    }

    /// Starts what may start now, one of each qube in turn. When a request only has to wait for time to
    /// pass, returns after how many milliseconds to call this again.
    [[nodiscard]] std::optional<std::uint64_t> run(std::uint64_t now_ms) {
        std::optional<std::uint64_t> again;
        for (bool progress = true; progress && running_ < limits::running;) {
            progress = false;
            // Go on after the qube that was served last.
            auto at = queues_.upper_bound(last_);
            for (std::size_t n = queues_.size(); n > 0 && running_ < limits::running; --n) {
                if (at == queues_.end())
                    at = queues_.begin();
                auto &[name, q] = *at++;
                if (q.waiting.empty() || q.running >= limits::running_per_qube)
                    continue;
                if (const auto wait = std::max(q.rate.wait_ms(now_ms), wait_ms(q, now_ms));
                    wait > 0) {
                    again = std::min(again.value_or(wait), wait);
                    continue;
                }
                last_ = name;
                progress = true;
                const item next = std::move(q.waiting.front());
                q.waiting.pop_front();
                q.held -= next.bytes;
                held_ -= next.bytes;
                ++q.running;
                ++running_;
                q.begun_ms.push_back(now_ms);
                if (next.start())
                    q.rate.take();
                else
                    release(name);
            }
        }
        return again;
    }

    [[nodiscard]] std::size_t running() const noexcept { return running_; }
    [[nodiscard]] std::size_t running(const std::string &qube) const {
        const auto at = queues_.find(qube);
        return at == queues_.end() ? 0 : at->second.running;
    }
    [[nodiscard]] std::size_t waiting(const std::string &qube) const {
        const auto at = queues_.find(qube);
        return at == queues_.end() ? 0 : at->second.waiting.size();
    }

  private:
    // A token bucket, in thousandths of a start, so that milliseconds give whole numbers.
    class bucket {
      public:
        std::uint64_t wait_ms(std::uint64_t now_ms) {
            level_ =
                std::min<std::uint64_t>(limits::starts_burst * 1000,
                                        level_ + (now_ms - last_ms_) * limits::starts_per_second);
            last_ms_ = now_ms;
            return level_ >= 1000 ? 0 : (1000 - level_) / limits::starts_per_second + 1;
        }
        void take() { level_ -= 1000; }

      private:
        std::uint64_t level_ = limits::starts_burst * 1000;
        std::uint64_t last_ms_ = 0;
    };
    struct item {
        ticket number;
        std::size_t bytes;
        go start;
    };
    struct queue {
        std::deque<item> waiting;
        std::size_t held = 0;
        std::size_t running = 0;
        bucket rate;
        std::deque<std::uint64_t>
            begun_ms; // of running commands in their first limits::beginning_ms
    };

    [[nodiscard]] std::uint64_t wait_ms(queue &q, std::uint64_t now_ms) const {
        while (!q.begun_ms.empty() && now_ms - q.begun_ms.front() >= limits::beginning_ms)
            q.begun_ms.pop_front();
        return q.begun_ms.size() < beginning_ ? 0
                                              : q.begun_ms.front() + limits::beginning_ms - now_ms;
    }

    std::size_t beginning_;
    std::map<std::string, queue> queues_;
    std::string last_;
    std::size_t running_ = 0;
    std::size_t held_ = 0;
    ticket tickets_ = 0; // given out so far
};

} // namespace qvmremote
