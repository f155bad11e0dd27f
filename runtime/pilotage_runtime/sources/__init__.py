"""Where models come from; one module a scheme, imported when used."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.settings import FetchSettings
from pilotage_runtime.sources.parts import InParts, Store
from pilotage_runtime.sources.transfer import Transfer


class Source(Protocol):
    """One place that holds a model."""

    def download(self, into: Path, transfer: Transfer) -> None:
        """Write every file of the model under `into`, where lies only what the transfer's journal knows."""
        ...


def open_source(settings: FetchSettings) -> Source:
    """Choose the source by the URI's scheme."""
    from pilotage_runtime.sources import mounted  # noqa: PLC0415

    uri = settings.model_uri
    scheme = urlsplit(uri).scheme
    match scheme:
        case "" | "file":
            return mounted.local(uri)
        case "pvc":
            return mounted.claim(uri, settings.model_claim_dir)
        case "oci":
            return mounted.image(settings.model_image_dir)
        case _:
            return InParts(_open_store(scheme, settings))


def _open_store(scheme: str, settings: FetchSettings) -> Store:
    uri, keys, private = settings.model_uri, settings.credentials_dir, settings.allow_private_addresses
    with _installed(scheme):
        match scheme:
            case "https":
                from pilotage_runtime.sources.https import HttpsStore  # noqa: PLC0415

                return HttpsStore(uri, private)
            case "s3":
                from pilotage_runtime.sources.s3 import S3Store  # noqa: PLC0415

                return S3Store(uri, keys, private)
            case "gs":
                from pilotage_runtime.sources.gs import GsStore  # noqa: PLC0415

                return GsStore(uri, keys, private)
            case "az":
                from pilotage_runtime.sources.az import AzStore  # noqa: PLC0415

                return AzStore(uri, keys, private)
            case "hf":
                from pilotage_runtime.sources.hf import HfStore  # noqa: PLC0415

                return HfStore(uri, keys, private)
            case _:
                raise StartFailure(
                    Stage.DOWNLOAD,
                    Reason.INVALID_URI,
                    f"the model's URI begins with '{scheme}:', but served are https://, s3://, gs://, az://, hf://, "
                    "oci://, pvc:// and file://",
                )


@contextmanager
def _installed(scheme: str) -> Generator[None]:
    """Say which extra brings a driver that is missing."""
    try:
        yield
    except ImportError as error:
        extra = "runtime" if scheme in ("https", "s3") else scheme
        raise StartFailure(
            Stage.DOWNLOAD,
            Reason.INVALID_URI,
            f"{scheme}:// needs {error.name}, which is missing here: pip install 'pilotage[{extra}]', or an image of the "
            "runtime that has it",
        ) from error
