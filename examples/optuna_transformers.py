"""``hyperparameter_search`` that knows its joules. Without an NVIDIA GPU, a simulated one stands in."""

from __future__ import annotations

import sysconfig
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import optuna
import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from energy_plugins.optuna import study_energy_j
from energy_plugins.optuna.transformers import EnergyPruningCallback
from energy_plugins.testing import simulated_gpus

STUDY, STORAGE, CONTEXT = "text", "sqlite:///search.db", 64


class Sources(Dataset[dict[str, torch.Tensor]]):
    """Pieces of the standard library, one token a byte."""

    def __init__(self, name: str, pieces: int) -> None:
        text = (Path(sysconfig.get_paths()["stdlib"]) / name).read_bytes()[: pieces * CONTEXT]
        self.pieces = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().view(pieces, CONTEXT)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.pieces)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one, which is also what is to be learnt."""
        return {"input_ids": self.pieces[index], "labels": self.pieces[index]}


def model_init() -> GPT2LMHeadModel:
    """Return a small GPT."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=4))


def hp_space(trial: optuna.Trial) -> dict[str, float]:
    """Return what is searched."""
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)}


if __name__ == "__main__":
    cpu = not torch.cuda.is_available()
    args = TrainingArguments("search", max_steps=20, eval_strategy="steps", eval_steps=10, report_to=[], use_cpu=cpu)
    prune = EnergyPruningCallback(monitor="eval_loss", budget_j=1e6)  # the only line a search needs
    gpus: AbstractContextManager[object] = simulated_gpus() if cpu else nullcontext()
    with gpus:
        train, test = Sources("argparse.py", 400), Sources("ast.py", 40)
        trainer = Trainer(None, args, None, train, test, model_init=model_init, callbacks=[prune])
        trainer.hyperparameter_search(hp_space, None, 3, "minimize", "optuna", study_name=STUDY, storage=STORAGE)
    print(f"{study_energy_j(optuna.load_study(study_name=STUDY, storage=STORAGE)):.0f} J for the search")
