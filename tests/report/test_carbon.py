"""Grams, money and scores: simple products, said with their sources, and nothing where the place is not known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reporting import make_report

from energy_plugins.errors import ConfigError
from energy_plugins.measure.columns import Columns
from energy_plugins.measure.rank_part import Rank, RankPart
from energy_plugins.measure.ranks import Ranks
from energy_plugins.report.carbon.circumstances import Circumstances, Embodied
from energy_plugins.report.carbon.footprint import Footprint, footprint
from energy_plugins.report.carbon.grid import LocationBased, Marginal, country, of_country, own
from energy_plugins.report.carbon.grid_series import Series
from energy_plugins.report.carbon.relatable import BY_GRAMS, BY_KWH, as_much_as
from energy_plugins.report.carbon.text import as_json, text_block

KWH_J = 3.6e6
HOURS = "time,g_per_kwh\n2026-11-22T07:00:00Z,100\n2026-11-22T08:00:05Z,300\n2026-11-22T09:00:00Z,50\n"
"""A run of `make_report` begins at 08:00:00 and lasts ten seconds."""


def grams(found: Footprint) -> float:
    assert found.location is not None
    return found.location.grams


class TestCountries:
    @pytest.mark.parametrize("text", ["FR", "fr", "FRA", "France", " france "])
    def test_by_name_and_codes(self, text: str) -> None:
        found = country(text)
        assert (found.name, found.year, found.g_per_kwh) == ("France", 2023, 56.039)

    @pytest.mark.parametrize(
        ("text", "name"), [("UK", "United Kingdom"), ("EL", "Greece"), ("cote d'ivoire", "Cote d'Ivoire")]
    )
    def test_other_names(self, text: str, name: str) -> None:
        assert country(text).name == name

    @pytest.mark.parametrize(
        ("text", "near"),
        [("Frence", r"France \(FR\)"), ("Germny", r"Germany \(DE\)"), ("Q9 0", "two or three letters")],
    )
    def test_one_that_does_not_exist(self, text: str, near: str) -> None:
        with pytest.raises(ConfigError, match=f"{text}.* is not known; .*{near}"):
            country(text)

    def test_the_table_is_whole(self) -> None:
        from energy_plugins.report.carbon import grid

        table = {one.alpha_2: one for one in grid._countries().values()}
        assert len(table) > 200
        assert all(0 < one.g_per_kwh < 1500 and 2009 <= one.year <= 2023 for one in table.values())
        header = (Path(grid.__file__).parent / "grid_intensity.csv").read_text().split("alpha_2")[0]
        for needed in ("Our World in Data", "Ember", "CC BY 4.0", "Year"):
            assert needed in header


class TestGrams:
    def test_are_energy_times_pue_times_intensity(self) -> None:
        report = make_report(energy_j=2 * KWH_J)
        found = footprint(report, Circumstances(location=of_country("FR"), pue=1.5, price_per_kwh=0.25))
        assert found.kwh == pytest.approx(3.0)
        assert grams(found) == pytest.approx(3 * 56.039)
        assert found.cost == pytest.approx(0.75)

    def test_the_pue_is_shown_even_where_nobody_gave_it(self) -> None:
        assert "x PUE 1" in text_block(footprint(make_report(), Circumstances()))

    def test_the_host_counts_where_it_was_measured(self) -> None:
        found = footprint(make_report(energy_j=KWH_J, cpu_j=0.5 * KWH_J, dram_j=0.25 * KWH_J), Circumstances())
        assert found.kwh == pytest.approx(1.75)
        assert "GPUs 1.000 kWh + CPU and DRAM 750.0 Wh" in text_block(found)

    def test_all_ranks_count(self) -> None:
        reports = [make_report(rank=Rank(rank=n, world_size=2), node=f"n{n}", energy_j=KWH_J) for n in range(2)]
        ranks = Ranks.merge([RankPart.of(report) for report in reports], 2)
        whole = make_report(energy_j=KWH_J, rank=Rank(rank=0, world_size=2), ranks=ranks)
        found = footprint(whole, Circumstances(location=of_country("FR")))
        assert grams(found) == pytest.approx(2 * 56.039)
        assert found.scores["sample"] == pytest.approx(2 * 56.039 / 200)

    def test_an_unknown_place_has_energy_and_no_grams(self) -> None:
        found = footprint(make_report(energy_j=KWH_J), Circumstances(price_per_kwh=0.3))
        assert (found.location, found.marginal, found.scores) == (None, None, {})
        text = text_block(found)
        assert "no grams: the place is not known" in text
        assert "CO2e" not in text
        assert "0.3 at 0.3 per kWh" in text
        assert as_json(found)["location_based"] is None

    def test_energy_that_was_not_measured_has_none_either(self) -> None:
        report = make_report(energy_j=None, missing={"total_j": "the GPU was lost"})
        found = footprint(report, Circumstances(location=of_country("FR"), price_per_kwh=0.3))
        assert (found.kwh, found.location, found.cost) == (None, None, None)
        assert "the GPU was lost" in text_block(found)

    @pytest.mark.parametrize("changes", [{"missing": {"avg_power_w": "x"}}, {"complete": False}])
    def test_joules_that_are_missing_make_it_a_least(self, changes: dict[str, Any]) -> None:
        assert "at least" in text_block(footprint(make_report(**changes), Circumstances()))

    def test_a_rank_that_was_not_measured_makes_it_a_least(self) -> None:
        reports = [
            make_report(rank=Rank(rank=n, world_size=2), node=f"n{n}", energy_j=joules)
            for n, joules in enumerate((KWH_J, None))
        ]
        half = replace(reports[0], ranks=Ranks.merge([RankPart.of(report) for report in reports], 2))
        assert text_block(footprint(half, Circumstances())).startswith("electricity   at least 1.000 kWh")

    def test_location_based_and_marginal_stand_apart(self) -> None:
        both = Circumstances(location=of_country("FR"), marginal=own(Marginal, 500))
        found = footprint(make_report(energy_j=KWH_J), both)
        assert grams(found) == pytest.approx(56.039)
        assert found.marginal is not None
        assert found.marginal.grams == pytest.approx(500)
        assert found.scores["run"] == pytest.approx(56.039)
        assert "in no sum with it" in text_block(found)

    def test_neither_can_stand_for_the_other(self) -> None:
        marginal: Any = own(Marginal, 500)
        with pytest.raises(TypeError, match="not to be mixed"):
            Circumstances(location=marginal)

    def test_a_marginal_intensity_alone_makes_no_score(self) -> None:
        found = footprint(make_report(), Circumstances(marginal=own(Marginal, 500)))
        assert found.scores == {}
        assert "no grams: only a marginal" in text_block(found)


class TestScore:
    def test_is_operation_and_making_per_unit(self) -> None:
        asked = Circumstances(location=own(LocationBased, 100), embodied=Embodied(kg=1461, lifetime_years=4), epochs=2)
        report = make_report(energy_j=KWH_J, duration_s=3600, samples=50, tokens=1000)
        found = footprint(report, asked)
        made_g = 1461e3 / (4 * 365.25 * 24)
        assert found.embodied_g == pytest.approx(made_g)
        assert found.scores == {
            unit: pytest.approx((100 + made_g) / count)
            for unit, count in {"sample": 50, "token": 1000, "epoch": 2, "run": 1}.items()
        }
        assert "ISO/IEC 21031)" in text_block(found)

    def test_what_it_lacks_is_said(self) -> None:
        found = footprint(make_report(), Circumstances(location=of_country("FR")))
        assert "without embodied emissions" in " ".join(text_block(found).split())


class TestSeries:
    def series(self, folder: Path, text: str) -> Series:
        (folder / "grid.csv").write_text(text)
        return Series.read(folder / "grid.csv")

    def test_is_weighed_by_what_was_drawn_when(self, tmp_path: Path) -> None:
        power = Columns.of({"t_s": np.array([0.0, 4.999, 5.001, 10.0]), "power_w": np.array([100.0, 100, 300, 300])})
        report = make_report(energy_j=KWH_J, power={"GPU-of-node-1": power})
        (tmp_path / "grid.csv").write_text(HOURS)
        found = footprint(report, Circumstances(location=own(LocationBased, str(tmp_path / "grid.csv"))))
        assert grams(found) == pytest.approx(0.25 * 100 + 0.75 * 300, rel=1e-3)
        assert "grid.csv" in text_block(found)

    def test_is_weighed_by_time_where_the_power_was_not_kept(self, tmp_path: Path) -> None:
        assert self.series(tmp_path, HOURS).mean_g_per_kwh(make_report()) == pytest.approx(200)

    def test_a_run_that_was_killed_as_it_began(self, tmp_path: Path) -> None:
        series = self.series(tmp_path, HOURS)
        for at, value in (("08:00:00", 100), ("08:00:05", 300), ("09:00:01", 50)):
            report = make_report(duration_s=0.0, energy_j=0.0, started=f"2026-11-22T{at}.000+00:00")
            assert series.mean_g_per_kwh(report) == value

    def test_zones_are_heard(self, tmp_path: Path) -> None:
        text = "time,g_per_kwh\n2026-11-22T09:00:00+01:00,70\n2026-11-22T04:00:00-05:00,90\n"
        assert self.series(tmp_path, text).mean_g_per_kwh(make_report()) == pytest.approx(70)

    @given(
        values=st.lists(st.floats(0, 2000), min_size=2, max_size=5),
        power=st.lists(st.floats(0, 700), min_size=2, max_size=9),
    )
    def test_the_mean_lies_between_the_values(self, values: list[float], power: list[float]) -> None:
        start_s = 1795334400.0 - 1
        series = Series("x", tuple(start_s + 5 * n for n in range(len(values))), tuple(values))
        watts = Columns.of({"t_s": np.linspace(0, 3, len(power)), "power_w": np.array(power)})
        report = make_report(duration_s=3.0, power={"GPU-of-node-1": watts})
        assert min(values) - 1e-9 <= series.mean_g_per_kwh(report) <= max(values) + 1e-9

    @pytest.mark.parametrize("started", ["2026-11-22T06:59:59+00:00", "2026-11-22T09:59:50+00:00"])
    def test_a_run_outside_is_refused(self, started: str, tmp_path: Path) -> None:
        series = self.series(tmp_path, HOURS)
        with pytest.raises(ConfigError, match="covers 2026-11-22T07:00:00Z to 2026-11-22T09:59:55Z, and the run"):
            series.mean_g_per_kwh(make_report(started=started))

    def test_a_report_that_does_not_say_when(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="'yesterday', which is no time"):
            self.series(tmp_path, HOURS).mean_g_per_kwh(make_report(started="yesterday"))

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "first line must name the columns time and g_per_kwh"),
            ("a,b\n1,2\n", "first line"),
            (HOURS.replace("300", "-3"), r"line 3: the intensity is '-3'; expected .* 0 or more"),
            (HOURS.replace("300", "nan"), "line 3"),
            (HOURS.replace("300", "x"), "line 3"),
            (HOURS.replace("2026-11-22T08:00:05Z", "8 o'clock"), 'line 3: the time is "8 o\'clock"'),
            (HOURS.replace("08:00:05Z", "08:00:05"), "line 3: .* has no zone"),
            (HOURS.replace("08:00:05", "06:00:05"), "must rise"),
            (HOURS.replace("08:00:05", "07:00:00"), "must rise"),
            ("\n".join(HOURS.splitlines()[:2]), "1 rows"),
        ],
    )
    def test_what_is_no_series(self, text: str, said: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=said):
            self.series(tmp_path, text)


class TestRefused:
    @pytest.mark.parametrize(
        "wrong",
        [
            lambda: own(LocationBased, -1),
            lambda: own(LocationBased, "-0.5"),
            lambda: own(Marginal, "nan"),
            lambda: own(Marginal, math.inf),
            lambda: own(LocationBased, "no-such-file.csv"),
            lambda: own(LocationBased, __file__ + "/x"),
            lambda: Circumstances(pue=0.9),
            lambda: Circumstances(pue=math.nan),
            lambda: Circumstances(price_per_kwh=-0.1),
            lambda: Circumstances(epochs=0),
            lambda: Embodied(kg=-1),
            lambda: Embodied(kg=1, lifetime_years=0),
        ],
    )
    def test_what_cannot_be(self, wrong: Any) -> None:
        with pytest.raises(ConfigError, match="expected|neither a number nor a CSV"):
            wrong()


class TestRelatable:
    def test_each_has_a_source_and_its_year_or_is_physics(self) -> None:
        assert all(thing.source for thing in (*BY_KWH, *BY_GRAMS))
        assert as_much_as(10_715 / 366, None)[1].startswith(
            "1 days of electricity of an American home (U.S. EIA, for 2020"
        )
        assert as_much_as(None, 400 / 1.609344)[0].startswith("driving 1 km")

    def test_what_is_too_small_to_picture_is_left_out(self) -> None:
        assert as_much_as(1e-6, 1e-6) == []
        assert as_much_as(None, None) == []


def test_simulated_is_said() -> None:
    found = footprint(make_report(simulated=True), Circumstances())
    assert "SIMULATED" in text_block(found).splitlines()[0]
    assert json.loads(json.dumps(as_json(found), allow_nan=False))["simulated"] is True
