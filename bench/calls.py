"""Counts calls to Firestore on the wire: a gRPC proxy between a function and the emulator.

It does not parse messages: it passes the bytes on unchanged, both ways. Each call counts under the
name of its method. A retry by the client library counts as well.
"""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import grpc.aio

_TRANSPORTS_OWN = ("grpc-", "user-agent", ":", "content-type", "te")


class CountedCalls(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc is published untyped
    """The proxy. `counts` holds how often each method was called."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.address = ""
        self.counts: Counter[str] = Counter()
        self._channel = channel

    def take(self) -> dict[str, int]:
        """Return the counts since the last call of `take`, and reset them."""
        counts, self.counts = dict(self.counts), Counter()
        return counts

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Treat every call as a stream in both directions: a single message is a stream of one."""
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
    """Run the proxy. Its `address` is the function's FIRESTORE_EMULATOR_HOST."""
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
