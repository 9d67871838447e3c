"""What is wrong in the peer (stable-audio-tools 0.0.19) about models, and the test that would fail here if we did the same.

`ROWS` goes from defect to tests, by three lists: D, the twenty worst; R, what crashed when it was run; S, what is silently wrong. Most of
the tests stand beside the part they are about; the few at the end of this file have no better place. A defect of training, data,
generation or the command line alone has `ELSEWHERE` in place of model tests, and those of its tests that are there already.
"""

from __future__ import annotations

import ast
import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.denoisers import DenoiserConfig
from stable_audio_tools.models.factory import create_pretransform_from_config
from stable_audio_tools.models.pretransforms.autoencoder import AutoencoderPretransform

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "stable_audio_tools"
HERE = "test_peer_defects.py::"
FAMILIES = "models/test_families.py::"
ELSEWHERE = "no defect of a model"

ROWS: dict[str, tuple[str, ...]] = {
    "D1 Dance Diffusion cannot be constructed": (
        "models/test_dau1d.py::test_the_published_models_have_their_size",
        "models/test_dau1d.py::test_recorded_numbers",
        "models/test_dau1d.py::test_every_option_builds_runs_and_learns",
    ),
    "D2 a language model has no forward pass, and needs an undeclared package": (
        "models/test_lm_reference.py::test_logits",
        "models/test_lm.py::test_training_reaches_the_network_and_its_conditioners_and_not_the_pretransform",
    ),
    "D3 padding masks of stored latents are used as indices": (
        ELSEWHERE,
        "training/test_diffusion_uncond.py::test_masks_of_any_type_are_read",
        "training/test_denoising_options.py::test_the_loss_leaves_out_the_padding_of_stored_latents_whatever_masks_are_made_of",
    ),
    "D4 building SEANet reverses the ratios in the caller's config, so that every other copy is another network": (
        "models/autoencoders/test_seanet.py::test_building_twice_gives_the_same_encoder_and_leaves_the_config_alone",
        HERE + "test_a_seanet_model_its_copy_and_its_second_build_are_one_network",
        FAMILIES + "test_a_config_survives_validation_and_is_only_read",
    ),
    "D5, S3 the contrastive roll of prompts changes the batch, and pairs some items with their own": (
        ELSEWHERE,
        "training/test_arc.py::test_every_item_is_contrasted_with_another_prompt_and_metadata_stay",
        "training/test_arc.py::test_no_item_is_given_a_condition_equal_to_its_own",
    ),
    "D6, S6 two of the distillation losses have no gradient": (
        ELSEWHERE,
        "training/test_autoencoder_distillation.py::test_every_term_has_a_gradient_and_none_reaches_the_teacher",
    ),
    "D7, S2 demos of inpainting show the weights that are not averaged": (
        ELSEWHERE,
        "training/test_diffusion_wrappers.py::test_demos_are_of_the_averaged_weights",
    ),
    "D8 demos of inpainting mask next to nothing": (
        ELSEWHERE,
        "training/test_diffusion_inpainting.py::test_demos_generate_under_the_masks_they_show",
    ),
    "D9, S1 of two contexts joined by `and`, one is entered": (
        HERE + "test_no_context_is_lost_behind_an_and",
        "models/conditioners/test_t5_conditioner.py::test_what_a_demo_encoded_can_be_trained_on",
    ),
    "D10 exports hold the wrong weights, or fail": (
        "models/test_checkpoints.py::test_a_diffusion_training_checkpoint_gives_averaged_or_online_weights",
        "models/test_checkpoints.py::test_averages_of_whole_models",
        "models/test_checkpoints.py::test_averages_asked_for_must_be_there",
        "cli/test_export.py::test_every_kind_of_model_gives_the_same_output_to_the_bit",
        "cli/test_export.py::test_a_training_without_averages_exports_its_online_weights",
    ),
    "Export: it changes the wrapper that it exports, fails on weights that share memory, and ARC has none": (
        "cli/test_export.py::test_a_wrappers_own_export_leaves_it_as_it_was",
        "cli/test_export.py::test_weights_that_share_memory_are_written_out",
        "cli/test_export.py::test_arc_exports_the_student_alone",
    ),
    "D11, R unconditional models lack what generation asks for": (
        "models/test_unconditional_diffusion.py::test_what_generation_asks_of_a_model",
        "inference/test_generation_uncond.py::test_every_network_generates_in_the_peers_argument_order",
        "inference/test_generation_samplers.py::test_audio_of_a_model_without_conditions_is_finite_and_the_same_in_any_batch",
    ),
    "D12 a diffusion autoencoder with a decoder never decodes": (
        "models/test_diffusion_autoencoder.py::test_audio_goes_in_and_comes_out",
        "models/test_diffusion_autoencoder.py::test_a_decoder_prepares_what_the_network_sees",
    ),
    "D13, R local_attn cannot be built": ("models/autoencoders/test_local_attn.py::test_the_published_config_builds_and_trains",),
    "D13, R pqmf cannot be imported, and states no sizes": (
        "models/pretransforms/test_pqmf.py::test_numbers_are_the_reference",
        "models/pretransforms/test_pretransforms.py::test_sizes_are_known_before_and_kept_after_building",
    ),
    "D13, R the relativistic loss of the encodec discriminator is not defined": (
        "models/test_stft_discriminator.py::test_a_discriminator_learns_and_can_be_fooled",
    ),
    "D13, R big_vgan is not defined, dac knows no rates, and oobleck is for mono unless told otherwise": (
        "models/test_wave_discriminators.py::test_layout_and_losses_and_gradients_are_those_of_the_published_discriminator",
        "models/test_wave_discriminators.py::test_a_rate_hears_only_what_fits_in_it",
        "models/test_wave_discriminators.py::test_big_vgan_adds_what_periods_and_notes_say",
        "models/test_wave_discriminators.py::test_channels_come_from_the_model_and_may_be_repeated",
    ),
    "D13, R clap_audio cannot be built": (
        "models/conditioners/test_clap_conditioners.py::test_audio_of_any_length_channels_and_rate_is_a_unit_vector",
        "models/conditioners/test_clap_conditioners.py::test_the_audio_half_computes_what_the_authors_do",
    ),
    "D13, R a finite scalar quantizer of one codebook crashes, and its tokens decode to the wrong shape": (
        "models/bottlenecks/test_every_bottleneck.py::test_tokens_say_what_the_latents_say",
        "models/bottlenecks/test_bottleneck_reference.py::test_encoding_and_its_information_are_the_recorded_ones",
    ),
    "D13, R integers above a min_val have no row in the table, and floats none at all": (
        "models/conditioners/test_numeric_conditioners.py::test_a_range_of_integers_may_start_anywhere",
        "models/conditioners/test_numeric_conditioners.py::test_numbers_of_any_make_are_the_same_number",
    ),
    "D13, R a timestep as input channels crashes": ("models/test_dit_options.py::test_a_timestep_as_input_channels_works",),
    "D13 prepended and global conditions without a mask crash": (HERE + "test_prepended_and_global_conditions_need_no_mask",),
    "D14 detailed losses crash on one device": (
        ELSEWHERE,
        "training/test_denoising_options.py::test_a_run_logs_the_loss_of_the_noise_levels_that_occurred",
        "training/test_denoising_options.py::test_the_loss_by_noise_level_is_that_of_all_ranks",
    ),
    "D15 validation of inpainting models crashes, and its metrics reach no one": (
        ELSEWHERE,
        "training/test_diffusion_inpainting.py::test_validation_masks_differ_by_batch_and_not_by_time",
        "training/test_host.py::test_validation_is_the_same_twice",
        "training/test_evaluation_metrics.py::test_metrics_are_of_the_sampling_weights_and_a_monitor_sees_them",
        "training/test_evaluation_in_training.py::test_lightnings_own_callbacks_find_it",
    ),
    "D13, R PESQ is not defined, and its arguments are exchanged": (
        ELSEWHERE,
        "training/test_evaluation_metrics.py::test_pesq_falls_with_noise_at_any_rate",
    ),
    "R the perceptual loss hears any rate as 16 kHz, a batch as one signal, and through dropout": (
        ELSEWHERE,
        "training/test_hubert_loss.py::test_any_rate_and_channels_are_heard_as_mono_at_16_khz",
        "training/test_hubert_loss.py::test_waveforms_are_normalised_each_by_itself_where_the_network_wants_it",
        "training/test_hubert_loss.py::test_the_gradient_reaches_the_estimate_alone_and_dropout_never_acts",
    ),
    "D16, R inference ignores the shift of timesteps that training and demos use": (
        "diffusion/test_grids.py::test_a_model_with_a_shift_is_sampled_where_it_was_trained",
        "inference/test_generation.py::test_one_schedule_serves_training_length_shift_demos_and_generation",
        "inference/test_generation_samplers.py::test_every_sampler_steps_where_the_models_shift_leads",
        "diffusion/test_samplers_in_ratios.py::test_a_shift_is_followed_unless_ratios_are_asked_for",
        "training/test_denoising_options.py::test_training_draws_timesteps_where_the_models_shift_takes_them",
        "training/test_arc.py::test_a_teacher_with_a_shift_is_sampled_where_it_was_trained",
        "inference/test_upstream_names.py::test_flows_follow_the_models_shift",
    ),
    "D17 training runs on a GPU only, and without end": (
        ELSEWHERE,
        "training/test_train_command.py::test_a_stopped_run_saves_that_step_and_says_so",
    ),
    "D18, R sliding windows are ignored without an optional package": (
        "nn/test_transformer.py::test_a_window_bounds_what_a_layer_sees",
        "nn/test_attention_backends.py::test_backends_agree_with_the_definition",
        "models/autoencoders/test_taae.py::test_a_frame_sees_exactly_its_window_on_every_backend",
    ),
    "D18 attention computes in half precision unasked": ("nn/test_attention_backends.py::test_inputs_keep_their_precision",),
    "D18, S8 masks of prompts and of padding are dropped": (
        "models/test_latent_diffusion.py::test_padding_of_a_prompt_is_left_out_on_request",
        "models/test_latent_diffusion.py::test_padding_frames_do_not_influence_real_ones",
        "nn/test_attention_backends.py::test_any_further_mask_is_honoured",
    ),
    "D19 typos and unknown names pass, or crash far away": (
        FAMILIES + "test_a_slip_in_a_key_is_refused_with_the_right_one",
        FAMILIES + "test_a_size_that_does_not_fit_is_refused_with_its_place_and_a_fix",
        HERE + "test_an_unknown_network_is_refused_with_those_there_are",
        "test_bad_inputs.py::test_bad_input_is_refused",
    ),
    "D20 loading weights may run code": (
        "models/test_weight_files.py::test_a_pickle_payload_is_refused_and_does_not_run",
        "models/pretransforms/test_dac_pretrained.py::test_a_file_that_would_run_code_is_refused",
        "models/conditioners/test_clap_conditioners.py::test_the_authors_names_are_understood_and_numpy_numbers_beside_them",
        HERE + "test_nothing_is_unpickled",
    ),
    "R a TAAE decoder with snake has an activation of the wrong width": (
        "models/autoencoders/test_taae.py::test_a_decoder_with_snake_runs_where_the_width_changes",
    ),
    "R tokens of rvq and rvq_vae cannot be decoded, and have another layout than a language model reads": (
        "models/bottlenecks/test_every_bottleneck.py::test_tokens_say_what_the_latents_say",
        "models/bottlenecks/test_every_bottleneck.py::test_an_autoencoder_decodes_its_tokens_as_its_latents",
    ),
    "R dac_rvq with quantize_on_decode gives a tuple for latents and lacks losses": (
        "models/bottlenecks/test_every_bottleneck.py::test_it_states_the_widths_it_works_at",
        "models/bottlenecks/test_every_bottleneck.py::test_training_always_reports_the_losses",
    ),
    "R negative prompts of adp_cfg_1d crash beside a timestep token": (
        "models/test_adp.py::test_a_negative_prompt",
        "models/test_adp.py::test_a_negative_prompt_of_another_length",
    ),
    "R a phoneme conditioner downloads when it is imported": (
        "models/conditioners/test_token_conditioners.py::test_phonemes_have_the_published_table_and_no_package_is_needed_to_build_it",
    ),
    "R tokens of dac_pretrained are decoded as a tuple": (
        "models/pretransforms/test_dac_pretrained.py::test_tokens_are_the_published_codecs_and_decode_to_what_the_latents_do",
    ),
    "R chunked coding crashes on audio shorter than a chunk": (
        "models/autoencoders/test_chunking.py::test_input_within_one_chunk_is_one_pass",
        "inference/test_reconstruction.py::test_a_reconstruction_is_as_long_as_its_audio",
        "inference/test_reconstruction.py::test_chunks_make_what_one_pass_makes",
    ),
    "Generation: audio ends with the last whole latent, and an item is another one in another batch": (
        ELSEWHERE,
        "inference/test_generation.py::test_any_length_is_made_and_cut_to_the_sample",
        "inference/test_generation.py::test_an_item_does_not_depend_on_its_batch",
        "inference/test_reconstruction.py::test_an_item_does_not_depend_on_its_batch",
        "inference/test_language_audio.py::test_an_item_does_not_depend_on_its_batch",
    ),
    "D20 a prompt becomes part of a shell command that writes the file": (
        ELSEWHERE,
        "cli/test_generate_files.py::test_a_prompt_names_a_file_inside_the_folder_and_nothing_else",
    ),
    "Generation: clips replace one another, and nothing tells how one was made": (
        ELSEWHERE,
        "cli/test_generate.py::test_a_folder_keeps_earlier_clips_and_a_file_is_replaced",
        "cli/test_generate_files.py::test_the_settings_beside_a_clip_make_it_again_bit_for_bit",
    ),
    "Generation: half precision cannot be turned off": (
        ELSEWHERE,
        "cli/test_generate_kinds.py::test_half_precision_makes_nearly_the_same_sound",
    ),
    "R a function that guides a flow's sampler is an unbound name": (
        ELSEWHERE,
        "inference/test_upstream_names.py::test_what_does_not_fit_is_told",
    ),
    "R the first item of a batch decides on guidance for all": (
        "models/test_latent_diffusion.py::test_guidance_acts_item_by_item_inside_its_interval",
    ),
    "R a conditional model without a conditioning section crashes": (
        "models/test_model_config.py::test_a_conditional_model_without_conditioning_works",
    ),
    "R an encoded condition must have the width of the condition, and a null path is taken for a path": (
        "models/conditioners/test_audio_conditioners.py::test_the_projection_runs_over_the_channels_whatever_their_number",
        "models/conditioners/test_audio_conditioners.py::test_a_null_path_is_no_path",
    ),
    "R pre-encoded conditions have no mask to join with others": (
        "models/conditioners/test_multi_conditioner.py::test_pre_encoded_tensors_go_by_every_route",
    ),
    "R guidance of a model whose conditions are global is silently off": (
        "models/test_latent_diffusion.py::test_guidance_is_the_formula_on_every_route",
        "models/test_latent_diffusion.py::test_guidance_of_what_cannot_be_left_out_is_reported_once",
    ),
    "R weight norm cannot be folded where a module has none": ("models/test_model_utils.py::test_weight_norm_is_folded_whatever_its_form",),
    "R global conditions of a language model are dropped": ("models/test_lm.py::test_a_condition_is_heard_by_its_own_item_alone",),
    "R a codebook without a counted token makes the language model's loss NaN": (
        "training/test_lm_training.py::test_a_clip_too_short_for_a_codebook_has_a_finite_loss",
    ),
    "S4 to S6, S10, S13, S15 to S17 training, demos and seeds": (
        ELSEWHERE,
        "training/test_arc.py::test_losses_are_their_formulas",
        "training/test_host.py::test_ema_follows_the_step_it_belongs_to",
        "training/test_host.py::test_a_demo_neither_kills_the_run_nor_moves_its_random_numbers",
        "training/test_reconstruction_losses.py::test_a_terms_weight_depends_on_the_step_alone",
        "training/test_distributed.py::test_two_processes_train_one_model_each_with_its_own_noise",
        "training/test_ddp.py::test_a_step_takes_the_mean_of_the_gradients_of_all_ranks_each_with_its_own_noise",
        "training/test_matrix.py::test_a_stopped_run_goes_on_as_if_it_had_not_stopped",
    ),
    "S7 guided sampling calls an undefined name": (ELSEWHERE,),
    "S8 negative conditions and rescaling are accepted and dropped": (
        "models/test_latent_diffusion.py::test_a_negative_prompt_is_taken_on_every_route",
        "models/test_latent_diffusion.py::test_a_negative_may_be_a_number_on_any_route",
        "models/test_latent_diffusion.py::test_rescaled_guidance_keeps_the_deviation",
        "models/test_guided_model.py::test_each_argument_acts_and_a_clip_does_not_depend_on_its_batch",
        "models/test_adp.py::test_the_networks_own_share_of_rescaling",
    ),
    "Sampling: the third-order multistep sampler is of second order": (
        ELSEWHERE,
        "diffusion/test_sampler_convergence.py::test_halving_the_step_divides_the_error_by_two_to_the_order",
    ),
    "Sampling: k-dpm-fast and k-dpm-adaptive leave the noise of sigma_min in the audio": (
        ELSEWHERE,
        "diffusion/test_samplers.py::test_one_point_of_data_is_found_exactly_in_any_number_of_steps",
    ),
    "Sampling: a clip depends on its batch, by one stream of noise and by steps that fit all items together": (
        ELSEWHERE,
        "diffusion/test_samplers.py::test_a_clip_does_not_depend_on_its_batch",
        "inference/test_generation_samplers.py::test_audio_from_every_sampler_is_finite_and_the_same_in_any_batch",
    ),
    "Sampling: the flow's ratios of noise to data, and other options, are accepted and dropped": (
        ELSEWHERE,
        "diffusion/test_samplers.py::test_wrong_samplers_are_told",
        "inference/test_generation_samplers.py::test_ratios_and_other_options_reach_the_sampler",
    ),
    "S9 the fallback key of one item sticks for the rest of the batch": (
        "models/conditioners/test_multi_conditioner.py::test_the_fallback_key_is_chosen_for_each_item_alone",
    ),
    "S11 weights that do not fit are skipped without a word": (
        "models/test_checkpoints.py::test_a_misfit_is_reported_in_full_and_changes_nothing",
        "models/test_model_utils.py::test_copy_state_dict_copies_what_matches_and_warns_of_the_rest",
    ),
    "Levels: loudness is measured through filters that limit their output, so that loud high sounds count as quieter than they are": (
        ELSEWHERE,
        "audio/test_loudness.py::test_quiet_noise_is_as_torchaudio_says_and_loud_noise_is_so_much_louder",
    ),
    "Levels: long silence is shortened in mono alone, and what stays of it is drawn anew by every run": (
        ELSEWHERE,
        "data/test_levels.py::test_long_silence_is_shortened_to_what_is_next_to_the_sound",
        "data/test_levels.py::test_a_place_is_silent_where_all_channels_are_and_all_may_be",
    ),
    "Loader: every clip is padded to sample_size, and carries a float mask of as many samples between processes": (
        ELSEWHERE,
        "data/test_buckets.py::test_batches_are_as_long_as_their_longest_clip_and_say_what_is_real",
        "data/test_loader.py::test_what_crosses_to_the_training_process_has_no_masks",
    ),
    "Metadata: code runs unasked, for folders whose path holds another's, and its failures are another random file": (
        ELSEWHERE,
        "data/test_metadata_module.py::test_a_config_from_elsewhere_runs_no_code_without_permission",
        "data/test_metadata_module.py::test_a_module_is_for_its_own_folder_alone",
        "data/test_metadata_module.py::test_failures_name_the_users_own_line",
    ),
    "Data: a file that cannot be read is another one, at random and without a word, and a folder of such files never ends": (
        ELSEWHERE,
        "data/test_bad_data.py::test_every_good_file_is_served_once_an_epoch_and_every_bad_one_named_once",
        "data/test_bad_data.py::test_a_run_on_nothing_but_bad_files_ends_at_once_with_their_number_and_causes",
        "data/test_scan.py::test_a_subfolder_that_cannot_be_listed_is_named",
    ),
    "Metadata: further audio is cut at a place of its own": (
        ELSEWHERE,
        "data/test_metadata_module.py::test_further_audio_is_the_same_part_with_the_same_polarity",
    ),
    "Metadata: an item that lacks what a conditioner reads ends the run at whatever step it comes": (
        ELSEWHERE,
        "training/test_metadata_needs.py::test_a_run_on_data_without_the_metadata_ends_at_once",
        "cli/test_check_needs.py::test_items_that_lack_what_the_model_reads_are_counted",
    ),
    "Shards: a bucket is read by shell commands made of object names, and members of any kind are decoded, pickles among them": (
        ELSEWHERE,
        "data/test_hostile_shards.py::test_members_of_other_kinds_are_never_read",
        "data/test_hostile_shards.py::test_arrays_of_objects_are_refused",
        "data/test_hostile_shards.py::test_names_are_no_commands",
        "data/test_buckets_s3.py::test_names_with_shell_characters_are_names",
    ),
    "Shards: nothing is known of a run's place in them, and workers serve the same items": (
        ELSEWHERE,
        "data/test_webdataset.py::test_a_run_goes_on_where_it_was_whatever_the_workers_and_ranks",
        "data/test_webdataset.py::test_every_item_once_an_epoch_in_batches_of_audio_and_masks",
        "data/test_resampled.py::test_the_draws_go_on_where_they_were",
    ),
    "Shards: a bucket needs another program, and its failures are a skipped shard": (
        ELSEWHERE,
        "data/test_buckets_s3.py::test_a_server_that_fails_twice_is_asked_again",
        "data/test_buckets_s3.py::test_wrong_credentials",
        "data/test_buckets_s3.py::test_a_bucket_that_is_not_there",
    ),
    "Shards: an item of a dataset without a place is left out, and items without JSON are": (
        ELSEWHERE,
        "data/test_webdataset_config.py::test_problems_are_named_with_their_fix",
        "data/test_webdataset.py::test_words_beside_items",
    ),
    "Shards: crops of latents keep the seconds_start of the whole clip": (
        ELSEWHERE,
        "data/test_webdataset.py::test_latents",
        "data/test_webdataset.py::test_crops_of_latents_need_a_frame_rate",
    ),
    "S12 a pretransform's load_state_dict returns nothing and misses nothing": (HERE + "test_a_pretransform_loads_weights_as_any_module",),
    "R stored latents that are shorter than the crop do not fit their batch": (
        ELSEWHERE,
        "data/test_pre_encoded.py::test_masks_of_batches_are_bool_and_exact_and_shorter_items_are_padded",
    ),
    "R a folder of stored latents of which none can be read is looked through without end": (
        ELSEWHERE,
        "data/test_pre_encoded.py::test_what_goes_bad_later_is_replaced_and_named",
        "data/test_pre_encoded.py::test_bad_files_are_listed_with_causes_and_never_served",
    ),
    "R a loader of no worker processes cannot be made, and what hangs or dies in one is not named": (
        ELSEWHERE,
        "data/test_loader.py::test_workers_do_not_change_anything",
        "data/test_loader_workers.py::test_a_worker_that_hangs_is_named_with_the_file_it_is_at",
        "data/test_loader_workers.py::test_a_worker_that_dies_is_named_with_the_file_it_was_at",
    ),
    "S ranks of a run draw other items at each start, and a resumed epoch begins again": (
        ELSEWHERE,
        "data/test_loader_exact.py::test_every_item_once_an_epoch_whatever_the_ranks_before_and_after_an_interruption",
    ),
    "R tokens of pre-encoding lose their padding": (ELSEWHERE, "training/test_pre_encode.py::test_tokens_are_stored_and_trained_on"),
    "S crops of stored latents keep the seconds_start of the whole clip, and never reach its last frame": (
        ELSEWHERE,
        "data/test_pre_encoded.py::test_random_crops_stay_on_the_audio_and_say_where_they_start",
        "training/test_pre_encode.py::test_whole_files_are_encoded_whole_and_cropped_in_training",
    ),
    "S bounds of length put other items in the place of those outside": (
        ELSEWHERE,
        "data/test_pre_encoded.py::test_bounds_of_length_choose_items_and_no_other_stands_in",
    ),
    "S pre-encoding encodes another file in the place of a bad one, and its limit has no effect": (
        ELSEWHERE,
        "training/test_pre_encode.py::test_a_file_that_goes_bad_is_left_out_and_named_and_no_other_stands_in",
        "training/test_pre_encode.py::test_the_details_say_what_was_encoded_by_what",
    ),
    "S latents of another encoder are trained on": (
        ELSEWHERE,
        "training/test_latent_data.py::test_latents_of_another_encoder_are_refused_with_both_named",
        "training/test_latent_data.py::test_audio_and_latents_are_not_taken_for_each_other",
    ),
    "Page: inputs reach the handler by their position in a list": (
        ELSEWHERE,
        "interface/test_interface_form.py::test_values_are_matched_by_name_whatever_their_order",
        "interface/test_interface_page.py::test_changing_the_model_keeps_what_both_ask_for",
    ),
    "Page: every visitor's clip is one output.wav in the working folder": (
        ELSEWHERE,
        "interface/test_interface_studio.py::test_visitors_write_into_folders_of_their_own_and_nowhere_else",
        "interface/test_interface_page.py::test_no_other_file_is_served_and_nothing_is_written_elsewhere",
    ),
    "Page: prompts become parts of a shell command": (
        ELSEWHERE,
        "interface/test_interface_studio.py::test_a_prompt_is_no_part_of_a_path",
        "interface/test_interface_studio.py::test_clips_can_be_had_in_other_formats_and_no_other_file_can",
    ),
    "Page: unconditional models and language models fail on it, and only some settings of a model are on it": (
        ELSEWHERE,
        "interface/test_interface_studio.py::test_a_clip_of_every_kind_is_made_and_the_command_line_repeats_it",
        "interface/test_interface_form.py::test_every_condition_of_the_config_is_asked_for_with_its_range",
    ),
    "S14 importing or generating changes global settings": (HERE + "test_no_global_setting_of_torch_is_touched",),
}


