"""The options of `srun` for the stages that train or predict (`hardware.slurm`)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PositiveInt, field_validator

from heima.config.base import Model

_Word = Annotated[str, Field(pattern=r"^\S+$")]
_TIME = r"^(\d+|\d+:\d{2}|\d+:\d{2}:\d{2}|\d+-\d{1,2}|\d+-\d{1,2}:\d{2}|\d+-\d{1,2}:\d{2}:\d{2})$"
"""The forms that srun(1) gives for --time, but for its `0` and words for "no limit"."""


class Slurm(Model):
    """What a stage asks of a Slurm cluster, by the names of srun's options (srun(1)).

    What else srun should be told stands in its environment variables (`SLURM_…`, srun(1)).
    One task a node is started; it starts `hardware.processes` processes there, or one a GPU that
    Slurm gives it, so `cpus_per_task` counts for all of a node's. A stage that runs in one process
    (latency, a toy's teach, predict with vLLM) asks for one node. `mem` is a node's.

    - `requeues`: how often a job that lost its nodes (they failed, or another was preferred) is
      submitted again; it goes on from its snapshots.
    """

    nodes: PositiveInt = 1
    gpus_per_node: PositiveInt | None = None
    gres: _Word | None = None
    cpus_per_task: PositiveInt | None = None
    mem: Annotated[str, Field(pattern=r"^\d+[KMGT]?$")] | None = None
    time: Annotated[str, Field(pattern=_TIME)] | None = None
    partition: _Word | None = None
    account: _Word | None = None
    qos: _Word | None = None
    constraint: _Word | None = None
    reservation: _Word | None = None
    exclude: _Word | None = None
    licenses: _Word | None = None
    exclusive: bool = False
    requeues: Annotated[int, Field(ge=0, le=100)] = 3

    @field_validator("mem", "time", mode="before")
    @classmethod
    def _quoted(cls, given: Any) -> Any:
        """YAML 1.1 reads 1:30:00 as 5,400, which Slurm would take for minutes."""
        if isinstance(given, int):
            raise ValueError("must be a text in quotation marks, as '64G' or '1-12:00:00'")
        return given

    def options(self) -> list[str]:
        """The command line's part that says it.

        >>> Slurm(nodes=2, time="1:00:00", exclusive=True).options()
        ['--nodes=2', '--time=1:00:00', '--exclusive']
        """
        found = []
        for name, value in self.model_dump(exclude_none=True, exclude={"requeues"}).items():
            option = f"--{name.replace('_', '-')}"
            if value is True:
                found.append(option)
            elif value is not False:
                found.append(f"{option}={value}")
        return found
