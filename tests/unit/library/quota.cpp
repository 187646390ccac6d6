// SPDX-License-Identifier: GPL-2.0-or-later
#include <qvmremote/quota.hpp>

#include <doctest/doctest.h>

using namespace qvmremote;

TEST_CASE("daily_quota: what was spent flows back evenly in a day") {
    daily_quota q(86'400'000); // a byte a millisecond
    CHECK(q.has_room("work", 0));
    q.charge("work", 86'400'000 + 500, 1000);
    CHECK_FALSE(q.has_room("work", 1000));
    CHECK_FALSE(q.has_room("work", 1500));
    CHECK(q.has_room("work", 1501));
    CHECK(q.has_room("dev", 1000));
    q.charge("work", 1000, 1501);
    CHECK_FALSE(q.has_room("work", 2500));
    CHECK(q.has_room("work", 2501));
    daily_quota small(10); // less than a byte an hour
    small.charge("work", 20, 0);
    CHECK_FALSE(small.has_room("work", 43'200'000));
    CHECK(small.has_room("work", 86'400'000 + 86'400'000 / 10));
    small.charge("work", 1 << 20, 0);
    CHECK_FALSE(small.has_room("work", 2 * 86'400'000ull));
}
