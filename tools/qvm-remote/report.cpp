// SPDX-License-Identifier: GPL-2.0-or-later
#include "report.hpp"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <utility>

#include <poll.h>
#include <unistd.h>

#include <qvmremote/host/failure.hpp>

namespace qvmremote::qube {

namespace {
std::optional<std::vector<std::string>> held;
} // namespace

held_complaints::held_complaints() { held.emplace(); }
held_complaints::~held_complaints() { held.reset(); }

std::string held_complaints::text() const {
    std::string out;
    for (const std::string &line : *held)
        out += (out.empty() ? "" : "; ") + line;
    return out;
}

report &report::instance() {
    static report only;
    return only;
}

void report::print(const std::string &what) {
    std::fprintf(stderr, "qvm-remote: %s\n", what.c_str());
}

void report::error(error_name name, const std::string &what) {
    if (held)
        return held->push_back(what);
    print(what);
    if (!is_json())
        return;
    if (error_)
        warnings_.push_back(what);
    else
        error_ = named_error{name.text(), what};
}

void report::warning(const std::string &what) {
    if (held)
        return held->push_back(what);
    print(what);
    if (is_json())
        warnings_.push_back(what);
}

void report::begin_object() {
    object_.emplace(pending_, [](std::string &) { static_cast<void>(instance().write_out()); });
    object_->begin();
    if (has_lines())
        object_->text("event", "end");
}

json_writer &report::result() {
    if (!object_)
        begin_object();
    if (!std::exchange(has_result_, true))
        object_->begin("result");
    return *object_;
}

void report::add_line(std::string_view json) {
    pending_ += json;
    pending_ += '\n';
}

bool report::flush() {
    while (!pending_.empty()) {
        const std::size_t n = out_.take(as_bytes(pending_));
        if (n == 0)
            break;
        pending_.erase(0, n);
    }
    return pending_.empty();
}

// Writes everything, however long the reader takes. A signal ends the program from now on, since
// there is no command any more to which it could be forwarded.
bool report::write_out() {
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) {
        struct sigaction before {};
        ::sigaction(number, nullptr, &before);
        if (before.sa_handler != SIG_IGN)
            ::signal(number, SIG_DFL);
    }
    while (!flush()) {
        if (out_.broken()) {
            pending_.clear();
            return false;
        }
        pollfd ready{out_.blocked_on(), POLLOUT, 0};
        ::poll(&ready, 1, -1);
    }
    return true;
}

namespace {
// The exit code when standard output has failed.
int output_failed(int error) {
    if (error == EPIPE)
        return 141;
    report::print(host::failed("cannot write the result", error).value().what);
    return 255;
}
} // namespace

int report::end(int code) {
    if (!is_json()) {
        errno = 0;
        return std::fflush(stdout) == 0 && std::ferror(stdout) == 0 ? code : output_failed(errno);
    }
    if (!object_)
        begin_object();
    if (has_result_)
        object_->end();
    object_->number("exit_code", code);
    if (error_) {
        object_->begin("error");
        object_->text("name", error_->name);
        object_->text("message", error_->what);
        object_->end();
    }
    object_->begin_array("warnings");
    for (const std::string &one : warnings_)
        object_->text(one);
    object_->end();
    object_->end();
    pending_ += '\n';
    return write_out() ? code : output_failed(out_.error());
}

void complain(error_name name, const std::string &what) { report::instance().error(name, what); }
void warn(const std::string &what) { report::instance().warning(what); }

} // namespace qvmremote::qube
