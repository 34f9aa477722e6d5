"""The 30 ways to get PPO-RLHF silently wrong, and the whole-loop proofs: which test proves each right.

A test that is renamed, removed or never written is noticed here.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

ROWS: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "left padding without position ids",
        (
            "models/test_row_1.py::test_row_1_alone_left_padded_right_padded_and_packed_are_one",
            "models/test_row_1.py::test_row_1_the_mistake_itself_is_seen_at_this_tolerance",
            "models/test_tokens.py::test_row_1_padding_on_the_right_changes_no_logprob",
            "models/test_packed_attention.py::test_packed_equals_padded_equals_alone",
            "rollout/test_inprocess.py::test_row_1_a_reply_does_not_depend_on_its_batch",
        ),
    ),
    2: (
        "pad == eos",
        (
            "models/test_tokens.py::test_row_2_the_pad_id_is_never_read",
            "models/test_tokens.py::test_row_2_a_real_end_of_turn_counts_when_pad_is_the_same_id",
            "data/test_chat.py::test_row_2_pad_id_is_never_the_end_of_turn",
        ),
    ),
    3: (
        "score on the wrong index; missing EOS",
        (
            "algo/test_rewards.py::test_row_03_the_score_sits_on_the_last_reply_token_and_nowhere_else",
            "algo/test_rewards.py::test_row_03_return_at_the_first_token_is_score_minus_beta_times_the_summed_kl",
            "algo/test_rewards.py::test_row_03_a_missing_eos_subtracts_and_does_not_replace",
            "algo/test_rewards.py::test_row_03_a_missing_eos_replaces_the_score_or_is_left_alone",
            "algo/test_rewards.py::test_row_03_a_reply_without_a_token_is_refused",
            "stages/test_ppo_stage.py::test_row_03_the_missing_eos_rule_of_the_recipe",
            "stages/test_train.py::test_a_rollout_record_from_scratch",
        ),
    ),
    4: (
        "off by one between logits and token",
        ("models/test_logprobs.py::test_row_4_known_conditionals_and_their_gradient",),
    ),
    5: (
        "sampling at T, log-probs at 1",
        (
            "models/test_logprobs.py::test_row_5_probabilities_sum_to_one",
            "models/test_roles.py::test_row_5_policy_and_reference_share_the_temperature",
            "rollout/test_inprocess.py::test_sampler_and_trainer_agree",
            "stages/test_ppo_stage.py::test_row_05_old_logprobs_are_those_of_the_sampling_temperature",
        ),
    ),
    6: (
        "logits processors; negative KL",
        (
            "stages/test_ppo_law.py::test_row_06_no_logits_processor_but_temperature",
            "algo/test_rewards.py::test_row_06_the_expectation_of_k1_is_never_negative",
            "algo/test_rewards.py::test_row_06_k2_and_k3_are_never_negative",
        ),
    ),
    7: (
        "dropout on in the trainer",
        (
            "guard/test_invariants.py::test_row7_a_first_ratio_of_1_passes",
            "guard/test_invariants.py::test_row7_any_other_first_ratio_stops_the_run_with_its_size",
            "models/test_roles.py::test_rows_7_and_20_nothing_is_in_training_mode",
            "stages/test_train.py::test_row_7_the_first_step_of_an_update_is_at_ratio_one",
            "stages/test_train.py::test_a_ratio_that_is_not_one_stops_the_run",
            "stages/test_ppo_stage.py::test_row_07_at_any_temperature_the_first_step_is_at_ratio_one",
        ),
    ),
    8: (
        "sampler and trainer disagree",
        (
            "guard/test_invariants.py::test_row8_the_gap_by_hand",
            "guard/test_invariants.py::test_row8_where_sampler_and_trainer_agree_the_gap_is_0",
            "guard/test_invariants.py::test_row8_a_gap_beyond_either_bound_stops_the_run_with_its_name",
            "algo/test_surrogate.py::test_row_08_the_truncated_importance_weight_by_hand",
            "algo/test_surrogate.py::test_row_08_the_weight_is_1_where_sampler_and_trainer_agree",
            "algo/test_surrogate.py::test_row_08_the_untruncated_weight_makes_the_expectation_right",
        ),
    ),
    9: (
        "KL estimator used as a loss",
        (
            "algo/test_rewards.py::test_row_09_expectations_of_the_estimates",
            "algo/test_rewards.py::test_row_09_kl_estimators_as_losses",
            "algo/test_rewards.py::test_row_09_the_gradient_of_the_kl_itself",
            "algo/test_rewards.py::test_row_09_k1_as_a_reward_gives_the_gradient_of_the_kl",
            "algo/test_surrogate.py::test_row_09_the_kl_loss_and_its_gradient_by_hand",
            "algo/test_proofs.py::test_row_09_the_kl_as_a_reward_gives_ppo_the_gradient_of_the_kl",
            "algo/test_proofs.py::test_row_09_the_kl_loss_has_the_gradient_of_the_kl_whoever_sampled",
            "algo/test_proofs.py::test_row_09_the_kl_loss_holds_the_visited_states_fixed",
        ),
    ),
    10: (
        "whitening over pads, per micro-batch or per rank",
        (
            "algo/test_masked.py::test_row_10_whiten_known_answer_with_the_biased_variance",
            "algo/test_masked.py::test_row_10_whitened_numbers_have_mean_0_and_variance_1_whatever_the_padding",
            "algo/test_masked.py::test_row_10_padding_row_order_and_layout_change_nothing",
            "algo/test_masked.py::test_row_10_whitening_over_ranks_is_whitening_the_whole",
            "algo/test_masked.py::test_row_10_a_mask_of_one_element_is_finite_and_zero",
            "algo/test_masked.py::test_row_10_a_large_mean_does_not_eat_the_spread",
            "algo/test_advantages.py::test_row_10_reinforce_plus_plus_over_two_ranks_is_one_batch",
            "dist/test_ranks.py::test_two_ranks_leave_the_numbers_of_one",
        ),
    ),
    11: (
        "whitened rewards rescale the KL coefficient",
        (
            "algo/test_rewards.py::test_row_11_whitening_multiplies_the_kl_coefficient_by_the_std",
            "algo/test_rewards.py::test_row_11_a_running_scale_multiplies_the_kl_coefficient_by_its_std",
            "algo/test_rewards.py::test_row_11_the_floor_keeps_alike_replies_from_having_their_noise_blown_up",
            "stages/test_ppo_stage.py::test_row_11_the_running_scale_by_hand_and_the_logged_coefficient",
            "stages/test_train.py::test_a_rollout_record_from_scratch",
        ),
    ),
    12: (
        "GAE at pads, last token, gaps",
        (
            "algo/test_advantages.py::test_row_12_gae_known_answer",
            "algo/test_advantages.py::test_row_12_lambda_1_is_reward_to_go_minus_value",
            "algo/test_advantages.py::test_row_12_lambda_0_is_the_td_error",
            "algo/test_advantages.py::test_row_12_a_ragged_batch_is_each_row_alone",
            "algo/test_advantages.py::test_row_12_padding_on_either_side_changes_nothing",
            "algo/test_advantages.py::test_row_12_what_lies_outside_the_mask_changes_nothing_even_nan",
        ),
    ),
    13: (
        "truncation treated as termination",
        (
            "algo/test_advantages.py::test_row_13_with_bootstrap_the_cut_state_is_worth_its_value",
            "algo/test_advantages.py::test_row_13_the_bootstrapped_value_is_discounted_once_a_token",
            "algo/test_advantages.py::test_row_13_a_bootstrap_of_0_is_termination",
            "algo/test_advantages.py::test_row_13_truncation_is_termination_no_value_of_the_cut_state_leaks_in",
            "algo/test_rewards.py::test_row_13_a_longer_limit_after_eos_changes_nothing",
            "stages/test_ppo_stage.py::test_rows_13_and_30_a_critic_of_its_own_starts_as_the_reward_model_and_bootstraps",
            "stages/test_ppo_stage.py::test_row_13_a_longer_limit_after_eos_changes_nothing",
        ),
    ),
    14: (
        "mean of micro-batch means",
        (
            "algo/test_losses.py::test_row_14_row_15_the_mean_is_over_all_tokens_of_the_step",
            "algo/test_losses.py::test_row_14_micro_batches_add_up_to_the_global_mean_only_under_the_step_s_count",
            "algo/test_losses.py::test_row_14_the_gradient_is_equal_for_any_micro_batch_split_of_ragged_replies",
            "stages/test_train.py::test_row_14_sft_does_not_depend_on_the_micro_batches",
            "stages/test_train.py::test_row_14_reward_does_not_depend_on_the_micro_batches",
            "stages/test_train.py::test_row_14_ppo_does_not_depend_on_the_micro_batches",
            "stages/test_ppo_stage.py::test_row_14_a_budget_of_tokens_changes_no_result",
            "dist/test_ranks.py::test_two_ranks_leave_the_numbers_of_one",
        ),
    ),
    15: (
        "token mean, sequence mean, sequence sum",
        (
            "algo/test_losses.py::test_row_15_four_means_of_one_ragged_batch",
            "algo/test_losses.py::test_row_15_duplicating_the_batch_changes_nothing",
        ),
    ),
    16: (
        "value clip",
        (
            "algo/test_surrogate.py::test_row_16_the_value_loss_by_hand",
            "algo/test_surrogate.py::test_row_16_at_the_old_value_clipped_is_unclipped",
            "algo/test_losses.py::test_row_16_row_17_ppo_loss_by_hand",
        ),
    ),
    17: (
        "metrics averaged over pads",
        (
            "algo/test_losses.py::test_row_17_what_is_masked_out_reaches_neither_loss_nor_metrics",
            "algo/test_losses.py::test_row_17_wider_padding_changes_nothing",
            "stages/test_ppo_stage.py::test_row_17_every_logged_metric_is_invariant_to_padding",
        ),
    ),
    18: (
        "the reference is the base, not the SFT model",
        (
            "models/test_roles.py::test_row_18_reference_is_the_base_alone",
            "models/test_roles.py::test_row_18_a_fresh_policy_is_the_reference",
            "models/test_roles.py::test_rows_18_and_19_training_moves_neither_base_nor_reward",
            "guard/test_invariants.py::test_row18_a_fresh_policy_that_differs_in_one_token_stops_the_run",
        ),
    ),
    19: (
        "reference or reward model drifts",
        (
            "models/test_roles.py::test_rows_18_and_19_training_moves_neither_base_nor_reward",
            "models/test_roles.py::test_row_19_nothing_trained_shares_storage",
            "stages/test_train.py::test_ppo_touches_neither_the_sft_nor_the_reward_model",
            "stages/test_ppo_stage.py::test_rows_19_and_20_everything_on_and_only_policy_and_critic_move",
        ),
    ),
    20: (
        "train mode; value gradient into the trunk",
        (
            "models/test_roles.py::test_rows_7_and_20_nothing_is_in_training_mode",
            "models/test_roles.py::test_row_20_value_gradient",
            "models/test_roles.py::test_row_20_value_gradient_changes_no_value",
            "stages/test_ppo_stage.py::test_rows_19_and_20_everything_on_and_only_policy_and_critic_move",
            "stages/test_ppo_stage.py::test_row_20_the_value_loss_reaches_what_the_recipe_says",
        ),
    ),
    21: (
        "reward model used with another template or EOS rule",
        (
            "data/test_chat.py::test_row_21_plain_words_become_the_ids_of_the_whole_rendering",
            "models/test_heads.py::test_row_21_the_same_rules_pass",
            "models/test_heads.py::test_row_21_other_rules_are_refused",
            "stages/test_pipeline.py::test_row_21_every_model_keeps_the_chat_template",
            "stages/test_train.py::test_row_21_a_reward_model_of_other_rules_is_refused",
        ),
    ),
    22: (
        "re-tokenising decoded text",
        (
            "stages/test_train.py::test_a_rollout_record_from_scratch",
            "stages/test_ppo_stage.py::test_row_22_what_is_trained_on_are_the_sampled_ids",
        ),
    ),
    23: (
        "Bradley-Terry overflow",
        (
            "algo/test_preferences.py::test_row23_bradley_terry_is_softplus_of_minus_the_margin",
            "algo/test_preferences.py::test_row23_soft_labels_are_finite_at_any_difference",
        ),
    ),
    24: (
        "K-way rankings spread over batches",
        (
            "algo/test_preferences.py::test_row24_every_ranking_counts_once_however_many_pairs_it_has",
            "algo/test_preferences.py::test_row24_the_gradient_of_a_ranking_by_hand",
            "test_records.py::test_row24_a_strict_ranking_of_k_replies_has_k_choose_2_pairs",
            "stages/test_train.py::test_row_24_reward_loss_by_hand",
        ),
    ),
    25: (
        "a leak: position, length, a trailing space",
        (
            "stages/test_train.py::test_row_25_swapping_the_columns_gives_the_complement",
            "view/test_card.py::test_swapping_columns_gives_exactly_one_minus_the_accuracy",
            "view/test_card.py::test_length_learns_its_direction_on_the_training_pairs",
            "view/test_card.py::test_a_planted_length_bias_is_named",
            "view/test_card.py::test_knowing_the_majority_is_above_people_and_knowing_the_labels_is_above_what_is_possible",
            "data/test_files.py::test_row25_a_prompt_in_two_splits_names_both_lines_and_splits",
            "data/test_demo_data.py::test_row25_no_held_out_prompt_is_among_the_training_demonstrations",
        ),
    ),
    26: (
        "the head is lost",
        (
            "models/test_heads.py::test_row_26_round_trip",
            "models/test_reward_model.py::test_row_26_the_golden_scores_stand_by_themselves",
            "models/test_heads.py::test_row_26_a_missing_head_is_an_error",
            "models/test_heads.py::test_row_26_a_head_of_another_model_is_an_error",
            "models/test_roles.py::test_row_26_a_head_that_was_not_loaded_scores_nothing",
            "stages/test_train.py::test_row_26_a_lost_head_is_refused",
        ),
    ),
    27: (
        "KL coefficient or running moments not restored",
        (
            "algo/test_rewards.py::test_row_27_states_written_as_json_go_on_as_if_never_stopped",
            "faults/test_resume.py::test_row_27_killed_anywhere_a_run_ends_as_the_unbroken_one",
        ),
    ),
    28: (
        "a setting that does nothing",
        (
            "algo/test_losses.py::test_the_coefficients_weigh_their_own_terms",
            "stages/test_ppo_options.py::test_row_28_every_case_is_an_option",
            "stages/test_ppo_options.py::test_row_28_nothing_changed_nothing_changes",
            "stages/test_ppo_options.py::test_row_28_an_option_changes_something",
            "stages/test_ppo_options.py::test_row_28_what_would_do_nothing_is_refused",
            "stages/test_sft.py::test_row_28_every_option_is_tried",
            "stages/test_sft.py::test_row_28_an_option_changes_the_adapter",
        ),
    ),
    29: (
        "old log-probs move between epochs",
        (
            "algo/test_proofs.py::test_row_29_a_second_epoch_measures_its_ratio_against_the_frozen_old_policy",
            "stages/test_ppo_stage.py::test_row_29_every_epoch_is_measured_against_the_frozen_old_policy",
            "stages/test_train.py::test_row_7_the_first_step_of_an_update_is_at_ratio_one",
        ),
    ),
    30: (
        "the critic starts far off",
        (
            "algo/test_statistics.py::test_explained_variance_by_hand",
            "stages/test_ppo_stage.py::test_rows_13_and_30_a_critic_of_its_own_starts_as_the_reward_model_and_bootstraps",
        ),
    ),
}

PROOFS: dict[str, tuple[str, ...]] = {
    "(a) PPO reaches the closed-form optimum": (
        "algo/test_proofs.py::test_proof_a_ppo_reaches_the_optimum_of_the_kl_regularised_objective",
        "algo/test_proofs.py::test_proof_a_on_sampled_replies_with_a_critic_that_learns",
    ),
    "(b) without a reward the policy does not move": (
        "algo/test_proofs.py::test_proof_b_without_a_reward_the_reference_has_no_gradient",
        "algo/test_proofs.py::test_proof_b_without_a_reward_sampled_updates_with_a_wrong_critic_do_not_move_the_policy",
        "stages/test_train.py::test_no_reward_no_movement",
        "stages/test_ppo_stage.py::test_proof_b_no_reward_no_movement",
    ),
    "(c) the first gradient is the policy gradient": (
        "algo/test_proofs.py::test_proof_c_the_first_ppo_gradient_is_the_exact_policy_gradient",
        "algo/test_proofs.py::test_proof_c_rloo_is_unbiased_for_any_group_size",
        "algo/test_proofs.py::test_proof_c_group_means_without_the_std_shrink_the_gradient_by_one_kth",
        "algo/test_proofs.py::test_proof_c_rewards_to_go_are_unbiased",
    ),
    "(d) the KL of best-of-n": (
        "algo/test_proofs.py::test_proof_d_best_of_n_by_the_formula",
        "algo/test_proofs.py::test_proof_d_the_formula_is_the_limit_without_ties_and_a_bound_with_them",
    ),
}


@cache
def functions(file: str) -> frozenset[str]:
    path = TESTS / file
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def missing(ids: tuple[str, ...]) -> list[str]:
    """The ids that name no test."""
    return [name for name in ids if name.partition("::")[2] not in functions(name.partition("::")[0])]


@pytest.mark.parametrize("row", range(1, 31))
def test_every_row_has_tests_and_they_exist(row: int) -> None:
    title, ids = ROWS[row]
    assert title and ids, f"row {row} has no test"
    assert missing(ids) == []


@pytest.mark.parametrize("proof", PROOFS)
def test_every_proof_has_tests_and_they_exist(proof: str) -> None:
    assert PROOFS[proof]
    assert missing(PROOFS[proof]) == []


def test_the_table_has_30_rows_and_4_proofs() -> None:
    assert list(ROWS) == list(range(1, 31))
    assert len(PROOFS) == 4


def test_a_test_that_is_not_there_is_noticed() -> None:
    ids = ("algo/test_losses.py::test_no_such_thing", "no_such_file.py::test_x", "algo/test_losses.py::tensor")
    assert missing(ids) == list(ids[:2])
