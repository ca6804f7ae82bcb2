"""What all runs have: how they are updated, how long they train, on which devices."""

from dataclasses import dataclass
from typing import Annotated

from em3_jax.config.kinds import Choice, Folder, Number, Text, Whole
from em3_jax.config.schema.types import (
    Above,
    Count,
    Multipliers,
    Name,
    Names,
    Optimizer,
    Patterns,
    Platforms,
    Share,
    Size,
    Sizes,
    Switch,
    Weight,
)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The ID tables."""

    width: Size = 16  # width of a table row, an ID's embedding
    init_scale: Weight = 0.05  # standard deviation of the values of a fresh table row
    # optimizer of the table rows that a batch touches; adam: of all rows at every step, as PyTorch
    # does it, at a cost that grows with the table
    optimizer: Annotated[str, Choice(("rowwise_adagrad", "lazy_adam", "adam"))] = "rowwise_adagrad"
    learning_rate: Weight = 0.02  # learning rate of the table rows
    # l2 penalty on the table rows that a batch touches; on all with optimizer adam
    l2: Weight = 0.0
    # rows of the table of a stream, whose ids then come and go; docs/endless_ids.md
    capacity: Annotated[int, Whole(0, empty="0: a row for each id of the dataset")] = 0
    # batches of training that have to name an id before it takes one of the rows of tables.capacity;
    # until then it is unknown
    admit_after: Annotated[int, Whole(1, 255)] = 1
    # whose row of tables.capacity a new id takes where none is free: used least often, longest ago,
    # or admitted first
    evict: Annotated[str, Choice(("lfu", "lru", "age"))] = "lfu"
    # rows of LEMUR's memory bank beside a table of fixed size
    bank_capacity: Annotated[int, Whole(0, empty="0: as many as tables.capacity")] = 0


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How all parameters but the tables are updated."""

    # what makes updates of gradients; of your own, a function that gives an optax transformation to
    # stand before learning rate and decay, such as optax:scale_by_lion
    optimizer: Optimizer = "adam"
    learning_rate: Weight = 1e-3  # learning rate of all parameters but the tables
    warmup_steps: Count = 0  # steps over which the learning rate rises linearly from zero
    # steps over which the learning rate falls to zero, as a cosine; 0 = it is constant
    decay_steps: Count = 0
    weight_decay: Weight = 0.0  # decoupled weight decay of the matrices
    l2: Weight = 0.0  # l2 penalty on all parameters but the tables, a part of the gradient
    clip_norm: Weight = 10.0  # most that the gradient's norm may be; 0 = no bound
    # (regex on a parameter's name, learning-rate factor); first match wins, 0 freezes
    multipliers: Multipliers = ()


@dataclass(frozen=True, kw_only=True)
class Train:
    """The course of a run."""

    epochs: Above = 10.0  # passes over the training rows
    # steps between two log lines
    log_every: Annotated[int, Whole(0, empty="0: at evaluations alone")] = 50
    # steps that a device is given at once; more than 1 where a step is short beside the time to
    # start it
    steps_per_dispatch: Size = 1
    # steps between two evaluations on validation, each followed by a checkpoint
    eval_every: Annotated[int, Whole(0, empty="0: once an epoch")] = 200
    # workdir of a run to start from, its best parameters and tables
    init_from: Annotated[str, Folder(empty="empty: a fresh start")] = ""
    # what of that run is taken; encoders: of raw content, the dataset may be another
    init_parts: Annotated[str, Choice(("all", "all_but_ids", "encoders"))] = "all"
    # evaluations without a better one after which a run stops
    patience: Annotated[int, Whole(0, empty="0: never stop early")] = 3
    # factor on all learning rates after each evaluation without a better one; 1 = they stay
    plateau_factor: Annotated[float, Number(most=1.0, above=True)] = 1.0
    # the same bits in every run on GPUs, at some cost; CPUs always are, by their number of cores
    deterministic: Switch = False
    # folder of compiled programs, for the next run to start faster; off: none are kept
    compilation_cache: Annotated[str, Folder(empty="empty: ~/.cache/em3_jax")] = ""
    # go on with a dataset that has grown: `epochs` passes over its new rows alone
    grow: Switch = False


