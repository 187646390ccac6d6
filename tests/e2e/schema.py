# SPDX-License-Identifier: GPL-2.0-or-later
"""Validates JSON against the schemas in doc/schema/. It knows the keywords of JSON Schema that stand there, and
fails at any other."""

import json
import os
import re

DIRECTORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../doc/schema")
WORDS = {"$schema", "$defs", "title", "description", "contentEncoding"}  # these say nothing about a value
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}


def load(file):
    with open(os.path.join(DIRECTORY, file), encoding="utf-8") as f:
        return json.load(f)


def fits(value, schema, file, place):
    def wrong(why):
        raise AssertionError(f"{place}: {value!r} {why}")
    for keyword, wanted in schema.items():
        if keyword in WORDS:
            continue
        if keyword == "$ref":
            name, _, pointer = wanted.partition("#/")
            target = load(name or file)
            for step in pointer.split("/"):
                target = target[step]
            fits(value, target, name or file, place)
        elif keyword == "type":
            kind = TYPES[wanted]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                wrong(f"is of another type than {wanted}")
        elif keyword == "enum":
            if value not in wanted:
                wrong(f"is none of {wanted}")
        elif keyword == "oneOf":
            matching = 0
            for one in wanted:
                try:
                    fits(value, one, file, place)
                    matching += 1
                except AssertionError:
                    pass
            if matching != 1:
                wrong(f"fits {matching} of the choices")
        elif keyword == "required":
            if missing := [name for name in wanted if name not in value]:
                wrong(f"lacks {missing}")
        elif keyword == "properties":
            for name in wanted:
                if name in value:
                    fits(value[name], wanted[name], file, f"{place}.{name}")
        elif keyword == "items":
            for number, one in enumerate(value):
                fits(one, wanted, file, f"{place}[{number}]")
        elif keyword in ("minItems", "minLength"):
            if len(value) < wanted:
                wrong(f"is shorter than {wanted}")
        elif keyword == "pattern":
            if not re.search(wanted, value):
                wrong(f"does not match {wanted}")
        elif keyword in ("minimum", "maximum"):
            if value < wanted if keyword == "minimum" else value > wanted:
                wrong(f"is beyond the {keyword} {wanted}")
        else:
            raise AssertionError(f"{file}: the keyword {keyword} is not known here")


def validate(name, value):
    """Raises an AssertionError when the value does not fit doc/schema/NAME.schema.json."""
    file = name + ".schema.json"
    fits(value, load(file), file, name)
