# /srv/user_pillar/qvm-remote.sls, for dom0 alone: an example, in which each line has its say.
qvm-remote:
  # true: the daemon runs, and at every boot. false: it does not. Without this line: as it is.
  enabled: false

  # remote.conf, see qvm-remote-dom0(8). Without this the file is not touched.
  config:
    QVM_REMOTE_TRANSPORT: qvm-run
    QVM_REMOTE_MAX_MEMORY: 2G

  qubes:
    # Made from a template, with what qvm-prefs and qvm-tags know. `level` must be said: deny, monitor,
    # manage or full, and with full the qube IS dom0.
    dev-remote:
      template: fedora-41-xfce
      label: red
      prefs:
        memory: 400
        maxmem: 1024
      tags: [agent]
      level: monitor
      # Before the level: what stands after the qube's name in a line of policy.
      rules:
        - 'exec:qvm-start {qube:dev-*} ask ttl=10m'
    # One that exists. With `key`, dom0 and the qube (qvm-remote.key) get it from the pillar.
    # work:
    #   level: manage
    #   key: 64 hex digits
    # One that is let in no longer.
    # old:
    #   absent: true
