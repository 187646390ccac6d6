// SPDX-License-Identifier: GPL-2.0-or-later
#include "journal_fixture.hpp"

#include <cerrno>

#include <sys/syscall.h>

namespace qvmremote_test {

std::atomic<int> syncs{0};
std::atomic<int> sync_error{0};
std::atomic<std::latch *> sync_gate{nullptr};

namespace {

std::atomic<std::int64_t> wall_shift_s{0}, boottime_shift_s{0};

} // namespace

void shifted_clocks::set(std::int64_t wall_s, std::int64_t boottime_s) {
    wall_shift_s = wall_s;
    boottime_shift_s = boottime_s;
}

} // namespace qvmremote_test

using namespace qvmremote_test;

// Replaces the clocks for the journal.
extern "C" int clock_gettime(clockid_t clock, timespec *t) {
    const int out = static_cast<int>(::syscall(SYS_clock_gettime, clock, t));
    if (clock == CLOCK_REALTIME)
        t->tv_sec += wall_shift_s;
    if (clock == CLOCK_BOOTTIME)
        t->tv_sec += boottime_shift_s;
    return out;
}

// Replaces the sync of a file: counts the calls, and fails or waits on demand.
extern "C" int fdatasync(int fd) {
    ++syncs;
    if (std::latch *const gate = sync_gate.exchange(nullptr))
        gate->wait();
    if (const int error = sync_error) {
        errno = error;
        return -1;
    }
    return static_cast<int>(::syscall(SYS_fdatasync, fd));
}
