"""The page of `real.py`: what is deployed without labels, against source-only and the oracle.

    python benchmarks/accuracy/real_page.py --data DATA --out runs/real    # measure what is finished, write the page
    python benchmarks/accuracy/real_page.py                                # the page again, from the committed JSON

Every finished row is scored as trained, its teacher too, and every candidate of `ssrseg choose`: so the page can
say how good each choice was. Measured ones are kept in `benchmarks/results/real.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import real
import torch
from rows import is_finished
from torch import Tensor

from ssrseg.config import DataConfig, resolve_group
from ssrseg.data import find_images, read_image
from ssrseg.data.datasets import bounded
from ssrseg.inference import Scores, choose, evaluate
from ssrseg.inference.choose import CHANCE, MARGIN, START, STATISTICS, average
from ssrseg.inference.recalibrate import BATCH, batches_of_one_size, blend_statistics
from ssrseg.models.segmenter import Segmenter, load_segmenter
from ssrseg.reporting.statistics import difference, share_of_gap
from ssrseg.runs.folder import RecipeFolder, RunFolder

RESULTS = Path(__file__).parents[1] / "results" / "real"
QUICK = "quick"
"""Row of the average of the start, `fda` and `dacs`, which is what the preset deploys."""
Found = dict[str, dict[str, dict[str, Any]]]
"""Task -> row -> seed -> what was measured."""


def occurring(scores: Scores) -> float:
    """Mean IoU, in per cent, over the classes that the scored labels hold: the others have no true pixel to find."""
    pairs = zip(scores.iou, scores.confusion.sum(1).tolist(), strict=True)
    return 100 * fmean(iou or 0.0 for iou, pixels in pairs if pixels)


def resolve_task(task: real.Task) -> tuple[DataConfig, DataConfig]:
    """The unlabelled images of a task, and what is scored."""
    target, val = (resolve_group(DataConfig, dict(data), "data") for data in (task.target, task.val))
    return target, val


def measure(task: real.Task, run: Path, start: Path | None) -> dict[str, Any]:
    """Score a run's student and teacher, and all candidates for what is deployed where it is an adapted one."""
    images, stages = images_of(task), RecipeFolder(run)
    folder = RunFolder(stages.stage("align").path if stages.exists else run)  # Undoing's training, then its priors
    models = {"student": load_segmenter(folder.student_last)}
    if folder.teacher_last.exists():
        models["teacher"] = load_segmenter(folder.teacher_last)
    if stages.exists:
        models["adjusted"] = load_segmenter(stages.stage("adjusted").student_last)
    found: dict[str, Any] = {name: scored(task, model) for name, model in models.items()}
    lines = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    found["curve"] = [
        [line["step"], *(round(100 * line[who]["miou"], 1) for who in ("student", "teacher") if line[who])]
        for line in lines
        if line["kind"] == "eval"
    ]
    if run.name.startswith("oracle-"):
        found["candidates"] = {}
    elif start is not None:
        others = {"teacher": models["teacher"]} if "teacher" in models else {"student": models["student"]}
        found |= measure_averages(task, others, load_segmenter(start), consistency="teacher" in models)
        found["blend"] = scored(task, recalibrated(models["student"], STATISTICS["blend"], images))
    else:
        found["candidates"] = {
            f"{START}, {statistics}": scored(task, recalibrated(models["student"], keep, images))
            for statistics, keep in STATISTICS.items()
        }
    return found


def measure_averages(
    task: real.Task, others: Mapping[str, Segmenter], start: Segmenter, *, consistency: bool = True
) -> dict[str, Any]:
    """Score the candidates of `choose`: the start, and its average with what went on from it."""
    images, averaged = images_of(task), AVERAGE if consistency else HALFWAY
    found: dict[str, Any] = {}
    if consistency:
        target, _ = resolve_task(task)
        with tempfile.TemporaryDirectory() as place:
            choice = choose(others, target, Path(place) / "it", start=start, device="cpu")
        found["consistency"] = {
            f"{short(each.name, len(others))}, {each.statistics}": round(value, 4)
            for each, value in zip(choice.candidates, choice.scores, strict=True)
        }
    models = ({START: start} if consistency else {}) | {averaged: average(start, *others.values())}
    if len(others) > 1:
        models |= {f"{START} and {name} alone": average(start, model) for name, model in others.items()}
    found["candidates"] = {
        f"{name}, {statistics}": scored(task, recalibrated(model, keep, images))
        for name, model in models.items()
        for statistics, keep in STATISTICS.items()
    }
    return found


