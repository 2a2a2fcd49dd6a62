"""Searches: the best settings of each init scheme, found on validation images with equal budget.

A search has rounds. The settings that a round tries depend on the results so far and on nothing else, so an interrupted
search continues as if it had not stopped. The settings with the highest final validation accuracy win, and are trained
again on fresh seeds. Test images play no part in the choice.
"""

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import create_trial

from cvit.randomness import derived_seed
from cvit.results import last_value
from cvit.stages import depends_on
from cvit.tasks import task_named
from cvit.vocabulary import SEARCH_SEED
from sweeps.engine.declaration import Range, Search
from sweeps.engine.planning.plan import Plan
from sweeps.engine.planning.progress import Progress
from sweeps.engine.planning.trials import Trial

SCHEME = "init_scheme"
DIGITS = 3
"""Proposed values are rounded to so many significant digits: as good, and readable."""
STARTUP_TRIALS = 4
"""The number of random trials before the sampler begins to model the results."""

Settings = dict[str, float]


def next_plan(progress: Progress) -> Plan | None:
    """The plan of a search with the next trials that follow from its results; None when the search is over.

    Args:
        progress: a progress whose trials have all been run.
    """
    plan = progress.plan
    assert plan.search is not None
    schemes = plan.study.grid[SCHEME]
    tried = {s: [t for t in plan.trials if t.cell[SCHEME] == s and t.cell["seed"] == SEARCH_SEED] for s in schemes}
    trials_left = plan.search.trials - len(tried[schemes[0]])
    if trials_left > 0:
        count = min(trials_left, plan.search.round_size)
        return plan.extended(
            [
                plan.study.trial_at({SCHEME: scheme, "seed": SEARCH_SEED, **settings})
                for scheme in schemes
                for settings in proposals(progress, plan.search, scheme, tried[scheme], count)
            ]
        )
    if any(trial.cell["seed"] != SEARCH_SEED for trial in plan.trials):
        return None
    ended = {s: [trial for trial in tried[s] if trial.key not in progress.pruned] or tried[s] for s in schemes}
    winners = [max(ended[scheme], key=lambda trial: validation_accuracy(progress, trial)) for scheme in schemes]
    seeds = range(SEARCH_SEED + 1, SEARCH_SEED + 1 + len(plan.study.grid["seed"]))
    fresh = [plan.study.trial_at({**winner.cell, "seed": seed}) for seed in seeds for winner in winners]
    return plan.extended(fresh)


def proposals(progress: Progress, search: Search, scheme: str, tried: list[Trial], count: int) -> list[Settings]:
    """The settings that a scheme tries next, by Optuna's tree-structured Parzen estimator.

    A parameter that has no influence on the scheme keeps its default.
    """
    study = progress.plan.study
    settings = {**study.settings, **study.settings_of.get(scheme, {})}
    fixed = {name: value for name, value in settings.items() if name not in search.space}
    space = {name: r for name, r in search.space.items() if depends_on(scheme, name, fixed)}
    distributions: dict[str, BaseDistribution] = {
        name: FloatDistribution(r.low, r.high, log=r.log) for name, r in space.items()
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = TPESampler(
        seed=derived_seed(0, f"tuning/{scheme}", len(tried)) % 2**32,
        n_startup_trials=STARTUP_TRIALS,
        constant_liar=True,  # so that proposals of one round differ
    )
    asked = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in tried:
        params = {name: trial.cell[name] for name in space}
        value = validation_accuracy(progress, trial)
        asked.add_trial(create_trial(params=params, distributions=distributions, value=value))
    parameters = task_named(study.task).parameters
    defaults = {name: parameters[name].default for name in search.space}
    samples = [asked.ask(distributions).params for _ in range(count)]
    return [defaults | {name: _rounded(value, search.space[name]) for name, value in s.items()} for s in samples]


def _rounded(value: float, within: Range) -> float:
    return min(max(float(f"{value:.{DIGITS}g}"), within.low), within.high)


def validation_accuracy(progress: Progress, trial: Trial) -> float:
    """The last validation accuracy of a trial that ended well or was pruned; 0 for one that diverged or failed."""
    if trial.key in progress.pruned:
        return progress.pruned[trial.key]
    result = progress.results.get(trial.stages[-1].key)
    if result is None or result.diverged_step is not None:
        return 0.0
    metric = task_named(progress.plan.study.task).selection_metric
    return 0.0 if metric is None else last_value(result.points, metric) or 0.0
