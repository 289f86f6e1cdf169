"""Comparisons of reports: the same work or a unit, what is left out, what is refused, and what is said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from reporting import make_report, save_all

from energy_plugins import EnergyMeter
from energy_plugins.errors import ReportError
from energy_plugins.measure.rank_part import Rank, RankPart
from energy_plugins.measure.ranks import Ranks
from energy_plugins.measure.report import Report
from energy_plugins.measure.report_parts import Work
from energy_plugins.report.comparison.compare import Comparison, Finding, Metric, compare, compare_folders
from energy_plugins.report.comparison.html import html_page, html_section
from energy_plugins.report.comparison.runs import SERIES, LeftOut, Run, read_runs, run_of
from energy_plugins.report.comparison.same_work import WorkUnit
from energy_plugins.report.comparison.text import as_json, text_table
from energy_plugins.testing import Constant, simulated_gpus

JITTER = (1.001, 0.998, 1.002, 0.999, 1.0)


def runs(*reports: Report) -> list[Run]:
    found = [run_of(report, Path(report.run_id)) for report in reports]
    return [one for one in found if isinstance(one, Run)]


def repeated(
    energy_j: float, *, duration_s: float = 10.0, times: Sequence[float] = JITTER, **others: object
) -> list[Run]:
    return runs(*(make_report(energy_j=energy_j * one, duration_s=duration_s * one, **others) for one in times))  # type: ignore[arg-type]


def finding(comparison: Comparison, metric: Metric = Metric.ENERGY, label: str = "B") -> Finding:
    (one,) = (one for one in comparison.findings if one.metric is metric and one.label == label)
    return one


class TestDifferences:
    def test_one_that_is_there_is_shown(self) -> None:
        comparison = compare({"A": repeated(1000), "B": repeated(970, times=JITTER[::-1])})
        found = finding(comparison)
        assert found.shown
        assert found.low is not None
        assert found.high is not None
        assert found.low < -0.03 < found.high < 0
        assert found.relative == pytest.approx(found.raw) == pytest.approx(-0.03)
        assert not finding(comparison, Metric.TIME).shown
        assert finding(comparison, Metric.POWER).relative == pytest.approx(-0.03)

    def test_one_that_is_not_there_is_not(self) -> None:
        comparison = compare({"A": repeated(1000), "B": repeated(1000, times=JITTER[::-1])})
        assert not any(one.shown for one in comparison.findings)
        assert "no difference shown" in text_table(comparison)

    def test_means_are_per_unit_of_work(self) -> None:
        comparison = compare({"A": repeated(1000, times=[1.0]), "B": repeated(500, times=[1.0])})
        assert comparison.unit is WorkUnit.SAMPLE
        means = {metric: pytest.approx(value) for metric, value in zip(Metric, (10.0, 0.1, 100.0), strict=True)}
        assert comparison.sides[0].means == means
        found = finding(comparison)
        assert found.relative == pytest.approx(-0.5)
        assert (found.low, found.shown) == (None, False)
        assert "nothing was repeated" in text_table(comparison)

    def test_offsets_of_nodes_are_corrected_and_the_raw_difference_is_told(self) -> None:
        a = repeated(1000, node="cool", times=JITTER[:4]) + repeated(1080, node="hot", times=JITTER[:2])
        b = repeated(1000, node="cool", times=JITTER[:2]) + repeated(1080, node="hot", times=JITTER[:4])
        found = finding(compare({"A": a, "B": b}))
        assert found.corrected_for == ("place",)
        assert not found.shown
        assert found.raw > 0.02
        assert "uncorrected, energy differs by +2" in text_table(compare({"A": a, "B": b}))

    def test_nodes_of_their_own_widen_the_interval(self) -> None:
        comparison = compare({"A": repeated(1000, node="cool"), "B": repeated(1080, node="hot")})
        assert finding(comparison).places_confounded
        assert not finding(comparison).shown
        assert "did not run on the same GPUs" in text_table(comparison)

    def test_more_sides_make_wider_intervals(self) -> None:
        two = finding(compare({"A": repeated(1000), "B": repeated(990)}))
        three = finding(compare({"A": repeated(1000), "B": repeated(990), "C": repeated(1000)[:2]}))
        assert three.relative == pytest.approx(two.relative)
        assert three.low is not None
        assert two.low is not None
        assert three.low < two.low

    def test_rounds_are_read_from_reports(self) -> None:
        drift = (1.0, 1.05, 0.93, 1.1, 0.97)

        def side(energy_j: float, jitter: Sequence[float]) -> list[Run]:
            said = [{SERIES: {"series": "s", "round": number, "side": "?"}} for number in range(5)]
            values = (energy_j * d * j for d, j in zip(drift, jitter, strict=True))
            return runs(*(make_report(energy_j=v, config=c) for v, c in zip(values, said, strict=True)))

        found = finding(compare({"A": side(1000, JITTER), "B": side(980, JITTER[::-1])}))
        assert found.corrected_for == ("round",)
        assert found.shown

    def test_ranks_count_together(self) -> None:
        rank = Rank(rank=0, world_size=2)
        from energy_plugins.measure.rank_part import RankPart
        from energy_plugins.measure.ranks import Ranks

        reports = [make_report(rank=Rank(rank=n, world_size=2), node=f"n{n}", energy_j=500.0) for n in range(2)]
        parts = [RankPart.of(report) for report in reports]
        whole = make_report(rank=rank, energy_j=500.0, ranks=Ranks.merge(parts, 2))
        (run,) = runs(whole)
        assert (run.energy_j, run.samples, run.place) == (1000.0, 200, "n0/GPU-of-n0 n1/GPU-of-n1")
        alone = make_report(rank=rank, ranks=Ranks.merge(parts[:1], 2))
        assert run_of(alone, Path("x")) == LeftOut(Path("x"), "not all of its ranks left a report")


def of_ranks(*energies_j: float | None, samples: int = 100) -> Report:
    """Return the report of rank 0 of a training of which each rank has a GPU of its own."""
    ranks = [
        make_report(rank=Rank(rank=n, world_size=len(energies_j)), node=f"n{n}", energy_j=joules, samples=samples)
        for n, joules in enumerate(energies_j)
    ]
    return replace(ranks[0], ranks=Ranks.merge([RankPart.of(one) for one in ranks], len(ranks)))


class TestMissingJoules:
    """A sum that lacks a GPU would look like a saving."""

    def test_a_rank_whose_gpu_was_lost(self) -> None:
        assert isinstance(run_of(of_ranks(500.0, 500.0), Path("whole")), Run)
        assert run_of(of_ranks(500.0, None), Path("lost")) == LeftOut(
            Path("lost"), "its energy was not measured: joules of it are missing"
        )

    def test_a_gpu_of_several(self) -> None:
        found = run_of(make_report(gpu_j={"GPU-1": 500.0, "GPU-2": None}), Path("lost"))
        assert isinstance(found, LeftOut)

    def test_a_gpu_that_another_rank_told_of(self) -> None:
        shared = [
            make_report(rank=Rank(rank=n, world_size=2), node="n", energy_j=joules)
            for n, joules in enumerate((9.0, None))
        ]
        report = replace(shared[0], ranks=Ranks.merge([RankPart.of(one) for one in shared], 2))
        assert isinstance(run_of(report, Path("shared")), Run)


@pytest.mark.parametrize("sizes", [(5, 5), (2, 3), (5, 2), (1, 4)])
def test_runs_that_are_all_alike_show_no_difference(sizes: tuple[int, int]) -> None:
    for turn in range(40):
        values = {"energy_j": 1000 / 7 + turn / 3, "duration_s": 10 + turn / 9, "samples": 77}
        a, b = (runs(*(make_report(**values) for _ in range(size))) for size in sizes)  # type: ignore[arg-type]
        assert not any(one.shown for one in compare({"A": a, "B": b}).findings)


def test_a_small_difference_is_not_written_as_none() -> None:
    small = [1 + (one - 1) / 100 for one in JITTER]
    text = text_table(compare({"A": repeated(1000, times=small), "B": repeated(1000.3, times=small[::-1])}))
    (line,) = (line for line in text.splitlines() if line.startswith("B") and "energy" in line)
    assert line.split()[2:9] == ["+0.03", "%", "+0.03", "..", "+0.03", "%", "more:"]


class TestReference:
    """Runs of one program on the nodes of the sides: by them it is known by how much the nodes differ."""

    A, B = repeated(1000, node="cool"), repeated(1100 * 0.95, times=JITTER[::-1], node="hot")

    def known(self, **others: Any) -> list[Run]:
        return repeated(400, node="cool", **others) + repeated(440, node="hot", times=JITTER[::-1], **others)

    def test_tells_sides_on_nodes_of_their_own_apart(self) -> None:
        alone = finding(compare({"A": self.A, "B": self.B}))
        assert alone.places_confounded
        assert not alone.shown
        comparison = compare({"A": self.A, "B": self.B}, reference=self.known(samples=7))
        found = finding(comparison)
        assert found.relative == pytest.approx(-0.05)
        assert found.shown
        assert not found.places_confounded
        assert [side.label for side in comparison.sides] == ["A", "B"]
        said = " ".join(text_table(comparison).split())
        assert "10 reference runs tell the offsets of 2 of 2 places, taken to be the same share" in said

    def test_its_own_noise_counts(self) -> None:
        def width(*times: float) -> float:
            known = repeated(400, times=times, node="cool") + repeated(440, times=times[::-1], node="hot")
            found = finding(compare({"A": self.A, "B": self.B}, reference=known))
            assert found.low is not None
            assert found.high is not None
            return found.high - found.low

        assert width(*(1 + 10 * (one - 1) for one in JITTER)) > 3 * width(*JITTER)

    def test_on_other_nodes_it_tells_nothing(self) -> None:
        elsewhere = repeated(400, node="cool") + repeated(400, node="third", times=JITTER[::-1])
        comparison = compare({"A": self.A, "B": self.B}, reference=elsewhere)
        assert finding(comparison).places_confounded
        assert "offsets of 1 of 2 places" in text_table(comparison)

    def test_what_is_refused(self) -> None:
        with pytest.raises(ReportError, match="hold the same run"):
            compare({"A": self.A, "B": self.B}, reference=self.A)
        with pytest.raises(ReportError, match="SIMULATED"):
            compare({"A": self.A, "B": self.B}, reference=self.known(simulated=True))
        with pytest.raises(ReportError, match="different work"):
            compare({"A": self.A, "B": self.B}, reference=self.known() + repeated(400, samples=7))

    def test_in_folders(self, tmp_path: Path) -> None:
        def saved(name: str, energy_j: float, node: str, times: Sequence[float] = JITTER) -> Path:
            reports = (make_report(energy_j=energy_j * one, node=node) for one in times)
            return save_all(tmp_path / name, *reports)

        sides = [saved("a", 1000, "cool"), saved("b", 1045, "hot", JITTER[::-1])]
        saved("known/cool", 400, "cool")
        saved("known/hot", 440, "hot", JITTER[::-1])
        found = finding(compare_folders(sides, reference=tmp_path / "known"), label="b")
        assert found.relative == pytest.approx(-0.05)
        assert found.shown


def measured(folder: Path, power_w: float, seed: int) -> None:
    """Measure ten steps of a simulated GPU; another seed is another GPU."""
    with (
        simulated_gpus(Constant(power_w), virtual=True, start_s=10, seed=seed) as simulation,
        EnergyMeter(folder=folder) as meter,
    ):
        for _ in range(10):
            with meter.step(samples=8):
                simulation.advance(0.5)


def test_measured_runs_on_unequal_gpus_are_told_apart_from_the_sides(tmp_path: Path) -> None:
    """SIMULATED: one GPU draws 8 % more, and side B 4 % less on either, but B has more of the hungry GPU."""
    for gpu, scale in enumerate((1.0, 1.08)):
        for side, share, repeats in (("a", 1.0, (3, 2)), ("b", 0.96, (2, 3))):
            for number in range(repeats[gpu]):
                jitter = 1 + 0.002 * (-1) ** number
                measured(tmp_path / side / f"gpu-{gpu}-{number}", 300 * scale * share * jitter, seed=gpu)
    comparison = compare_folders([tmp_path / "a", tmp_path / "b"])
    found = finding(comparison, label="b")
    assert (comparison.simulated, comparison.unit, found.corrected_for[0]) == (True, WorkUnit.SAMPLE, "place")
    assert found.shown
    assert found.relative == pytest.approx(-0.04, abs=0.005)
    assert found.raw > -0.03
    assert not finding(comparison, Metric.TIME, "b").shown


class TestWork:
    def test_different_work_is_refused_with_what_to_do(self) -> None:
        a, b = runs(make_report(samples=100)), runs(make_report(samples=200))
        with pytest.raises(ReportError, match=r"did 100 samples and run-\d+ 200 samples: .*--unit"):
            compare({"A": a, "B": b})
        assert finding(compare({"A": a, "B": b}, WorkUnit.SAMPLE)).relative == pytest.approx(-0.5)
        assert finding(compare({"A": a, "B": b}, WorkUnit.RUN)).relative == pytest.approx(0.0)

    def test_work_that_only_one_side_counted_is_different(self) -> None:
        with pytest.raises(ReportError, match="did 100 samples and run-.* 100 samples and 5 tokens"):
            compare({"A": runs(make_report()), "B": runs(make_report(tokens=5))})

    @pytest.mark.parametrize(
        ("samples", "tokens", "unit"),
        [(5, None, WorkUnit.SAMPLE), (5, 7, WorkUnit.SAMPLE), (None, 7, WorkUnit.TOKEN), (None, None, WorkUnit.RUN)],
    )
    def test_the_unit_is_what_was_counted(self, samples: int | None, tokens: int | None, unit: WorkUnit) -> None:
        sides = {label: runs(make_report(samples=samples, tokens=tokens)) for label in "AB"}
        assert compare(sides).unit is unit

    def test_the_same_samples_may_be_cut_into_other_steps(self) -> None:
        a, b = (runs(make_report(work=Work(steps=steps, samples=100))) for steps in (10, 20))
        assert finding(compare({"A": a, "B": b})).relative == pytest.approx(0.0)
        assert finding(compare({"A": a, "B": b}, WorkUnit.STEP)).relative == pytest.approx(-0.5)

    def test_steps_count_where_nothing_else_was_counted(self) -> None:
        a, b = (runs(make_report(work=Work(steps=steps))) for steps in (10, 20))
        with pytest.raises(ReportError, match="10 steps and .* 20 steps"):
            compare({"A": a, "B": b})

    def test_a_unit_that_nobody_counted(self) -> None:
        with pytest.raises(ReportError, match="does not say how many tokens"):
            compare({"A": runs(make_report()), "B": runs(make_report())}, WorkUnit.TOKEN)

    def test_commands_that_say_nothing_of_their_work(self) -> None:
        sides = {label: runs(make_report(work=Work())) for label in "AB"}
        assert "you vouch" in text_table(compare(sides))


class TestRefused:
    def test_one_side(self) -> None:
        with pytest.raises(ReportError, match="1 side"):
            compare({"A": repeated(1000)})

    def test_a_run_against_itself(self) -> None:
        same = repeated(1000)
        with pytest.raises(ReportError, match="the same run"):
            compare({"A": same, "B": same})

    def test_a_folder_against_itself(self, tmp_path: Path) -> None:
        save_all(tmp_path, make_report())
        with pytest.raises(ReportError, match="named twice"):
            compare_folders([tmp_path, tmp_path / "run-0" / ".."])

    def test_simulated_against_measured(self) -> None:
        with pytest.raises(ReportError, match="SIMULATED"):
            compare({"A": repeated(1000), "B": repeated(1000, simulated=True)})

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"complete": False}, "has not ended"),
            ({"energy_j": None, "missing": {"total_j": "no GPU"}}, "not measured: no GPU"),
            ({"missing": {"avg_power_w": "a silence"}}, "not measured"),
            ({"energy_j": 0.0}, "0 J"),
            ({"duration_s": 0.0}, "in 0 s"),
        ],
    )
    def test_runs_that_tell_nothing_are_left_out_and_named(
        self, changes: dict[str, object], reason: str, tmp_path: Path
    ) -> None:
        save_all(tmp_path / "a", make_report(), make_report(**changes))  # type: ignore[arg-type]
        save_all(tmp_path / "b", make_report())
        (run,), (left_out,) = read_runs(tmp_path / "a")
        assert (run.folder, left_out.folder) == (tmp_path / "a" / "run-0", tmp_path / "a" / "run-1")
        assert reason in left_out.reason
        told = " ".join(text_table(compare_folders([tmp_path / "a", tmp_path / "b"])).split())
        assert "run-1 is left out" in told
        save_all(tmp_path / "c", make_report(**changes))  # type: ignore[arg-type]
        with pytest.raises(ReportError, match="no run in .* can be compared"):
            read_runs(tmp_path / "c")


def test_runs_that_are_not_to_be_trusted_are_named() -> None:
    sides = {"A": runs(make_report(duration_s=2.0)), "B": runs(make_report(coverage=0.5))}
    text = text_table(compare(sides))
    assert "1 of 2 runs are shorter than 5 s" in text
    assert "readings cover too little" in text


class TestFolders:
    def test_a_run_and_runs_at_any_depth(self, tmp_path: Path) -> None:
        save_all(tmp_path / "b" / "monday", make_report(), make_report())
        save_all(tmp_path / "b" / "tuesday" / "late", make_report())
        found, _ = read_runs(tmp_path / "b")
        assert [run.folder.relative_to(tmp_path / "b").as_posix() for run in found] == [
            "monday/run-0",
            "monday/run-1",
            "tuesday/late/run-0",
        ]
        (one,), _ = read_runs(found[0].folder)
        assert one == found[0] == read_runs(found[0].folder / "report.json")[0][0]

    def test_folders_of_ranks_belong_to_their_run(self, tmp_path: Path) -> None:
        make_report().save(tmp_path / "run")
        make_report().save(tmp_path / "run" / "rank-1")
        assert len(read_runs(tmp_path)[0]) == 1

    @pytest.mark.parametrize("content", [None, "{", "[]", '{"schema_version": 99}'])
    def test_what_is_no_report(self, content: str | None, tmp_path: Path) -> None:
        if content is not None:
            (tmp_path / "report.json").write_text(content)
        with pytest.raises(ReportError):
            read_runs(tmp_path)

    def test_a_path_that_is_not_there_is_not_read_as_its_parent(self, tmp_path: Path) -> None:
        make_report().save(tmp_path)
        for wrong, said in (
            ("nowhere", "No such file"),
            ("steps", "holds no report.json"),
            ("steps/energy_j.f8", "no report"),
        ):
            with pytest.raises(ReportError, match=said):
                read_runs(tmp_path / wrong)

    def test_labels_tell_folders_apart(self, tmp_path: Path) -> None:
        for name in ("x/a", "y/a"):
            save_all(tmp_path / name, make_report())
        comparison = compare_folders([tmp_path / "x" / "a", tmp_path / "y" / "a"])
        assert [side.label for side in comparison.sides] == ["x/a", "y/a"]

    def test_the_start_temperature_is_the_first_one(self) -> None:
        warm, unknown = runs(make_report(start_c=41.0), make_report())
        assert (warm.start_c, unknown.start_c) == (41.0, None)


class TestShown:
    def test_simulated_is_said_everywhere(self) -> None:
        comparison = compare({label: repeated(1000, simulated=True) for label in "AB"})
        assert "SIMULATED" in text_table(comparison).splitlines()[0]
        assert "SIMULATED" in html_section(comparison)
        assert as_json(comparison)["simulated"] is True

    def test_json_holds_all_of_it(self) -> None:
        comparison = compare({"A": repeated(1000), "B": repeated(970)})
        read = json.loads(json.dumps(as_json(comparison), allow_nan=False))
        assert [side["label"] for side in read["sides"]] == ["A", "B"]
        assert [one["metric"] for one in read["differences"]] == ["energy", "time", "power"]
        assert read["differences"][0]["shown"] is True
        assert read["sides"][0]["runs"][0]["energy_j"] == pytest.approx(1001)

    def test_html_is_well_formed_escaped_and_loads_nothing(self) -> None:
        evil = '<script>alert("x")</script>&'
        page = html_page(compare({evil: repeated(1000), "B": repeated(970)}))
        assert "<script" not in page
        assert "http" not in page.replace('xmlns="http://www.w3.org/2000/svg"', "")

        class Balance(HTMLParser):
            open: list[str]

            def handle_starttag(self, tag: str, attrs: object) -> None:
                if tag not in {"meta", "line", "circle"}:
                    self.open.append(tag)

            def handle_endtag(self, tag: str) -> None:
                if tag not in {"meta", "line", "circle"}:
                    assert self.open.pop() == tag

        parser = Balance()
        parser.open = []
        parser.feed(page)
        assert parser.open == []
