"""What is in the dashboards: panels, queries, variables; and what Grafana and its plugin Infinity put in place of variables
and macros, as far as these dashboards use them. Anything else fails."""
import datetime
import json
import re
import urllib.parse

from stack import ROOT

DIRECTORY = ROOT / "deploy/grafana"
INFINITY = "yesoreyeram-infinity-datasource"
SERVICE = "flowtally-service.json"
TRAFFIC = "flowtally-traffic.json"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def load(name):
    return json.loads((DIRECTORY / "dashboards" / name).read_text())


def panels(dashboard):
    """All panels that are not rows."""
    for panel in dashboard["panels"]:
        yield from panel.get("panels", [])
        if panel["type"] != "row":
            yield panel


def targets(dashboard):
    """(panel, target) of each query."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield panel, target


def variables(dashboard):
    return {variable["name"]: variable for variable in dashboard["templating"]["list"]}


class Range:
    """The time that is chosen in the dashboard."""

    def __init__(self, start, end):
        self.start, self.end = start, end

    def iso(self, seconds):
        time = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
        return time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03d}Z"

    def custom_interval(self, arguments):
        *pairs, otherwise = arguments.split(",")
        for longest, value in zip(pairs[::2], pairs[1::2]):
            if self.end - self.start <= int(longest[:-1]) * UNITS[longest[-1]]:
                return value
        return otherwise

    def fill(self, text, values):
        """`values` by variable: a text, or several, or a text that is put in place as it is (`Raw`)."""

        def variable(found):
            name, form, argument = found[1], found[2], found[3]
            if name in ("__from", "__to"):
                assert (form, argument) == ("date", "iso"), found[0]
                return self.iso(self.start if name == "__from" else self.end)
            value = values[name]
            if isinstance(value, Raw):
                return value
            if form is None:
                assert isinstance(value, str), found[0]
                return value
            assert form == "customqueryparam", found[0]
            several = [value] if isinstance(value, str) else value
            return "&".join(f"{argument}={urllib.parse.quote(one, safe='')}" for one in several)

        text = re.sub(r"\$\{(\w+)(?::(\w+))?(?::(\w+))?\}", variable, text)
        text = re.sub(r"\$__customInterval\(([^)]*)\)", lambda found: self.custom_interval(found[1]), text)
        assert "$" not in text, text
        return text


class Raw(str):
    """The custom value of All, which Grafana does not format."""


def sent(url):
    """The URL as Infinity sends it: the query is parsed and written again."""
    path, _, query = url.partition("?")
    pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=False)
    return f"{path}?{urllib.parse.urlencode(sorted(pairs, key=lambda pair: pair[0]))}"


def promql(text):
    """A query of the service's dashboard for all jobs and instances."""
    for variable, value in {"$__rate_interval": "30s", "$job": ".*", "$instance": ".*"}.items():
        text = text.replace(variable, value)
    assert "$" not in text, text
    return text


def check_form(name):
    """The rules that Grafana has for a dashboard, and ours."""
    dashboard = load(name)
    assert dashboard["uid"] == name.removesuffix(".json") and dashboard["schemaVersion"] == 42
    known = variables(dashboard)
    everything = list(panels(dashboard)) + [panel for panel in dashboard["panels"] if panel["type"] == "row"]
    numbers = [panel["id"] for panel in everything]
    assert len(numbers) == len(set(numbers)), f"{name}: a number of a panel occurs twice"
    taken = set()
    for panel in everything:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, f"{name}: {panel['title']} lies over another panel"
        taken |= cells
        assert panel["title"], f"{name}: a panel without a title"
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard["panels"]) + json.dumps(dashboard["templating"])))
    used = {variable for variable in used if not variable.startswith("__")}
    assert used == set(known), f"{name}: {used ^ set(known)} is used and unknown, or known and unused"
    for panel, target in targets(dashboard):
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == target["datasource"], panel["title"]
        source = known[target["datasource"]["uid"].strip("${}")]
        assert source["type"] == "datasource" and source["query"] == target["datasource"]["type"], panel["title"]
    return dashboard
