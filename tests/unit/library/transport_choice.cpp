// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/transport_choice.hpp>

#include <doctest/doctest.h>

using namespace qvmremote;

namespace {
using enum next_way;
using enum allowed_protocol;
} // namespace

TEST_CASE("the first way: a stream, but where only protocol 1 is allowed") {
    CHECK(first_way({"qvm-run", any}) == stream);
    CHECK(first_way({"qvm-run", two}) == stream);
    CHECK(first_way({"qvm-run", one}) == queue);
    CHECK(first_way({"qrexec", one}) == stream); // has no queue
    CHECK(first_way({"mock", one}) == stream);
}

TEST_CASE("the way after a try that failed") {
    struct row {
        way_terms terms; // transport, version, pinned, fits protocol 1, patience
        int error;
        std::uint64_t waited_ms;
        next_way want;
        int exit_code; // when it ends
    };
    static constexpr row rows[] = {
        // qvm-run: nobody listens
        {{"qvm-run", any, false, true, 0}, ECONNREFUSED, 0, queue, 0},
        {{"qvm-run", any, false, false, 0}, ECONNREFUSED, 0, stream, 0},
        {{"qvm-run", any, false, false, 0}, ECONNREFUSED, 2'999, stream, 0},
        {{"qvm-run", any, false, false, 0}, ECONNREFUSED, 3'000, queue, 0},
        // no downgrade for a key that has been used with protocol 2, nor against the user's word
        {{"qvm-run", any, true, true, 0}, ECONNREFUSED, 0, stream, 0},
        {{"qvm-run", any, true, true, 0}, ECONNREFUSED, 29'999, stream, 0},
        {{"qvm-run", any, true, true, 0}, ECONNREFUSED, 30'000, too_late, 255},
        {{"qvm-run", two, false, true, 0}, ECONNREFUSED, 3'000, stream, 0},
        {{"qvm-run", two, false, true, 0}, ECONNREFUSED, 30'000, too_late, 255},
        {{"qvm-run", two, false, true, 60'000}, ECONNREFUSED, 30'000, too_late, 255},
        // qrexec: all calls of this user are in use
        {{"qrexec", any, false, true, 10'000}, ECONNREFUSED, 0, stream, 0},
        {{"qrexec", any, false, true, 10'000}, ECONNREFUSED, 9'999, stream, 0},
        {{"qrexec", any, false, true, 10'000}, ECONNREFUSED, 10'000, too_late, 124},
        {{"qrexec", any, false, true, 0}, ECONNREFUSED, 0, too_late, 124},
        // another error, or another transport, ends at once
        {{"qrexec", any, false, true, 10'000}, EACCES, 0, refused, 126},
        {{"qrexec", any, false, true, 10'000}, ENOENT, 0, refused, 255},
        {{"qvm-run", any, false, true, 0}, EACCES, 0, refused, 126},
        {{"qvm-run", any, false, true, 0}, EPROTO, 0, refused, 255},
        {{"mock", any, false, true, 10'000}, ECONNREFUSED, 0, refused, 255},
        {{"", any, false, true, 10'000}, ECONNREFUSED, 0, refused, 255},
    };
    for (const row &r : rows) {
        INFO(r.terms.transport, " error ", r.error, " after ", r.waited_ms);
        const next_way got = way_after(r.error, r.waited_ms, r.terms);
        CHECK(got == r.want);
        if (got == refused || got == too_late)
            CHECK(exit_code_of(got, r.error, r.terms) == r.exit_code);
    }
}
