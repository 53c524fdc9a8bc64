"""Talks to an echo: texts, a large message, a ping, and a close with a reason."""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

url, token = sys.argv[1:]


async def main():
    said = {}
    try:
        async with connect(url):
            said["without"] = "open"
    except InvalidStatus as refused:
        said["without"] = refused.response.status_code
    headers = {"e2b-traffic-access-token": token}
    options = {"additional_headers": headers, "subprotocols": ["chat"], "max_size": 16 << 20}
    async with connect(url, **options) as socket:
        said["subprotocol"] = socket.subprotocol
        for number in range(100):
            await socket.send(f"message {number}")
            assert await socket.recv() == f"message {number}"
        large = bytes(range(256)) * (16 << 10)
        await socket.send(large)
        said["large"] = await socket.recv() == large
        await (await socket.ping())
        await socket.send("bye")
        try:
            await socket.recv()
        except ConnectionClosed as closed:
            said["closed"] = [closed.rcvd.code, closed.rcvd.reason]
    print(json.dumps(said))


asyncio.run(main())
