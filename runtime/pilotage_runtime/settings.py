"""Settings from the environment; the descriptions are what `--help` prints."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from pilotage_runtime.content import Format
from pilotage_runtime.placement import Device, Precision

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


# One part of a path, and nothing that a URL would escape.
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$")]


def _listed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"names separated by commas or a JSON list are expected: {error}") from None
    return [name.strip() for name in value.split(",") if name.strip()]


# As a person writes it, and as the operator does, which has it as JSON.
Names = Annotated[list[str], NoDecode, BeforeValidator(_listed)]


HttpAddress = Annotated[str, StringConstraints(pattern=r"^https?://[^/\s]+[^\s]*$")]


class _Common(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="PILOTAGE_", env_ignore_empty=True)

    model_dir: Path = Field(
        default=Path("/models"),
        description="where fetch puts the model and serve reads it; for serve also a model file",
    )
    model_format: Format | None = Field(
        default=None, description="the model's format; found from the content where absent"
    )
    model_digest: Digest | None = Field(default=None, description="sha256:… that the content must have")
    trusted: bool = Field(
        default=False,
        description="let code in the model's files run (Pickle, Joblib, Python); only together with the digest",
    )
    termination_log: Path = Field(
        default=Path("/dev/termination-log"), description="where a failed start leaves its stage and reason"
    )


class FetchSettings(_Common):
    """Settings of `pilotage-runtime fetch`."""

    model_uri: str = Field(
        description="https://…, s3://BUCKET/KEY, gs://BUCKET/NAME, az://CONTAINER/NAME, hf://ORG/REPOSITORY, oci://IMAGE, "
        "pvc://CLAIM/PATH, or a path of this machine; a file or a folder"
    )
    pinned_digest_file: Path = Field(
        default=Path("/etc/pilotage/revision/digest"),
        description="holds the digest of the revision's first pod, once known",
    )
    credentials_dir: Path = Field(
        default=Path("/etc/pilotage/credentials"),
        description="one file a key, named as the store's SDK names it: AWS_ACCESS_KEY_ID, "
        "GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY, HF_TOKEN, …",
    )
    model_claim_dir: Path = Field(
        default=Path("/mnt/model-claim"), description="where the claim of a pvc URI is mounted"
    )
    model_image_dir: Path = Field(
        default=Path("/mnt/model-image"), description="where the image of an oci URI is mounted"
    )
    allow_private_addresses: bool = Field(
        default=False, description="let the model come from private network addresses"
    )
    max_model_bytes: int = Field(default=10 * 2**30, gt=0, description="refuse a model larger than this")
    parallel_downloads: int = Field(
        default=4,
        ge=1,
        le=32,
        description="parts that are downloaded at once; each takes up to 16 MiB of memory",
    )
    cache_dir: Path | None = Field(
        default=None,
        description="a folder that pods of the node share, to fetch a model of known digest once",
    )
    cache_max_bytes: int = Field(
        default=50 * 2**30, gt=0, description="what was used longest ago leaves the cache above this"
    )
    cache_wait_seconds: float = Field(
        default=300, ge=0, description="how long to wait for another pod that fetches the same model"
    )
    signature_public_key: str | None = Field(
        default=None,
        description="PEM; the model must be signed with the key's other half (OpenSSF model signing)",
    )
    signature_certificates: str | None = Field(
        default=None, description="PEM; the model must be signed with a certificate that these vouch for"
    )
    signature_identity: str | None = Field(
        default=None, description="the model must be signed by whoever this names; needs the next two"
    )
    signature_issuer: str | None = Field(
        default=None, description="who vouches for the identity: an OpenID issuer"
    )
    signature_trust_config: Path | None = Field(
        default=None, description="a Sigstore ClientTrustConfig as JSON, for an identity"
    )


class ServeSettings(_Common):
    """Settings of `pilotage-runtime serve`."""

    model_name: ModelName = Field(default="model", description="the M in /v2/models/M")
    decryption_keys_dir: Path = Field(
        default=Path("/etc/pilotage/decryption-keys"),
        description="one file a key, for models that are encrypted where they lie: a JWK, 32 bytes in base64, or an "
        "identity of age",
    )
    workers: int = Field(default=1, ge=1, le=64, description="processes that share the port")
    threads: int | None = Field(
        default=None, ge=1, description="threads in a worker; absent: the CPU quota's share"
    )
    max_batch_size: int = Field(
        default=64, ge=1, le=65536, description="rows that may share a run of the model; 1: no batching"
    )
    max_queue_delay_milliseconds: float = Field(
        default=0, ge=0, le=1000, description="how long a request may wait for company; 0: not at all"
    )
    max_queue_size: int = Field(
        default=512, ge=1, description="requests that may wait for a model; answer 429 to more"
    )
    repository_control: bool = Field(
        default=False, description="let callers load and unload models of a repository folder"
    )
    memory_budget_bytes: int | None = Field(
        default=None, gt=0, description="most memory of a worker; absent: its share of the container's limit"
    )
    evict_models: bool = Field(
        default=False, description="unload the longest unused model where another would not fit"
    )
    address_space_bytes: int | None = Field(
        default=None,
        gt=0,
        description="a hard limit on a worker's address space (RLIMIT_AS): a model that allocates without end fails "
        "alone; for ONNX on CPUs, other libraries reserve far more than they use",
    )
    device: Device = Field(default="cpu", description="where the model runs; cuda is the first GPU")
    precision: Precision = Field(
        default="float32",
        description="of the computation, where a format lets it be chosen: TorchScript and TorchExport",
    )
    trusted_types: Names = Field(
        default=[],
        description="MODULE.NAME of types that a skops file may hold beside those that skops trusts, separated by commas "
        "or as a JSON list",
    )
    drain_seconds: float = Field(
        default=15, ge=0, description="after SIGTERM: not ready, but still accepting"
    )
    payload_log_url: HttpAddress | None = Field(
        default=None,
        description="where requests and responses are posted as batches of CloudEvents; absent: they are not logged",
    )
    payload_log_file: Path | None = Field(
        default=None, description="instead of an address: a file to which the events are appended, one a line"
    )
    payload_log_sample: float = Field(
        default=1,
        ge=0,
        le=1,
        description="share of requests that are logged, chosen by a hash of the request id",
    )
    payload_log_redact: str = Field(
        default="",
        description="inputs, outputs, features and parameters whose values are not logged, separated by commas",
    )
    max_body_bytes: int = Field(default=16 * 2**20, gt=0, description="answer 413 to a larger request")
    access_log_lines_per_second: int = Field(
        default=200,
        ge=0,
        description="access lines that a worker always writes in a second, successes and failures apart; of more, one "
        "in 50, which says so",
    )
    host: str = Field(default="0.0.0.0", description="address to listen on")  # noqa: S104 - a pod serves its network
    http_port: int = Field(default=8080, ge=0, le=65535, description="inference, health, metadata and /docs")
    grpc_port: int | None = Field(
        default=None, ge=0, le=65535, description="the protocol over gRPC; absent: not served"
    )
    metrics_port: int = Field(default=9090, ge=0, le=65535, description="/metrics for Prometheus")

    @field_validator("grpc_port", "metrics_port")
    @classmethod
    def _own_port(cls, value: int | None, info: ValidationInfo) -> int | None:
        # The system would let two sockets of one process have it, and the first to listen answer for both.
        for other in ("http_port", "grpc_port"):
            if value and other != info.field_name and value == info.data.get(other):
                raise ValueError(f"{value} is the {other} already")
        return value

    @field_validator("payload_log_file")
    @classmethod
    def _one_sink(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("payload_log_url") is not None:
            raise ValueError("payloads go to an address or to a file, not to both")
        return value
