"""Where MLflow is: a SQLite file here, a database, or a server; and what is said when it fails."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit, urlunsplit

from filelock import FileLock, Timeout

from reports.finished import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

URI = "MLFLOW_TRACKING_URI"
"""MLflow's own variable: `http(s)://…` is a server, `postgresql://…` a database."""

_LOCK_TIMEOUT = 60
_SERVERS = ("http", "https")
_NOTE = """\
The results of a reproduction, mirrored from the files that git and DVC hold; nothing is read back.

- A **reproduction** is a parent run, named by what differs from the one before. It has the values \
of heima, and each variant's mean.
- In it: a run a **variant** (`tags.kind = 'variant'`), a row of the **interpreters**' table \
(`'reconstruction'`), an **audit**, a case of **latency**, a **training seed** with \
the training runs of it.
- Metrics are named by the metric first: `accuracy/lmms/ai2d` is the accuracy on AI2D under the \
protocol lmms. *Chart view* draws one chart a metric with a bar a run.
- `params."checkpoints.p2.learning_rate"` is in every run that it has reached, `params.updates` \
sums up the training of a variant's chain.
- Runs of `tags.kind = 'live'` are still training.

How to use it: docs/mlflow.md.
"""


def uri_of(root: Path) -> str:
    """The tracking URI: `MLFLOW_TRACKING_URI`, or by default `mlflow.db` below `root` (SQLite)."""
    return os.environ.get(URI) or _sqlite(root.resolve() / "mlflow.db")


def is_server(uri: str) -> bool:
    """Whether a URI is an MLflow server, which has a database and artifacts of its own."""
    return urlsplit(uri).scheme in _SERVERS


def shown(uri: str) -> str:
    """A URI as it may be printed: without the password.

    >>> shown("postgresql://me:secret@host:5432/mlflow"), shown("sqlite:///mlflow.db")
    ('postgresql://me:…@host:5432/mlflow', 'sqlite:///mlflow.db')
    """
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:…@{host}"))


def _sqlite(database: Path) -> str:
    """The tracking URI of a SQLite file, whatever characters stand in its path.

    SQLAlchemy unquotes the path in a URI. MLflow makes the folder above the file before, by its
    quoted name: beside the right one, unless the path is relative and has no folder.
    """
    return f"sqlite:///{quote(os.path.relpath(database))}"


@contextlib.contextmanager
def connected(root: Path, uri: str) -> Iterator[tuple[MlflowClient, str]]:
    """A client and the id of our experiment, made where there is none.

    One process of this folder at a time: two that create a database at once break it for good.
    Raises `TrackingError` for every fault of MLflow inside the block.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A server that is not there is told of in seconds, not minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    lock = root.resolve() / "mlflow.db.lock"
    try:
        with FileLock(lock, timeout=_LOCK_TIMEOUT):
            client = MlflowClient(tracking_uri=uri)
            yield client, _experiment(client, root, uri)
    except Timeout as error:
        raise TrackingError(
            f"another process has written to MLflow ({lock}) for {_LOCK_TIMEOUT} s; try again when "
            "it is done"
        ) from error
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise TrackingError(
            f"MLflow ({shown(uri)}) failed: {error}\nThe results are complete without it. "
            f"{_advice(root, uri)}"
        ) from error


def _advice(root: Path, uri: str) -> str:
    if is_server(uri):
        return f"Is {URI} = {shown(uri)} a server that answers, of the version in requirements.txt?"
    if not uri.startswith("sqlite"):
        return f"Does {URI} name a database that MLflow can use (docs/mlflow.md)?"
    return (
        "If the database is damaged or of another MLflow version, delete "
        f"{root.resolve() / 'mlflow.db'} and run `python -m stages.track`: it is built again from "
        "the results"
    )


def _experiment(client: MlflowClient, root: Path, uri: str) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "heima"
    tags = {
        "mlflow.note.content": _NOTE,
        # Else its landing page is a dashboard of traces, which there are none of.
        "mlflow.experimentKind": "custom_model_development",
    }
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server says itself where artifacts go; beside a bare database they lie here.
        place = None if is_server(uri) else (root.resolve() / "mlruns").as_uri()
        return str(client.create_experiment(name, artifact_location=place, tags=tags))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    for key, value in tags.items():
        if found.tags.get(key) != value:
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def link(address: str, experiment: str, reproduction: str | None = None) -> str:
    """The address of the runs view: of all runs, or of the variants of one reproduction.

    Sorted by a metric, the UI lists children without their parents, and *Chart view* draws them.
    """
    # MLflow 3 asks behind the #, others before it.
    found = (
        f"{address.rstrip('/')}/?workflowType=machine_learning#/experiments/{experiment}/runs"
        "?workflowType=machine_learning"
    )
    if reproduction is None:
        return found
    wanted = f"tags.kind = 'variant' and tags.reproduction = '{reproduction}'"
    order = "metrics.`accuracy/lmms/mean`"
    return f"{found}&searchFilter={quote(wanted)}&orderByKey={quote(order)}&orderByAsc=false"
