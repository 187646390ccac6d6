// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What the rows of hostile.cpp and hostile_rights.cpp share: a daemon, marks that show an
/// execution, and the count of a row.

#pragma once

#include <functional>
#include <memory>
#include <random>
#include <string>

#include "attacker.hpp"

namespace e2e {

using qvmremote::test::plain_frame;

inline int tries = 10'000;
inline int few = 250; // tries of a row whose commands run
inline unsigned seed = 20260218;

class suite {
  public:
    suite() : dom0_(scratch_ / "root", "work dev stranger asked"), marks_(scratch_ / "marks") {
        std::filesystem::create_directories(marks_);
        dom0_.register_key("work", key_digits('a'));
        dom0_.register_key("dev", key_digits('b'));
        dom0_.register_key("asked", key_digits('d'));
        dom0_.start();
    }

    void run();

  private:
    // A command that must not run. It makes a file with a new name, so that the test sees it.
    std::string mark_command() { return "touch " + marks_ + "/" + std::to_string(++mark_); }
    std::size_t marks() const {
        std::size_t n = 0;
        for ([[maybe_unused]] const auto &e : std::filesystem::directory_iterator(marks_))
            ++n;
        return n;
    }
    envelope request(std::string body) {
        envelope e;
        e.kind = request_kind::shell;
        e.id = host::client::make_id();
        e.features = feature::gmac;
        e.set_body(std::move(body));
        return e;
    }
    // The places of the parts of a REQUEST frame: a header of 12 bytes, a token of 32, then the
    // envelope.
    static constexpr std::size_t token_at = frame_header::size;
    static constexpr std::size_t envelope_at = frame_header::size + token_size;
    static constexpr std::size_t flags_at = envelope_at + 2 + 16 + 1;
    static constexpr std::size_t timeout_at = flags_at + 1;
    static constexpr std::size_t features_at = timeout_at + 4;

    bytes signed_request(attacker &a, std::uint32_t session, envelope e, char key = 'a') {
        require(a.machine.send_request(session, std::move(e), key_of(key)).has_value(), "encode");
        return a.take_output();
    }

    // Makes each try on the same stream, and on a new one after the daemon has closed it.
    void row(const char *name, const std::string &qube,
             const std::function<void(attacker &, std::mt19937 &)> &attempt, int count = tries) {
        std::mt19937 random(seed);
        std::optional<attacker> a;
        const auto begin = std::chrono::steady_clock::now();
        for (int i = 0; i < count; ++i) {
            if (!a || i % 500 == 0)
                a.emplace(dom0_, qube);
            attempt(*a, random);
            if (!a->is_open())
                a.reset();
        }
        a.reset();
        finish_row(name, count, begin);
    }
    void finish_row(const char *name, int count, std::chrono::steady_clock::time_point begin) {
        good_request(name);
        require(marks() == 0, std::string(name) + ": " + std::to_string(marks()) + " executions");
        std::printf(
            "%-52s %6d tries, 0 executions, %.1f s\n", name, count,
            std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
        std::fflush(stdout);
    }
    void good_request(const std::string &after) {
        host::client c = honest(dom0_, "work", 'a');
        const host::collected r = c.collect({.kind = request_kind::shell,
                                             .body = "echo good; exit 3",
                                             .arguments = {},
                                             .environment = {},
                                             .id = {}});
        require(r.result.how == host::run_result::kind::ended && r.result.exit_code() == 3 &&
                    r.out == "good\n",
                "after \"" + after + "\" an honest request fails: " + r.result.untrusted_text);
    }
    void expect_refusal(attacker &a) {
        const auto event = a.answer();
        require(!event || event->what == client_event::kind::rejected ||
                    event->what == client_event::kind::refused ||
                    event->what == client_event::kind::closed,
                "a tampered request was not refused");
    }

    void changed_header(const char *name, std::size_t at, std::size_t width, envelope e);
    void session_row(const char *name, const std::string &how,
                     const std::function<bytes(attacker &, std::uint32_t, std::mt19937 &)> &attack);
    void swapped_bodies();
    void damaged_requests();
    void repeated_requests();
    void late_challenges();
    void injected_frames();
    void replayed_ids();
    void touched_results();
    void lying_client();
    void senseless_client();
    void flooding_client();
    void stalling_client();
    std::unique_ptr<attacker> withheld_body();
    void late_body(attacker &withheld);
    bool has_no_slot();

    // hostile_jobs.cpp
    void jobs();

    // hostile_rights.cpp
    void rights();
    void questions();
    void shown_questions();
    void rules();
    void narrow_rules();
    void records();
    std::string control(const std::string &line);
    std::string operate(const std::string &line);
    void set_rules(const std::string &rules);
    void load_rules(const std::string &rules);
    std::uint64_t await_question(attacker &a);

    scratch scratch_;
    daemon_under_test dom0_;
    std::string marks_;
    std::uint64_t mark_ = 0;
};

} // namespace e2e
