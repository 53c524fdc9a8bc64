"""Each event is here before the next one is asked for."""

import http.client
import sys

host = sys.argv[1]
stream = http.client.HTTPConnection(host, timeout=20)
stream.request("GET", "/events")
answer = None
for number in range(3):
    asking = http.client.HTTPConnection(host, timeout=20)
    asking.request("GET", "/next")
    assert asking.getresponse().read() == b"ok"
    answer = answer or stream.getresponse()
    assert answer.readline() == f"data: {number}\n".encode()
    assert answer.readline() == b"\n"
assert answer.read() == b""
print(answer.getheader("Content-Type"))
