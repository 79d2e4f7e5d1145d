"""Checks what the chart renders: chart.py DIRECTORY FLOWTALLY, where DIRECTORY has the objects of each set of values as
NAME.yaml. Schemas are kubeconform's matter; this is about what fits together, and about copies."""
import copy
import pathlib
import subprocess
import sys
import tempfile
import tomllib

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/flowtally"
VARIANTS = ROOT / "deploy/helm/variants"


def of_kind(objects, kind):
    return [one for one in objects if one["kind"] == kind]


def only(objects, kind):
    (one,) = of_kind(objects, kind)
    return one


def check_copies(objects):
    """The alerts are those of deploy/prometheus."""
    alerts = ROOT / "deploy/prometheus/alerts.yml"
    assert (CHART / "files/alerts.yml").read_bytes() == alerts.read_bytes(), "copy deploy/prometheus/alerts.yml to deploy/helm/flowtally/files"
    for rule in of_kind(objects, "PrometheusRule"):
        assert rule["spec"] == yaml.safe_load(alerts.read_text())


def check_agent(daemon_set):
    """With the chart's defaults it is deploy/agent/daemonset.yaml, except for names."""
    expected = yaml.safe_load((ROOT / "deploy/agent/daemonset.yaml").read_text())["spec"]["template"]["spec"]
    pod = copy.deepcopy(daemon_set["spec"]["template"]["spec"])
    (container,) = pod["containers"]
    container["image"] = container["image"].partition(":")[0]
    del container["imagePullPolicy"]
    url = next(variable for variable in container["env"] if variable["name"] == "FLOWTALLY_URL")
    assert url["value"] == "http://test-flowtally.flows.svc:8080", url
    url["value"] = "http://flowtally:8080"
    assert pod == expected, f"deploy/agent/daemonset.yaml differs from the chart's:\n{expected}\n{pod}"


def check_links(objects):
    """Selectors select, ports and volumes exist, and nothing has a name twice."""
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(names) == len(set(names)), names
    pods = [one["spec"]["template"] for one in of_kind(objects, "StatefulSet") + of_kind(objects, "DaemonSet")]

    def selected(selector):
        return [pod for pod in pods if selector.items() <= pod["metadata"]["labels"].items()]

    for one in of_kind(objects, "Service"):
        (pod,) = selected(one["spec"]["selector"])
        ports = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports, one
    for one in of_kind(objects, "StatefulSet") + of_kind(objects, "DaemonSet") + of_kind(objects, "PodDisruptionBudget"):
        assert len(selected(one["spec"]["selector"]["matchLabels"])) == 1, one["kind"]
    for one in of_kind(objects, "StatefulSet"):
        (headless,) = [service for service in of_kind(objects, "Service") if service["metadata"]["name"] == one["spec"]["serviceName"]]
        assert headless["spec"]["clusterIP"] == "None" and headless["spec"]["publishNotReadyAddresses"] is True
        for spread in one["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
            assert len(selected(spread["labelSelector"]["matchLabels"])) == 1
    for one in of_kind(objects, "ServiceMonitor"):
        labels = one["spec"]["selector"]["matchLabels"]
        (service,) = [service for service in of_kind(objects, "Service") if labels.items() <= service["metadata"]["labels"].items()]
        assert one["spec"]["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
    for one in of_kind(objects, "NetworkPolicy"):
        assert len(selected(one["spec"]["podSelector"]["matchLabels"])) == 1
    for one in of_kind(objects, "StatefulSet") + of_kind(objects, "DaemonSet"):
        spec = one["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in spec.get("volumes", []) + [claim["metadata"] for claim in one["spec"].get("volumeClaimTemplates", [])]}
        (container,) = spec["containers"]
        mounted = [mount["name"] for mount in container["volumeMounts"]]
        assert set(mounted) == volumes, f"{one['kind']}: {set(mounted) ^ volumes} is mounted or declared only"
        for volume in spec.get("volumes", []):
            if "configMap" in volume:
                assert volume["configMap"]["name"] in [one["metadata"]["name"] for one in of_kind(objects, "ConfigMap")]


def check_settings(objects, binary):
    """The service takes the variables and the file, and each has an effect."""
    container = only(objects, "StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    samples = {"FLOWTALLY_NODE_NAME": "test-flowtally-0", "POD_NAMESPACE": "flows", "FLOWTALLY_KAFKA_OPTION": "security.protocol=ssl"}
    environment = {}
    for variable in container["env"]:
        value = variable.get("value") if "value" in variable else samples[variable["name"]]
        for name, known in environment.items():
            value = value.replace(f"$({name})", known)
        assert "$(" not in value, f"{variable['name']}: {value}"
        environment[variable["name"]] = value
    text = only(objects, "ConfigMap")["data"]["flowtally.toml"] if len(of_kind(objects, "ConfigMap")) == 1 else next(
        one["data"]["flowtally.toml"] for one in of_kind(objects, "ConfigMap") if "flowtally.toml" in one["data"]
    )
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        arguments = [file.name if argument.endswith(".toml") else argument for argument in container["args"]]
        command = [binary, *arguments, "--print-config"]
        shown = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
        lines = {line.split(" ")[0 if not line.startswith("#") else 1]: line for line in shown.stdout.splitlines()[1:]}
        for name in environment:
            if name.startswith("FLOWTALLY_"):
                line = lines[name.removeprefix("FLOWTALLY_").lower().replace("_", "-")]
                assert line.endswith(f"# {name}"), f"{name} has no effect: {line}"
        for key in [line.split(" ")[0] for line in text.splitlines() if "=" in line and not line.startswith("#")]:
            assert lines[key].endswith(f"# {file.name}"), f"{key} has no effect: {lines[key]}"


def check_pod(objects):
    """The service has no rights that it does not need."""
    spec = only(objects, "StatefulSet")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] and not spec["automountServiceAccountToken"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    memory = int(next(variable["value"] for variable in container["env"] if variable["name"] == "FLOWTALLY_MEMORY_MAX"))
    limit = int(container["resources"]["limits"]["memory"].removesuffix("Mi"))
    assert limit * 4 >= memory * 5, "a container needs at least a quarter more than memory-max"


def main():
    directory, binary = map(pathlib.Path, sys.argv[1:])
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == version, "appVersion is not that of Cargo.toml"
    variants = sorted(path.stem for path in VARIANTS.glob("*.yaml"))
    assert len(variants) == 5, variants
    for name in variants:
        objects = [one for one in yaml.safe_load_all((directory / f"{name}.yaml").read_text()) if one]
        check_copies(objects)
        check_links(objects)
        mode = yaml.safe_load((VARIANTS / f"{name}.yaml").read_text()).get("mode", "standalone")
        assert bool(of_kind(objects, "StatefulSet")) == (mode != "agent")
        assert bool(of_kind(objects, "PodDisruptionBudget")) == (mode == "cluster")
        if mode != "agent":
            check_settings(objects, binary)
            check_pod(objects)
        if name == "standalone":
            check_agent(only(objects, "DaemonSet"))
        print(f"chart, {name}: {len(objects)} objects fit together")


if __name__ == "__main__":
    main()
