// SPDX-License-Identifier: GPL-2.0-or-later
#include "decide/account.hpp"

#include <algorithm>
#include <cerrno>

#include <grp.h>
#include <pwd.h>
#include <unistd.h>

#include <qvmremote/sanitize.hpp>

#include "base/confinement.hpp"

namespace qvmremote::dom0 {
namespace {

constexpr std::size_t most_groups = 65536; // the kernel's own NGROUPS_MAX

// A member of one of these groups can become root or dom0's administrator, and confinement does not
// prevent it: services obey some of these groups, and others may write to raw disks and memory.
constexpr const char *powerful_groups[] = {"root", "qubes",   "wheel",  "sudo", "disk",
                                           "kmem", "libvirt", "docker", "lxd",  "shadow"};

[[nodiscard]] std::string value_or(const char *value, const char *otherwise) {
    return value && *value ? value : otherwise;
}

[[nodiscard]] account describe(const passwd &entry) {
    account out;
    out.name = entry.pw_name;
    out.home = value_or(entry.pw_dir, "/");
    out.shell = value_or(entry.pw_shell, "/bin/bash");
    out.who.uid = entry.pw_uid;
    out.who.gid = entry.pw_gid;
    return out;
}

} // namespace

host::outcome<account> find_account(const std::string &name) {
    errno = 0;
    const passwd *const entry = ::getpwnam(name.c_str());
    if (!entry)
        return host::failed("there is no user '" + for_terminal(name, 64) +
                                "' in dom0: make it, or change user= in the policy",
                            errno);
    account out = describe(*entry);
    int count = 32;
    out.who.groups.resize(32);
    while (::getgrouplist(out.name.c_str(), out.who.gid, out.who.groups.data(), &count) < 0) {
        if (static_cast<std::size_t>(count) <= out.who.groups.size() ||
            static_cast<std::size_t>(count) > most_groups)
            return host::failed("cannot list the groups of user '" + for_terminal(name, 64) +
                                "': see `id " + for_terminal(name, 64) + "` in dom0");
        out.who.groups.resize(static_cast<std::size_t>(count));
    }
    out.who.groups.resize(static_cast<std::size_t>(count));
    out.may_administer = out.who.uid == 0;
    for (const char *const powerful : powerful_groups)
        if (const group *const found = ::getgrnam(powerful))
            out.may_administer = out.may_administer || out.who.gid == found->gr_gid ||
                                 std::find(out.who.groups.begin(), out.who.groups.end(),
                                           found->gr_gid) != out.who.groups.end();
    return out;
}

account own_account() {
    if (const passwd *const entry = ::getpwuid(::geteuid()))
        return describe(*entry);
    account out;
    out.name = "root";
    out.home = "/";
    out.shell = "/bin/bash";
    return out;
}

std::vector<std::string> environment_for(const account &of, const std::string &language,
                                         const std::string &peer, const std::string &id) {
    return {"HOME=" + of.home,         "USER=" + of.name,
            "LOGNAME=" + of.name,      "SHELL=" + of.shell,
            "LANG=" + language,        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
            "QVM_REMOTE_PEER=" + peer, "QVM_REMOTE_ID=" + id};
}

host::outcome<account> account_of_rule(const std::string &name, bool full) {
    auto found = find_account(name);
    if (full || !found)
        return found;
    if (found->may_administer)
        return host::failed("user '" + found->name +
                            "' of the rule may administer dom0, so it limits nothing: name another "
                            "user, or say level:full");
    if (const std::string why = why_no_confinement(); !why.empty())
        return host::failed(why + "; a rule with user= below full needs that");
    return found;
}

} // namespace qvmremote::dom0
