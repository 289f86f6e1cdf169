"""The carbon block of a model card: what it says, and that nothing else of the card changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from reporting import make_report

from energy_plugins.errors import ReportError
from energy_plugins.report.carbon.circumstances import Circumstances
from energy_plugins.report.carbon.footprint import footprint
from energy_plugins.report.carbon.grid import Marginal, of_country
from energy_plugins.report.carbon.model_card import KEY, block, with_block, write_into

VALUES: dict[str, Any] = {"emissions": 12.5, "source": "energy-plugins: measured", "hardware_used": "8 x NVIDIA H200"}
BLOCK = f"{KEY}:\n  emissions: 12.5\n  source: 'energy-plugins: measured'\n  hardware_used: 8 x NVIDIA H200\n"
FRANCE = Circumstances(location=of_country("FR"), pue=1.2)


class TestWhatItSays:
    def test_all_of_it(self) -> None:
        report = make_report(energy_j=3.6e6)
        found = block(report, footprint(report, FRANCE), training_type="fine-tuning")
        assert found["emissions"] == pytest.approx(67.25, rel=1e-3)
        assert (found["training_type"], found["geographical_location"]) == ("fine-tuning", "France")
        assert found["hardware_used"] == "1 x NVIDIA H200"
        assert "PUE 1.2, 56.04 g/kWh location-based (France, 2023, Our World in Data" in found["source"]
        assert "SIMULATED" not in found["source"]

    def test_what_is_not_known_is_left_out(self) -> None:
        report = make_report()
        assert "training_type" not in block(report, footprint(report, FRANCE))

    def test_simulated_is_said(self) -> None:
        report = make_report(simulated=True)
        assert block(report, footprint(report, FRANCE))["source"].startswith("SIMULATED: ")

    @pytest.mark.parametrize(
        ("where", "energy_j", "reason"),
        [
            (Circumstances(), 1.0, "place is not known"),
            (Circumstances(marginal=Marginal(g_per_kwh=1.0, source="x")), 1.0, "no location-based"),
            (FRANCE, None, "not measured"),
        ],
    )
    def test_no_grams_are_invented(self, where: Circumstances, energy_j: float | None, reason: str) -> None:
        report = make_report(energy_j=energy_j)
        with pytest.raises(ReportError, match=reason):
            block(report, footprint(report, where))


CARDS = {
    "no metadata": ("# Title\n\ntext\n", f"---\n{BLOCK}---\n# Title\n\ntext\n"),
    "nothing at all": ("", f"---\n{BLOCK}---\n"),
    "empty metadata": ("---\n---\ntext", f"---\n{BLOCK}---\ntext"),
    "at the end": ("---\nlicense: mit # why not\n---\nx", f"---\nlicense: mit # why not\n{BLOCK}---\nx"),
    "in its place": (
        f"---\na: 1\n\n{KEY}:\n  emissions: 1\n  # old\n  source: 'x'  # y\n\n# about b\nb: [2,   3]\n---\nx",
        f"---\na: 1\n\n{BLOCK}\n# about b\nb: [2,   3]\n---\nx",
    ),
    "a number alone": (f"---\n{KEY}: 0.5\nb: 1\n---\n", f"---\n{BLOCK}b: 1\n---\n"),
    "a flow mapping": (f"---\n{KEY}: {{emissions: 1,\n  source: x}}\nb: 1\n---\n", f"---\n{BLOCK}b: 1\n---\n"),
    "nothing under it": (f"---\n{KEY}:\nb: 1\n---\n", f"---\n{BLOCK}b: 1\n---\n"),
    "no number": ("---\nvalue: .nan\n---\n", f"---\nvalue: .nan\n{BLOCK}---\n"),
    "windows": ("---\r\na: 1\r\n---\r\nx\r\n", "---\r\na: 1\r\n" + BLOCK.replace("\n", "\r\n") + "---\r\nx\r\n"),
    "dashes later on": ("---\na: 1\n---\nx\n---\ny\n", f"---\na: 1\n{BLOCK}---\nx\n---\ny\n"),
    "a line of dashes, no metadata": ("---\nx\n", f"---\n{BLOCK}---\n---\nx\n"),
    "a byte order mark": ("\ufeff---\na: 1\n---\n", f"\ufeff---\na: 1\n{BLOCK}---\n"),
}


class TestTheRestStays:
    @pytest.mark.parametrize("name", CARDS)
    def test_byte_for_byte(self, name: str, tmp_path: Path) -> None:
        before, after = CARDS[name]
        card = tmp_path / "README.md"
        card.write_bytes(before.encode())
        write_into(card, VALUES)
        assert card.read_bytes().decode() == after
        write_into(card, VALUES)
        assert card.read_bytes().decode() == after

    @given(
        meta=st.dictionaries(
            st.text("abcdef", min_size=1, max_size=5),
            st.recursive(
                st.integers() | st.booleans() | st.text(max_size=20) | st.none(),
                lambda inner: (
                    st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", min_size=1), inner, max_size=3)
                ),
            ),
            max_size=4,
        ),
        old=st.none()
        | st.floats(0, 10)
        | st.dictionaries(st.sampled_from(["emissions", "source"]), st.text(max_size=9)),
        body=st.text(max_size=50),
        at=st.integers(0, 4),
        width=st.integers(5, 100),
    )
    def test_whatever_is_there(self, meta: dict[str, Any], old: Any, body: str, at: int, width: int) -> None:
        items = [*meta.items()]
        items.insert(at, (KEY, old))
        text = f"---\n{yaml.safe_dump(dict(items), width=width, sort_keys=False)}---\n{body}"
        parts = [yaml.safe_dump({key: value}, width=width, sort_keys=False) for key, value in items]
        assert (
            with_block(text, VALUES, "card")
            == "---\n"
            + "".join(BLOCK if key == KEY else part for (key, _), part in zip(items, parts, strict=True))
            + f"---\n{body}"
        )

    def test_the_hub_reads_it(self, tmp_path: Path) -> None:
        card = tmp_path / "README.md"
        card.write_text("---\nlicense: mit\n---\n# A model\n")
        report = make_report()
        write_into(card, block(report, footprint(report, FRANCE)))
        data = ModelCard.load(card).data
        assert data.license == "mit"
        assert data[KEY]["geographical_location"] == "France"

    def test_a_link_stays_one(self, tmp_path: Path) -> None:
        (tmp_path / "real.md").write_text("x")
        (tmp_path / "README.md").symlink_to("real.md")
        write_into(tmp_path / "README.md", VALUES)
        assert (tmp_path / "README.md").is_symlink()
        assert (tmp_path / "real.md").read_text().endswith("x")


class TestRefused:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"---\na: [1\n---\n", "no YAML"),
            (b"---\n- a\n---\n", "no YAML mapping"),
            (b"---\n{a: 1}\n---\n", "no YAML mapping with a key on each line"),
            (b"---\na: 1\n---\n\xff\xfe", "no UTF-8"),
        ],
    )
    def test_a_card_that_is_not_understood_is_left_alone(self, content: bytes, said: str, tmp_path: Path) -> None:
        card = tmp_path / "README.md"
        card.write_bytes(content)
        with pytest.raises(ReportError, match=said):
            write_into(card, VALUES)
        assert card.read_bytes() == content

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ReportError, match="cannot write"):
            write_into(tmp_path / "none" / "README.md", VALUES)
