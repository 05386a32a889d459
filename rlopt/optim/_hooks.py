"""Hooks on a module that find their optimizer by a link, so that copies of both belong together and copies of one do nothing."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn


class Recording(Protocol):
    """What a link leads to: an optimizer that records passes of its module."""

    @property
    def recorder(self) -> Any:
        """What receives the calls of the hooks; an optimizer that is a copy makes it when it is first asked."""
        ...


class Link:
    """Connects the hooks on a module with an optimizer, without keeping it alive.

    Whoever is copied (deepcopy, pickle) together with the optimizer shares the optimizer's new link; other copies lead nowhere.
    """

    def __init__(self) -> None:
        self._owner: weakref.ref[Recording] | None = None

    def connect(self, owner: Recording) -> None:
        """Lead to this optimizer from now on."""
        self._owner = weakref.ref(owner)

    def owner(self) -> Recording | None:
        """Return the optimizer; None if there is none (any more)."""
        return None if self._owner is None else self._owner()

    def __reduce__(self) -> tuple[type[Link], tuple[()]]:
        return Link, ()


class Hook:
    """A module hook that calls a method of the recorder, or of a layer's record, behind a link."""

    def __init__(self, link: Link, method: str, layer: str | None = None) -> None:
        self.link = link
        self.method = method
        self.layer = layer

    def __call__(self, *args: Any) -> None:
        owner = self.link.owner()
        if owner is not None:
            recorder = owner.recorder
            getattr(recorder if self.layer is None else recorder.layers[self.layer], self.method)(*args)


class WeakHook:
    """A hook on a tensor that does not keep its owner alive."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = weakref.WeakMethod(method)

    def __call__(self, *args: Any) -> None:
        method = self._method()
        if method is not None:
            method(*args)


def remove_hooks(module: nn.Module, link: Link | None = None) -> None:
    """Remove the hooks of a link; None: those whose link leads nowhere, such as a copied module inherits."""
    for part in module.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(hook, Hook) and (hook.link is link or (link is None and hook.link.owner() is None)):
                    del hooks[key]
                    part._forward_hooks_with_kwargs.pop(key, None)
                    part._forward_hooks_always_called.pop(key, None)
