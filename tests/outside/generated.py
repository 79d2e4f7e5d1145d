"""Uses the client that openapi-python-client has generated: sends flows, and reads their sums.

Usage: PYTHONPATH=DIR generated.py URL, where DIR has the package `flowtally_client`.
"""

import sys
import uuid

from flowtally_client import AuthenticatedClient
from flowtally_client.api.flows import delete_flows, get_flows, get_hours, post_flows
from flowtally_client.models import Accepted, Deleted, Flow, Problem

HOUR = 700
U64_MAX = 2**64 - 1


def main():
    client = AuthenticatedClient(base_url=sys.argv[1], token="none")
    flows = [
        Flow(src_app="web", dest_app="db", vpc_id="v", bytes_tx=2**53 + 1, bytes_rx=7, hour=HOUR),
        Flow(src_app="web", dest_app="db", vpc_id="v", bytes_tx=2**53 + 2, bytes_rx=U64_MAX, hour=HOUR),
        Flow(src_app="größe", dest_app="db", vpc_id="", bytes_tx=0, bytes_rx=1, hour=HOUR),
    ]
    key = str(uuid.uuid4())
    for replayed in (None, "true"):
        response = post_flows.sync_detailed(client=client, body=flows, idempotency_key=key)
        assert response.status_code == 200, response
        assert isinstance(response.parsed, Accepted) and response.parsed.accepted == 3, response
        assert response.headers.get("Idempotent-Replayed") == replayed, response

    def rows(**parameters):
        found = get_flows.sync(client=client, **parameters)
        assert isinstance(found, list), found
        return [(row.src_app, row.bytes_tx, row.bytes_rx) for row in found]

    web = ("web", 2**54 + 3, U64_MAX)
    assert rows(hour=HOUR) == [("größe", 0, 1), web], rows(hour=HOUR)
    # Each kind of parameter.
    assert rows(from_=HOUR, to=HOUR + 1, src_app=["web", "x"]) == [web]
    assert rows(hour=HOUR, src_app_prefix=["w"]) == [web]
    assert rows(hour=HOUR, src_app_not=["web"]) == [("größe", 0, 1)]
    assert rows(hour=HOUR, group_by=["src_app"], sort="-bytes_rx", limit=1) == [("größe", 0, 1)]
    hours = get_hours.sync(client=client, from_=HOUR, to=HOUR + 1)
    assert [hour.to_dict() for hour in hours] == [
        {"hour": HOUR, "flows": 3, "bytes_tx": 2**54 + 3, "bytes_rx": U64_MAX + 8}
    ], hours

    flows[1].hour = 2**32
    refused = post_flows.sync(client=client, body=flows)
    assert isinstance(refused, Problem) and (refused.index, refused.field) == (1, "hour"), refused
    refused = get_flows.sync(client=client)
    assert isinstance(refused, Problem) and refused.type_ == "urn:flowtally:problem:bad-query", refused

    deleted = delete_flows.sync(client=client, hour=HOUR)
    assert isinstance(deleted, Deleted) and deleted.deleted == 3, deleted
    assert rows(hour=HOUR) == []
    print("the generated client sends and reads, and its sums are exact")


if __name__ == "__main__":
    main()
