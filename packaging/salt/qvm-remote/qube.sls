# dom0: the qubes that have a `template` in the pillar are made; all follow their `prefs` and `tags`.
{%- from "qvm-remote/map.jinja" import settings with context %}
qvm-remote-qubes: test.nop
{%- for name, qube in settings.qubes.items() if not qube.get('absent') %}
{%- if qube.get('template') %}

qvm-remote-qube-{{ name }}:
  qvm.present:
    - name: {{ name }}
    - template: {{ qube.template | tojson }}
    - label: {{ qube.get('label', 'red') | tojson }}
{%- endif %}
{%- if qube.get('prefs') %}

qvm-remote-prefs-{{ name }}:
  qvm.prefs:
    - name: {{ name }}
    {%- for key, value in qube.prefs.items() %}
    - {{ key | tojson }}: {{ value | tojson }}
    {%- endfor %}
    {%- if qube.get('template') %}
    - require:
      - qvm: qvm-remote-qube-{{ name }}
    {%- endif %}
{%- endif %}
{%- if qube.get('tags') %}

qvm-remote-tags-{{ name }}:
  qvm.tags:
    - name: {{ name }}
    - add: {{ qube.tags | tojson }}
    {%- if qube.get('template') %}
    - require:
      - qvm: qvm-remote-qube-{{ name }}
    {%- endif %}
{%- endif %}
{%- endfor %}
