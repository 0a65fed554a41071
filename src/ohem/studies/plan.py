"""What a study consists of: trainings, each repeated over seeds, and tables whose rows use them."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Training:
    """One training procedure.

    Attributes:
        name: of its results; one word.
        recipe: built-in recipe or file.
        overrides: what the study changes in it.
        data: which of the study's data it trains on and is tested on.
        rate_of: the training whose tuned learning rate it takes; None: its own is tuned, where the study tunes.
        curve: measure the loss over all RoIs on the way too (figure 3), not only at the end.
        rounds: of bootstrapping (section 2), of equal length; between them the frozen detector's false positives are
            harvested, and the next round trains on those. 1: no bootstrapping.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    data: str = "main"
    rate_of: str | None = None
    curve: bool = False
    rounds: int = 1


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        label: its first cell.
        training: the name of one.
        use: how its detector is used at test time: a key of :attr:`Study.uses`.
        paper: the paper's numbers, by metric.
        against_above: compared with the line above it, in place of the table's base.
    """

    label: str
    training: str
    use: str = "plain"
    paper: Mapping[str, float] = field(default_factory=dict)
    against_above: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: such as ``table1``.
        title: what it shows.
        metrics: its columns; ``ap:*`` stands for one column a class.
        rows: its lines.
        note: what differs from the paper's table.
        base: training and use that its rows are compared with, seed by seed; None: with the paper's numbers alone.
    """

    name: str
    title: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    base: tuple[str, str] | None = None


@dataclass(frozen=True)
class Data:
    """Where images come from.

    Attributes:
        train: data sources.
        test: the same; empty: the training images that the recipe holds out.
        proposals: files; empty: selective search.
        test_proposals: the same for the test images.
        classes: the class list; empty: the data's own.
        server: who judges the test images, whose annotations nobody has; such trainings are trained and not tested.
    """

    train: tuple[str, ...]
    test: tuple[str, ...] = ()
    proposals: tuple[str, ...] = ()
    test_proposals: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    server: str = ""


@dataclass(frozen=True)
class Study:
    """All there is to run at one scale.

    Attributes:
        scale: ``full`` or ``mini``.
        trainings: by name.
        tables: by name.
        uses: settings of the detector at test time, by name; ``plain`` and ``plain_part`` have none.
        rates: learning rates that are tried for each training on held-out training images; empty: recipes' own.
        data: by the name that trainings give; missing where there is none, and those trainings are not run.
        use_images: so many test images (drawn by id) for all uses but ``plain``, ``plain_part`` among them, so that
            they compare; 0: all.
        loss_images: so many images for the mean loss over all RoIs; 0: all.
        networks: full-size networks whose cost a step is measured.
    """

    scale: str
    trainings: Mapping[str, Training]
    tables: Mapping[str, Table]
    uses: Mapping[str, tuple[str, ...]]
    rates: tuple[float, ...]
    data: Mapping[str, Data]
    use_images: int = 0
    loss_images: int = 0
    networks: tuple[str, ...] = ("vgg_cnn_m_1024", "vgg16")

    def tuned(self, training: Training) -> str:
        """The training whose learning rate is tuned for this one."""
        return training.rate_of or training.name


def by_name(items: tuple[Training, ...]) -> Mapping[str, Training]:
    """A dictionary of trainings.

    Raises:
        ValueError: two of one name, or a rate taken from an unknown one.
    """
    named = {item.name: item for item in items}
    if len(named) < len(items) or any(item.rate_of not in (None, *named) for item in items):
        raise ValueError(f"trainings: found a repeated name or an unknown rate_of in {[item.name for item in items]}")
    return named
