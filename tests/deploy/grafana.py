"""Runs every query of the dashboards against a real service and a real Prometheus that scrapes it, as the compose file
starts them, and compares what the traffic dashboard shows with the flows that were sent. That Grafana renders the
dashboards is NOT RUN: it is in no registry that packages come from here."""
import collections
import json
import math
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse

import jsonata
import yaml

import dashboards
from dashboards import INFINITY, SERVICE, TRAFFIC, Range, Raw
from stack import ROOT, Stack, compose, get, get_json, until

# A standalone service has none of these; a node has one for each of its partitions.
OF_PARTITIONS = {"flowtally_partition_lag_messages", "flowtally_checkpoint_time_seconds"}
HOUR = 3600
SEEN_HOURS = 200


def check_files():
    """The dashboards are those that the program makes, and Grafana finds all of it."""
    with tempfile.TemporaryDirectory() as made:
        subprocess.run([sys.executable, ROOT / "deploy/grafana/make-dashboards", made], check=True)
        for name in (SERVICE, TRAFFIC):
            committed = (ROOT / "deploy/grafana/dashboards" / name).read_bytes()
            with open(f"{made}/{name}", "rb") as new:
                assert new.read() == committed, f"{name} is not what make-dashboards writes: run it"
    grafana = compose()["services"]["grafana"]
    mounted = {inside: outside for outside, inside, _ in (volume.split(":") for volume in grafana["volumes"] if volume.startswith("."))}
    (provider,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/flowtally.yaml").read_text())["providers"]
    assert mounted[provider["options"]["path"]] == "../grafana/dashboards"
    assert mounted["/etc/grafana/provisioning"] == "../grafana/provisioning"
    sources = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/flowtally.yaml").read_text())["datasources"]
    used = {target["datasource"]["type"] for name in (SERVICE, TRAFFIC) for _, target in dashboards.targets(dashboards.load(name))}
    assert {source["type"] for source in sources} == used, used
    assert grafana["environment"]["GF_PLUGINS_PREINSTALL_SYNC"].startswith(f"{INFINITY}@")
    text = "".join(json.dumps(source) for source in sources)
    for variable in re.findall(r"\$(\w+)", text):
        assert variable in grafana["environment"], f"Grafana has no variable {variable}"


def flows_of(now):
    """Flows of more names than are drawn, in the hours until now and in one long ago, with names that URLs have to escape."""
    hour = int(now) // HOUR
    flows = []
    for back in [*range(0, SEEN_HOURS, 4), 5_000]:
        for number in range(12):
            source = ["web", "a&b=c", "100 %", "été", "plus+plus"][number] if number < 5 else f"service-{number}"
            flows.append({
                "src_app": source,
                "dest_app": f"db-{number % 3}",
                "vpc_id": "vpc/edge" if number % 2 else "vpc-shop",
                "bytes_tx": 1_000 * (12 - number) + back,
                "bytes_rx": 10 * number,
                "hour": hour - back,
            })
    return flows


def send(stack, flows):
    headers = {"Content-Type": "application/json"}
    for key in ({}, {"Idempotency-Key": "again"}, {"Idempotency-Key": "again"}):
        # The first two count, so each flow counts twice.
        status, body = get(f"{stack.service}/flows", json.dumps(flows).encode(), {**headers, **key})
        assert status == 200, body
    assert get(f"{stack.service}/flows", b"[{}]", headers)[0] == 400
    # An export with a metric that has no flows.
    point = {"timeUnixNano": str(int(time.time() * 1e9)), "asInt": "1", "attributes": []}
    metric = {"name": "up", "sum": {"dataPoints": [point], "aggregationTemporality": 1}}
    export = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]}
    assert get(f"{stack.service}/v1/metrics", json.dumps(export).encode(), headers)[0] == 200
    assert get(f"{stack.service}/hours")[0] == 200


def exposed(stack):
    """The names of all metrics that the service has, without the endings of histograms."""
    text = get(f"{stack.service}/metrics")[1].decode()
    return set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))


