"""What a method keeps from one batch of a sequence to the next."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rome_lens.checking import checked
from rome_lens.storage import load_tensors, save_tensors

_KIND = "rome_lens edit memory 1"


@checked
@dataclass(eq=False)
class EditMemory:
    """What `ultraedit`, `alphaedit` and `memit` keep from batch to batch: keys, or running statistics.

    Make one for a sequence and give it to every call; a method changes it once its edit is computed. Each edit is to be
    applied before the next is computed. `edit_sequence` does all of this, and keeps the memory with the sequence.
    Edits that have nothing to do with each other get none.

    Attributes:
        method: the one that began it; "" before the first batch.
        config: that method's numbers, as plain values.
        tensors: what it keeps, by name; on the CPU.
    """

    method: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def check(self, method: str, config: Mapping[str, Any]) -> None:
        """Raises ValueError if another method began it, or the same one with other numbers."""
        if self.method and (self.method, dict(self.config)) != (method, dict(config)):
            differing = ", ".join(name for name, value in config.items() if self.config.get(name) != value)
            raise ValueError(
                f"This memory was begun by {self.method}, and now {method} is to go on with it (other: "
                f"{differing or 'the method'}). Give each sequence a memory of its own: EditMemory()."
            )

    def expect(self, **shapes: tuple[int, ...]) -> None:
        """Raises ValueError unless what it keeps under these names, if anything, has these shapes."""
        for name, shape in shapes.items():
            if name in self.tensors and self.tensors[name].shape != shape:
                raise ValueError(
                    f"{name} of this memory is {list(self.tensors[name].shape)}, expected {list(shape)}: it was begun "
                    "on another model. Give each sequence a memory of its own: EditMemory()."
                )

    def keep(self, method: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """What a method knows after a batch."""
        self.method, self.config = method, dict(config)
        self.tensors |= {name: tensor.detach().cpu() for name, tensor in tensors.items()}

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes a safetensors file.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
        """
        facts = {"method": self.method, "config": dict(self.config)}
        save_tensors(path, self.tensors, kind=_KIND, facts=facts, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "EditMemory":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FormatError: the file is damaged or is something else.
        """
        tensors, facts = load_tensors(path, kind=_KIND, facts={"method": str, "config": dict})
        return cls(facts["method"], facts["config"], tensors)
