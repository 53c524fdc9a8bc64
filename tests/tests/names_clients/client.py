"""Clients that Python has: `client.py CLIENT URL` prints what is there, or complains and ends with 1."""

import asyncio
import socket
import sys
from urllib.parse import urlsplit


def urllib(url):
    from urllib.request import urlopen

    with urlopen(url, timeout=20) as answer:
        return answer.read().decode()


def requests(url):
    import requests

    answer = requests.get(url, timeout=20)
    return f"{answer.status_code} {answer.text}"


def aiohttp(url):
    async def fetch():
        import aiohttp

        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return await answer.text()

    return asyncio.run(fetch())


def post_quantum(url):
    """curl as Chrome is: a hello with a post-quantum key share, GREASE, and more than one segment."""
    from curl_cffi import requests

    return requests.get(url, impersonate="chrome", timeout=20).text


def http3(url):
    """curl that would rather speak HTTP/3."""
    from curl_cffi import CurlHttpVersion, requests

    return requests.get(url, http_version=CurlHttpVersion.V3, timeout=20).text


def websocket(url):
    from websockets.sync.client import connect

    with connect(url, open_timeout=20) as socket:
        answers = []
        for message in ["one", "two", b"\x00" * 200_000, "three"]:
            socket.send(message)
            answer = socket.recv(timeout=20)
            assert answer == message, answer[:20]
            answers.append(answer if isinstance(answer, str) else str(len(answer)))
        return " ".join(answers)


def events(url):
    """Server-sent events: the next comes when the last was seen, so none may be held back."""

    async def read():
        import aiohttp

        seen = []
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"data: "):
                    seen.append(line[6:].decode().strip())
                    async with session.post(url.replace("/events", "/seen")) as told:
                        told.raise_for_status()
        return ", ".join(seen)

    return asyncio.run(read())


def half_close(url):
    """Ends its side as soon as it has asked."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, 80), timeout=20) as stream:
        stream.sendall(f"GET {parts.path} HTTP/1.1\r\nHost: {parts.hostname}\r\nConnection: close\r\n\r\n".encode())
        stream.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := stream.recv(65536):
            answer += piece
    body = answer.partition(b"\r\n\r\n")[2]
    return f"{len(body)} bytes"


def grpc_call(url):
    """A call, and a stream in both directions."""
    import os

    import grpc

    with open(os.environ["SSL_CERT_FILE"], "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    with grpc.secure_channel(f"{urlsplit(url).hostname}:443", credentials) as channel:
        said = [channel.unary_unary("/test.Echo/Say")(b"hello", timeout=20)]
        said += channel.stream_stream("/test.Echo/Chat")(iter([b"one", b"two", b"x" * 100_000]), timeout=20)
    return " ".join(word.decode() if len(word) < 100 else str(len(word)) for word in said)


def grpc_server(address, certificate, key):
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    def say(request, context):
        print("asked by", context.peer(), flush=True)
        return request

    def chat(requests, context):
        yield from requests

    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(say),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    with open(key, "rb") as key, open(certificate, "rb") as certificate:
        credentials = grpc.ssl_server_credentials([(key.read(), certificate.read())])
    server.add_secure_port(f"{address}:443", credentials)
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


def main():
    _, client, *words = sys.argv
    try:
        print(globals()[client.replace("-", "_")](*words))
    except Exception as error:
        while error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            error = error.__cause__ or error.__context__
        sys.exit(1)


main()