@cache
def functions(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_row_names_tests_that_are_there():
    missing = []
    for row, nodes in ROWS.items():
        assert nodes, row
        for node in nodes:
            file, _, name = node.partition("::")
            if node != ELSEWHERE and not ((TESTS / file).is_file() and name.startswith("test_") and name in functions(TESTS / file)):
                missing.append(f"{row}: {node}")
    assert missing == []


def test_every_test_of_this_file_belongs_to_a_row():
    named = {node.removeprefix(HERE) for nodes in ROWS.values() for node in nodes if node.startswith(HERE)}
    assert {name for name in functions(Path(__file__)) if name.startswith("test_")} - named == {
        "test_every_row_names_tests_that_are_there",
        "test_every_test_of_this_file_belongs_to_a_row",
    }


# ---- D4 ----


def seanet_model() -> dict[str, Any]:
    """A diffusion autoencoder whose encoder has ratios that read differently backwards."""
    seanet = {"channels": 1, "n_filters": 4, "dimension": 4, "ratios": [2, 4], "lstm": 0}
    network = {"io_channels": 1, "depth": 2, "n_attn_layers": 0, "channels": [8, 8], "strides": [2], "cond_dim": 4}
    model = {
        "encoder": {"type": "seanet", "config": seanet},
        "diffusion": {"type": "DAU1d", "config": network},
        "latent_dim": 4,
        "downsampling_ratio": 8,
        "io_channels": 1,
    }
    return {"model_type": "diffusion_autoencoder", "sample_rate": 8000, "sample_size": 64, "audio_channels": 1, "model": model}


def test_a_seanet_model_its_copy_and_its_second_build_are_one_network():
    config = seanet_model()
    model = create_model_from_config(config).eval()
    second = create_model_from_config(config).eval()
    second.load_state_dict(model.state_dict())
    audio = torch.randn(1, 1, 64)
    for other in (second, copy.deepcopy(model)):
        assert torch.equal(other.encode(audio), model.encode(audio))
    assert config == seanet_model()


# ---- D9 ----


def test_no_context_is_lost_behind_an_and():
    """`with a and b:` enters b alone."""
    joined = [
        f"{file}:{node.lineno}"
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.With) and any(isinstance(item.context_expr, ast.BoolOp) for item in node.items)
    ]
    assert joined == []


