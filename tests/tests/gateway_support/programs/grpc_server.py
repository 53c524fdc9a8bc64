"""A service without a schema: unary, streams in both directions, an error with a status."""

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc


def unary(request, context):
    context.set_trailing_metadata((("x-trailer", "end"), ("x-host", context.peer() and "seen")))
    return request[::-1]


def stream(requests, context):
    for request in requests:
        yield request.upper()


def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")


handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Stream": grpc.stream_stream_rpc_method_handler(stream),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
}
server = grpc.server(ThreadPoolExecutor(16))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])
server.add_insecure_port(f"0.0.0.0:{sys.argv[1]}")
server.start()
server.wait_for_termination()