def names_in(expr):
    names = set(re.findall(r"\b((?:flowtally|process)_\w+|up)\b(?=\{)", expr))
    return {re.sub(r"_(bucket|sum|count)$", "", name) if name.startswith("flowtally_") else name for name in names}


def ask(stack, path, **parameters):
    return get_json(f"{stack.prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")["data"]


def check_prometheus(stack):
    dashboard = dashboards.check_form(SERVICE)
    now_there = exposed(stack)
    shown, ran = set(), 0
    for panel, target in dashboards.targets(dashboard):
        expr = dashboards.promql(target["expr"])
        used = names_in(expr)
        shown |= used
        if target.get("instant"):
            found = ask(stack, "query", query=expr)["result"]
        else:
            now = time.time()
            found = ask(stack, "query_range", query=expr, start=now - 60, end=now, step=5)["result"]
        ran += 1
        if used & OF_PARTITIONS:
            assert not used & now_there and not found, f"{panel['title']}: a standalone service has no partitions"
            continue
        assert used <= now_there | {"up"}, f"{panel['title']}: the service has no metric {used - now_there}"
        assert found, f"{panel['title']}: no data for {expr}"
        legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        for series in found:
            # Prometheus has no labels that are empty.
            missing = legend - set(series["metric"]) - {"vpc_id"}
            assert not missing, f"{panel['title']}: {series['metric']} has no {missing} for the legend"
    # All that the alerts rest on is on the dashboard.
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    for rule in rules:
        missing = names_in(rule["expr"]) - shown
        assert not missing, f"{rule['alert']} rests on {missing}, which no panel shows"
    for variable in dashboards.variables(dashboard).values():
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            values = ask(stack, f"label/{found[2]}/values", **{"match[]": dashboards.promql(found[1])})
            assert values, variable["definition"]

    # The example of the manual.
    (example,) = re.findall(r"^```promql\n(.*?)^```$", (ROOT / "docs/grafana.md").read_text(), re.MULTILINE | re.DOTALL)
    assert names_in(example.replace("_bytes", "_bytes{}")) <= now_there, example
    ask(stack, "query", query=example.replace("100e9", "1"))["result"][0]

    def evaluated():
        groups = ask(stack, "rules")["groups"]
        of_groups = [rule for group in groups for rule in group["rules"]]
        return of_groups if len(of_groups) == len(rules) and all(rule["health"] != "unknown" for rule in of_groups) else None

    for rule in until("Prometheus has evaluated the alerts", evaluated):
        assert rule["health"] == "ok" and rule["state"] != "firing", rule
    print(f"{SERVICE}: {ran} queries of Prometheus ran, {len(rules)} alerts evaluated")


