"""Where models come from; one module a scheme, imported when used."""

from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.settings import FetchSettings
from pilotage_runtime.sources.transfer import Transfer


class Source(Protocol):
    """One place that holds a model."""

    def download(self, into: Path, transfer: Transfer) -> None:
        """Write every file of the model under `into`, where lies only what the transfer's journal knows."""
        ...


def open_source(settings: FetchSettings) -> Source:
    """Choose the source by the URI's scheme."""
    uri, private = settings.model_uri, settings.allow_private_addresses
    scheme = urlsplit(uri).scheme
    match scheme:
        case "https":
            from pilotage_runtime.sources.https import HttpsStore  # noqa: PLC0415
            from pilotage_runtime.sources.parts import InParts  # noqa: PLC0415

            return InParts(HttpsStore(uri, private))
        case "s3":
            from pilotage_runtime.sources.parts import InParts  # noqa: PLC0415
            from pilotage_runtime.sources.s3 import S3Store  # noqa: PLC0415

            return InParts(S3Store(uri, settings.credentials_dir, private))
        case "pvc":
            from pilotage_runtime.sources.pvc import PvcSource  # noqa: PLC0415

            return PvcSource(settings.model_uri, settings.model_claim_dir)
        case _:
            raise StartFailure(
                Stage.DOWNLOAD,
                Reason.INVALID_URI,
                f"the model's URI begins with '{scheme}:', but served are https://, s3:// and pvc://",
            )
