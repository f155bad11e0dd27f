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
        """Write every file of the model under `into`, an empty folder; raise StartFailure otherwise."""
        ...


def open_source(settings: FetchSettings) -> Source:
    """Choose the source by the URI's scheme."""
    scheme = urlsplit(settings.model_uri).scheme
    match scheme:
        case "https":
            from pilotage_runtime.sources.https import HttpsSource  # noqa: PLC0415

            return HttpsSource(settings.model_uri, settings.allow_private_addresses)
        case "s3":
            from pilotage_runtime.sources.s3 import S3Source  # noqa: PLC0415

            return S3Source(settings.model_uri, settings.credentials_dir, settings.allow_private_addresses)
        case "pvc":
            from pilotage_runtime.sources.pvc import PvcSource  # noqa: PLC0415

            return PvcSource(settings.model_uri, settings.model_claim_dir)
        case _:
            raise StartFailure(
                Stage.DOWNLOAD,
                Reason.INVALID_URI,
                f"the model's URI begins with '{scheme}:', but served are https://, s3:// and pvc://",
            )
