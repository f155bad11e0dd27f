"""`spec.model`: what to serve."""

from typing import Annotated, Literal

from annotated_types import MaxLen

from pilotage_operator.api.schema import ApiModel, Matches

_LABEL = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
# Printable ASCII: all of it but '#', and all but '#' and '?'.
_PATH_AND_QUERY = r'[!-"$-~]+'
_PATH = r'[!-"$->@-~]+'

Uri = Annotated[
    str,
    MaxLen(1024),
    Matches(
        rf"https://[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]{{1,5}})?/{_PATH_AND_QUERY}"
        rf"|s3://[a-z0-9][-a-z0-9.]{{1,61}}[a-z0-9]/{_PATH}"
        rf"|pvc://{_LABEL}/{_PATH}",
        "must be https://HOST/PATH, s3://BUCKET/KEY or pvc://CLAIM/PATH, in ASCII, without user, password,"
        " fragment or spaces",
    ),
]
ModelName = Annotated[
    str,
    MaxLen(63),
    Matches(
        "[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?",
        "must be letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
    ),
]
Digest = Annotated[
    str,
    MaxLen(71),
    Matches("sha256:[0-9a-f]{64}", "must be 'sha256:' followed by 64 lower-case hexadecimal digits"),
]
SecretName = Annotated[
    str,
    MaxLen(253),
    Matches(_SUBDOMAIN, "must be the name of a Secret: lower-case letters, digits, '-', '.'"),
]


class SecretRef(ApiModel):
    """A Secret in the ModelDeployment's own namespace."""

    name: SecretName
    """Name of the Secret. It is mounted into the init container that fetches the model, and nowhere else;
    the operator never reads it."""


class ModelSpec(ApiModel):
    """Which model to serve, and how its content is known to be the right one. A change here makes a new
    revision, which is rolled out in steps.
    """

    uri: Uri
    """Where the model is: https://HOST/PATH, s3://BUCKET/KEY (a file or a folder) or pvc://CLAIM/PATH. A pod
    in this namespace fetches it, never the operator. Addresses that do not change their content, such as
    s3://models/fraud/7, are best: a pod that finds other content than its revision's first pod did is
    refused."""
    name: ModelName | None = None
    """The name of the model in request paths, /v2/models/NAME/infer. Absent: metadata.name. It cannot be
    changed later, since callers and time series depend on it."""
    digest: Digest | None = None
    """The sha256 that the content must have, as sha256:HEX. Absent: the first pod of each revision finds the
    digest, and it is pinned for that revision; status.stable.modelDigest shows it."""
    format: Literal["ONNX"] | None = None
    """The model's format. Absent: detected from the content."""
    credentials_secret_ref: SecretRef | None = None
    """Credentials for the store of an s3:// model. The Secret's keys are the SDK's own names:
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and where needed AWS_ENDPOINT_URL and AWS_REGION."""
