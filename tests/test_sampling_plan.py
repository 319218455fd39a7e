"""The test plan of sampling: of each of its points the tests that show it, by name.

A point is shown by every test in its list; each of them is there and is collected.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
# What the points are about.
POINTS = {
    "R1": "Philox: known answers for both numbers of rounds, golden rows",
    "R2": "uniform numbers and Gumbel noise: end points, golden noise",
    "R3": "golden top-K, layout invariance, statelessness",
    "R4": "Plackett-Luce orders, rank marginals, inclusion, independence, law of the noise",
    "G1": "straight-through gradients against autograd and closed forms, the subset recursion",
    "G2": "unbiased estimators by enumeration and Monte Carlo; wrong variants fail",
    "G3": "one path is GDAS to the bit",
    "G4": "ProxylessNAS: both full forms agree, two-path golden, other probabilities fixed",
    "M1": "sub-graphs one after another and together give the same gradients",
    "M2": "memory against the number of sub-graphs and of candidates",
    "D1": "DropBlock: statistics, geometry, off-switches",
    "D2": "guidance: known answers; the teacher leaves no trace",
    "S1": "parameter counts of every space",
    "S2": "derivation by hand, ties, rows that none dominates",
    "S3": "shapes of candidates, the zero candidate, one-hot supernets are derived networks",
    "E1": "the informative candidate of the toy is found",
}
# Point -> file -> tests.
PLAN: dict[str, dict[str, tuple[str, ...]]] = {
    "R1": {
        "ops/test_philox.py": (
            "test_cipher_gives_the_known_answers",
            "test_rows_hold_the_golden_words",
            "test_every_instruction_set_gives_the_words_of_the_reference",
        ),
        "csrc/test_sampling_headers.py": ("test_philox_known_answers",),
    },
    "R2": {
        "ops/test_philox.py": (
            "test_uniforms_and_noise_follow_from_the_words",
            "test_every_word_gives_finite_noise",
            "test_a_million_draws_stay_inside_the_bounds",
        ),
        "csrc/test_sampling_headers.py": ("test_uniforms_and_noise_at_the_ends",),
    },
    "R3": {
        "ops/test_gumbel_topk.py": (
            "test_golden_picks",
            "test_picks_agree_wherever_keys_are_apart",
            "test_layout_does_not_matter",
            "test_the_likely_candidate_nearly_always_wins",
            "test_extreme_temperatures_and_logits_stay_finite",
            "test_ties_go_to_the_lower_index",
        ),
        "ops/test_philox.py": (
            "test_numbers_do_not_depend_on_the_grouping_of_rows",
            "test_nothing_is_remembered_and_no_generator_moves",
        ),
    },
    "R4": {
        "ops/test_gumbel_statistics.py": (
            "test_ordered_pairs_follow_plackett_luce",
            "test_each_rank_has_its_marginal",
            "test_inclusion_by_the_wald_statistic",
            "test_rows_offsets_and_seeds_are_independent",
            "test_the_noise_has_the_gumbel_law",
            "test_the_bounds_catch_wrong_samplers",
        ),
        "algorithms/test_estimators.py": (
            "test_ordered_table",
            "test_unordered_table",
            "test_inclusion_table",
        ),
    },
    "G1": {
        "ops/test_gumbel_topk.py": ("test_golden_relaxations",),
        "ops/test_subset_weights.py": (
            "test_weights_and_gradient_are_those_of_the_recursion",
            "test_the_relaxed_k_hot_sums_to_k",
            "test_entries_exceed_one_at_high_temperature",
            "test_it_tends_to_the_k_hot_vector",
        ),
        "algorithms/test_sub_graphs.py": (
            "test_golden_gradient_through_the_straight_through_layer",
        ),
        "algorithms/test_msg_das.py": ("test_formula",),
        "algorithms/test_gdas.py": ("test_gradient_is_that_of_the_factors",),
    },
    "G2": {
        "algorithms/test_sub_graphs.py": (
            "test_is_exact_over_all_outcomes",
            "test_wrong_normaliser_is_noticed",
            "test_is_unbiased_over_a_million_draws",
        ),
        "algorithms/test_estimators.py": (
            "test_the_estimate_is_unbiased_by_enumeration",
            "test_the_gradient_is_unbiased_by_enumeration",
            "test_wrong_variants_are_biased",
            "test_the_mean_is_the_jacobian",
            "test_wrong_variants_fail",
            "test_known_marginals",
            "test_the_sampler_does_not_sample_it",
            "test_it_draws_the_top_of_the_joint",
            "test_weights_make_sums_unbiased",
        ),
        "algorithms/test_rebar.py": (
            "test_unbiased_against_enumeration",
            "test_a_wrong_estimator_is_told_apart",
        ),
        "algorithms/test_unas.py": (
            "test_cost_without_a_derivative_is_estimated_without_bias",
            "test_gap_is_estimated_without_bias",
        ),
    },
    "G3": {
        "algorithms/test_gdas.py": ("test_g3_msg_das_with_one_path_is_gdas_to_the_bit",),
        "algorithms/test_msg_das.py": ("test_one_path_is_gdas_to_the_bit",),
    },
    "G4": {
        "algorithms/test_proxylessnas.py": (
            "test_g4_both_forms_are_equal",
            "test_g4_gradients_of_weights",
            "test_golden_step",
            "test_probabilities_of_the_others_stay",
        ),
    },
    "M1": {
        "algorithms/test_msg_das.py": (
            "test_equal_on_cells_with_drop_block",
            "test_equal_with_dropout_and_batch_norm",
        ),
    },
    "M2": {
        "algorithms/test_memory.py": (
            "test_one_after_another_keeps_no_more_than_one_path",
            "test_joint_grows_by_the_same_bytes_for_every_path",
            "test_score_function_keeps_next_to_nothing",
        ),
        "algorithms/test_distillation.py": (
            "test_teacher_equals_the_naive_sum_and_leaves_no_trace",
        ),
        "nn/test_cell.py": ("test_streaming_memory_does_not_grow_with_the_candidates",),
        "bench/test_paths.py": ("test_rows_and_what_they_weigh",),
    },
    "D1": {
        "algorithms/test_drop_block.py": (
            "test_each_seed_erases_the_block_below_and_right_of_it",
            "test_dropped_share",
            "test_interior_probability_and_unbiased_output",
            "test_identity_outside_in_evaluation_and_at_rate_zero",
            "test_only_skip_connections_of_stride_one_are_equipped",
            "test_nothing_left_gives_zeros_not_nan",
        ),
    },
    "D2": {
        "algorithms/test_distillation.py": (
            "test_known_answers",
            "test_teacher_equals_the_naive_sum_and_leaves_no_trace",
        ),
    },
    "S1": {
        "spaces/test_darts.py": (
            "test_search_network_golden_size",
            "test_restricted_spaces_golden_size",
            "test_evaluation_networks_golden_size",
        ),
        "spaces/test_nas_bench_201.py": (
            "test_search_network_golden_size",
            "test_derived_networks_golden_size",
        ),
        "spaces/test_robust_darts.py": ("test_search_network_golden_size",),
        "spaces/test_proxyless.py": (
            "test_search_network_golden_size",
            "test_published_networks_golden_size",
        ),
    },
    "S2": {
        "spaces/test_darts.py": (
            "test_ties_go_to_the_lowest_index",
            "test_derivation_by_hand",
            "test_none_is_never_chosen",
        ),
        "spaces/test_nas_bench_201.py": (
            "test_ties_go_to_the_lowest_index",
            "test_derivation_by_hand",
        ),
        "spaces/test_robust_darts.py": (
            "test_ties_go_to_the_lowest_index",
            "test_derivation_by_hand",
            "test_rows_that_none_dominates",
        ),
        "spaces/test_proxyless.py": (
            "test_ties_go_to_the_lowest_index",
            "test_derivation_by_hand",
        ),
    },
    "S3": {
        "nn/test_primitives.py": ("test_output_shape", "test_zero_writes_zeros"),
        "spaces/test_darts.py": ("test_one_hot_supernet_equals_the_derived_network",),
        "spaces/test_nas_bench_201.py": ("test_one_hot_supernet_equals_the_derived_network",),
        "spaces/test_robust_darts.py": ("test_one_hot_supernet_equals_the_derived_network",),
    },
    "E1": {
        "algorithms/test_toy.py": (
            "test_msg_das_is_sure_of_the_informative_candidate",
            "test_msg_das_in_all_forms",
            "test_gdas_is_sure_of_the_informative_candidate",
            "test_gdas_in_full_length",
        ),
    },
}
FILES = sorted({name for files in PLAN.values() for name in files})


def test_every_point_has_its_tests() -> None:
    assert PLAN.keys() == POINTS.keys()
    assert all(names for files in PLAN.values() for names in files.values())


@pytest.mark.parametrize("point", PLAN)
def test_what_shows_a_point_is_where_pytest_finds_it(point: str) -> None:
    for name, wanted in PLAN[point].items():
        tree = ast.parse((REPOSITORY / "tests" / name).read_text())
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        scopes = [tree, *(node for node in classes if node.name.startswith("Test"))]
        found: set[str] = set()
        for scope in scopes:
            names = [node.name for node in scope.body if isinstance(node, ast.FunctionDef)]
            # A later function of the same name takes its place without a word.
            assert len(set(names)) == len(names), name
            found |= set(names)
        assert not set(wanted) - found, f"{point}: not in {name}"
        assert all(test.startswith("test_") for test in wanted)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_what_shows_a_point_is_collected() -> None:
    """As pytest itself says, those of a long run among them."""
    options = ["--collect-only", "-q", "-n", "0", "-p", "no:benchmark", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *(f"tests/{name}" for name in FILES)]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=250, check=False
    )
    collected = {
        (path.removeprefix("tests/"), rest[-1].partition("[")[0])
        for line in done.stdout.splitlines()
        for path, *rest in [line.split("::")]
        if rest
    }
    wanted = {
        (name, test) for files in PLAN.values() for name, tests in files.items() for test in tests
    }
    assert not wanted - collected, done.stdout[-2000:] + done.stderr[-2000:]