class Traffic:
    """The traffic dashboard for a time, a VPC and a number of names."""

    def __init__(self, stack, seconds, vpc, limit):
        self.stack = stack
        self.dashboard = dashboards.load(TRAFFIC)
        end = time.time()
        self.range = Range(end - seconds, end)
        self.values = {"vpc": vpc, "limit": limit}
        for name, variable in dashboards.variables(self.dashboard).items():
            if variable["type"] == "query" and name != "vpc":
                (column,) = variable["query"]["infinityQuery"]["columns"]
                rows = self.rows(variable["query"]["infinityQuery"])
                self.values[name] = [row[column["selector"]] for row in rows]

    def answer(self, query):
        """The answer of the service, through the root selector."""
        url = dashboards.sent(self.range.fill(query["url"], self.values))
        rows = get_json(self.stack.service + url)
        selector = query["root_selector"]
        return jsonata.Jsonata(selector).evaluate(rows) if selector else rows

    def rows(self, query):
        rows = self.answer(query)
        assert rows, f"no rows for {query['url']}"
        for column in query["columns"]:
            values = [row[column["selector"]] for row in rows if column["selector"] in row]
            assert values or column["selector"] == "change", f"{query['url']}: no row has {column['selector']}"
            for value in values:
                kind = column["type"]
                assert isinstance(value, str if kind == "string" else (int, float)), (column, value)
                if kind == "timestamp_epoch":
                    first = self.range.start - 720 * HOUR
                    assert first <= value / 1000 <= self.range.end, (column, value)
        return rows

    def of(self, title):
        """The rows of each query of a panel."""
        found = [target for panel, target in dashboards.targets(self.dashboard) if panel["title"] == title]
        return [self.rows(target) for target in found]

    def check(self, flows):
        """What the panels show are the sums of the flows, each of which was counted twice."""
        first, end = int(self.range.start) // HOUR, math.ceil(self.range.end / HOUR)
        wanted = None if isinstance(self.values["vpc"], Raw) else self.values["vpc"]
        chosen = [flow for flow in flows if first <= flow["hour"] < end and wanted in (None, flow["vpc_id"])]
        sums = {"sent": 2 * sum(flow["bytes_tx"] for flow in chosen), "received": 2 * sum(flow["bytes_rx"] for flow in chosen)}
        everything = sum(sums.values())
        for title, of_flows in [("Traffic", everything), ("Sent", sums["sent"]), ("Received", sums["received"])]:
            ((row,),) = self.of(title)
            assert row[{"Traffic": "all"}.get(title, title.lower())] == of_flows, (title, row, of_flows)
        self.of("Change")
        for title, field in [("Sources", "src_app"), ("Destinations", "dest_app")]:
            most = collections.Counter()
            for flow in chosen:
                most[flow[field]] += 2 * (flow["bytes_tx"] + flow["bytes_rx"])
            of_names, of_all = self.of(f"{title} over time")
            assert sum(row["everything"] for row in of_all) == everything
            drawn = collections.Counter()
            for row in of_names:
                drawn[row["name"]] += row["bytes"]
            assert drawn == dict(most.most_common(len(drawn))), (title, drawn, most)
            times = [row["time"] for row in of_names]
            assert times == sorted(times), "Infinity makes series of rows only if their times ascend"
            (bars,) = self.of(title)
            assert sum(row["sent"] + row["received"] for row in bars) == everything, title
            assert len(bars) == min(len(most), int(self.values["limit"]) + 1), (title, len(bars))
            assert ("all others" in [row["name"] for row in bars]) == (len(most) > int(self.values["limit"]))
        (pairs,) = self.of("Pairs")
        assert sum(row["all"] for row in pairs) == everything
        (largest,) = self.of("Largest rows")
        assert sum(row["sent"] + row["received"] for row in largest) <= everything
        self.of("Hours")
        return len(list(dashboards.targets(self.dashboard)))


def check_traffic(stack, flows):
    dashboard = dashboards.check_form(TRAFFIC)
    vpc = dashboards.variables(dashboard)["vpc"]
    everything = Raw(vpc["allValue"])
    found = Traffic(stack, 24 * HOUR, everything, "10").rows(vpc["query"]["infinityQuery"])
    assert sorted(row["vpc_id"] for row in found) == ["vpc-shop", "vpc/edge"], found
    ran = 0
    limits = dashboards.variables(dashboard)["limit"]["query"].split(",")
    # Hours, days, thirty days; all VPCs, and one whose name has a slash.
    for seconds in (24 * HOUR, 7 * 24 * HOUR, 365 * 24 * HOUR):
        for chosen in (everything, "vpc/edge"):
            for limit in (limits[0], limits[-1]):
                ran += Traffic(stack, seconds, chosen, limit).check(flows)
    print(f"{TRAFFIC}: {ran} queries of the service ran, and their sums are those of the flows")


def main():
    check_files()
    with tempfile.TemporaryDirectory() as work, Stack(work) as stack:
        stack.start_service()
        flows = flows_of(time.time())
        stack.start_prometheus()
        send(stack, flows)
        until("Prometheus has scraped the service", lambda: ask(stack, "query", query="up == 1")["result"])
        until("the pairs are metrics", lambda: ask(stack, "query", query="flowtally_traffic_hour_bytes")["result"])
        time_of = "count_over_time(flowtally_rejected_total[30s]) > 3"
        until("Prometheus has several samples", lambda: ask(stack, "query", query=time_of)["result"])
        check_prometheus(stack)
        check_traffic(stack, flows)
    print("rendering in Grafana: NOT RUN, it cannot be installed here")


if __name__ == "__main__":
    main()
