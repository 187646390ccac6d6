# /srv/user_pillar/qvm-remote.sls, only for dom0: an example with every setting.
qvm-remote:
  # true: the daemon runs, now and after every boot. false: it does not. Without this line nothing changes.
  enabled: false

  # remote.conf, see qvm-remote-dom0(8). Without this the file is not touched.
  config:
    QVM_REMOTE_TRANSPORT: qvm-run
    QVM_REMOTE_MAX_MEMORY: 2G

  qubes:
    # Made from a template, with prefs (qvm-prefs) and tags (qvm-tags). `level` is required: deny, monitor,
    # manage or full, and with full the qube IS dom0.
    dev-remote:
      template: fedora-41-xfce
      label: red
      prefs:
        memory: 400
        maxmem: 1024
      tags: [agent]
      level: monitor
      # Lines of policy that come before the level: what follows the name of the qube in each.
      rules:
        - 'exec:qvm-start {qube:dev-*} ask ttl=10m'
    # A qube that exists. With `key`, dom0 and the qube (qvm-remote.key) get it from the pillar.
    # work:
    #   level: manage
    #   key: 64 hex digits
    # A qube that loses its access.
    # old:
    #   absent: true