def short(candidate: str, others: int) -> str:
    """The page's name of a candidate of `choose`: the average of all is `AVERAGE`, however many they are."""
    if candidate == START:
        return START
    alone = others > 1 and "," not in candidate
    return f"{candidate.removeprefix('average of ')} alone" if alone else AVERAGE


def scored(task: real.Task, model: Segmenter) -> dict[str, Any]:
    """The mIoU of a model, and the IoU of each class, in per cent."""
    _, val = resolve_task(task)
    found = evaluate(model, val, classes=None if task.classes is None else [*task.classes], device="cpu")
    return {"miou": occurring(found), "iou": [iou and round(100 * iou, 1) for iou in found.iou]}


def images_of(task: real.Task) -> list[Tensor]:
    """The unlabelled images that `choose` looks at."""
    target, _ = resolve_task(task)
    return [bounded(read_image(path), target.resize) for path in find_images(target, at_most=32)]


def recalibrated(model: Segmenter, keep: float, images: Sequence[Tensor]) -> Segmenter:
    """A model that keeps a share of its statistics."""
    network = copy.deepcopy(model)
    if keep < 1:
        blend_statistics(network, batches_of_one_size(images, BATCH), keep)
    return network


def measured(options: argparse.Namespace, found: Found) -> Found:
    """Add what is finished and not measured yet, writing the JSON after each."""
    for name, task in real.tasks(options.data.resolve(), options.out.resolve()).items():
        for run in sorted((options.out / name).glob("*-[0-9]*")):
            row, _, seed = run.name.rpartition("-")
            if seed in found.get(name, {}).get(row, {}) or not is_finished(run):
                continue
            first = row in ("source", real.GIN)
            start = None if first else real.start_of(row, int(seed), options.out / name)
            keep(found, name, row, seed, measure(task, run, start))
        for run in sorted((options.out / name).glob("dacs*-[0-9]*")):  # beside the FDA of their seed
            row, _, seed = run.name.rpartition("-")
            quick, styled = row.replace("dacs", QUICK), options.out / name / f"fda-{seed}"
            plain = row in ("dacs", "dacs-ssr-lite2", "dacs-ssr-untrained")
            if not plain or seed in found[name].get(quick, {}) or not (is_finished(run) and is_finished(styled)):
                continue
            models = {
                "styled": load_segmenter(RunFolder(styled).student_last),
                "teacher": load_segmenter(RunFolder(run).teacher_last),
            }
            start = load_segmenter(real.start_of(row, int(seed), options.out / name))
            keep(found, name, quick, seed, measure_averages(task, models, start))
    return found


def keep(found: Found, task: str, row: str, seed: str, values: dict[str, Any]) -> None:
    """Add what was measured, and write all of it."""
    found.setdefault(task, {}).setdefault(row, {})[seed] = values
    RESULTS.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(task, row, seed, flush=True)


