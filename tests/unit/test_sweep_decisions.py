"""What a sweep decides: proposals, early stops and generations are functions of the spec and the scores."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pfcluster.config import ConfigError, presets
from pfcluster.sweep import pbt, search, space
from pfcluster.sweep.asha import EvalSchedule, Progress, decide, rungs, settled
from pfcluster.sweep.search import Observation
from pfcluster.sweep.space import parse
from pfcluster.sweep.spec import Spec, load, save

RECIPE = presets.recipe("mini")
SPACE = (parse("optim.lr=loguniform:1e-4,1e-2"), parse("pf_mag.r1=choice:0,0.1,1"))
SPEC = Spec(config=RECIPE["pf-vit"], before={"mae": RECIPE["mae"]}, space=SPACE, trials=8, lag=3)
ON_TEST = replace(RECIPE["pf-vit"].evaluate, selection_split="test")
BASELINE = {"optim.lr": 1e-3, "pf_mag.r1": 0}


def known(count: int, spec: Spec = SPEC) -> list[Observation]:
    drawn = random.Random(0)
    return [
        Observation(
            {one.name: one.draw(drawn) for one in spec.space}, score=drawn.random(), step=4 if number % 3 == 2 else 0
        )
        for number in range(count)
    ]


def test_trial_0_is_the_baseline_however_is_searched():
    for how in ("tpe", "random", "grid", "each"):
        assert search.propose(replace(SPEC, search=how), BASELINE, 0, []) == BASELINE


def test_a_grid_has_every_point_once_after_the_baseline():
    spec = replace(SPEC, search="grid")
    points = [search.propose(spec, BASELINE, number, []) for number in range(1, search.count(spec))]
    assert search.count(spec) == 1 + 3 * 3
    assert len({tuple(point.values()) for point in points}) == 9
    assert {point["optim.lr"] for point in points} == {1e-4, 1e-3, 1e-2}


def test_each_value_is_tried_once_beside_the_baselines_others():
    spec = replace(SPEC, search="each")
    baseline = space.baseline(spec.space, spec.stages())
    points = [search.propose(spec, baseline, number, []) for number in range(1, search.count(spec))]
    changed = [[name for name in point if point[name] != baseline[name]] for point in points]
    assert all(len(names) == 1 for names in changed)
    tried = {(names[0], point[names[0]]) for names, point in zip(changed, points, strict=True)}
    assert tried == {(one.name, value) for one in SPACE for value in one.grid(3)} - set(baseline.items())
    assert len(tried) == len(points)


@pytest.mark.parametrize("how", ["random", "tpe"])
def test_a_proposal_repeats_and_another_seed_gives_another(how):
    spec = replace(SPEC, search=how)
    one = search.propose(spec, BASELINE, 7, known(7))
    assert one == search.propose(spec, BASELINE, 7, known(7))
    assert one != search.propose(replace(spec, seed=1), BASELINE, 7, known(7))
    assert all(parameter.holds(one[parameter.name]) for parameter in SPACE)


def test_tpe_does_not_look_at_what_it_need_not_wait_for():
    """Whatever the trials of the lag have come to by now, the proposal is the same."""
    spec = replace(SPEC, trials=40, lag=5)
    earlier = known(20)
    late = [replace(one, score=None, running=True) if index >= 16 else one for index, one in enumerate(earlier)]
    assert search.waits_for(spec, 20) == 16
    assert search.propose(spec, BASELINE, 20, earlier) == search.propose(spec, BASELINE, 20, late)


def test_tpe_learns_from_what_is_known():
    """With a clear optimum at lr = 1e-3 its proposals lie nearer to it than chance's."""
    spec = replace(SPEC, space=SPACE[:1], trials=60, lag=1)

    def score(values):
        return -abs(SPACE[0].place(values["optim.lr"]) - 0.5)

    earlier: list[Observation] = []
    for number in range(40):
        values = search.propose(spec, {"optim.lr": 1e-4}, number, earlier)
        earlier.append(Observation(values, score(values)))
    late = [-one.score for one in earlier[25:]]
    assert sum(late) / len(late) < 0.15, "chance would give 0.25"


def test_tpe_passes_over_failures_and_a_baseline_outside_of_the_space():
    earlier = [
        Observation({"optim.lr": 5.0, "pf_mag.r1": 0}, 0.5),
        *known(5),
        Observation(BASELINE),
        Observation(BASELINE, float("nan")),
    ]
    assert search.propose(SPEC, BASELINE, 8, earlier)


def test_rungs_lie_on_evaluations_after_the_warm_up():
    course = EvalSchedule(total=450, every=38)
    assert course.evaluations()[-2:] == [418, 450]
    assert rungs(course, 170, 3, 2) == [228, 266]  # 170 + 280 / 9 = 201 and 170 + 280 / 3 = 263, rounded up
    assert rungs(EvalSchedule(total=40, every=20), 0, 3, 2) == [20]
    assert rungs(EvalSchedule(total=40, every=40), 0, 3, 2) == []


