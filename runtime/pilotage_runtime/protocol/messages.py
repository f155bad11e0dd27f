"""The gRPC messages, in a descriptor pool of their own.

The clients of this protocol each register `inference.*` in protobuf's global pool, where two of them collide; a
server that lived there could not be imported beside any of them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

COMPILED = Path(__file__).with_name("open_inference.binpb")
SERVICE = "inference.GRPCInferenceService"


class Method:
    """One method of the service: how its messages are read and written."""

    def __init__(self, descriptor: Any) -> None:
        self.name: str = descriptor.name
        self.request: Any = message_factory.GetMessageClass(descriptor.input_type)
        self.response: Any = message_factory.GetMessageClass(descriptor.output_type)
        self.streams: bool = descriptor.server_streaming
        self.read: Callable[[bytes], Any] = self.request.FromString
        self.write: Callable[[Any], bytes] = self.response.SerializeToString


def load() -> dict[str, Method]:
    """Read the methods of the service by name."""
    files = descriptor_pb2.FileDescriptorSet.FromString(COMPILED.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    service = pool.FindServiceByName(SERVICE)
    return {method.name: Method(method) for method in service.methods}
