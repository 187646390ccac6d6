// SPDX-License-Identifier: GPL-2.0-or-later
// With LD_PRELOAD: the clock of a program is ahead by an hour.
#include <ctime>

#include <sys/syscall.h>
#include <unistd.h>

extern "C" {
__attribute__((visibility("default"))) int clock_gettime(clockid_t clock, timespec *to) noexcept {
    const long result = ::syscall(SYS_clock_gettime, clock, to);
    if (result == 0 && clock == CLOCK_REALTIME)
        to->tv_sec += 3600;
    return static_cast<int>(result);
}

__attribute__((visibility("default"))) time_t time(time_t *to) noexcept {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    if (to)
        *to = now.tv_sec;
    return now.tv_sec;
}
}