def test_halving_by_hand():
    """Reduction 2, one rung. Trial 0 is alone; 1 is worse than half of two; 2 is the best; 3 is third of four."""
    trials = [Progress((0.5,), True), Progress((0.4,), False), Progress((0.9,), False), Progress((0.45,), False)]
    stopped, passed = decide(trials, 2, 1)
    assert {index: (one.better, one.among) for index, one in stopped.items()} == {1: (1, 2), 3: (2, 4)}
    assert passed == {0: 1, 1: 0, 2: 1, 3: 0}
    assert settled(trials[0], 0, stopped, passed)
    assert not settled(trials[1], 1, stopped, passed), "it has yet to end"


def test_a_trial_is_not_judged_before_those_with_lower_numbers():
    waiting = [Progress((), False), Progress((0.1,), False), Progress((0.9,), False)]
    assert decide(waiting, 2, 1) == ({}, {0: 0, 1: 0, 2: 0})
    failed = [replace(waiting[0], ended=True), *waiting[1:]]
    assert decide(failed, 2, 1)[0] == {}, "0.1 is the first now, and 0.9 the best of two"
    assert decide(failed, 2, 1)[1] == {0: 0, 1: 1, 2: 1}


def test_the_outcome_of_halving_does_not_depend_on_who_was_faster():
    """Scores at all rungs are fixed; in whatever order they become known, the same trials stop at the same rungs."""
    drawn = random.Random(3)
    scores = [tuple(drawn.random() for _ in range(3)) for _ in range(12)]
    whole = decide([Progress(each, True) for each in scores], 3, 3)[0]
    assert 4 < len(whole) < 12
    for order in range(20):
        mixed, at, stopped = random.Random(order), [0] * 12, {}
        while len(stopped) + sum(reached == 3 for number, reached in enumerate(at) if number not in stopped) < 12:
            going = [number for number in range(12) if number not in stopped and at[number] < 3]
            at[mixed.choice(going)] += 1
            stopped |= decide([Progress(scores[n][: at[n]], at[n] == 3) for n in range(12)], 3, 3)[0]
        late = decide([Progress(scores[n][: at[n]], True) for n in range(12)], 3, 3)[0]
        assert stopped | late == whole


def test_generations_end_at_evaluations_and_the_last_at_the_end():
    spec = replace(SPEC, scheduler="pbt", generations=4, search="random")
    assert pbt.ends(spec, EvalSchedule(total=450, every=38), 170) == [266, 342, 380, 450]


def test_the_worst_quarter_goes_on_from_the_best_with_other_values():
    spec = replace(SPEC, scheduler="pbt", search="random")
    values = [pbt.draw(spec, BASELINE, member) for member in range(8)]
    assert values[0] == BASELINE
    scores = [0.1, 0.9, 0.5, 0.6, 0.8, 0.2, 0.7, None]
    found = pbt.offspring(spec, 1, values, scores)
    assert found == pbt.offspring(spec, 1, values, scores)
    kept = [member for member, (parent, _) in enumerate(found) if parent == member]
    assert kept == [1, 2, 3, 4, 5, 6]
    for member in (0, 7):
        parent, changed = found[member]
        assert parent in (1, 4)
        assert all(one.holds(changed[one.name]) for one in SPACE)
        assert changed != values[parent]
    for member in kept:
        assert found[member][1] == values[member]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trials": 1}, "--trials must be at least 2"),
        ({"metric": "test_accuracy"}, "--metric must be one of accuracy"),
        ({"metric": "neutral_rate"}, "known at a trial's end only"),
        ({"fresh_seeds": (0, 1)}, "seed 0 is one of --seeds"),
        ({"seeds": (0, 0)}, "differ"),
        ({"space": ()}, "nothing to search"),
        ({"scheduler": "pbt", "space": (parse("model.depth=int:2,4"),)}, "model.depth cannot be"),
        ({"scheduler": "pbt", "search": "grid"}, "draws its own"),
        ({"scheduler": "pbt", "search": "each"}, "draws its own"),
        ({"config": replace(RECIPE["pf-vit"], evaluate=ON_TEST)}, "must be validation"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        replace(SPEC, **change)


def test_a_folder_is_one_sweeps(tmp_path):
    save(SPEC, tmp_path)
    save(SPEC, tmp_path)
    assert load(tmp_path) == SPEC
    with pytest.raises(ConfigError, match="another sweep: trials is 8 there, 9 here"):
        save(replace(SPEC, trials=9), tmp_path)
    other = replace(SPEC, config=replace(SPEC.config, optim=replace(SPEC.config.optim, lr=5e-3)))
    with pytest.raises(ConfigError, match=r"config.optim.lr is 0.002 there, 0.005 here"):
        save(other, tmp_path)
    with pytest.raises(ConfigError, match="holds no sweep"):
        load(tmp_path / "none")
