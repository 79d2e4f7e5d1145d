"""What JSON Schema cannot say. It takes 7.0 for an integer; the service does not, since nobody who counts bytes writes them
so. And a span of time ends after it begins."""

import schemathesis


def integers(value):
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [integers(item) for item in value]
    if isinstance(value, dict):
        return {key: integers(item) for key, item in value.items()}
    return value


def spans(value):
    if isinstance(value, list):
        return [spans(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: spans(item) for key, item in value.items()}
    ends = [value.get("from"), value.get("to")]
    if all(type(end) is int for end in ends):
        value["from"], value["to"] = sorted(ends)
    return value


@schemathesis.hook
def map_body(context, body):
    return spans(integers(body))