def arms(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    """Name and mIoU by seed of everything that a task's table has."""

    def by_seed(row: str, value: Any) -> list[tuple[int, float]]:
        return [(int(seed), value(each)) for seed, each in sorted(rows.get(row, {}).items())]

    yield "source-only", by_seed("source", lambda each: each["student"]["miou"])
    for statistics in ("blend", "target"):
        name = f"source-only, {statistics} statistics"
        yield name, by_seed("source", lambda each, s=statistics: each["candidates"][f"start, {s}"]["miou"])
    if real.GIN in rows:
        yield "source-only, other colours", by_seed(real.GIN, lambda each: each["student"]["miou"])
        yield (
            "source-only, other colours, blend statistics",
            by_seed(real.GIN, lambda each: each["candidates"]["start, blend"]["miou"]),
        )
    yield "source-only, trained on", by_seed("source-only", lambda each: each["student"]["miou"])
    for row in [name for name in rows if name not in ("source", "source-only", "oracle", real.GIN)]:
        for who in ("student", "teacher", "adjusted"):
            if all(who in each for each in rows[row].values()):
                yield f"{row}, {PARTS[who]}", by_seed(row, lambda each, w=who: each[w]["miou"])
        for averaged in (AVERAGE, HALFWAY):
            if all(f"{averaged}, blend" in each["candidates"] for each in rows[row].values()):
                name = f"{row}, average with source-only, blend statistics"
                yield name, by_seed(row, lambda each, a=averaged: each["candidates"][f"{a}, blend"]["miou"])
        if all("consistency" in each for each in rows[row].values()):
            yield f"**{row}, chosen without labels**", by_seed(row, chosen)
    yield "oracle (target labels)", by_seed("oracle", lambda each: each["student"]["miou"])


PARTS = {"student": "its student", "teacher": "its teacher", "adjusted": "its student for the target's priors"}


def taken(consistency: Mapping[str, float], margin: float = MARGIN, chance: float = CHANCE) -> str:
    """The candidate that `choose` takes by the consistency of all."""

    def worth(name: str) -> float:
        others = (" alone," in name) + (not name.endswith(", blend"))
        return consistency[name] - margin * name.startswith(f"{START},") - chance * others

    return max(consistency, key=worth)


AVERAGE, HALFWAY = "average of start and teacher", "average of start and student"
RULES: dict[str, Callable[[Mapping[str, float]], str]] = {
    "average, half the target's statistics, unless another is clearly more consistent (`auto`)": taken,
    f"consistency, margin {MARGIN} for source-only": lambda consistency: taken(consistency, chance=0),
    "consistency, no margin": lambda consistency: taken(consistency, 0, 0),
    "source-only, as trained": lambda _: f"{START}, as-trained",
    "source-only, half the target's statistics": lambda _: f"{START}, blend",
    "average, as trained": lambda _: f"{AVERAGE}, as-trained",
    "average, half the target's statistics": lambda _: f"{AVERAGE}, blend",
    "average, the target's statistics": lambda _: f"{AVERAGE}, target",
    "the adapted teacher, as it is": lambda _: "teacher",
    "the adapted student of the last step": lambda _: "student",
}
"""Ways to choose without labels: from the consistency of all candidates, or always the same."""


def deployed(measured_run: Mapping[str, Any]) -> str:
    """The candidate that a run deploys."""
    return taken(measured_run["consistency"])


def chosen(measured_run: Mapping[str, Any]) -> float:
    """Its mIoU."""
    value: float = measured_run["candidates"][deployed(measured_run)]["miou"]
    return value


def page(found: Found) -> str:
    """The Markdown of everything that was measured."""
    parts = [HEADER]
    for name, rows in found.items():
        table = {arm: values for arm, values in arms(rows) if values}
        base, top = table.get("source-only"), table.get("oracle (target labels)")
        if not base:
            continue
        parts += [f"## {name}\n", "| arm | n | mIoU | by seed | against source-only | share of the gap closed |"]
        parts += ["|---|---:|---:|---|---|---|"]
        for arm, values in table.items():
            means = [value for _, value in values]
            deviation = f" ± {stdev(means):.1f}" if len(means) > 1 else ""
            each = ", ".join(f"{value:.1f}" for value in means)
            against = "" if arm == "source-only" else words(base, values)
            share = closed(base, values, top) if top and arm not in ("source-only", "oracle (target labels)") else ""
            parts.append(f"| {arm} | {len(means)} | {fmean(means):.1f}{deviation} | {each} | {against} | {share} |")
        parts += ["", *picture(name), *gains(rows), *choices(rows), "", *curves(rows), ""]
    return "\n".join([*parts, *regrets(found), ""])


def picture(task: str) -> Iterator[str]:
    """The picture of a task, if it was drawn."""
    if (RESULTS.parent / f"real-{task}.png").exists():
        yield f"![Validation frames: source-only, deployed, oracle]({RESULTS.name}-{task}.png)\n"


def gains(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What SSR and its control add to the same method without, paired by seed."""
    tables = [row for row in rows if "-ssr" in row and row.split("-ssr")[0] in rows]
    if not tables:
        return
    yield "SSR against the same method without it, and its control, paired by seed:\n"
    yield "| arm | student | student, half the target's statistics | teacher | average, half | chosen |"
    yield "|---|---|---|---|---|---|"
    kinds: tuple[Callable[[Any], float | None], ...] = (
        *(lambda each, who=who: each[who]["miou"] if who in each else None for who in ("student", "blend", "teacher")),
        lambda each: each["candidates"][f"{AVERAGE}, blend"]["miou"],
        chosen,
    )
    for row in tables:
        plain, cells = rows[row.split("-ssr")[0]], list[str]()
        for value in kinds:
            base, other = (
                [(int(seed), miou) for seed, each in arm.items() if (miou := value(each)) is not None]
                for arm in (plain, rows[row])
            )
            both = of_seeds(other, base)
            cells.append(words(base, both) + f" (n {len(both)})" if both else "not measured")
        yield f"| {row} | {' | '.join(cells)} |"
    yield ""


Scored = Sequence[tuple[int, float]]
"""(seed, mIoU) of an arm."""


def of_seeds(arm: Scored, other: Scored) -> Scored:
    """What an arm has of the seeds of another: starts differ by more than what is compared."""
    return [pair for pair in arm if pair[0] in dict(other)]


def words(base: Scored, other: Scored) -> str:
    """A paired difference with its interval."""
    if not of_seeds(base, other):
        return "no start of its seed"
    gap = difference(of_seeds(base, other), other)
    inside = "" if gap.interval is None else " [{:+.1f}, {:+.1f}]".format(*gap.interval)
    return f"{gap.mean:+.1f}{inside}, {gap.verdict}"


def closed(base: Scored, other: Scored, top: Scored) -> str:
    """The share of the gap to the oracle, in per cent, with its interval; of the seeds that have an oracle."""
    other = of_seeds(other, top)
    share = share_of_gap(of_seeds(base, other), other, of_seeds(top, other)) if other else None
    if share is None:
        return ""
    inside = "" if share.interval is None else " [{:+.0f}, {:+.0f}]".format(*(100 * bound for bound in share.interval))
    return f"{100 * share.mean:+.0f} %{inside}"


def choices(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What was chosen in each run, and how much the best candidate would have had more."""
    for row, by_seed in rows.items():
        for seed, each in sorted(by_seed.items()):
            if "consistency" in each:
                best = max(each["candidates"], key=lambda name, e=each: e["candidates"][name]["miou"])
                regret = each["candidates"][best]["miou"] - chosen(each)
                said = (
                    f"- {row}, seed {seed}: chosen {taken(each['consistency'])} ({chosen(each):.1f}); "
                    f"best candidate: {best}; regret {regret:.1f}"
                )
                yield said.replace(AVERAGE, "average of all") if row.startswith(QUICK) else said


def regrets(found: Found) -> Iterator[str]:
    """What each rule of choice would have deployed in every adaptation, against the best candidate and the start."""
    every = [
        (row, each)
        for rows in found.values()
        for row, by_seed in rows.items()
        if not row.endswith("-labels")  # a start that knows none of the target is no choice there
        for each in by_seed.values()
    ]
    single = [each for row, each in every if not row.startswith(QUICK) and "consistency" in each]
    averaged = [each for row, each in every if row.startswith(QUICK)]
    yield RULES_HEADER.format(len(single))
    yield from rules(single, RULES)
    yield QUICK_HEADER.format(len(averaged))
    yield from rules(averaged, {rule: take for rule, take in RULES.items() if "adapted" not in rule})


def rules(runs: Sequence[Any], known: Mapping[str, Callable[[Mapping[str, float]], str]]) -> Iterator[str]:
    """A table of rules over some adaptations."""
    who = ("student", "teacher")
    scored = [
        (
            each["consistency"],
            {name: candidate["miou"] for name, candidate in each["candidates"].items()}
            | {name: each[name]["miou"] for name in who if name in each},
        )
        for each in runs
    ]
    yield "| rule | mean regret | worst | over source-only | worst |"
    yield "|---|---:|---:|---:|---:|"
    for rule, take in known.items():
        names = [take(consistency) for consistency, _ in scored]
        lost = [max(miou.values()) - miou[name] for name, (_, miou) in zip(names, scored, strict=True)]
        won = [miou[name] - miou[f"{START}, as-trained"] for name, (_, miou) in zip(names, scored, strict=True)]
        yield f"| {rule} | {fmean(lost):.1f} | {max(lost):.1f} | {fmean(won):+.1f} | {min(won):+.1f} |"


def curves(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """MIoU at each evaluation, the student's and the teacher's, of the first seed."""
    yield "Curves of the first seed, all classes, as step: student (teacher):\n"
    for row, by_seed in rows.items():
        seed, each = min(by_seed.items(), key=lambda pair: int(pair[0]))
        if "curve" not in each:  # an average of runs
            continue
        points = [f"{step}: {who[0]}" + (f" ({who[1]})" if len(who) > 1 else "") for step, *who in each["curve"]]
        yield f"- {row}, seed {seed}: {', '.join(points)}"


HEADER = """# Real images: what adaptation gives, and what is deployed

Made by `benchmarks/accuracy/real.py` and `real_page.py`, scored on validation frames of the target.

- Tasks: `camvid` (305 labelled day frames -> 44 dusk frames, 18 scored, 320x240), `nuclei` (100 bright -> 46 dim
  microscopy images, 12 scored), `weeds` (60 near-infrared -> 38 phone photos, 8 scored); `stained` (the bright nuclei
  -> 57 images of stained tissue, 14 scored), for which no setting of the training was tuned.
- Student: EfficientNet-Lite0 (ImageNet weights) with the SegFormer head at 64 channels; 1200 steps of 4 images on the
  source's labels; every row goes on from there for 600 steps of 2 (+ 2) images, the oracle with the target's labels.
- mIoU in per cent over the classes that occur in the scored labels (CamVid's have no fence), of the last step; mean
  and deviation over seeds, differences paired by seed with a 95 % interval (Student's t), not corrected for their
  number.
- "chosen without labels" is what `deploy.statistics=auto` deploys: the average of the source-only student and the
  teacher with half the target's BatchNorm statistics, unless another candidate is clearly more consistent on
  unlabelled images. `quick` is that of three: source-only, `fda` and the teacher of `dacs`, which is what the preset
  of this name deploys (`quick-ssr-lite2`: with SSR beside DACS). The rule and its margins were made on these runs,
  and twice on `stained`: it had taken the source-only student there, and an FDA student that had lost the nuclei
  spoilt the average. No source-only student is taken here, so it is untested how it does where adaptation destroys a
  model.
- `-lite2`: SSR with an ImageNet EfficientNet-Lite2 as the foundation encoder, `-untrained`: the same with random
  weights, a control. SAM's weights were not at hand.
- "Other colours" and `gin-`: the source has the colours of `method.global_intensity` (GIN) at every fourth draw, in
  its own stage and beside DACS. One seed. In one-seed trials at every second draw, with other draws of the same kind,
  the source-only students had 46.4 (CamVid), 88.6 (nuclei), 49.3 (weeds) and 58.7 (stained) as trained.
- `fda`: trained on with source images that have the target's lowest frequencies (`method.fourier`), without
  pseudo-labels; `fda-dacs`: beside DACS. `undoing`: its alignment, then inference adjustment to the target's priors.
  `-10-labels`: ten of the target images with their labels (`target.labelled`). `weeds-reversed`: the phone's weeds to
  the robot's field, for which, as for `stained`, nothing was tuned.
- Seeds 0 and 1, 2, 3 to 5, and 6 to 9 were trained on four machines; every row goes on from its own seed's start. Not
  here: more seeds of the rows that have one or two.

What to read from it: **`quick` closes 49 per cent of CamVid's gap and 47 of the nuclei's** (four seeds each: +4.6
points [+0.4, +8.8], between +2.9 and +8.5, and +2.0 [+1.0, +2.9], between +1.2 and +2.5), **and nothing of the
weeds'** (two seeds: -2.5, -1.6). Half the target's statistics alone give 2.9 of it on CamVid and 0.6 on the nuclei
(nine seeds), for seconds and without any training: what `quick` adds to them is 0.7 and 0.9 in the mean of its seeds
(-0.6 to +2.1).

The preset itself (`ssrseg train --preset quick`, CamVid, seed 9) was run with 1200 steps in every stage, as it then
was, and its teacher's decay of 1 - 40 / steps, which is 0.967 there: its source-only student is that of the row, bit
for bit, but DACS took the road for pavement and ended at 33.4 (its teacher 30.8; all eleven classes, source-only 41.8).
With a decay of 0.99, as in the rows here, it ended at 39.2 (34.6), and with 600 steps, as in the rows, at 42.1 (38.6).
So the preset has the rows' decay and length now; FDA's student lost nothing by 1200 steps (50.5 over the classes that
occur, 49.6 with 600). The average of all three, which it deployed, had 44.2 even so: where one adaptation had lost 8
points, the average gained 2.4.

The two adaptations in it do well on different tasks. The look of the target (FDA), averaged with source-only, closes
59 per cent of CamVid's gap (six seeds, [52, 65]), and on the nuclei one of six seeds lost a point, its student 7;
DACS, averaged likewise, closes 25 of CamVid's and 41 of the nuclei's (nine seeds). As students of the last step
neither can be relied on: DACS's is between 3.7 points below source-only and 3.7 above. CamVid's lose small classes
(SignSymbol); the nuclei's are mostly spoilt by their BatchNorm statistics.

Where nothing was tuned: on stained tissue `quick` gains 10.0 points (one seed). The FDA student has lost the nuclei
there (17.8, source-only 43.1); the average without it was taken by a rule made for this case, the average of all has
48.3. DACS's teacher alone gains 14.8. On the weeds reversed `quick` gains 2.1 (one seed), DACS's student alone 7.2
(two): where adaptation gains much, the average gives most of it away.

**Ten labelled target images are worth more than all of it**: a half to four fifths of every gap (one seed). Averaged
with a start that knows no label they lose much of that on the weeds, so runs with labels of the target are not averaged
with one ("chosen" in that row is what that would have deployed). On the weeds nothing without labels closes any of 28
points: nearly all carrots are taken for weeds, which outnumber them in the source, and the pseudo-labels say so too;
Undoing's priors do not mend that either.

SSR, six seeds on CamVid and four on the others: its student is 0.2 better than DACS's on CamVid [-0.2, +0.6], its
teacher 0.3 [-0.2, +0.8]; on the nuclei and the weeds there is nothing (the weeds' +0.3 of three seeds is gone with the
fourth; the nuclei's average is worse by 0.1, one of seventeen intervals that are not corrected for their number). After
averaging 0.1 is left on CamVid, within noise, in `quick` too. With half the target's statistics it is the same:
recalibration does not change the verdict. Its control, an untrained encoder (one seed each), is as far from DACS on
either side. On DAFormer and MIC (one seed each) its students differ by -0.7 to +2.0, the averages by 0.1 at most.

MIC's students lose 4 to 9 points to source-only on every task in 600 steps, and DAFormer's are within 4 of it on either
side (one or two seeds each). Averaged, with half the target's statistics, DAFormer is 0.5 to 1.5 better than DACS on
CamVid and the weeds and 0.5 worse on the nuclei; MIC is between 1.3 worse and 1.1 better. In `quick` neither was tried.
BatchNorm statistics of the mixed view alone (`dacs-mixed-statistics`) cost DACS's student 1.8 on CamVid (one seed).

Other colours for the source are worth 23 points on stained tissue without any look at the target, more than DACS, and
DACS after them gives a part of that away. Where the domains look alike they cost up to 4 points (CamVid) or nothing
(nuclei). On weeds it depends on how many images have them: 38.5 at every fourth draw, 49.3 at every second (one seed
each, 8 images scored), of which DACS then lost 6 to 9. No criterion without labels told which source-only student is
the better one: consistency preferred the plain one on stained tissue. So they are a setting, not part of `quick`.

Over all adaptations (the last tables) the average with half the target's statistics, always and without any
criterion, does as well as `auto`, which differs from it in few runs: consistency has shown on stained tissue that it
sees a model that has failed, and nothing more. Both hedge: they are seldom much worse than source-only, and give away
what adaptation gains where it gains much.

Pictures have a row for each of two frames: image and labels (nuclei alone, whose terms allow it), then source-only,
what `quick` deploys, and the oracle, of seed 6 (the weeds' of seed 9; on the weeds reversed DACS's average, of seed 3);
wrong pixels are hatched. What goes wrong: on CamVid pavement that is taken for road; on the weeds the class of whole
plants.
"""

QUICK_HEADER = """
The same for the averages of source-only, FDA and DACS (`quick`), {} of them:
"""
RULES_HEADER = """## Rules of choice

What each rule deploys in all {} adaptations above, against the best of eight models (regret: the six candidates, the
adapted teacher and student) and the source-only student as trained; points of mIoU. Runs of one task are not
independent, and `auto` was made on some of them.
"""


def main() -> None:
    """Measure what is finished, if data are given, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = RESULTS.with_suffix(".json")
    found: Found = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    if options.data is not None:
        found = measured(options, found)
    RESULTS.with_suffix(".md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
