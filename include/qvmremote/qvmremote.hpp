// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The whole library, except host/, which touches the machine.

#pragma once

#include <qvmremote/amounts.hpp>
#include <qvmremote/audit.hpp>
#include <qvmremote/base64.hpp>
#include <qvmremote/bytes.hpp>
#include <qvmremote/command_id.hpp>
#include <qvmremote/config.hpp>
#include <qvmremote/digest.hpp>
#include <qvmremote/display.hpp>
#include <qvmremote/envelope.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/escapes.hpp>
#include <qvmremote/fault.hpp>
#include <qvmremote/frame.hpp>
#include <qvmremote/history.hpp>
#include <qvmremote/job.hpp>
#include <qvmremote/json.hpp>
#include <qvmremote/limits.hpp>
#include <qvmremote/policy.hpp>
#include <qvmremote/queue.hpp>
#include <qvmremote/quota.hpp>
#include <qvmremote/request.hpp>
#include <qvmremote/route.hpp>
#include <qvmremote/sanitize.hpp>
#include <qvmremote/scheduler.hpp>
#include <qvmremote/secret.hpp>
#include <qvmremote/session.hpp>
#include <qvmremote/terminal_filter.hpp>
#include <qvmremote/token.hpp>
#include <qvmremote/transport_abi.h>
#include <qvmremote/transport_choice.hpp>
#include <qvmremote/utf8.hpp>
