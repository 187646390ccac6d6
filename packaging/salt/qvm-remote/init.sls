# dom0's end, in order: the qubes, the daemon and its configuration, keys.
include:
  - qvm-remote.qube
  - qvm-remote.dom0
  - qvm-remote.keys
