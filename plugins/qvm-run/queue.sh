# SPDX-License-Identifier: GPL-2.0-or-later
exit 127
