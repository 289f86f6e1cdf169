"""The ledger: every run that was ever measured. `Ledger` is loaded on first use, since it needs SQLAlchemy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from energy_plugins.lazy import lazy_names

if TYPE_CHECKING:
    from energy_plugins.report.ledger.book import Ledger

__all__ = ["Ledger"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, {"book": ("Ledger",)})
