// SPDX-License-Identifier: GPL-2.0-or-later
// How an execution becomes a job.
#include <algorithm>
#include <utility>

#include <qvmremote/host/clock.hpp>

#include "execute/execution.hpp"
#include "execute/job_table.hpp"

namespace qvmremote::dom0 {

void execution::go_on_as_job(job_table *jobs, const digest256 &key_mark) {
    if (finished_ || !port_)
        return;
    if (const auto handed = hand_over(jobs, key_mark); !handed) {
        port_->notify("it cannot go on as a job: " + handed.error().what);
        port_->flush();
        return;
    }
    context_.log.write(log_category::info, "vm=" + what_.from().name.text() + " id=" +
                                               what_.request().id->text() + " goes on as a job");
    goes_on_ = true;
    end_ = run_end{.cause = end_cause::detached, .value = 1};
    script_.leave();
    finish();
}

host::outcome<void> execution::hand_over(job_table *jobs, const digest256 &key_mark) {
    if (!terminal_ || exited_ || !child_)
        return host::failed("it has ended");
    if (!jobs)
        return host::failed("it was not allowed as one");
    jobs->look_for_group();
    if (!jobs->groups())
        return host::failed("it would end with dom0's daemon: " + jobs->groups().why_none);
    auto made = jobs->prepare(what_.from(), what_.request(), key_mark);
    if (!made)
        return tl::unexpected(made.error());
    std::uint64_t left_s = 0;
    if (const std::uint64_t limit = what_.terms().timeout_s; limit != 0) {
        const std::uint64_t past = (host::boottime_ms() - started_ms_) / 1000;
        left_s = limit > past ? limit - past : 1;
    }
    const std::uint64_t output_left =
        output_left_ == UINT64_MAX ? 0 : std::max<std::uint64_t>(output_left_, 1);
    auto taken = jobs->go_on(**made, {what_, *child_, *terminal_, output_left,
                                      static_cast<std::uint32_t>(left_s), script_.path()});
    if (!taken)
        jobs->forget(**made);
    return taken;
}

} // namespace qvmremote::dom0
