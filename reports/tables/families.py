"""The table of families: the same variants on other models, each family's results beside another's.

One family is run at a time; the others are what `stages.keep` has kept of their runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from heima.config import Params, ProtocolName
from heima.results.measures import NLL_GAIN
from heima.results.scores import CHANCE
from reports.tables import captions
from reports.tables.kept import Kept, of_other_families
from reports.tables.model import Block, Panel
from reports.tables.panels import ACCURACIES, DECODED, PUBLISHED_TOKENS
from reports.tables.published import PUBLISHED, published_benchmarks

_STATES = "Own minus control: NLL gain (nats a text)"
GAINS = ": own minus control"
"""What the title of a panel about a section's gains ends in."""


def families_blocks(
    params: Params,
    benchmarks: Sequence[Block],
    interpreters: Sequence[Block],
    kept: Sequence[Kept],
    published: Sequence[Mapping[str, str]],
) -> tuple[Block, ...]:
    """`benchmarks` and `interpreters` are this profile's own blocks of those tables."""
    others = of_other_families(kept, params.family)
    if not others:
        none = Block("", "Families", captions.ONE_FAMILY, ())
        return (none, _published(published))
    blocks = []
    for protocol in params.protocols:
        panels = {params.family: _of_protocol(benchmarks, protocol)}
        panels |= {one.family: _of_protocol(one.blocks("benchmarks"), protocol) for one in others}
        blocks.append(_benchmarks(params, protocol, panels, others))
    gains = {params.family: _gains(interpreters)}
    gains |= {one.family: _gains(one.blocks("interpreters")) for one in others}
    states = Block(
        f"{params.profile} profile and others",
        f"What interpreters read, by family ({_profiles(params, others)})",
        captions.family_states(params),
        (_joined(_STATES, gains),),
    )
    return (*blocks, states, _published(published))


def _benchmarks(
    params: Params,
    protocol: ProtocolName,
    panels: Mapping[str, Mapping[str, Panel]],
    others: Sequence[Kept],
) -> Block:
    return Block(
        f"{params.profile} profile and others, protocol {protocol}",
        f"Families, protocol {protocol} ({_profiles(params, others)})",
        captions.families(params, protocol, others),
        tuple(
            _joined(
                title,
                {family: own[title] for family, own in panels.items() if title in own},
            )
            for title in (ACCURACIES, DECODED)
        ),
    )


def _profiles(params: Params, others: Sequence[Kept]) -> str:
    return f"profiles {', '.join([params.profile, *(one.profile for one in others)])}"


def _of_protocol(blocks: Sequence[Block], protocol: ProtocolName) -> dict[str, Panel]:
    """Title -> panel, of the block about a protocol; nothing where it was not run."""
    return {
        panel.title: panel
        for block in blocks
        if block.origin.endswith(f"protocol {protocol}")
        for panel in block.panels
    }


def _gains(blocks: Sequence[Block]) -> Panel:
    """A row a section, a column a control: what the own state saves."""
    found = {
        panel.title.removesuffix(GAINS): panel
        for block in blocks
        for panel in block.panels
        if panel.title.endswith(GAINS) and NLL_GAIN in panel.digits
    }
    controls = dict.fromkeys(row for panel in found.values() for row in panel.rows)
    return Panel(
        _STATES,
        "section",
        tuple(found),
        dict.fromkeys(controls, 2),
        {
            (section, control): panel.entries[control, NLL_GAIN]
            for section, panel in found.items()
            for control in panel.rows
        },
    )


def _joined(title: str, panels: Mapping[str, Panel]) -> Panel:
    """Panels of several families as one, in the columns that all of them have."""
    first, *rest = panels.values()
    columns = {
        name: digits
        for name, digits in first.digits.items()
        if all(name in panel.digits for panel in rest)
    }
    names = {
        (family, row): f"{family}, {row}"
        for family, panel in panels.items()
        for row in panel.rows
        if row != CHANCE and all((row, column) in panel.entries for column in columns)
    }
    entries = {
        (name, column): panels[family].entries[row, column]
        for (family, row), name in names.items()
        for column in columns
    }
    corner = f"family, {first.corner}"
    return Panel(title, corner, tuple(names.values()), columns, entries)


def _published(rows: Sequence[Mapping[str, str]]) -> Block:
    """The paper's main table: both of its families."""
    panels: dict[str, dict[str, Panel]] = {ACCURACIES: {}, PUBLISHED_TOKENS: {}}
    for family in dict.fromkeys(row["family"] for row in rows):
        for block in published_benchmarks([row for row in rows if row["family"] == family]):
            for panel in block.panels:
                panels[panel.title][family] = panel
    origin = PUBLISHED.format("both families")
    joined = tuple(_joined(title, found) for title, found in panels.items())
    return Block(origin, f"Families, {origin}", captions.PUBLISHED_BENCHMARKS, joined)