# ---- D13 ----


@pytest.mark.parametrize("mask", [None, torch.ones(2, 24, dtype=torch.bool)], ids=["no mask at all", "mask of the frames"])
def test_prepended_and_global_conditions_need_no_mask(mask):
    config = {"io_channels": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "prepend_cond_dim": 6, "global_cond_dim": 5}
    model = validate(DenoiserConfig, {"type": "dit", "config": config}, "model").build()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, t, front, whole = torch.randn(2, 4, 24), torch.tensor([0.1, 0.8]), torch.randn(2, 3, 6), torch.randn(2, 5)
    got = model(x, t, prepend_cond=front, global_cond=whole, mask=mask)
    all_real = torch.ones(2, 3, dtype=torch.bool)
    torch.testing.assert_close(got, model(x, t, prepend_cond=front, prepend_cond_mask=all_real, global_cond=whole, mask=mask))
    assert not torch.allclose(got, model(x, t, prepend_cond=-front, global_cond=whole, mask=mask))
    assert not torch.allclose(got, model(x, t, prepend_cond=front, global_cond=-whole, mask=mask))


# ---- D19 ----


def test_an_unknown_network_is_refused_with_those_there_are():
    with pytest.raises(ConfigError) as caught:
        validate(DenoiserConfig, {"type": "DAU1d", "config": {}}, "model")
    (problem,) = caught.value.problems
    assert problem.path == ("type",) and "dit, adp_1d, adp_cfg_1d" in problem.fix


