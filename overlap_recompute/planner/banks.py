"""Banks of windows: windows that no deadline divides are one window for a relaxation of the stage problem.

NOTE [ what a bank leaves out ]
1. Windows w and w + 1 of a chunk are in one bank if no layer of the chunk has a deadline, or its own first window, at
   w + 1. All windows of the forward pass and the wait for the gradient are one bank. The last of them decides what is
   held ahead of need: a replay that is in an earlier one is still held in it.
2. A bank is as long as its windows together, and a unit counts in it with no more than the longest of them. Whatever is
   put into windows can thus be put into their banks, hides no less there and holds no less memory in the rows that
   matter: the optimum with banks is a bound for the optimum.
3. What is lost is the packing: that replays cannot be divided between windows of a bank, and that of two units in it
   one may read the other. Windows of a bank can be exchanged, so a solver that sees them all looks at the same packing
   many times over, while replays of a bank are usually far shorter than it. `spread` puts them into windows.
4. If something is lost by that, the bound still holds, and the program with all windows has to decide.
"""

from dataclasses import dataclass, replace

from overlap_recompute.planner.problem import Window
from overlap_recompute.planner.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Banks:
    """A problem with one window for each bank, and where its windows come from."""

    workspace: Workspace
    most_us: tuple[float, ...]
    """Of one unit that a bank hides: the length of its longest window."""
    bank_of: tuple[int, ...]
    """For each window of the problem its bank."""

    @property
    def is_smaller(self) -> bool:
        """Whether some bank has more than one window."""
        return len(self.most_us) < len(self.bank_of)


def with_banks(workspace: Workspace) -> Banks:
    """The relaxation of a problem, by rules 1 and 2 of the NOTE."""
    problem, lengths = workspace.problem, workspace.lengths
    cuts = {layer.first_window for layer in problem.layers} | {layer.own_window for layer in problem.layers}
    cuts |= {deadline for layer in problem.layers for deadline in layer.deadlines}
    place = [0]
    for window in range(1, len(lengths) + 1):
        place.append(place[-1] + (window in cuts or window == len(lengths)))
    members = [[w for w, bank in enumerate(place[:-1]) if bank == number] for number in range(place[-1])]
    names = [problem.windows[windows[0]].name for windows in members]
    return Banks(
        workspace=Workspace(
            replace(
                problem,
                windows=tuple(
                    Window(name=name, length_us=sum(lengths[w] for w in windows))
                    for name, windows in zip(names, members, strict=True)
                ),
                layers=tuple(
                    replace(
                        layer,
                        first_window=place[layer.first_window],
                        own_window=place[layer.own_window],
                        deadlines=tuple(place[deadline] for deadline in layer.deadlines),
                    )
                    for layer in problem.layers
                ),
            ),
            workspace.tables,
        ),
        most_us=tuple(max(lengths[w] for w in windows) for windows in members),
        bank_of=tuple(place[:-1]),
    )
