"""Writes the JSON schemas of the kinds that the chart has, one file each, as kubeconform looks for them.

schemas.py SWAGGER DIRECTORY CRD…: from the OpenAPI document of Kubernetes, and from definitions of custom resources. The
schemas are strict: a field that a type does not have is an error, and so is a null."""
import json
import pathlib
import sys

import yaml

# Of Kubernetes. Another kind in the chart is an error of kubeconform, which finds no schema.
KINDS = {"ConfigMap", "DaemonSet", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount", "StatefulSet"}
REFERENCE = "#/definitions/"
# Types that the document calls strings.
LOOSE = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": ["string", "integer"],
    "io.k8s.apimachinery.pkg.api.resource.Quantity": ["string", "number"],
}


def strict(schema):
    """The schema without its texts, and without fields that it does not name."""
    if "$ref" in schema:
        return {"$ref": schema["$ref"]}
    out = {key: value for key, value in schema.items() if key in ("type", "enum", "required", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")}
    for key in ("allOf", "anyOf", "oneOf"):
        if key in schema:
            out[key] = [strict(one) for one in schema[key]]
    if "items" in schema:
        out["items"] = strict(schema["items"])
    more = schema.get("additionalProperties")
    if isinstance(more, dict):
        out["additionalProperties"] = strict(more)
    if "properties" in schema:
        out["properties"] = {name: strict(one) for name, one in schema["properties"].items()}
        if more is None and not schema.get("x-kubernetes-preserve-unknown-fields"):
            out["additionalProperties"] = False
    return out


def references(schema):
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref":
                yield value.removeprefix(REFERENCE)
            else:
                yield from references(value)
    elif isinstance(schema, list):
        for one in schema:
            yield from references(one)


def with_definitions(name, definitions):
    """The schema of a definition, with all those that it refers to."""
    needed, waiting = {}, [name]
    while waiting:
        name_of_next = waiting.pop()
        if name_of_next in needed:
            continue
        loose = LOOSE.get(name_of_next)
        needed[name_of_next] = {"type": loose} if loose else strict(definitions[name_of_next])
        waiting.extend(references(needed[name_of_next]))
    return {"$ref": REFERENCE + name, "definitions": needed}


def write(directory, kind, group, version, schema):
    """Its name is that of the template {{.ResourceKind}}{{.KindSuffix}}.json: the kind, the first part of the group, the version."""
    api_version = f"{group}/{version}" if group else version
    root = {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata"],
        "properties": {"apiVersion": {"enum": [api_version]}, "kind": {"enum": [kind]}},
    }
    name = "-".join(part for part in (kind.lower(), group.split(".")[0], version) if part)
    definitions = schema.pop("definitions", {})
    whole = {"$schema": "http://json-schema.org/draft-07/schema#", "allOf": [schema, root], "definitions": definitions}
    (directory / f"{name}.json").write_text(json.dumps(whole))
    return kind


def main():
    swagger, directory, *custom = map(pathlib.Path, sys.argv[1:])
    directory.mkdir(parents=True, exist_ok=True)
    definitions = json.loads(swagger.read_text())["definitions"]
    written = set()
    for name, definition in definitions.items():
        for of in definition.get("x-kubernetes-group-version-kind", []):
            if of["kind"] in KINDS and of["version"] == "v1" and definition.get("properties", {}).keys() >= {"kind", "metadata"}:
                written.add(write(directory, of["kind"], of["group"], of["version"], with_definitions(name, definitions)))
    assert written == KINDS, KINDS - written
    for path in custom:
        spec = yaml.safe_load(path.read_text())["spec"]
        for version in spec["versions"]:
            write(directory, spec["names"]["kind"], spec["group"], version["name"], strict(version["schema"]["openAPIV3Schema"]))


if __name__ == "__main__":
    main()
