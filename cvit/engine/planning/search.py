"""Searches: the best settings of each init scheme, found on validation images with equal budget.

A search has rounds. The settings that a round tries depend on the results so far and on nothing else, so an interrupted
search continues as if it had not stopped. All of them are tried on one seed. The best of each scheme, the finalists,
are trained again on other seeds, since one seed separates neighbours badly; the mean validation accuracy on those seeds
alone decides. The winners are trained on fresh seeds. Test images play no part in the choice.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import create_trial

from cvit.engine.declaration import Choice, Range, Search
from cvit.engine.planning.plan import Plan
from cvit.engine.planning.progress import Progress
from cvit.engine.planning.scheme_settings import SCHEME
from cvit.engine.planning.trials import Trial
from cvit.randomness import derived_seed
from cvit.results import last_value
from cvit.stages import depends_on
from cvit.tasks import task_named
from cvit.vocabulary import FINALIST_SEED, SEARCH_SEED

DIGITS = 3
"""Proposed values are rounded to so many significant digits: as good, and readable."""
STARTUP_TRIALS = 8
"""The number of trials before the sampler begins to model the results; until then it proposes at random."""
MOST_SAMPLES = 100
"""After so many samples in a round, settings are proposed again that have been proposed before."""

Settings = dict[str, Any]


def next_plan(progress: Progress) -> Plan | None:
    """The plan of a search with the next trials that follow from its results; None when the search is over.

    Args:
        progress: a progress whose trials have all been run.
    """
    plan, search = progress.plan, progress.plan.search
    assert search is not None
    schemes, seeds_so_far = plan.study.grid[SCHEME], {trial.cell["seed"] for trial in plan.trials}
    tried = {scheme: _tried(plan, scheme) for scheme in schemes}
    trials_left = search.trials - len(tried[schemes[0]])
    if trials_left > 0:
        count = min(trials_left, search.round_size)
        return plan.extended(
            [
                plan.study.trial_at({SCHEME: scheme, "seed": SEARCH_SEED, **settings})
                for scheme in schemes
                for settings in proposals(progress, search, scheme, tried[scheme], count)
            ]
        )
    if search.num_finals and FINALIST_SEED not in seeds_so_far:
        finalists = [trial for scheme in schemes for trial in _best(progress, search, tried[scheme])]
        return plan.extended(_on_seeds(plan, finalists, _finalist_seeds(search)))
    if SEARCH_SEED + 1 in seeds_so_far:
        return None
    winners = [_winner(progress, search, tried[scheme]) for scheme in schemes]
    num_fresh = len(plan.study.grid["seed"])
    return plan.extended(_on_seeds(plan, winners, range(SEARCH_SEED + 1, SEARCH_SEED + 1 + num_fresh)))


def _tried(plan: Plan, scheme: str) -> list[Trial]:
    return [trial for trial in plan.trials if trial.cell[SCHEME] == scheme and trial.cell["seed"] == SEARCH_SEED]


def _finalist_seeds(search: Search) -> range:
    return range(FINALIST_SEED, FINALIST_SEED + search.finalist_seeds)


def _on_seeds(plan: Plan, trials: Sequence[Trial], seeds: Sequence[int]) -> list[Trial]:
    """The trials with the same settings on other seeds."""
    return [plan.study.trial_at({**trial.cell, "seed": seed}) for seed in seeds for trial in trials]


def _best(progress: Progress, search: Search, tried: Sequence[Trial]) -> list[Trial]:
    """The trials of the search, best first, whose settings are in the final, or may be the winner without one."""
    distinct = list({trial.key: trial for trial in tried}.values())
    ended = [trial for trial in distinct if trial.key not in progress.pruned] or distinct
    ranked = sorted(ended, key=lambda trial: validation_accuracy(progress, trial), reverse=True)
    return ranked[: search.finalists if search.num_finals else 1]


def _winner(progress: Progress, search: Search, tried: Sequence[Trial]) -> Trial:
    """The first finalist with the highest mean validation accuracy on the seeds of the final."""

    def mean(finalist: Trial) -> float:
        trials = _on_seeds(progress.plan, [finalist], _finalist_seeds(search))
        return statistics.fmean(validation_accuracy(progress, trial) for trial in trials)

    finalists = _best(progress, search, tried)
    return max(finalists, key=mean) if search.num_finals else finalists[0]


def proposals(progress: Progress, search: Search, scheme: str, tried: list[Trial], count: int) -> list[Settings]:
    """The settings that a scheme tries next: first those that it has already, then those that Optuna's tree-structured
    Parzen estimator proposes.

    A parameter that has no influence on the scheme keeps its default.
    """
    parameters, present = task_named(progress.plan.study.task).parameters, _present(progress.plan, scheme)
    space = space_of(progress.plan, scheme)
    defaults = {name: parameters[name].default for name in search.space}
    first = [] if tried else [{name: present[name] for name in space}]
    distributions = {name: distribution(within) for name, within in space.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = TPESampler(
        seed=derived_seed(0, f"tuning/{scheme}", len(tried)) % 2**32,
        n_startup_trials=STARTUP_TRIALS,
        constant_liar=True,  # so that proposals of one round differ
    )
    optuna_study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in tried:
        # The settings that a scheme has already may lie outside of the space: they are not models of what is in it.
        params = {name: trial.cell[name] for name, within in space.items() if contains(within, trial.cell[name])}
        known: Mapping[str, BaseDistribution] = {name: distributions[name] for name in params}
        value = validation_accuracy(progress, trial)
        optuna_study.add_trial(create_trial(params=params, distributions=dict(known), value=value))
    so_far = [{name: trial.cell[name] for name in space} for trial in tried]
    proposed, num_samples = list(first), 0
    while len(proposed) < count:
        num_samples += 1
        sample = optuna_study.ask(distributions).params
        settings = {name: _rounded(value, space[name]) for name, value in sample.items()}
        # The settings that a scheme has already may be those that an earlier search proposed. A space of few values may
        # have no others left.
        if settings not in (*so_far, *proposed) or num_samples > MOST_SAMPLES:
            proposed.append(settings)
    return [defaults | settings for settings in proposed]


def space_of(plan: Plan, scheme: str) -> Mapping[str, Range | Choice]:
    """The part of a search's space that has an influence on a scheme."""
    assert plan.search is not None
    space = plan.search.space
    fixed = {name: value for name, value in _present(plan, scheme).items() if name not in space}
    return {name: within for name, within in space.items() if depends_on(scheme, name, fixed)}


def _present(plan: Plan, scheme: str) -> Settings:
    """The settings that a scheme has before the search."""
    return {**plan.study.settings, **plan.study.settings_of.get(scheme, {})}


def distribution(within: Range | Choice) -> BaseDistribution:
    """A parameter's part of the space, as Optuna has it."""
    if isinstance(within, Choice):
        return CategoricalDistribution(within.values)
    return FloatDistribution(within.low, within.high, log=within.log)


def contains(within: Range | Choice, value: Any) -> bool:
    """True if a value lies in a parameter's part of the space."""
    if isinstance(within, Choice):
        return value in within.values
    return value is not None and within.low <= value <= within.high


def _rounded(value: Any, within: Range | Choice) -> Any:
    if isinstance(within, Choice):
        return value
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
