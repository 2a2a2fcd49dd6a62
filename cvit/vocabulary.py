"""Names that training, tracking and analysis share: metrics, tags, parameters, statuses, journal records.

Dashboards and papers refer to these names, so a published name never changes. This module has no heavy imports: the
analysis reads it without torch, Ray or MLflow.
"""

# Metrics over optimiser steps. The curves of a two-phase trial run through both phases on one step axis.
TRAIN_LOSS = "train/loss"
TRAIN_ACCURACY = "train/accuracy"
VAL_LOSS = "val/loss"
VAL_ACCURACY = "val/accuracy"
TEST_ACCURACY = "test/accuracy"
LEARNING_RATE = "lr"
GRAD_NORM = "grad_norm"
IMAGES_PER_SECOND = "images_per_second"
# Metrics of stability; see cvit/training/stability.py. The gradient norms of a stage's first steps are recorded one by
# one.
EARLY_GRAD_NORM = "early/grad_norm"
EARLY_LOSS = "stability/early_loss"
GRAD_NORM_MAX = "stability/grad_norm_max"
GRAD_NORM_MAX_STEP = "stability/grad_norm_max_step"
LOSS_SPIKES = "stability/loss_spikes"
TRANSFER_WEIGHT_ERROR = "transfer/weight_error"
TRANSFER_LOST_ENERGY = "transfer/lost_energy"  # the largest of the blocks; then /block0, /block1, … of each
TRANSFER_LOGIT_ERROR = "transfer/logit_error"
TRANSFER_VAL_ACCURACY = "transfer/val_accuracy"
CONVOLUTION_TEST_ACCURACY = "convolution/test_accuracy"
# The cost of a trial: the seconds that a worker spent on each of its phases, evaluation included. The name of the phase
# follows. A stage that was trained in a pack counts with its share of the pack's seconds.
SECONDS_OF_PHASE = "seconds/"
# Metrics of fitting attention to a convolution: distances of the two operators, relative to the convolution's norm.
EXPRESSIVITY_ERROR = "expressivity/error"
EXPRESSIVITY_BOUND = "expressivity/bound"
# Metrics of a study: the cells of its answer, and the load of the machines that it was trained on; the rest of the name
# follows, a machine's name first.
ANSWER = "answer/"
SYSTEM = "system/"

# Tags of an MLflow run.
TAG_ROLE = "cvit.role"
TAG_TRIAL_KEY = "cvit.trial_key"
TAG_STUDY_KEY = "cvit.study_key"
TAG_STATUS = "cvit.status"
TAG_SWEEP = "cvit.sweep"
TAG_TASK = "cvit.task"
TAG_PRESET = "cvit.preset"
TAG_SEARCH_SPACE = "cvit.search_space"
TAG_GRID = "cvit.grid"  # a long value continues in cvit.grid.1, cvit.grid.2, …
TAG_CODE_VERSION = "cvit.code_version"
TAG_DEVICE = "cvit.device"
TAG_TORCH_VERSION = "cvit.torch_version"
TAG_CPU_CAPABILITY = "cvit.cpu_capability"
TAG_TRAIN_IMAGES = "cvit.train_images"
TAG_DATA_FINGERPRINT = "cvit.data_fingerprint"
TAG_DIVERGED_STEP = "cvit.diverged_step"
TAG_QUESTION = "cvit.question"
TAG_COMMAND = "cvit.command"
TAG_DRIVER = "cvit.driver"
TAG_STAGES = "cvit.stages"
TAG_ANSWER = "cvit.answer"  # a checksum of the answer that the run has
TAG_MODEL = "cvit.model"  # the key of the stage whose model the run has
TAG_ENVIRONMENT = "cvit.environment"  # a checksum of the environment that the run has
# Tags that MLflow's own pages show.
TAG_NOTE = "mlflow.note.content"
TAG_USER = "mlflow.user"
TAG_SOURCE = "mlflow.source.name"
TAG_SOURCE_TYPE = "mlflow.source.type"
TAG_GIT_COMMIT = "mlflow.source.git.commit"
TAG_COLOUR = "mlflow.runColor"

# Attributes of an Optuna study and its trials, beside tags from above; the numbers are those of trials in the study.
ATTRIBUTE_STAGE_KEYS = "cvit.stage_keys"
ATTRIBUTE_FINALISTS = "cvit.finalists"  # pairs of a number and the mean validation accuracy in the final
ATTRIBUTE_WINNER = "cvit.winner"

ROLE_STUDY = "study"
ROLE_TRIAL = "trial"

# Statuses of a trial. A diverged trial is a result. A failed trial had a fault of the code or of the machine. A pruned
# trial fell behind others in a search and was stopped.
STATUS_OK = "ok"
STATUS_DIVERGED = "diverged"
STATUS_FAILED = "failed"
STATUS_PRUNED = "pruned"

# Tasks of a trial.
TRAINING = "training"
EXPRESSIVITY = "expressivity"
DEPTH = "depth"

# The seed of all trials of a search; the winners are trained again on the seeds after it, the finalists on those from
# FINALIST_SEED on, which are more than a sweep can have fresh ones. The parameter of a search's study that says how
# many finalists a scheme has.
SEARCH_SEED = 0
FINALIST_SEED = 100_000
FINALISTS = "finalists"

# Phases of a trial.
CONVOLUTION = "convolution"
ATTENTION = "attention"
REFERENCE = "reference"
FIT = "fit"

# Tracking URIs: the MLflow store that a plain `mlflow ui` opens in the working folder; the word for no tracking; the
# environment variable with another URI; the schemes of MLflow stores, which a driver may follow, as in
# postgresql+psycopg2.
DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
NO_TRACKING = "none"
TRACKING_URI_VARIABLE = "MLFLOW_TRACKING_URI"
TRACKING_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")

# Folders below STORAGE.
STAGES_FOLDER = "stages"
JOURNAL_FOLDER = "journal"
LEASES_FOLDER = "leases"
SPEED_FOLDER = "speed"

# Types of journal records (the field "type"); cvit/records.py has the other fields.
RECORD_STUDY = "study"
RECORD_TRIAL = "trial"
RECORD_POINTS = "points"
RECORD_END = "end"
RECORD_SESSION = "session"
RECORD_SYSTEM = "system"


def is_accuracy(metric: str) -> bool:
    """True for a metric that is a share of images and is shown as a percentage."""
    return metric.endswith("accuracy")


def noun_of(dimensions: int | str | None) -> str:
    """The word for an example of a data set: a sequence is a recording; anything else is an image."""
    return "recording" if str(dimensions) == "1" else "image"
