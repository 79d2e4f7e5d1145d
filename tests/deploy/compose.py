"""Checks deploy/compose: by the schema of the Compose Specification, if its path is given, and that all that it names
exists and fits together."""
import copy
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import jsonschema
import yaml

from stack import COMPOSE, ROOT, compose, target


def check_schema(path, definition):
    schema = json.loads(pathlib.Path(path).read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    errors = [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(definition)]
    assert not errors, "\n".join(errors)
    # The schema has to find mistakes.
    for service, key, value in [("flowtally", "portz", []), ("agent", "pid", ["host"]), ("prometheus", "ports", [{"to": 1}])]:
        wrong = copy.deepcopy(definition)
        wrong["services"][service][key] = value
        assert not validator.is_valid(wrong), f"the schema accepts {key}: {value}"
    print(f"compose.yaml: valid by {schema['title'] if 'title' in schema else pathlib.Path(path).name}")


def volumes(service):
    """(source, target, mode) of each."""
    return [(*volume.split(":"), "rw")[:3] for volume in service.get("volumes", [])]


def check_paths(definition):
    for name, service in definition["services"].items():
        build = service.get("build")
        if build:
            context = (COMPOSE.parent / build["context"]).resolve()
            assert context == ROOT, f"{name}: {context}"
            assert (context / build["dockerfile"]).is_file(), f"{name}: {build['dockerfile']}"
        for source, _, mode in volumes(service):
            if source.startswith("."):
                assert (COMPOSE.parent / source).exists(), f"{name}: there is no {source}"
                assert mode == "ro", f"{name} could change {source}"
            elif not source.startswith("/"):
                assert source in definition["volumes"], f"{name}: volume {source} is not declared"
        for other in service.get("depends_on", []):
            assert other in definition["services"], f"{name} depends on {other}"


def check_network(definition):
    """Nothing is published to other machines, and every address names a service and its port."""
    services = definition["services"]
    ports = {}
    for name, service in services.items():
        for published in service.get("ports", []):
            host, outside, inside = published.split(":")
            assert host == "127.0.0.1" and outside == inside, f"{name}: {published}"
            ports[name] = inside
    listen = services["flowtally"]["environment"]["FLOWTALLY_LISTEN"]
    assert listen == f"0.0.0.0:{ports['flowtally']}", listen
    addresses = [value for service in services.values() for value in service.get("environment", {}).values()]
    addresses += re.findall(r'"([a-z]+:\d+)"', (ROOT / "deploy/compose/prometheus.yml").read_text())
    named = 0
    for address in addresses:
        if found := re.fullmatch(r"(?:http://)?([a-z][a-z0-9.]*|127\.0\.0\.1):(\d+)", address):
            name = "flowtally" if found[1] == "127.0.0.1" else found[1]
            assert ports.get(name) == found[2], f"{address} is not an address of a service"
            named += 1
    assert named == 4, f"{named} addresses"
    assert services["agent"]["network_mode"] == "host"


def check_settings(definition):
    """Each variable is one that the program knows, with a value that it takes."""
    binary = target() / "release/flowtally"
    services = definition["services"]
    environment = services["flowtally"]["environment"]
    command = [binary, *services["flowtally"]["command"], "--print-config"]
    shown = subprocess.run(command, env={**environment}, capture_output=True, text=True, check=True).stdout
    for name, value in environment.items():
        key = name.removeprefix("FLOWTALLY_").lower().replace("_", "-")
        line = next((line for line in shown.splitlines() if line.startswith(f"{key} = ")), "")
        assert name in line and str(value).strip('"') in line, f"{name}={value} has no effect: {line!r}\n{shown}"
    agent = services["agent"]
    help_text = subprocess.run([binary, "agent", *agent["command"], "--help"], capture_output=True, text=True, check=True).stdout
    for name in agent["environment"]:
        assert f"[env: {name}=" in help_text, f"the agent has no variable {name}"
    assert re.search(rf"possible values:.*\b{agent['environment']['FLOWTALLY_NETNS']}\b|^\s+- {agent['environment']['FLOWTALLY_NETNS']}\b", help_text, re.MULTILINE), "FLOWTALLY_NETNS"


def check_agent(definition):
    """It has what the DaemonSet gives to it."""
    daemon_set = yaml.safe_load((ROOT / "deploy/agent/daemonset.yaml").read_text())
    (container,) = daemon_set["spec"]["template"]["spec"]["containers"]
    agent = definition["services"]["agent"]
    assert agent["command"] == container["args"]
    assert set(agent["cap_add"]) == set(container["securityContext"]["capabilities"]["add"])
    assert agent["cap_drop"] == container["securityContext"]["capabilities"]["drop"]
    of_pod = {mount["mountPath"] for mount in container["volumeMounts"]}
    of_service = {inside for _, inside, _ in volumes(agent)}
    # Pods' names and volumes are the kubelet's, containers' names Docker's.
    assert of_service - of_pod == {"/var/lib/docker/containers"}, of_service - of_pod
    assert of_pod - of_service == {"/var/log/pods", "/var/lib/kubelet/pods", "/run/netns"}, of_pod - of_service


def check_prometheus():
    with tempfile.TemporaryDirectory() as work:
        shutil.copy(ROOT / "deploy/compose/prometheus.yml", work)
        shutil.copy(ROOT / "deploy/prometheus/alerts.yml", work)
        subprocess.run(["promtool", "check", "config", os.path.join(work, "prometheus.yml")], check=True)


def main():
    definition = compose()
    if len(sys.argv) > 1:
        check_schema(sys.argv[1], definition)
    else:
        print("compose.yaml: NOT CHECKED by the schema, which is in a Go module, and there is no Go here")
    check_paths(definition)
    check_network(definition)
    check_settings(definition)
    check_agent(definition)
    check_prometheus()
    print("deploy/compose: 5 checks of what it names passed")


if __name__ == "__main__":
    main()
