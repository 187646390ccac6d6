# A qube whose key the pillar of dom0 holds: the same key here. The pillar gives each qube its own alone.
{%- set key = salt['pillar.get']('qvm-remote:key') %}
{%- if not key %}
{{ raise('qvm-remote.key: the pillar has no qvm-remote:key for this qube') }}
{%- endif %}
qvm-remote-auth-key:
  file.managed:
    - name: /home/{{ salt['pillar.get']('qvm-remote:user', 'user') }}/.qvm-remote/auth.key
    - user: {{ salt['pillar.get']('qvm-remote:user', 'user') }}
    - mode: '0600'
    - makedirs: true
    - dir_mode: '0700'
    - contents_pillar: qvm-remote:key
    - show_changes: false
