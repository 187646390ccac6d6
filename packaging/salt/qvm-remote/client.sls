# A template, or a standalone qube: the client and its agent.
{%- from "qvm-remote/map.jinja" import settings with context %}
qvm-remote-package:
  pkg.installed:
    - name: {{ settings.packages.qube | tojson }}
