"""scikit-learn's estimators in skops' format: a zip of arrays and a tree of types, all of which are checked.

A type is made only if skops trusts it or the deployment lists it: the file itself is asked for its types
first, which imports and makes nothing.
"""

import skops.io as skops

from pilotage_runtime.failure import Reason, Stage, StartFailure
from pilotage_runtime.formats import ModelFile
from pilotage_runtime.loaders import tabular
from pilotage_runtime.loaders.base import LoadOptions
from pilotage_runtime.loaders.estimator import EstimatorModel


class SkopsModel(EstimatorModel):
    """An estimator from a skops file."""

    def __init__(self, file: ModelFile, options: LoadOptions) -> None:
        content = tabular.contents(file)
        try:
            unknown = sorted(set(skops.get_untrusted_types(data=content)) - set(options.trusted_types))
        except Exception as error:
            raise tabular.refused(file, "skops", error) from error
        if unknown:
            raise StartFailure(
                Stage.LOAD,
                Reason.UNTRUSTED_FORMAT,
                f"{file.path.name} holds types that are not trusted: {', '.join(unknown)}; whoever knows them to "
                "be harmless lists them in `trustedTypes`",
            )
        try:
            estimator = skops.loads(content, trusted=list(options.trusted_types))
        except Exception as error:
            raise tabular.refused(file, "skops", error) from error
        if not hasattr(estimator, "predict"):
            raise StartFailure(
                Stage.LOAD,
                Reason.INVALID_MODEL,
                f"{file.path.name} holds a {type(estimator).__name__}, which cannot predict",
            )
        super().__init__(estimator, "sklearn_skops", file, options)
