# In a qube: the key that the pillar of dom0 holds for it. The pillar gives each qube only its own key.
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