@dataclass(frozen=True, kw_only=True)
class Eval:
    """How rankings are measured."""

    batch_size: Size = 1024  # examples of a batch in evaluation, of all devices together
    metric: Name = "auc"  # metric that chooses the best step on validation
    # share of the items, by training showings, that make the slice of popular ones
    popular_share: Share = 0.1
    # lengths K of NDCG@K within groups (sessions, or else users), with which goes MRR; empty: none
    at: Sizes = ()
    # fields that GAUC is taken by as well: a field of users, items or the context, user, item, group
    group_by: Names = ()


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """The devices, and the processes that share them."""

    data: Annotated[int, Whole(0, empty="0: all devices")] = 0  # devices that examples are cut over
    # devices beside those of mesh.data, over which tables and features are cut as well
    model: Size = 1
    # regular expressions of what of the state is cut by rows over all devices
    by_rows: Patterns = ()
    # host:port of process 0, of several processes; auto where JAX finds them: TPU pods, Slurm, Open
    # MPI
    coordinator: Annotated[str, Text(empty="empty: one process")] = ""
    processes: Size = 1  # processes that train one run together
    process_id: Count = 0  # number of this process among those of mesh.processes, from 0
    connect_seconds: Size = 300  # seconds until a process gives up looking for the others
    heartbeat_seconds: Size = 60  # seconds of silence after which a process counts as lost


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Settings of task pretraining alone."""

    # what is learnt: the contrast of two views of an item, or its category
    loss: Annotated[str, Choice(("contrast", "category"))] = "contrast"
    category_field: Name = "category"  # item field that loss category learns, one value an item
    temperature: Above = 0.1  # temperature of the contrast of two views of an item
    # share of the items that are held out for validation
    hold_out: Annotated[float, Number(most=1.0, above=True, below=True)] = 0.1


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The log as a stream: each window is scored, then trained on, once."""

    # length of a window, which is scored before it is trained on: "1 days", "6 hours", "5000
    # examples"
    window: Name = "1 days"
    # a mapping for `em3 prepare table`, whose interactions are a file that grows
    follow: Annotated[str, Folder(empty="empty: the dataset as it is")] = ""
    poll_seconds: Above = 5.0  # seconds between two looks at the file that is followed
    # seconds without growth of the file that is followed after which the run ends
    idle_seconds: Annotated[float, Number(empty="0: never")] = 0.0
    most_windows: Annotated[int, Whole(0, empty="0: all")] = 0  # windows after which the run ends
    # rows that come become part of the dataset at the cost of these rows alone; the mapping names a
    # file that grows, a folder that files are dropped into, or kafka://host:port/topic
    append: Switch = False
    # what is done about a row that cannot be taken, with append; skip: it is written to
    # rejected.jsonl of the dataset
    on_bad_row: Annotated[str, Choice(("stop", "skip"))] = "stop"
    # rows of a table that are made ahead for ids to come, as a share of those in use, with append;
    # programs are compiled again when they are used up
    spare: Annotated[float, Number(empty="0: none, each new id compiles again")] = 1.0
    # store that versions are published to as the stream trains, for services to follow
    publish: Annotated[str, Folder(empty="empty: nothing is published")] = ""
    # steps between two versions that are published
    publish_every: Annotated[int, Whole(0, empty="0: one after each window")] = 0
    # deltas after which a version is made whole in the background, and a late reader begins there
    publish_whole: Size = 64
    publish_keep: Size = 2  # whole versions that the store keeps, with the deltas after them
    # dtype of the items' vectors in the store
    publish_dtype: Annotated[str, Choice(("float32", "float16", "int8"))] = "float32"
    publish_platforms: Platforms = ("cpu", "cuda", "tpu")  # what the published model is compiled for
    # share of the shown items, by their showings so far, whose published vectors are refreshed by age
    hot_share: Share = 0.1
    # steps after which the published vector of such a hot item is made anew
    refresh_hot: Annotated[int, Whole(0, empty="0: at each version")] = 0
    # steps after which that of any other item is; when its content changes it is in any case
    refresh_cold: Annotated[int, Whole(0, empty="0: when its content changes alone")] = 0
