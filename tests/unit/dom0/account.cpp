// SPDX-License-Identifier: GPL-2.0-or-later
#include "decide/account.hpp"

#include <algorithm>

#include <pwd.h>
#include <unistd.h>

#include <doctest/doctest.h>

using namespace qvmremote::dom0;

TEST_CASE("an account is found by its name") {
    const auto root = find_account("root");
    REQUIRE(root);
    CHECK(root->who.uid == 0);
    CHECK(root->home == "/root");
    CHECK(root->may_administer);
    const auto nobody = find_account("nobody");
    REQUIRE(nobody);
    CHECK(nobody->who.uid == ::getpwnam("nobody")->pw_uid);
    CHECK_FALSE(nobody->may_administer);
    const auto &groups = nobody->who.groups;
    CHECK(std::find(groups.begin(), groups.end(), nobody->who.gid) != groups.end());
}

TEST_CASE("there is no account with that name") {
    for (const char *name : {"qvm-remote-no-such-user", "", "0", "root ", "\x1b[31m"}) {
        CAPTURE(name);
        const auto got = find_account(name);
        REQUIRE_FALSE(got);
        CHECK(got.error().what.find('\x1b') == std::string::npos);
    }
}

TEST_CASE("the account of this process") {
    const auto own = own_account();
    CHECK_FALSE(own.home.empty());
    CHECK_FALSE(own.shell.empty());
    if (const auto *entry = ::getpwuid(::geteuid()))
        CHECK(own.name == entry->pw_name);
}

TEST_CASE("the environment holds these variables and no others") {
    account of;
    of.name = "deploy";
    of.home = "/var/lib/deploy";
    of.shell = "/bin/bash";
    CHECK(environment_for(of, "C.UTF-8", "work", "id-1") ==
          std::vector<std::string>{"HOME=/var/lib/deploy", "USER=deploy", "LOGNAME=deploy",
                                   "SHELL=/bin/bash", "LANG=C.UTF-8",
                                   "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
                                   "QVM_REMOTE_PEER=work", "QVM_REMOTE_ID=id-1"});
}
