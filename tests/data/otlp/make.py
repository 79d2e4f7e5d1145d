"""Writes export.pb and export.json: an export as OBI and Beyla send it, with metrics that are not flows beside it. Made with
the classes that OpenTelemetry generates from its .proto files (pip install opentelemetry-proto==1.39.1), so that the
service's own reader is compared with another implementation."""

from pathlib import Path

from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

# 2026-11-30T10:59:59.5Z, in hour 498,898 since the epoch.
END = 1_796_036_399_500_000_000
START = END - 60_000_000_000
DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE


def put(attributes, **values):
    for key, value in values.items():
        attribute = attributes.add()
        attribute.key = key.replace("__", ".")
        if isinstance(value, int):
            attribute.value.int_value = value
        else:
            attribute.value.string_value = value


def flow(total, src, dst, direction, end=END, **more):
    point = total.data_points.add()
    point.start_time_unix_nano = START
    point.time_unix_nano = end
    put(
        point.attributes,
        direction=direction,
        k8s__cluster__name="prod",
        k8s__dst__namespace="shop",
        k8s__dst__owner__name=dst,
        k8s__dst__owner__type="Deployment",
        k8s__src__namespace="shop",
        k8s__src__owner__name=src,
        k8s__src__owner__type="Deployment",
        **more,
    )
    return point


def total(scope, name, temporality=DELTA):
    metric = scope.metrics.add()
    metric.name = name
    metric.unit = "{bytes}"
    metric.description = "total bytes_sent value of network flows observed by probe since its launch"
    metric.sum.aggregation_temporality = temporality
    metric.sum.is_monotonic = True
    return metric.sum


export = ExportMetricsServiceRequest()
resource = export.resource_metrics.add()
put(resource.resource.attributes, obi__version="0.6.0", host__id="8f6e1c", process__pid=7)
scope = resource.scope_metrics.add()
scope.scope.name = "network_ebpf_events"
flows = total(scope, "obi.network.flow.bytes")
flow(flows, "web", "db", "request").as_int = 1000
flow(flows, "db", "web", "response").as_int = 5000
flow(flows, "web", "", "request").as_int = 10
flow(flows, "web", "", "request", dst__name="api.example.com").as_int = 20
# The next hour begins at the end of this interval.
flow(flows, "web", "db", "request", end=END + 500_000_000).as_int = 7
total(scope, "obi.network.inter.zone.bytes", CUMULATIVE).data_points.add().as_int = 1000

resource = export.resource_metrics.add()
put(resource.resource.attributes, host__id="8f6e1d", vpc__id="vpc-1")
scope = resource.scope_metrics.add()
flow(total(scope, "beyla.network.flow.bytes"), "web", "db", "request").as_double = 250.0
scope.metrics.add(name="http.server.active_requests").gauge.data_points.add().as_int = 3
histogram = scope.metrics.add(name="http.server.request.duration").histogram
histogram.aggregation_temporality = CUMULATIVE
for count in (1, 2):
    point = histogram.data_points.add(count=count, sum=0.5, explicit_bounds=[1.0])
    point.bucket_counts.extend([count, 0])
scope.metrics.add(name="x").exponential_histogram.data_points.add(scale=2)
scope.metrics.add(name="y").summary.data_points.add(count=1)

here = Path(__file__).parent
(here / "export.pb").write_bytes(export.SerializeToString(deterministic=True))
text = MessageToJson(export, use_integers_for_enums=True, indent=1)
(here / "export.json").write_text(text + "\n")
