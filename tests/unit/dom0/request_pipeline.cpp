// SPDX-License-Identifier: GPL-2.0-or-later
// Tests each step of a request with each event that can come then, in both orders within one round
// of the loop. A handler that was ready before its request took another step must do nothing. No
// order may reach an assertion, run a command twice, or leave a slot taken, a question open or a
// START without its END.
#include "serve/request_pipeline.hpp"

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <thread>

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include "execute/cgroups.hpp"
#include "execute/execution.hpp"
#include "support/ends.hpp"
#include "support/scratch.hpp"

using namespace qvmremote;
using namespace qvmremote::dom0;
using qvmremote_test::put;
using qvmremote_test::scratch;
using qvmremote_test::text_of;

namespace {

constexpr std::chrono::seconds hang_guard{60};
warden *the_warden = nullptr;

// What the sender was told, in this order.
struct heard {
    std::string words;
    int last_words = 0; // refusals and ENDs
    int forgotten = 0;
    std::optional<verified<request>> body;
};

class recording_session final : public session_port {
  public:
    explicit recording_session(heard &to) : to_(to) {}
    void accept(std::uint32_t, bool) override { to_.words += "accepted "; }
    [[nodiscard]] bool stalled() const override { return false; }
    [[nodiscard]] std::span<std::uint8_t> prepare_output(std::size_t most) override {
        room_.resize(most);
        return room_;
    }
    void commit_output(bool, std::size_t) override {}
    void output_eof(bool) override {}
    void grant_stdin(std::size_t) override {}
    void notify(std::string_view) override {}
    run_end end(run_end how, const run_record &) override {
        to_.words += "end ";
        ++to_.last_words;
        return how;
    }
    void flush() override {}

  private:
    heard &to_;
    std::vector<std::uint8_t> room_;
};

class recording_port final : public request_port {
  public:
    explicit recording_port(heard &to) : to_(to) {}
    [[nodiscard]] bool ask_for_body() override {
        to_.words += "body? ";
        return true;
    }
    [[nodiscard]] result<verified<request>> take_body() override { return *to_.body; }
    void pend(std::uint64_t serial, const std::string &) override {
        to_.words += serial == 0 ? "waiting " : "asking ";
    }
    void collect_stdin(std::size_t) override {}
    [[nodiscard]] bool postpone() override { return false; }
    [[nodiscard]] std::uint32_t wait_limit_s(const envelope &what) const override {
        return what.timeout_s;
    }
    void refuse(const refusal &why) override {
        to_.words += std::string(name(why.reason)) + " ";
        ++to_.last_words;
    }
    [[nodiscard]] std::unique_ptr<session_port> execution_port(const envelope &) override {
        return std::make_unique<recording_session>(to_);
    }
    void forget() override { ++to_.forgotten; }
    void flush() override {}

  private:
    heard &to_;
};

// A dom0 without a transport and without a control socket. The test turns its loop.
class small_dom0 final : public coordinator {
  public:
    small_dom0()
        : where_(paths::below(root_.path()).value()),
          keys_((std::filesystem::create_directories(where_.policy()),
                 std::filesystem::permissions(where_.policy(), std::filesystem::perms::owner_all),
                 std::filesystem::create_directories(where_.keys()),
                 std::filesystem::permissions(where_.keys(), std::filesystem::perms::owner_all),
                 put(where_.keys() + "/work.key", test::key_text, 0600),
                 put(where_.policy() + "/30-work.policy",
                     "work exec:true ask\nwork exec:sleep * allow\n", 0600),
                 where_.keys())),
          policies_(where_.policy()), log_(event_log::open(root_ / "log", false).value()),
          records_(journal::open(where_, {},
                                 [this](std::function<void()> work) {
                                     boost::asio::post(loop, std::move(work));
                                 })
                       .value()),
          tags_({"", ""},
                [this](std::function<void()> work) { boost::asio::post(loop, std::move(work)); }),
          admission_(where_, keys_, policies_, tags_, approvals_, *records_, log_),
          context(std::make_shared<service>(*this, loop, log_, *records_, admission_, approvals_,
                                            *the_warden)) {
        REQUIRE(admission_.reload(std::nullopt, "auto"));
        context->execution.self = own_account();
        context->execution.on_end = [] {};
    }
    ~small_dom0() {
        // A request that has ended still waits for its processes.
        until([this] { return context->execution.running.empty(); });
    }

    void reschedule() override {
        if (!closed)
            static_cast<void>(context->scheduler.run(1'000'000));
    }
    void something_ended() override {}
    [[nodiscard]] std::optional<std::uint64_t> ask_operator(question what,
                                                            approvals::answer answer) override {
        return approvals_.ask(std::move(what), 0, std::move(answer));
    }
    void questions_changed() override {}
    void keep_alive_changed() override {}

