"""Pictures of dynamical systems, and a window that shows pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.error import DependencyNotInstalled
from numpy.typing import NDArray

from rlopt_envs._validation import FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Picture = NDArray[np.uint8]
Field = Callable[[FloatArray], FloatArray]
"""Maps states (N, 2) to the states (N, 2) one step later, without noise."""

HISTORY_LENGTH = 200
"""Steps that a picture shows."""

_NUM_CURVES = 8  # more curves are not readable, nor are there more colours to tell them apart


def figure_to_rgb(figure: Figure) -> Picture:
    """Return a matplotlib figure as pixels, (H, W, 3) uint8; needs no display.

    Example:
        >>> from matplotlib.figure import Figure
        >>> figure_to_rgb(Figure(figsize=(2, 1), dpi=50)).shape
        (50, 100, 3)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class HumanWindow:
    """A window that shows pictures one after another.

    Raises:
        DependencyNotInstalled: If pygame is missing.
    """

    def __init__(self) -> None:
        try:
            import pygame
        except ImportError:
            raise DependencyNotInstalled("render_mode 'human' needs pygame: pip install 'rlopt[render]'") from None
        self._pygame: Any = pygame
        self._screen: Any = None
        self._clock: Any = None

    def show(self, rgb: Picture, fps: float) -> None:
        """Show a picture, after a pause that keeps to `fps` pictures per second.

        Args:
            rgb: (H, W, 3) uint8.
            fps: Pictures per second, > 0.
        """
        pygame, size = self._pygame, (rgb.shape[1], rgb.shape[0])
        if self._screen is None or self._screen.get_size() != size:
            pygame.display.init()
            pygame.display.set_caption("rlopt")
            self._screen = pygame.display.set_mode(size)
            self._clock = pygame.time.Clock()
        self._screen.blit(pygame.surfarray.make_surface(rgb.swapaxes(0, 1)), (0, 0))  # pygame counts (x, y)
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(fps)

    def close(self) -> None:
        """Close the window; a closed one stays closed until the next `show`."""
        if self._screen is not None:
            self._pygame.display.quit()
            self._screen = self._clock = None


