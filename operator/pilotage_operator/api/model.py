"""`spec.model`: what to serve."""

from typing import Annotated, Literal

from annotated_types import MaxLen

from pilotage_operator.api.schema import ApiModel, Matches

_LABEL = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
# Printable ASCII: all of it but '#', and all but '#' and '?'.
_PATH_AND_QUERY = r'[!-"$-~]+'
_PATH = r'[!-"$->@-~]+'

# All but '#', '?' and '@': what follows an '@' is a revision.
_PATH_OF_REPOSITORY = r'[!-"$->A-~]+'
_REPOSITORY = "[A-Za-z0-9][-A-Za-z0-9._]*/[A-Za-z0-9][-A-Za-z0-9._]*"

Uri = Annotated[
    str,
    MaxLen(1024),
    Matches(
        rf"https://[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]{{1,5}})?/{_PATH_AND_QUERY}"
        rf"|s3://[a-z0-9][-a-z0-9.]{{1,61}}[a-z0-9]/{_PATH}"
        rf"|gs://[a-z0-9][-a-z0-9._]{{1,220}}[a-z0-9]/{_PATH}"
        rf"|az://[a-z0-9][-a-z0-9]{{1,61}}[a-z0-9]/{_PATH}"
        rf"|hf://{_REPOSITORY}(@[A-Za-z0-9][-A-Za-z0-9._]*)?(/({_PATH_OF_REPOSITORY})?)?"
        r"|oci://[A-Za-z0-9][-A-Za-z0-9._/:@]*"
        rf"|pvc://{_LABEL}/{_PATH}",
        "must be https://HOST/PATH, s3://BUCKET/KEY, gs://BUCKET/NAME, az://CONTAINER/NAME,"
        " hf://ORGANISATION/REPOSITORY, oci://IMAGE or pvc://CLAIM/PATH, in ASCII, without user, password,"
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
TypeName = Annotated[
    str,
    MaxLen(256),
    Matches(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+", "must be MODULE.NAME of a Python type"),
]
SecretName = Annotated[
    str,
    MaxLen(253),
    Matches(_SUBDOMAIN, "must be the name of a Secret: lower-case letters, digits, '-', '.'"),
]


PublicKey = Annotated[
    str,
    MaxLen(4096),
    Matches(
        r"-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/=\n]+\n-----END PUBLIC KEY-----\n?",
        "must be a public key in PEM: -----BEGIN PUBLIC KEY-----, lines of base64, -----END PUBLIC KEY-----",
    ),
]


class SecretRef(ApiModel):
    """A Secret in the ModelDeployment's own namespace."""

    name: SecretName
    """Name of the Secret. It is mounted into the init container that fetches the model, and nowhere else;
    the operator never reads it."""


class KeysRef(ApiModel):
    """A Secret with keys, in the ModelDeployment's own namespace."""

    name: SecretName
    """Name of the Secret. It is mounted into the container that serves the model, and nowhere else; the
    operator never reads it."""


class SignatureSpec(ApiModel):
    """Who must have signed the model (OpenSSF model signing). The signature is the file model.sig at the top
    of the model's folder; a model that is not signed so, or was changed since, is refused.
    """

    public_key: PublicKey
    """The public half of the key that signs models, in PEM (an elliptic curve's)."""


class ModelSpec(ApiModel):
    """Which model to serve, and how its content is known to be the right one. A change here makes a new
    revision, which is rolled out in steps.
    """

    uri: Uri
    """Where the model is, a file or a folder: https://HOST/PATH (a file), s3://BUCKET/KEY, gs://BUCKET/NAME,
    az://CONTAINER/NAME, hf://ORGANISATION/REPOSITORY with @REVISION and /PATH where wanted, oci://IMAGE (an
    image volume: its folder /models, else all of it) or pvc://CLAIM/PATH. One .tar, .tar.gz or .zip is
    unpacked. A pod in this namespace fetches it, never the operator. Addresses that do not change their content, such as
    s3://models/fraud/7, are best: a pod that finds other content than its revision's first pod did is
    refused."""
    name: ModelName | None = None
    """The name of the model in request paths, /v2/models/NAME/infer. Absent: metadata.name. It cannot be
    changed later, since callers and time series depend on it."""
    digest: Digest | None = None
    """The sha256 that the content must have, as sha256:HEX. Absent: the first pod of each revision finds the
    digest, and it is pinned for that revision; status.stable.modelDigest shows it."""
    format: (
        Literal[
            "ONNX",
            "TorchScript",
            "TorchExport",
            "Skops",
            "XGBoost",
            "LightGBM",
            "CatBoost",
            "TensorFlow",
            "Pickle",
            "Joblib",
            "Python",
        ]
        | None
    ) = None
    """The model's format. Absent: detected from the content. Each but ONNX needs an image that holds its
    library."""
    trusted: bool | None = None
    """Let code in the model's files run, with everything that the pod may do: the formats Pickle, Joblib and
    Python are refused without it. It covers only the content that has the digest given here. Absent: false."""
    trusted_types: Annotated[list[TypeName], MaxLen(256)] | None = None
    """Types, as MODULE.NAME, that a model of format Skops may hold beside those that skops itself trusts, such
    as sklearn.tree._tree.Tree. A model that holds another is refused, and the failure lists it."""
    credentials_secret_ref: SecretRef | None = None
    """Credentials for the model's store. The Secret's keys are the SDKs' own names. For s3:// they are
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and where needed AWS_SESSION_TOKEN, AWS_ENDPOINT_URL and
    AWS_REGION; for gs:// GOOGLE_APPLICATION_CREDENTIALS, the JSON of a key file; for az://
    AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or
    AZURE_STORAGE_SAS_TOKEN; for hf:// HF_TOKEN. For oci:// it is a Secret of the type
    kubernetes.io/dockerconfigjson, with which the image is pulled. Absent: the pod's own identity in its
    cloud, or else nobody's."""
    signature: SignatureSpec | None = None
    """Who must have signed the model. Absent: no signature is asked for."""
    decryption_secret_ref: KeysRef | None = None
    """Keys for a model that is encrypted where it lies, as JWE (dir, A256GCM) or with age. Each key of the
    Secret is a JWK, 32 bytes in base64, or an identity of age. The model is decrypted in memory only."""
