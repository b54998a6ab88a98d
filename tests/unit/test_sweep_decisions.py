"""Decisions of a sweep: proposals, early stops and generations are functions of the spec and the scores."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pfcluster.config import ConfigError, presets
from pfcluster.sweep import pbt, search, space
from pfcluster.sweep.asha import EvalSchedule, Progress, decide, is_settled, rungs
from pfcluster.sweep.options import read
from pfcluster.sweep.search import Observation
from pfcluster.sweep.space import parse
from pfcluster.sweep.spec import Spec, load, save

RECIPE = presets.recipe("mini")
SPACE = (parse("optim.lr=loguniform:1e-4,1e-2"), parse("pf_mag.r1=choice:0,0.1,1"))
SPEC = Spec(config=RECIPE["pf-vit"], before={"mae": RECIPE["mae"]}, space=SPACE, trials=8, lag=3)
ON_TEST = replace(RECIPE["pf-vit"].evaluate, selection_split="test")
BASELINE = {"optim.lr": 1e-3, "pf_mag.r1": 0}


def observations(count: int, spec: Spec = SPEC) -> list[Observation]:
    generator = random.Random(0)
    return [
        Observation(
            {one.name: one.draw(generator) for one in spec.space},
            score=generator.random(),
            step=4 if number % 3 == 2 else 0,
        )
        for number in range(count)
    ]


def test_trial_0_is_the_baseline_in_every_search():
    for how in ("tpe", "random", "grid", "one-at-a-time"):
        assert search.propose(replace(SPEC, search=how), BASELINE, 0, []) == BASELINE


def test_grid_contains_every_point_once_after_the_baseline():
    spec = replace(SPEC, search="grid")
    points = [search.propose(spec, BASELINE, number, []) for number in range(1, search.trial_count(spec))]
    assert search.trial_count(spec) == 1 + 3 * 3
    assert len({tuple(point.values()) for point in points}) == 9
    assert {point["optim.lr"] for point in points} == {1e-4, 1e-3, 1e-2}


def test_one_at_a_time_tries_every_other_value_once():
    spec = replace(SPEC, search="one-at-a-time")
    baseline = space.baseline(spec.space, spec.stages())
    points = [search.propose(spec, baseline, number, []) for number in range(1, search.trial_count(spec))]
    changed = [[name for name in point if point[name] != baseline[name]] for point in points]
    assert all(len(names) == 1 for names in changed)
    tried = {(names[0], point[names[0]]) for names, point in zip(changed, points, strict=True)}
    assert tried == {(one.name, value) for one in SPACE for value in one.grid(3)} - set(baseline.items())
    assert len(tried) == len(points)


@pytest.mark.parametrize("how", ["random", "tpe"])
def test_proposals_are_reproducible_and_depend_on_the_seed(how):
    spec = replace(SPEC, search=how)
    one = search.propose(spec, BASELINE, 7, observations(7))
    assert one == search.propose(spec, BASELINE, 7, observations(7))
    assert one != search.propose(replace(spec, seed=1), BASELINE, 7, observations(7))
    assert all(parameter.holds(one[parameter.name]) for parameter in SPACE)


@pytest.mark.parametrize("how", ["random", "tpe"])
def test_values_that_no_config_accepts_are_drawn_again(how):
    """Both ends of the range are valid, and few of the values between them."""
    words = ("model.width=int:96,128", "model.heads=choice:2,4")
    spec = replace(SPEC, space=tuple(map(parse, words)), search=how)
    search.require_valid_trials(spec)
    proposals = [search.propose(spec, BASELINE, number, observations(number, spec)) for number in range(1, 8)]
    assert all(values["model.width"] % 4 == 0 for values in proposals)  # a quarter of the values between the ends
    assert len({values["model.width"] for values in proposals}) > 2


def test_members_of_a_population_are_valid_configs():
    """Adam has no weight decay: half of the combinations are no config."""
    config = replace(RECIPE["pf-vit"], optim=replace(RECIPE["pf-vit"].optim, weight_decay=0.0))
    words = ("optim.algorithm=choice:adam,adamw", "optim.weight_decay=choice:0,0.05")
    spec = replace(SPEC, config=config, space=tuple(map(parse, words)), scheduler="pbt", search="random", trials=8)
    own = space.baseline(spec.space, spec.stages())
    members = [pbt.draw(spec, own, member) for member in range(8)]
    assert {"optim.algorithm": "adamw", "optim.weight_decay": 0.05} in members
    for generation in range(1, 6):
        children = pbt.offspring(spec, generation, members, [float(member) for member in range(8)])
        members = [values for _, values in children]
        for values in members:
            spec.require_valid(values)


def test_a_space_without_valid_values_is_refused_before_the_sweep():
    fusions = (parse("pf_mag.fusion=choice:self,cross"), parse("pf_mag.fusion_bias=choice:none,4"))
    spec = replace(SPEC, space=fusions)
    message = r"--search grid: trial 2, pf_mag\.fusion self, pf_mag\.fusion_bias 4, is not a valid config: .*fusion"
    with pytest.raises(ConfigError, match=message):
        search.require_valid_trials(replace(spec, search="grid"))
    search.require_valid_trials(replace(spec, search="random"))
    with pytest.raises(
        ConfigError, match=r"100 draws in a row were not valid configs, the last one because of .*fusion"
    ):
        spec.valid_draw(lambda _: {"pf_mag.fusion": "self", "pf_mag.fusion_bias": 4})


def test_tpe_ignores_trials_within_the_lag():
    """The proposal does not depend on whether the last `lag` trials have ended yet."""
    spec = replace(SPEC, trials=40, lag=5)
    earlier = observations(20)
    late = [replace(one, score=None, running=True) if index >= 16 else one for index, one in enumerate(earlier)]
    assert search.required_trials(spec, 20) == 16
    assert search.propose(spec, BASELINE, 20, earlier) == search.propose(spec, BASELINE, 20, late)


def test_tpe_improves_on_random_search():
    """With an optimum at lr = 1e-3 its proposals are closer to it than random ones."""
    spec = replace(SPEC, space=SPACE[:1], trials=60, lag=1)

    def score(values):
        return -abs(SPACE[0].fraction_of(values["optim.lr"]) - 0.5)

    earlier: list[Observation] = []
    for number in range(40):
        values = search.propose(spec, {"optim.lr": 1e-4}, number, earlier)
        earlier.append(Observation(values, score(values)))
    late = [-one.score for one in earlier[25:]]
    assert sum(late) / len(late) < 0.15, "random proposals would give 0.25"


def test_tpe_accepts_failures_and_a_baseline_outside_the_space():
    earlier = [
        Observation({"optim.lr": 5.0, "pf_mag.r1": 0}, 0.5),
        *observations(5),
        Observation(BASELINE),
        Observation(BASELINE, float("nan")),
    ]
    assert search.propose(SPEC, BASELINE, 8, earlier)


def test_rungs_are_evaluations_after_the_warm_up():
    schedule = EvalSchedule(total=450, every=38)
    assert schedule.steps()[-2:] == [418, 450]
    assert rungs(schedule, 170, 3, 2) == [228, 266]  # 170 + 280 / 9 = 201 and 170 + 280 / 3 = 263, rounded up
    assert rungs(EvalSchedule(total=40, every=20), 0, 3, 2) == [None, 20], (
        "both at the evaluation nearest to the second"
    )
    assert rungs(EvalSchedule(total=40, every=40), 0, 3, 2) == [None, None]
    assert rungs(EvalSchedule(total=40, every=20), 18, 2, 2) == [None, None], "18 + 22 / 4 = 23.5, at the end"
    assert rungs(EvalSchedule(total=60, every=20), 30, 2, 2) == [40, None], "30 + 30 / 2 = 45, at the end"


def test_asha_by_hand():
    """Reduction 2, one rung. Trial 0 is alone; 1 is worse than half of two; 2 is the best; 3 is third of four."""
    trials = [Progress((0.5,), True), Progress((0.4,), False), Progress((0.9,), False), Progress((0.45,), False)]
    stopped, passed = decide(trials, 2, 1)
    assert {index: (one.better, one.among) for index, one in stopped.items()} == {1: (1, 2), 3: (2, 4)}
    assert passed == {0: 1, 1: 0, 2: 1, 3: 0}
    assert is_settled(trials[0], 0, stopped, passed)
    assert not is_settled(trials[1], 1, stopped, passed), "it has yet to end"


def test_asha_decides_trials_in_order_of_their_numbers():
    waiting = [Progress((), False), Progress((0.1,), False), Progress((0.9,), False)]
    assert decide(waiting, 2, 1) == ({}, {0: 0, 1: 0, 2: 0})
    failed = [replace(waiting[0], ended=True), *waiting[1:]]
    assert decide(failed, 2, 1)[0] == {}, "0.1 is the first now, and 0.9 the best of two"
    assert decide(failed, 2, 1)[1] == {0: 0, 1: 1, 2: 1}


def test_asha_outcome_does_not_depend_on_arrival_order():
    """For fixed scores at all rungs the same trials stop at the same rungs, in whatever order the scores arrive."""
    generator = random.Random(3)
    scores = [tuple(generator.random() for _ in range(3)) for _ in range(12)]
    complete = decide([Progress(each, True) for each in scores], 3, 3)[0]
    assert 4 < len(complete) < 12
    for order in range(20):
        mixed, at, stopped = random.Random(order), [0] * 12, {}
        while len(stopped) + sum(reached == 3 for number, reached in enumerate(at) if number not in stopped) < 12:
            going = [number for number in range(12) if number not in stopped and at[number] < 3]
            at[mixed.choice(going)] += 1
            stopped |= decide([Progress(scores[n][: at[n]], at[n] == 3) for n in range(12)], 3, 3)[0]
        late = decide([Progress(scores[n][: at[n]], True) for n in range(12)], 3, 3)[0]
        assert stopped | late == complete


def test_asha_compares_trials_at_the_same_rung_only():
    """Batches of 512 are evaluated so rarely that both rungs fall on one evaluation, after 77 % of the training: it is
    compared with the others' second rung, after 38 %, and not with their first, after 25 %.
    """
    small, large = (rungs(EvalSchedule(total, every), 40, 3, 2) for total, every in ((1000, 125), (62, 8)))
    assert (small, large) == ([250, 375], [None, 48])
    first, second = Progress((0.3, 0.5), True), Progress((0.3, 0.4), True)
    better = Progress((None, 0.9), True)
    stopped, passed = decide([better, first, second], 3, 2)
    assert {number: (one.rung, one.better, one.among) for number, one in stopped.items()} == {
        1: (1, 1, 2),
        2: (1, 2, 3),
    }
    assert passed == {0: 2, 1: 1, 2: 1}
    assert is_settled(better, 0, stopped, passed)
    assert is_settled(Progress((None, None), True), 0, *decide([Progress((None, None), True)], 3, 2))


def test_asha_outcome_does_not_depend_on_arrival_order_where_trials_lack_rungs():
    """A resumed driver sees complete scores, an uninterrupted one saw them arrive."""
    generator = random.Random(5)
    scores = [tuple(generator.random() if generator.random() < 0.7 else None for _ in range(3)) for _ in range(12)]
    complete = decide([Progress(each, True) for each in scores], 2, 3)[0]
    assert 3 < len(complete) < 12
    for order in range(20):
        mixed, at, stopped = random.Random(order), [0] * 12, {}
        while going := [number for number in range(12) if number not in stopped and at[number] < 3]:
            at[mixed.choice(going)] += 1
            stopped |= decide([Progress(scores[n][: at[n]], at[n] == 3) for n in range(12)], 2, 3)[0]
            resumed = decide([Progress(scores[n][: at[n]], at[n] == 3 or n in stopped) for n in range(12)], 2, 3)[0]
            assert stopped.items() <= resumed.items() <= complete.items()
        assert stopped == complete


def test_generations_end_at_evaluations():
    spec = replace(SPEC, scheduler="pbt", generations=4, search="random")
    assert pbt.generation_ends(spec, EvalSchedule(total=450, every=38), 170) == [266, 342, 380, 450]


def test_pbt_replaces_the_worst_quarter_by_perturbed_copies_of_the_best():
    spec = replace(SPEC, scheduler="pbt", search="random")
    values = [pbt.draw(spec, BASELINE, member) for member in range(8)]
    assert values[0] == BASELINE
    scores = [0.1, 0.9, 0.5, 0.6, 0.8, 0.2, 0.7, None]
    children = pbt.offspring(spec, 1, values, scores)
    assert children == pbt.offspring(spec, 1, values, scores)
    kept = [member for member, (parent, _) in enumerate(children) if parent == member]
    assert kept == [1, 2, 3, 4, 5, 6]
    for member in (0, 7):
        parent, changed = children[member]
        assert parent in (1, 4)
        assert all(one.holds(changed[one.name]) for one in SPACE)
        assert changed != values[parent]
    for member in kept:
        assert children[member][1] == values[member]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 1}, "--trials must be at least 2"),
        ({"metric": "test_accuracy"}, "--metric must be one of accuracy"),
        ({"metric": "neutral_rate"}, "known only at the end of a trial"),
        ({"fresh_seeds": (0, 1)}, "seed 0 is one of --seeds"),
        ({"seeds": (0, 0)}, "--seeds must differ"),
        ({"seeds": (0, -1)}, "--seeds .*lie in"),
        ({"seeds": ()}, "--seeds: a search needs at least one"),
        ({"fresh_seeds": (7, 7)}, "--fresh-seeds must differ"),
        ({"fresh_seeds": (7, 2**31)}, "--fresh-seeds .*lie in"),
        ({"space": ()}, "nothing to search"),
        ({"scheduler": "pbt", "space": (parse("model.depth=int:2,4"),)}, "model.depth cannot be"),
        ({"scheduler": "pbt", "space": (parse("optim.ema=choice:0,0.9"),)}, "optim.ema is 0 .off. in some members"),
        (
            {"scheduler": "pbt", "space": (parse("pf_mag.weights.confusion=uniform:0.1,1"),)},
            "pf_mag.weights.confusion is 0 .off. in some members of uniform:0.1,1 and the config's 0,",
        ),
        (
            {"scheduler": "pbt", "space": (parse("pf_mag.weights.swap=choice:0,3"),)},
            "pf_mag.weights.swap is 0 .off. in some members",
        ),
        ({"scheduler": "pbt", "search": "grid"}, "draws its own"),
        ({"scheduler": "pbt", "search": "one-at-a-time"}, "draws its own"),
        ({"config": replace(RECIPE["pf-vit"], evaluate=ON_TEST)}, "must be validation"),
    ],
)
def test_invalid_spec_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(SPEC, **change)


def test_folder_holds_one_sweep(tmp_path):
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


def test_sweep_goes_on_with_another_number_of_parallel_runs(tmp_path):
    """Its lag, on which its proposals depend, stays that of its start."""

    def spec_of(*options: str) -> Spec:
        words = ["--space", "optim.lr=loguniform:1e-4,1e-2", "--role", "scratch", "--output", str(tmp_path / "sweep")]
        return read([*words, *options]).spec

    started = spec_of("--max-parallel", "8")
    assert started.lag == 8
    save(started, tmp_path / "sweep")
    for options in (["--max-parallel", "2"], ["--max-parallel", "16"], [], ["--lag", "8"]):
        assert spec_of(*options) == started
        save(spec_of(*options), tmp_path / "sweep")
    with pytest.raises(ConfigError, match="another sweep: lag is 8 there, 5 here; use another --output"):
        save(spec_of("--lag", "5"), tmp_path / "sweep")
