"""Schemas in the style of those that programs have, with conditions and alternatives: each with values that are valid,
and values that are not."""

_STEP = {
    "type": "object",
    "properties": {
        "run": {"type": "string"},
        "uses": {"type": "string"},
        "shell": {"enum": ["bash", "pwsh", "sh"]},
    },
    "additionalProperties": False,
    "oneOf": [{"required": ["run"]}, {"required": ["uses"]}],
    "dependentRequired": {"shell": ["run"]},
}

REALISTIC = {
    "a workflow": (
        {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "on": {
                    "oneOf": [
                        {"enum": ["push", "pull_request"]},
                        {
                            "type": "array",
                            "items": {"enum": ["push", "pull_request"]},
                            "uniqueItems": True,
                            "minItems": 1,
                        },
                    ]
                },
                "steps": {"type": "array", "items": {"$ref": "#/$defs/step"}, "minItems": 1, "maxItems": 4},
            },
            "required": ["on", "steps"],
            "additionalProperties": False,
            "$defs": {"step": _STEP},
        },
        [
            {"on": "push", "steps": [{"run": "make"}]},
            {
                "on": ["push", "pull_request"],
                "steps": [{"uses": "checkout"}, {"run": "make", "shell": "bash"}],
            },
        ],
        [
            {"on": ["push", "push"], "steps": [{"run": "make"}]},
            {"on": "push", "steps": [{"run": "make", "uses": "x"}]},
            {"on": "push", "steps": [{"uses": "x", "shell": "sh"}]},
            {"on": "push", "steps": [{}]},
        ],
    ),
    "a tool": (
        {
            "type": "object",
            "properties": {
                "action": {"type": "string", "enum": ["search", "open", "close"]},
                "query": {"type": "string", "maxLength": 40},
                "page": {"type": "integer", "minimum": 1, "maximum": 99},
            },
            "required": ["action"],
            "additionalProperties": False,
            "allOf": [
                {"if": {"properties": {"action": {"const": "search"}}}, "then": {"required": ["query"]}},
                {"if": {"properties": {"action": {"const": "open"}}}, "then": {"required": ["page"]}},
                {
                    "if": {"properties": {"action": {"const": "close"}}},
                    "then": {"properties": {"query": False, "page": False}},
                },
            ],
        },
        [{"action": "search", "query": "x"}, {"action": "open", "page": 3}, {"action": "close"}],
        [{"action": "search"}, {"action": "open", "query": "x"}, {"action": "close", "page": 1}],
    ),
    "a container": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": {
                "kind": {"enum": ["Service", "Job"]},
                "metadata": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}},
                    "required": ["name"],
                },
                "spec": {"type": "object"},
            },
            "required": ["kind", "metadata", "spec"],
            "if": {"properties": {"kind": {"const": "Service"}}},
            "then": {
                "properties": {
                    "spec": {
                        "properties": {
                            "port": {
                                "oneOf": [{"type": "integer", "minimum": 1}, {"enum": ["http", "https"]}]
                            }
                        },
                        "required": ["port"],
                    }
                }
            },
            "else": {"properties": {"spec": {"required": ["image"], "not": {"required": ["port"]}}}},
        },
        [
            {"kind": "Service", "metadata": {"name": "a"}, "spec": {"port": 80}},
            {"kind": "Service", "metadata": {"name": "a"}, "spec": {"port": "http"}},
            {"kind": "Job", "metadata": {"name": "a"}, "spec": {"image": "x"}},
        ],
        [
            {"kind": "Service", "metadata": {"name": "a"}, "spec": {"image": "x"}},
            {"kind": "Service", "metadata": {"name": "a"}, "spec": {"port": "ftp"}},
            {"kind": "Job", "metadata": {"name": "a"}, "spec": {"port": 80}},
        ],
    ),
    "a volume": (
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "not": {"enum": ["root", "tmp"]}},
                "emptyDir": {"type": "object"},
                "hostPath": {
                    "type": "object",
                    "properties": {"path": {"type": "string"}},
                    "required": ["path"],
                },
                "secret": {"type": "string"},
            },
            "required": ["name"],
            "additionalProperties": False,
            "oneOf": [{"required": ["emptyDir"]}, {"required": ["hostPath"]}, {"required": ["secret"]}],
        },
        [
            {"name": "data", "emptyDir": {}},
            {"name": "roots", "hostPath": {"path": "/x"}},
            {"name": "", "secret": "s"},
        ],
        [{"name": "root", "secret": "s"}, {"name": "a"}, {"name": "a", "emptyDir": {}, "secret": "s"}],
    ),
    "an event": (
        {
            "oneOf": [
                {"$ref": "#/definitions/created"},
                {"$ref": "#/definitions/moved"},
                {"$ref": "#/definitions/batch"},
            ],
            "definitions": {
                "created": {
                    "type": "object",
                    "properties": {"type": {"const": "created"}, "by": {"type": "string"}},
                    "required": ["type", "by"],
                },
                "moved": {
                    "type": "object",
                    "properties": {"type": {"const": "moved"}, "to": {"type": "integer"}},
                    "required": ["type", "to"],
                },
                "batch": {"type": "array", "items": {"$ref": "#"}, "maxItems": 3},
            },
        },
        [{"type": "created", "by": "x"}, [{"type": "moved", "to": 4}, []]],
        [{"type": "moved", "by": "x"}, [{"type": "created"}], {"by": "x"}],
    ),
    "a payment": (
        {
            "type": "object",
            "properties": {
                "method": {"enum": ["card", "transfer", "cash"]},
                "number": {"type": "string", "pattern": "^[0-9]{4}$"},
                "iban": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{6}$"},
                "amount": {"type": "integer", "minimum": 1, "not": {"const": 13}},
            },
            "required": ["method", "amount"],
            "additionalProperties": False,
            "allOf": [
                {
                    "if": {"properties": {"method": {"const": "card"}}, "required": ["method"]},
                    "then": {"required": ["number"]},
                    "else": {"properties": {"number": False}},
                },
                {
                    "if": {"properties": {"method": {"const": "transfer"}}, "required": ["method"]},
                    "then": {"required": ["iban"]},
                    "else": {"not": {"required": ["iban"]}},
                },
            ],
        },
        [
            {"method": "card", "number": "1234", "amount": 14},
            {"method": "transfer", "iban": "DE123456", "amount": 1},
            {"method": "cash", "amount": 130},
        ],
        [
            {"method": "card", "amount": 5},
            {"method": "cash", "number": "1234", "amount": 5},
            {"method": "cash", "amount": 13},
        ],
    ),
    "settings of a linter": (
        {
            "type": "object",
            "additionalProperties": {
                "oneOf": [
                    {"$ref": "#/$defs/severity"},
                    {
                        "type": "array",
                        "prefixItems": [{"$ref": "#/$defs/severity"}],
                        "items": {"type": "object", "properties": {"max": {"type": "integer"}}},
                        "minItems": 1,
                        "maxItems": 2,
                    },
                ]
            },
            "$defs": {
                "severity": {
                    "oneOf": [{"type": "integer", "minimum": 0, "maximum": 2}, {"enum": ["off", "warn"]}]
                }
            },
        },
        [{"semi": 2, "quotes": ["warn", {"max": 3}]}, {}],
        [{"semi": 3}, {"quotes": []}, {"quotes": ["loud"]}],
    ),
}