class SystemPicture:
    """Draws a trajectory: left the states over time, right the first two of them against each other.

    Args:
        title: Above the picture.
        names: Of the states, d of them. None: x1 ... xd.
        units: Of the states; "" for none.
        time_step: Seconds per step. None: the axis of time counts steps.
        field: Where states of a system of two go; drawn as arrows. None for other systems.
    """

    def __init__(
        self,
        title: str,
        names: Sequence[str] | None = None,
        units: Sequence[str] | None = None,
        time_step: float | None = None,
        field: Field | None = None,
    ) -> None:
        self.title, self.time_step, self.field = title, time_step, field
        self._names, self._units = names, units
        self._figure: Any = None

    def draw(self, states: FloatArray, step: int) -> Picture:
        """Return the picture of a trajectory.

        Args:
            states: The last states of the episode, (length, d) with length >= 1; the last row is the present one.
            step: Number of the present step.

        Returns:
            (360, 800, 3) uint8.
        """
        if self._figure is None:
            self._build(states.shape[1])
        duration = self.time_step or 1.0
        times = duration * (step - len(states) + 1 + np.arange(len(states)))
        for curve, values in zip(self._curves, states.T, strict=False):
            curve.set_data(times, values)
        # A window of fixed width, which moves when it is full, so that the picture does not breathe.
        self._left.set_xlim(times[0], times[0] + duration * (HISTORY_LENGTH - 1))
        low, high = _limits(states[:, :_NUM_CURVES])
        self._left.set_ylim(low, high + self._legend_share * (high - low))
        path = _plane(states)
        self._path.set_data(*path.T)
        self._point.set_data(*path[-1:].T)
        x_limits, y_limits = _limits(path[:, 0]), _limits(path[:, 1])
        self._right.set_xlim(*x_limits)
        self._right.set_ylim(*y_limits)
        if self._arrows is not None:
            self._update_arrows(x_limits, y_limits)
        return figure_to_rgb(self._figure)

    def _build(self, num_states: int) -> None:
        from matplotlib.figure import Figure  # slow to import, and few want pictures

        names = list(self._names or [f"x{i + 1}" for i in range(num_states)])
        units = list(self._units or [""] * num_states)
        labels = [f"{name} ({unit})" if unit else name for name, unit in zip(names, units, strict=True)]
        self._figure = Figure(figsize=(8.0, 3.6), dpi=100)
        self._figure.suptitle(self.title, fontsize=11)
        self._left = self._figure.add_axes((0.08, 0.15, 0.48, 0.73))
        self._right = self._figure.add_axes((0.68, 0.15, 0.29, 0.73))
        shown = labels[:_NUM_CURVES]
        self._curves = [self._left.plot([], [], lw=1.2, color=f"C{i}", label=label)[0] for i, label in enumerate(shown)]
        self._left.set_xlabel("time (s)" if self.time_step else "step")
        self._left.set_ylabel("state" if num_states > 1 else labels[0])
        num_columns = min(len(shown), 4 if max(map(len, shown)) <= 8 else 2)
        if num_states > 1:
            self._left.legend(loc="upper left", fontsize=7, framealpha=0.8, ncols=num_columns)
        self._legend_share = 0.1 * -(-len(shown) // num_columns) if num_states > 1 else 0.0  # room above the curves
        self._left.grid(alpha=0.3)
        self._right.grid(alpha=0.3)
        self._right.set_xlabel(labels[0] if num_states > 1 else f"{names[0]} now")
        self._right.set_ylabel(labels[1] if num_states > 1 else f"{names[0]} one step later", labelpad=1)
        self._arrows: Any = None
        if self.field is not None and num_states == 2:
            zeros = np.zeros((13, 13))
            self._arrows = self._right.quiver(zeros, zeros, zeros, zeros, color="0.75", angles="xy", width=0.004)
        self._path = self._right.plot([], [], lw=1.0, color="0.35")[0]
        self._point = self._right.plot([], [], "o", ms=7, color="tab:red")[0]
        for axes in (self._left, self._right):
            axes.tick_params(labelsize=8)
            axes.locator_params(nbins=5)

    def _update_arrows(self, x_limits: tuple[float, float], y_limits: tuple[float, float]) -> None:
        assert self.field is not None
        x, y = np.meshgrid(np.linspace(*x_limits, 15)[1:-1], np.linspace(*y_limits, 15)[1:-1])
        places = np.stack([x.ravel(), y.ravel()], axis=1)  # (169, 2)
        moves = self.field(places) - places
        # As long as the grid is wide at most: the arrows show directions and relative speeds.
        sizes = np.hypot(moves[:, 0] / np.ptp(x_limits), moves[:, 1] / np.ptp(y_limits))
        moves *= 0.06 / max(float(sizes.max()), 1e-12)
        self._arrows.set_offsets(places)
        self._arrows.XY = places
        self._arrows.X, self._arrows.Y = places.T
        self._arrows.scale = 1.0
        self._arrows.scale_units = "xy"
        self._arrows.set_UVC(moves[:, 0], moves[:, 1])


def _plane(states: FloatArray) -> FloatArray:
    """Return the curve on the right, (length, 2): the first two states, or a single one now and one step later."""
    if states.shape[1] > 1:
        return states[:, :2]
    now = states[:-1, 0] if len(states) > 1 else states[:, 0]
    return np.stack([now, states[-len(now) :, 0]], axis=1)


def _limits(values: FloatArray) -> tuple[float, float]:
    """Return the limits of an axis that shows 0 and all values."""
    finite = values[np.isfinite(values)]
    low, high = float(min(finite.min(initial=0.0), 0.0)), float(max(finite.max(initial=0.0), 0.0))
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin
