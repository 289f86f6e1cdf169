"""Let a Trainer find its micro-batch, here on a simulated GPU in virtual time: the gradients stay what they were."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from energy_plugins.testing import SimulatedDevice, simulated_gpus
from energy_plugins.transformers import EnergyCallback, MicroBatchCallback


class Numbers(Dataset[dict[str, torch.Tensor]]):
    """Random ones."""

    def __len__(self) -> int:
        """Return how many there are."""
        return 4000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one."""
        return {"input_ids": torch.randn(8)}


class Model(nn.Module):
    """A layer; what a real model would do on the GPU is done by a simulated one."""

    def __init__(self, simulated: SimulatedDevice) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)
        self.simulated = simulated

    def forward(self, input_ids: torch.Tensor, return_loss: bool = True) -> dict[str, torch.Tensor]:  # noqa: ARG002, FBT001, FBT002
        """Return the loss, a mean over samples."""
        # The weights are read in each pass, however few its samples are.
        self.simulated.launch(ops=4e13 * len(input_ids), bytes=8e11, wait=True)
        return {"loss": self.layer(input_ids).square().mean()}


def main() -> None:
    """Train with batches of 4 that are accumulated, and say what was found."""
    args = TrainingArguments(
        "transformers_micro_batch", use_cpu=True, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        per_device_train_batch_size=4, gradient_accumulation_steps=4, num_train_epochs=1, logging_steps=100,
    )  # fmt: skip
    energy, tuner = EnergyCallback(), MicroBatchCallback(search_share=0.4)  # `tuner` is all that it takes
    with simulated_gpus(virtual=True) as simulation:
        Trainer(Model(simulation.gpus[0]), args, train_dataset=Numbers(), callbacks=[energy, tuner]).train()
    found = energy.report.micro_batch if energy.report is not None else None
    if found is not None and found.expected_saving is not None:
        print(f"SIMULATED: {found.chosen} samples at once, not {found.batch}: {found.expected_saving:.0%} less energy")


if __name__ == "__main__":
    main()
