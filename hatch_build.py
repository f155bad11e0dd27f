"""Compiles the protocol's proto into a descriptor set when the distribution is built or installed from source."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTO = Path("runtime/pilotage_runtime/protocol/open_inference.proto")


class ProtocolBuildHook(BuildHookInterface[Any]):
    """One file in, one file out; the operator's image is built without the runtime's folder, and needs neither."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before files are gathered."""
        del version
        proto = Path(self.root) / PROTO
        if not proto.exists():
            return
        from grpc_tools import protoc  # noqa: PLC0415 - a build dependency

        compiled = proto.with_suffix(".binpb")
        arguments = [f"--proto_path={proto.parent}", f"--descriptor_set_out={compiled}", str(proto)]
        if protoc.main(["protoc", *arguments]) != 0:
            raise RuntimeError(f"protoc refuses {proto}")
        build_data["artifacts"].append(str(compiled.relative_to(self.root)))
