# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes an ID for an entry of protocol 1, and its token with the openssl command."""

import os
import subprocess
import time

from fixture import KEY


def new_id(n=0):
    return time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}-{n:08x}"


def token(name, key=KEY):
    said = subprocess.run(["openssl", "dgst", "-sha256", "-hmac", key], input=name.encode(),
                          stdout=subprocess.PIPE, check=True).stdout
    return said.split()[-1].decode()
