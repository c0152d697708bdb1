"""Every failure that a user can cause. Text: what failed, what was found, what was expected, what to do."""


class InitlabError(Exception):
    """Base of all errors raised on purpose; the command line prints it without a traceback."""


class ConfigError(InitlabError):
    """Sizes or options that contradict each other."""


class RecipeError(InitlabError):
    """An unknown recipe, or one that doesn't fit the model."""


class DataError(InitlabError):
    """Text, token files or tokenizers that can't be used."""


class CheckpointError(InitlabError):
    """A checkpoint that can't be read, or is of another model."""


class SiteError(InitlabError):
    """The residual stream of a model was not found."""


class ProbeError(InitlabError):
    """The model under test failed while it was measured; the cause is chained."""


class RunError(InitlabError):
    """A run folder that can't be written, read, or resumed."""


class SchemaError(InitlabError):
    """A table that doesn't follow `initlab.schema`."""
