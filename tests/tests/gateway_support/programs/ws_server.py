"""Sends back every message; a page at any path that is no WebSocket's."""

import asyncio
import sys
from http import HTTPStatus

from websockets.asyncio.server import serve

PAGE = open(sys.argv[2], "rb").read() if len(sys.argv) > 2 else b"a page"


async def echo(socket):
    async for message in socket:
        if message == "bye":
            await socket.close(4001, "as told")
        else:
            await socket.send(message)


def page(connection, request):
    if request.headers.get("Upgrade", "").lower() != "websocket":
        response = connection.respond(HTTPStatus.OK, "")
        response.body = PAGE
        for name, value in (("Content-Type", "text/html"), ("Content-Length", str(len(PAGE)))):
            del response.headers[name]
            response.headers[name] = value
        return response


def chat(connection, offered):
    return "chat" if "chat" in offered else None


async def main():
    options = {"process_request": page, "select_subprotocol": chat, "max_size": 16 << 20}
    async with serve(echo, "0.0.0.0", int(sys.argv[1]), **options):
        await asyncio.Future()


asyncio.run(main())
