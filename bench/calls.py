"""Firestore's calls, counted on the wire: a gRPC server between a function and the emulator.

It knows no message: bytes pass both ways as they come, and each call counts under the name of its
method, a repetition by the client library too.
"""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import grpc.aio

_TRANSPORTS_OWN = ("grpc-", "user-agent", ":", "content-type", "te")


class CountedCalls(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc is published untyped
    """`counts` holds how often each method was called."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.address = ""
        self.counts: Counter[str] = Counter()
        self._channel = channel

    def take(self) -> dict[str, int]:
        """The counts since the last look."""
        counts, self.counts = dict(self.counts), Counter()
        return counts

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Streams both ways: on the wire a single message is a stream of one."""
        method = handler_call_details.method
        self.counts[method.rpartition("/")[2]] += 1
        onward = self._channel.stream_stream(method)

        async def pass_on(
            requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
        ) -> AsyncIterator[bytes]:
            metadata = [
                item
                for item in context.invocation_metadata()
                if not item[0].startswith(_TRANSPORTS_OWN)
            ]
            answers = onward(requests, metadata=metadata)
            try:
                async for answer in answers:
                    yield answer
            except grpc.aio.AioRpcError as error:
                trailing = tuple(error.trailing_metadata())
                await context.abort(error.code(), error.details(), trailing)

        return grpc.stream_stream_rpc_method_handler(pass_on)


@contextlib.asynccontextmanager
async def counting(emulator: str) -> AsyncIterator[CountedCalls]:
    """A server whose `address` is FIRESTORE_EMULATOR_HOST to the function."""
    async with grpc.aio.insecure_channel(emulator) as channel:
        calls = CountedCalls(channel)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([calls])
        calls.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield calls
        finally:
            await server.stop(None)
