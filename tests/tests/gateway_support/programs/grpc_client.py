"""Calls the service in every way."""

import json
import queue
import sys

import grpc

gateway, authority, token, ca = sys.argv[1:]
options = [("grpc.default_authority", authority), ("grpc.max_receive_message_length", 64 << 20)]
if ca:
    options.append(("grpc.ssl_target_name_override", authority.split(":")[0]))
    credentials = grpc.ssl_channel_credentials(open(ca, "rb").read())
    channel = grpc.secure_channel(f"ipv4:{gateway}", credentials, options)
else:
    channel = grpc.insecure_channel(f"ipv4:{gateway}", options)
metadata = (("e2b-traffic-access-token", token),)
said = {}
unary = channel.unary_unary("/test.Service/Unary")
reply, call = unary.with_call(b"abc", metadata=metadata, timeout=20)
said["unary"] = reply.decode()
said["trailer"] = dict(call.trailing_metadata()).get("x-trailer")
large = b"0123456789abcdef" * (200 << 10)
said["large"] = unary(large, metadata=metadata, timeout=20) == large[::-1]

# A conversation: each answer is there before the next question is asked.
questions = queue.Queue()
answers = channel.stream_stream("/test.Service/Stream")(iter(questions.get, None), metadata=metadata, timeout=20)
said["stream"] = []
for word in (b"one", b"two", b"three"):
    questions.put(word)
    said["stream"].append(next(answers).decode())
questions.put(None)
said["stream"] += [more.decode() for more in answers]
count = channel.unary_stream("/test.Service/Count")(b"1000", metadata=metadata, timeout=20)
said["count"] = sum(1 for _ in count)
try:
    channel.unary_unary("/test.Service/Fail")(b"", metadata=metadata, timeout=20)
except grpc.RpcError as error:
    said["fail"] = [error.code().name, error.details()]
try:
    unary(b"abc", timeout=20)
except grpc.RpcError as error:
    said["without"] = error.code().name
print(json.dumps(said))
