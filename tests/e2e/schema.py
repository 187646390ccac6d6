# SPDX-License-Identifier: GPL-2.0-or-later
"""Validates JSON against the schemas in doc/schema/. No member may come that the schema does not describe."""

import glob
import json
import os
import sys

try:
    import jsonschema
except ImportError:
    print("skipped: python3-jsonschema is not installed")
    sys.exit(77)

DIRECTORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../doc/schema")


def strict(schema):
    """The schema, which takes no member that it does not name."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: strict(value) for key, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        out["additionalProperties"] = False
    return out


def load():
    """By name. Each one gets a copy of what they share, since how other files are found depends on the validator."""
    found = {}
    for path in glob.glob(os.path.join(DIRECTORY, "*.schema.json")):
        with open(path, encoding="utf-8") as f:
            schema = json.loads(f.read().replace('"common.schema.json#/', '"#/'))
        jsonschema.Draft202012Validator.check_schema(schema)
        found[os.path.basename(path).removesuffix(".schema.json")] = strict(schema)
    shared = found.pop("common")["$defs"]
    return {name: {**schema, "$defs": {**shared, **schema.get("$defs", {})}} for name, schema in found.items()}


SCHEMAS = load()
USED = set()  # those that something was validated against


def validate(name, value):
    """Raises an AssertionError when the value does not fit doc/schema/NAME.schema.json."""
    USED.add(name)
    for error in jsonschema.Draft202012Validator(SCHEMAS[name]).iter_errors(value):
        raise AssertionError(f"{name}: {error.json_path}: {error.message[:1000]}")
