# dom0: the daemon, its settings and its policy. It is switched on or off only if the pillar says
# `enabled`: a qube with full access IS dom0, so there is no default.
{%- from "qvm-remote/map.jinja" import settings with context %}
qvm-remote-dom0-package:
  pkg.installed:
    - name: {{ settings.packages.dom0 | tojson }}

# Settings that the pillar does not name are not managed: an existing file stays.
{%- if settings.config %}
qvm-remote-config:
  file.managed:
    - name: /etc/qubes/remote.conf
    - user: root
    - group: root
    - mode: '0600'
    - contents:
      - '# Salt writes this file, from the pillar.'
      {%- for key, value in settings.config.items() | sort %}
      - {{ (key ~ '=' ~ '"' ~ value ~ '"') | tojson }}
      {%- endfor %}
    - require:
      - pkg: qvm-remote-dom0-package
{%- endif %}

# It comes before the 50-VM.policy that `authorize` writes, so for a qube the pillar decides.
qvm-remote-policy:
  file.managed:
    - name: /etc/qubes/remote-policy.d/40-salt.policy
    - user: root
    - group: root
    - mode: '0644'
    - contents:
      - '# Salt writes this file, from the pillar. Rules of your own: a file like 30-local.policy.'
      {%- for name, qube in settings.qubes.items() | sort if not qube.get('absent') %}
      {%- for rule in qube.get('rules', []) %}
      - {{ (name ~ ' ' ~ rule) | tojson }}
      {%- endfor %}
      - {{ (name ~ (' * deny' if qube.level == 'deny' else ' level:' ~ qube.level ~ ' allow')) | tojson }}
      {%- endfor %}
    - require:
      - pkg: qvm-remote-dom0-package

# While policy has a mistake, no new request is allowed. This says where the mistake is.
qvm-remote-policy-lint:
  cmd.run:
    - name: qvm-remote-dom0 policy lint
    - onchanges:
      - file: qvm-remote-policy

qvm-remote-reload:
  cmd.run:
    - name: systemctl reload qvm-remote-dom0.service
    - onlyif: systemctl --quiet is-active qvm-remote-dom0.service
    - onchanges:
      - file: qvm-remote-policy
      {%- if settings.config %}
      - file: qvm-remote-config
      {%- endif %}
{%- if settings.enabled is not none %}

qvm-remote-service:
  {%- if settings.enabled %}
  service.running:
    - enable: true
  {%- else %}
  service.dead:
    - enable: false
  {%- endif %}
    - name: qvm-remote-dom0
    - require:
      - pkg: qvm-remote-dom0-package
      - file: qvm-remote-policy
{%- endif %}
