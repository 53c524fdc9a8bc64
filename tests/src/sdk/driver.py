"""Does what it is told with E2B's SDK: one JSON object a line there, one back."""

import json
import sys

from e2b import ALL_TRAFFIC, Sandbox, SandboxQuery


def brief(info):
    return {
        "sandboxID": info.sandbox_id,
        "templateID": info.template_id,
        "metadata": info.metadata,
        "state": info.state.value,
        "startedAt": info.started_at.timestamp(),
        "endAt": info.end_at.timestamp(),
        "allowInternetAccess": getattr(info, "allow_internet_access", None),
        "network": getattr(info, "network", None),
    }


def handle(sandbox):
    return {
        "sandboxID": sandbox.sandbox_id,
        "domain": sandbox.sandbox_domain,
        "trafficAccessToken": sandbox.traffic_access_token,
        "host": sandbox.get_host(3000),
    }


def selectors(network):
    """Selectors may be functions of a context, which the SDK resolves before it sends anything."""
    if network and network.pop("by_function", False):
        network["deny_out"] = lambda ctx: [ctx.all_traffic]
    return network


def create(template="base", network=None, **options):
    return handle(Sandbox.create(template, network=selectors(network), **options))


def update(id, network, **options):
    return Sandbox.update_network(id, selectors(network), **options)


def info(id, **options):
    return brief(Sandbox.get_info(id, **options))


def connect(id, timeout=None, **options):
    return handle(Sandbox.connect(id, timeout=timeout, **options))


def running(id, **options):
    return Sandbox.connect(id, **options).is_running()


def download_url(id, path, seconds):
    return Sandbox.connect(id).download_url(path, use_signature_expiration=seconds)


def kill(id, **options):
    return Sandbox.kill(id, **options)


def timeout(id, seconds, **options):
    return Sandbox.set_timeout(id, seconds, **options)


def list(metadata=None, limit=None, **options):
    query = SandboxQuery(metadata=metadata) if metadata else None
    pages = Sandbox.list(query=query, limit=limit, **options)
    found = []
    while pages.has_next:
        found.append([brief(info) for info in pages.next_items()])
    return found


for line in sys.stdin:
    order = json.loads(line)
    try:
        answer = {"returned": globals()[order["do"]](**order["with"])}
    except Exception as error:
        classes = [kind.__name__ for kind in type(error).__mro__]
        answer = {"thrown": {"classes": classes, "message": str(error)}}
    print(json.dumps(answer, default=str), flush=True)
