# dom0: keys. A qube makes its own key, and dom0 takes it over qvm-run, from pipe to pipe, so that the key
# is never in a pillar, argument, environment or output. For this the qube must run with the client
# installed; this state starts it. With `key` in the pillar, the qube gets the key: see qvm-remote.key.
{%- from "qvm-remote/map.jinja" import settings with context %}
include:
  - qvm-remote.dom0

qvm-remote-keys: test.nop
{%- for name, qube in settings.qubes.items() %}
{%- set file = '/etc/qubes/remote.d/' ~ name ~ '.key' %}
{%- if qube.get('absent') %}

qvm-remote-revoked-{{ name }}:
  cmd.run:
    - name: qvm-remote-dom0 revoke {{ name }}
    - onlyif: test -e {{ file }}
{%- elif qube.get('key') %}

qvm-remote-key-{{ name }}:
  file.managed:
    - name: {{ file }}
    - user: root
    - group: root
    - mode: '0600'
    - makedirs: true
    - dir_mode: '0700'
    - contents_pillar: qvm-remote:qubes:{{ name }}:key
    - show_changes: false
{%- else %}

qvm-remote-start-{{ name }}:
  qvm.start:
    - name: {{ name }}
    - unless: test -e {{ file }}

qvm-remote-key-{{ name }}:
  cmd.run:
    - name: >-
        set -o pipefail;
        qvm-run --no-gui --no-autostart --pass-io {{ name }}
        '{ test -e ~/.qvm-remote/auth.key || qvm-remote key gen >&2; } && qvm-remote key show </dev/null' |
        qvm-remote-dom0 authorize --level {{ qube.level }} {{ name }}
    - shell: /bin/bash
    - creates: {{ file }}
    - require:
      - qvm: qvm-remote-start-{{ name }}
      - pkg: qvm-remote-dom0-package
{%- endif %}
{%- endfor %}