    // Turns the loop until a condition holds.
    template <class Condition>
    void until(Condition is_so) {
        const auto begin = std::chrono::steady_clock::now();
        while (!is_so()) {
            REQUIRE(std::chrono::steady_clock::now() - begin < hang_guard);
            loop.restart();
            if (loop.poll() == 0)
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
    }

    // Makes a request of `argv`, verified as by its session.
    std::shared_ptr<request_pipeline> make(std::vector<std::string> argv, bool stdin_live,
                                           heard &to,
                                           std::uint32_t timeout_s = limits::default_timeout_s) {
        envelope what = test::make_request(request_kind::exec, {}, stdin_live);
        what.arguments = std::move(argv);
        what.timeout_s = timeout_s;
        what.id = command_id::parse("request-" + std::to_string(++made_)).value();
        test::dom0_end dom0;
        dom0.accepts = false;
        test::qube_end qube;
        qube.ask(std::move(what));
        test::carry(qube, dom0);
        REQUIRE(dom0.requests.size() == 1);
        to.body = dom0.requests.begin()->second;
        const peer from{qube_name::parse("work").value(), "qvm-run", {}, std::nullopt};
        return std::make_shared<request_pipeline>(
            *context, from,
            candidate{dom0.headers.begin()->second, sha256(secret::parse(test::key_text)->text())},
            std::make_unique<recording_port>(to));
    }

    [[nodiscard]] std::string audit() const { return text_of(where_.audit()); }
    [[nodiscard]] approvals &questions() { return approvals_; }

    boost::asio::io_context loop;
    bool closed = false; // the scheduler gives nobody a slot

  private:
    scratch root_;
    paths where_;
    keyring keys_;
    policy_files policies_;
    event_log log_;
    std::unique_ptr<journal> records_;
    tag_source tags_;
    approvals approvals_{1000};
    admission admission_;
    int made_ = 0;

  public:
    std::shared_ptr<service> context;
};

std::size_t count(std::string_view text, std::string_view part) {
    std::size_t n = 0;
    for (std::size_t at = 0; (at = text.find(part, at)) != std::string_view::npos; ++at)
        ++n;
    return n;
}

// A step at which a request can wait, and what ends the wait.
struct place {
    const char *name;
    void (*reach)(small_dom0 &, const std::shared_ptr<request_pipeline> &, heard &);
    // Makes the handler ready that the request waits for; it runs in this round or the next.
    void (*ready)(small_dom0 &, const std::shared_ptr<request_pipeline> &, heard &);
};

void reach_body(small_dom0 &d, const std::shared_ptr<request_pipeline> &r, heard &to) {
    r->begin(100);
    d.until([&] { return to.words == "body? "; });
}
void reach_collecting(small_dom0 &d, const std::shared_ptr<request_pipeline> &r, heard &to) {
    reach_body(d, r, to);
    r->on_body(*to.body);
    d.until([&] { return to.words == "body? waiting "; });
}
void reach_asking(small_dom0 &d, const std::shared_ptr<request_pipeline> &r, heard &to) {
    reach_collecting(d, r, to);
    r->stdin_data(as_bytes(std::string_view("x")));
    r->stdin_eof();
    REQUIRE(d.questions().open().size() == 1);
}
void say_yes(small_dom0 &d, const std::shared_ptr<request_pipeline> &, heard &) {
    for (const open_question *const q : d.questions().open())
        static_cast<void>(
            d.questions().allow(q->serial, to_hex(q->digest), std::nullopt, "a test", 1));
}

const place places[] = {
    {"waits for a slot",
     [](small_dom0 &d, const auto &r, heard &) {
         d.closed = true;
         r->begin(100);
     },
     [](small_dom0 &d, const auto &, heard &) {
         d.closed = false;
         d.reschedule();
     }},
    {"waits for its body", reach_body,
     [](small_dom0 &, const auto &r, heard &to) { r->on_body(*to.body); }},
    {"START is being written",
     [](small_dom0 &d, const auto &r, heard &to) {
         reach_body(d, r, to);
         r->on_body(*to.body);
     },
     [](small_dom0 &d, const auto &, heard &) {
         // Wait until the journal's thread has posted its answer.
         d.until([&] {
             return d.audit().find("\"kind\":\"START\"") != std::string::npos ||
                    d.audit().find("\"kind\":\"REFUSED\"") != std::string::npos;
         });
     }},
    {"stdin is collected", reach_collecting,
     [](small_dom0 &, const auto &, heard &) {
         // Let the limit pass, so that its handler is ready too.
         std::this_thread::sleep_for(std::chrono::milliseconds(5));
     }},
    {"an operator is asked", reach_asking, say_yes},
    {"approved, and waits for a slot",
     [](small_dom0 &d, const auto &r, heard &to) {
         reach_asking(d, r, to);
         d.closed = true;
         say_yes(d, r, to);
     },
     [](small_dom0 &d, const auto &, heard &) {
         d.closed = false;
         d.reschedule();
     }},
    {"runs",
     [](small_dom0 &d, const auto &r, heard &to) {
         reach_body(d, r, to);
         r->on_body(*to.body);
         d.until([&] { return to.words.find("accepted") != std::string::npos; });
     },
     [](small_dom0 &, const auto &, heard &) {}},
};

struct closing {
    const char *name;
    void (*happens)(small_dom0 &, const std::shared_ptr<request_pipeline> &);
};
const closing closings[] = {
    {"CLOSE", [](small_dom0 &, const auto &r) { r->abandon(errc::session_over); }},
    {"STDIN_EOF", [](small_dom0 &, const auto &r) { r->stdin_eof(); }},
    {"STDIN_EOF twice",
     [](small_dom0 &, const auto &r) {
         r->stdin_eof();
         r->stdin_eof();
     }},
    {"too much stdin",
     [](small_dom0 &, const auto &r) {
         const std::string much(limits::collected_stdin + 1, 'x');
         r->stdin_data(as_bytes(std::string_view(much)));
     }},
    {"a late body", [](small_dom0 &, const auto &r) { r->check_body_time(~std::uint64_t{0}); }},
    {"a revoked key", [](small_dom0 &, const auto &r) { r->cancel(errc::key_revoked); }},
    {"draining",
     [](small_dom0 &d, const auto &r) {
         d.context->draining = true;
         r->refuse_waiting(errc::draining);
     }},
    {"panic",
     [](small_dom0 &d, const auto &r) {
         d.questions().withdraw_all(nullptr, errc::panicked);
         r->cancel(errc::panicked);
     }},
    {"an operator's no",
     [](small_dom0 &d, const auto &) {
         for (const open_question *const q : d.questions().open())
             static_cast<void>(d.questions().deny(q->serial));
     }},
    {"a signal and room for output",
     [](small_dom0 &, const auto &r) {
         r->signal(15);
         r->more_output();
     }},
};

void drive(const place &at, const closing &what, bool closing_first) {
    CAPTURE(std::string(at.name));
    CAPTURE(std::string(what.name));
    CAPTURE(closing_first);
    small_dom0 d;
    const bool is_asked = std::string_view(at.name).find("stdin") != std::string_view::npos ||
                          std::string_view(at.name).find("operator") != std::string_view::npos ||
                          std::string_view(at.name).find("approved") != std::string_view::npos;
    // The limit for stdin passes at once if the row tests it, and never otherwise.
    const bool by_timer = at.reach == reach_collecting;
    heard to;
    auto request = is_asked ? d.make({"true"}, true, to) : d.make({"sleep", "0"}, false, to);
    const std::weak_ptr<request_pipeline> gone = request;
    if (by_timer)
        d.context->stdin_patience_ms = 2;
    at.reach(d, request, to);

    // Both expire before the loop turns again, so both handlers are ready in one round, in this
    // order.
    boost::asio::steady_timer ours(d.loop);
    const auto happen = [&] { what.happens(d, request); };
    if (by_timer) {
        ours.expires_at(closing_first ? boost::asio::steady_timer::time_point::min()
                                      : boost::asio::steady_timer::clock_type::now() +
                                            std::chrono::milliseconds(4));
        ours.async_wait([&](boost::system::error_code) { happen(); });
        std::this_thread::sleep_for(std::chrono::milliseconds(8));
        d.loop.restart();
        d.loop.poll();
    } else if (closing_first) {
        boost::asio::post(d.loop, happen);
        at.ready(d, request, to);
    } else {
        at.ready(d, request, to);
        boost::asio::post(d.loop, happen);
    }
    d.loop.restart();
    d.loop.poll();
    // Abandon a request that still waits, as when its sender is gone.
    d.until([&] { return to.forgotten > 0 || d.context->execution.running.empty(); });
    request->abandon(errc::session_over);
    request.reset();
    d.closed = false;
    d.until([&] { return gone.expired() && d.context->execution.running.empty(); });

    CHECK(to.last_words <= 1);
    CHECK(to.forgotten == 1);
    d.until([&] { return d.context->scheduler.running() == 0; });
    CHECK(d.context->places_of.empty());
    CHECK(d.questions().open().empty());
    const auto starts = count(d.audit(), "\"kind\":\"START\"");
    CHECK(starts <= 1);
    d.until([&] { return count(d.audit(), "\"kind\":\"END\"") == starts; });
}

} // namespace

TEST_CASE("I2, I8: every order of two events in one round is handled") {
    for (const place &at : places)
        for (const closing &what : closings)
            for (const bool closing_first : {true, false})
                drive(at, what, closing_first);
}

TEST_CASE("I4: only some requests of a qube may keep stdin while an operator is asked") {
    small_dom0 d;
    std::vector<heard> to(approvals::most_of_a_qube + 1);
    std::vector<std::shared_ptr<request_pipeline>> all;
    for (heard &one : to) {
        all.push_back(d.make({"true"}, true, one));
        all.back()->begin(100);
        d.until([&] { return one.words == "body? "; });
        all.back()->on_body(*one.body);
        d.until([&] { return one.words != "body? "; });
    }
    for (std::size_t i = 0; i < approvals::most_of_a_qube; ++i)
        CHECK(to[i].words == "body? waiting ");
    CHECK(to.back().words == "body? busy ");
    for (const auto &request : all)
        request->abandon(errc::session_over);
    CHECK(d.context->places_of.empty());
}

TEST_CASE(
    "I4: a request with a late body gives its slot up, and a qube may have only some of them") {
    small_dom0 d;
    std::vector<heard> to(approvals::most_of_a_qube + 1);
    std::vector<std::shared_ptr<request_pipeline>> all;
    for (heard &one : to) {
        all.push_back(d.make({"sleep", "0"}, false, one));
        all.back()->begin(100);
        d.until([&] { return one.words == "body? "; });
        all.back()->check_body_time(0);
        CHECK(d.context->scheduler.running() == 1);
        all.back()->check_body_time(~std::uint64_t{0});
        CHECK(d.context->scheduler.running() == 0);
    }
    CHECK(to.back().words == "body? busy ");
    // The first body comes after all, and its command runs. Then another request may be late.
    all.front()->on_body(*to.front().body);
    d.until([&] { return to.front().words == "body? accepted end "; });
    d.until([&] { return d.context->scheduler.running() == 0; });
    CHECK(d.context->places_of.at("work") == approvals::most_of_a_qube - 1);
    for (std::size_t i = 1; i < approvals::most_of_a_qube; ++i)
        CHECK(to[i].words == "body? ");
    for (const auto &request : all)
        request->abandon(errc::session_over);
    CHECK(d.context->places_of.empty());
}

TEST_CASE("a wait for a slot is reported, and ends only by the time-out, if there is one") {
    small_dom0 d;
    d.closed = true;
    d.context->slot_word_after_ms = 2;
    heard bounded, unbounded;
    const auto one = d.make({"sleep", "0"}, false, bounded, 1);
    const auto other = d.make({"sleep", "0"}, false, unbounded, 0);
    one->begin(100);
    other->begin(100);
    d.until([&] { return bounded.words == "waiting slot_timeout "; });
    CHECK(bounded.forgotten == 1);
    d.until([&] { return d.audit().find("slot_timeout") != std::string::npos; });
    CHECK(unbounded.words == "waiting ");
    CHECK(d.context->scheduler.waiting("work") == 1);
    d.closed = false;
    d.reschedule();
    d.until([&] { return unbounded.words == "waiting body? "; });
    CHECK(d.context->scheduler.running() == 1); // the second one has the slot of the first one
    other->abandon(errc::session_over);
}

TEST_CASE("a time-out that is shorter than the delay of the first report ends a wait for a slot") {
    small_dom0 d;
    d.closed = true;
    d.context->slot_word_after_ms = 5'000;
    heard to;
    const auto request = d.make({"sleep", "0"}, false, to, 1);
    request->begin(100);
    d.until([&] { return !to.words.empty(); });
    CHECK(to.words == "slot_timeout ");
}

TEST_CASE("a request is refused only once, whatever refuses it") {
    small_dom0 d;
    heard to;
    const auto request = d.make({"true"}, true, to);
    reach_asking(d, request, to);
    request->cancel(errc::key_revoked);
    request->cancel(errc::panicked);
    request->refuse_waiting(errc::draining);
    request->abandon(errc::session_over);
    CHECK(to.words == "body? waiting asking key_revoked ");
    CHECK(to.last_words == 1);
    CHECK(to.forgotten == 1);
}

int main(int argc, char **argv) {
    const cgroup_home home;
    auto children = warden::start(home);
    if (!children)
        return 1;
    the_warden = &*children;
    return doctest::Context(argc, argv).run();
}