# ---- D20 ----


def test_nothing_is_unpickled():
    """`torch.load` and `pickle.load` of a file from elsewhere run what is in it, unless they are told to read weights only."""
    unsafe = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads", "dill.load"):
                safe = any(keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True" for keyword in node.keywords)
                unsafe += [] if safe else [f"{file}:{node.lineno}"]
    assert unsafe == []


# ---- S12 ----


def autoencoder_pretransform() -> AutoencoderPretransform:
    sizes = {"channels": 4, "c_mults": [1], "strides": [4]}
    body = {
        "encoder": {"type": "oobleck", "config": {**sizes, "in_channels": 1, "latent_dim": 4}},
        "decoder": {"type": "oobleck", "config": {**sizes, "out_channels": 1, "latent_dim": 4}},
        "latent_dim": 4,
        "downsampling_ratio": 4,
        "io_channels": 1,
    }
    return create_pretransform_from_config({"type": "autoencoder", "config": body}, 8000)


def test_a_pretransform_loads_weights_as_any_module():
    state = autoencoder_pretransform().state_dict()
    key = next(iter(state))
    without = {name: value for name, value in state.items() if name != key} | {"other": torch.zeros(1)}
    assert autoencoder_pretransform().load_state_dict(without, strict=False) == ([key], ["other"])
    with pytest.raises(RuntimeError, match=key):
        autoencoder_pretransform().load_state_dict(without)


# ---- S14 ----


@pytest.mark.slow
def test_no_global_setting_of_torch_is_touched():
    """Outside of the command line, whose process is its own."""
    settings = ("torch.backends.", "torch._dynamo.config.", "torch._inductor.config.")
    touched = []
    for file in PACKAGE.rglob("*.py"):
        if "cli" in file.relative_to(PACKAGE).parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            touched += [f"{file}:{node.lineno}" for target in targets if ast.unparse(target).startswith(settings)]
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.set_float32_matmul_precision", "logging.disable"):
                touched.append(f"{file}:{node.lineno}")
    assert touched == []
