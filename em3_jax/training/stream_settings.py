"""Which settings a stream has no choice of, and which have no effect without another."""

from em3_jax.config.schema import OnClicks
from em3_jax.config.schema.course import Stream as StreamSettings
from em3_jax.core.errors import UserError

ONE_WAY = {
    "data.order": ("chronological", "its rows are trained in the order of time"),
    "data.rows_share": (1, "all its rows are trained"),
    "data.most_rows_per_user": (0, "all its rows are trained"),
    "train.epochs": (1, "its rows are trained once"),
    "train.eval_every": (0, "each window is scored; config.stream.window sets them"),
    "train.patience": (0, "it ends with its last window"),
    "train.plateau_factor": (1.0, "its learning rates wait for no better window"),
    "train.steps_per_dispatch": (1, "its steps are dispatched one by one"),
    "train.grow": (True, "it always goes on with a log that has grown"),
    "eval.metric": ("auc", "it has no best step that a metric would choose"),
}
"""Settings that a stream has no choice of: its value, and why."""
ONLY_FOLLOWING = ("poll_seconds", "idle_seconds", "append")
ONLY_APPENDING = ("on_bad_row", "spare")
ONLY_PUBLISHING = (
    "publish_every", "publish_whole", "publish_keep", "publish_dtype", "publish_platforms", "hot_share", "refresh_hot",
    "refresh_cold",
)  # fmt: skip


def check(config: OnClicks, own: StreamSettings) -> None:
    """Refuses several processes, and a setting that would have no effect."""
    if config.mesh.processes > 1:
        raise UserError("config.mesh.processes: a stream is trained by one process, on any number of devices; give 1")
    for name, (value, why) in ONE_WAY.items():
        section, key = name.split(".")
        given = getattr(getattr(config, section), key)
        if given != value:
            raise UserError(f"config.{name}={given}: has no effect on a stream, {why}; give {value} or leave it out")
    for keys, needs, there in (
        (ONLY_FOLLOWING, "follow", "no log is followed"),
        (ONLY_APPENDING, "append", "rows are not appended"),
        (ONLY_PUBLISHING, "publish", "nothing is published"),
    ):
        for key in keys:
            given = getattr(own, key)
            if given != getattr(StreamSettings(), key) and not getattr(own, needs):
                raise UserError(
                    f"config.stream.{key}={given}: has no effect where {there}; leave it out, or set config.stream.{needs}"
                )
