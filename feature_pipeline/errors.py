"""The errors a user can mend: one line each, naming the input at fault and what to do about it.

The command line prints their message and exits 1; Dagster shows it as the reason of a failed step.
Anything else that is raised is a bug and keeps its traceback.
"""


class FeaturePipelineError(Exception):
    """Base of every error that the user, not the code, has to mend."""


class SettingsError(FeaturePipelineError):
    """An environment variable holds something that cannot be used."""


class UniverseError(FeaturePipelineError):
    """`universe.yaml` is malformed, or a symbol is not in it."""


class SchemaError(FeaturePipelineError):
    """A frame does not have the columns or types of its table."""


class SourceError(FeaturePipelineError):
    """A provider cannot answer at all (one symbol that fails is data, not an error)."""


class ModelError(SourceError):
    """A sentiment model is not there, or is not what it should be: trying again changes nothing."""


class MissingPartitionError(FeaturePipelineError):
    """A day that a computation reads should exist and has not been written."""


class FeatureError(FeaturePipelineError):
    """A feature is unknown, ambiguous, or cannot be asked for or declared like that."""


class QuarantineError(FeaturePipelineError):
    """A rejected row is not there, or cannot be accepted."""


class ExportError(FeaturePipelineError):
    """A directory cannot take an export, or not the one that was asked for."""


class DatabaseError(FeaturePipelineError):
    """The database cannot be reached, refuses the credentials, or did not answer in time."""


class OnlineError(FeaturePipelineError):
    """Redis cannot be reached, or refused a value."""


class StackError(FeaturePipelineError):
    """An embedded server could not be started or stopped."""
